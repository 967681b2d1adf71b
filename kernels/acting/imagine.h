// One step of a world model that sees nothing, a tile of rows after the other.
//
//   x = read [z, a];   x = blocks x, see diagonal_blocks.h;   h = write x;   log p = mixture of
//   softmax(prior h) and even shares;   z' = one-hot at the largest log p + noise
//
// read, write and prior are fully connected layers, see dense_layers.h. A tile goes through all of
// it while it is in the nearest cache; threads share the tiles.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../latent_rows.h"
#include "dense_layers.h"
#include "diagonal_blocks.h"

namespace statewise {
namespace {  // every library has its own

template <typename A>
struct ImaginedStep {
  std::vector<DenseLayer<A>> read, write, prior;
  std::vector<DiagonalBlock<A>> blocks;
  BlockForm form;
  double eps;                           // of the norms of fully connected layers
  const A *stoch, *action, *noise;      // (B, Z), (B, actions), (B, Z)
  A *next, *deter, *log_p;              // (B, Z), (B, D), (B, Z)
  int64_t B, Z, actions, D, classes;
  A keep, floor;                        // 1 - unimix, unimix / classes

  int64_t width() const { return read.back().N; }
};

template <typename A>
struct ImaginedTile {
  explicit ImaginedTile(const ImaginedStep<A>& step)
      : blocks(kTileRows, step.width()),
        dense(widest_of<A>({&step.read, &step.write, &step.prior})),
        in(kTileRows * (step.Z + step.actions)),
        x(kTileRows * step.width()),
        logits(kTileRows * step.Z) {}
  TileBuffers<A> blocks;
  LayerBuffers<A> dense;
  std::vector<A> in, x, logits;
};

template <typename A, typename Count>
void imagine_tile(const ImaginedStep<A>& step, ImaginedTile<A>& tile, int64_t first, int64_t rows,
                  Count K) {
  const int64_t Z = step.Z, H = step.width();
  A *in = tile.in.data(), *x = tile.x.data(), *logits = tile.logits.data();
  for (int64_t i = 0; i < rows; ++i) {
    A* row = in + i * (Z + step.actions);
    std::copy_n(step.stoch + (first + i) * Z, Z, row);
    std::copy_n(step.action + (first + i) * step.actions, step.actions, row + Z);
  }
  layers_on_tile<A>(step.read, step.eps, in, x, tile.dense, rows);
  for (const DiagonalBlock<A>& block : step.blocks)
    block_on_tile<A>(step.form, block, tile.blocks, x, nullptr, first, rows, H);
  A *deter = step.deter + first * step.D, *log_p = step.log_p + first * Z;
  layers_on_tile<A>(step.write, step.eps, x, deter, tile.dense, rows);
  layers_on_tile<A>(step.prior, step.eps, deter, logits, tile.dense, rows);
  mixed_tile<A>(logits, log_p, step.keep, step.floor, rows * Z / step.classes, K);
  for (int64_t i = 0; i < rows * Z; i += step.classes)
    draw_row<A>(log_p + i, step.noise + first * Z + i, step.next + first * Z + i, K);
}

template <typename A>
void imagine_rows(const ImaginedStep<A>& step) {
  with_classes(step.classes, [&](auto K) {
    for_tiles(step.B, [&] { return ImaginedTile<A>(step); },
              [&](auto& tile, int64_t first, int64_t rows) {
                imagine_tile<A>(step, tile, first, rows, K);
              });
  });
}

}  // namespace
}  // namespace statewise
