// One step of residual blocks around diagonal complex layers, a tile of rows after the other.
//
//   v = norm(x) or x;   h' = a h + W_in v, h replaced where there is a reset;
//   v = W_out h' + D v;   v = norm(v) if it is shared;   v = gate(v);   x = x + v;
//   x = norm(x) if it stands behind
//
// All products of a tile find its rows in the nearest cache; threads share the tiles.

#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "../elementary.h"
#include "../row_norm.h"
#include "panels.h"

namespace statewise {
namespace {  // every library has its own

enum class RowGate : int64_t { none, gelu, full_glu, half_glu1, half_glu2 };

struct BlockForm {
  RowNorm norm;
  bool post;    // the norm stands behind the sum
  bool shared;  // and again behind the layer
  RowGate gate;
  double eps;
};

template <typename A>
struct DiagonalBlock {
  const A *norm_weight, *norm_bias;  // (H,); the latter of a layer norm alone
  const A* a;                        // (P, 2)
  const A* w_in;                     // (H, 2 P)
  const A* w_out;                    // (2 P, H)
  const A* skip;                     // (H,)
  const A *gate_weight, *gate_bias;  // (H, G), (G,)
  const A* restored;                 // (P, 2) after a reset; none: zeros
  const A* h;                        // (B, P, 2)
  A* after;                          // (B, P, 2)
  int64_t numbers;                   // 2 P
};

// h' = a h + driven, in place of driven.
template <typename A>
void advance_row(const DiagonalBlock<A>& block, const A* h, A* driven, bool reset) {
  const A* __restrict a = block.a;
  if (reset) h = block.restored;
  if (!h) return;
  const A* __restrict before = h;
  A* __restrict after = driven;
  for (int64_t k = 0; k < block.numbers; k += 2) {
    after[k] += a[k] * before[k] - a[k + 1] * before[k + 1];
    after[k + 1] += a[k] * before[k + 1] + a[k + 1] * before[k];
  }
}

// x += gate(v) for one row; g (G,) is the product of the gate, v before and u after the gelu.
template <typename A>
void gate_row(RowGate gate, const A* v, const A* u, const A* g, const A* bias, A* x, int64_t H) {
  switch (gate) {
    case RowGate::full_glu:
#pragma omp simd
      for (int64_t k = 0; k < H; ++k)
        x[k] += (g[k] + bias[k]) * sigmoid2_(A(kLog2E) * (g[H + k] + bias[H + k]));
      break;
    case RowGate::half_glu1:
      for (int64_t k = 0; k < H; ++k) x[k] += u[k] * sigmoid2_(A(kLog2E) * (g[k] + bias[k]));
      break;
    case RowGate::half_glu2:
      for (int64_t k = 0; k < H; ++k) x[k] += v[k] * sigmoid2_(A(kLog2E) * (g[k] + bias[k]));
      break;
    case RowGate::gelu:
      for (int64_t k = 0; k < H; ++k) x[k] += u[k];
      break;
    case RowGate::none:
      for (int64_t k = 0; k < H; ++k) x[k] += v[k];
  }
}

template <typename A>
struct TileBuffers {
  TileBuffers(int64_t rows, int64_t H) : v(rows * H), u(rows * H), g(rows * 2 * H) {}
  std::vector<A> v, u, g;
};

// x (rows, H) becomes what the block makes of it; `first` is the tile's first row in the batch.
template <typename A>
void block_on_tile(const BlockForm& form, const DiagonalBlock<A>& block, TileBuffers<A>& buffers,
                   A* x, const bool* reset, int64_t first, int64_t rows, int64_t H) {
  const int64_t numbers = block.numbers;
  const auto norm = [&](const A* from, A* to) {
    norm_row<A>(form.norm, form.eps, block.norm_weight, block.norm_bias, from, to, H);
  };
  A *v = buffers.v.data(), *u = buffers.u.data(), *g = buffers.g.data();
  const bool pre = form.norm != RowNorm::none && !form.post;
  if (pre)
    for (int64_t i = 0; i < rows; ++i) norm(x + i * H, u + i * H);
  const A* input = pre ? u : x;
  A* after = block.after + first * numbers;
  multiply_panels<A>(input, H, block.w_in, after, rows, H, numbers);
  for (int64_t i = 0; i < rows; ++i)
    advance_row<A>(block, block.h + (first + i) * numbers, after + i * numbers,
                   reset && reset[first + i]);
  multiply_panels<A>(after, numbers, block.w_out, v, rows, numbers, H);
  for (int64_t i = 0; i < rows; ++i) {
    A *row = v + i * H, *activated = u + i * H;
    const A* in = input + i * H;
    for (int64_t k = 0; k < H; ++k) row[k] += block.skip[k] * in[k];
    if (form.shared) norm(row, row);
    if (form.gate != RowGate::none)
#pragma omp simd
      for (int64_t k = 0; k < H; ++k) activated[k] = gelu_tanh_(row[k]);
  }
  const int64_t G = form.gate == RowGate::full_glu ? 2 * H : H;
  if (form.gate != RowGate::none && form.gate != RowGate::gelu)
    multiply_panels<A>(u, H, block.gate_weight, g, rows, H, G);
  for (int64_t i = 0; i < rows; ++i) {
    A* row = x + i * H;
    gate_row<A>(form.gate, v + i * H, u + i * H, g + i * G, block.gate_bias, row, H);
    if (form.post) norm(row, row);
  }
}

}  // namespace
}  // namespace statewise
