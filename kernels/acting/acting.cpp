// What acting on the CPU calls once per step instead of many small operations; no gradient.
//
//   rms_norm     y = x w / sqrt(mean(x^2) + eps), rows of x
//   mamba_step   one step of a Mamba layer: its products by torch, its convolution and its scan by
//                the steps of causal_conv1d and selective_scan, which must be loaded
//   lti_blocks_step
//                one step of residual blocks around diagonal layers, by the step of ssm_scan_lti
//   join_step    a small network over several inputs
//   diagonal_blocks_step
//                one step of residual blocks around S5 or LRU, see diagonal_blocks.h
//   dense_layers fully connected layers with norm and SiLU, see dense_layers.h
//   imagine_step one step of a world model that sees nothing, see imagine.h
//   stack_steps  rows of many steps one behind the other

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../elementary.h"
#include "../rows.h"
#include "dense_layers.h"
#include "diagonal_blocks.h"
#include "imagine.h"

namespace {

using namespace statewise;

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// x (..., D), w_ (D,), both float32 or both float64.
Tensor rms_norm(const Tensor& x, const OptionalTensor& w_, double eps) {
  const Tensor dense = x.contiguous();
  const OptionalTensor weight = w_ ? OptionalTensor(w_->contiguous()) : w_;
  Tensor y = at::empty(dense.sizes(), dense.options());
  if (x.numel() == 0) return y;
  const int64_t D = x.size(-1);
  with_dtype(dense, [&](auto zero) {
    using A = decltype(zero);
    const A *from = dense.const_data_ptr<A>(), *w = weight ? weight->const_data_ptr<A>() : nullptr;
    A* to = y.mutable_data_ptr<A>();
    for_rows(x.numel() / D, D, [&](int64_t i) {
      norm_row<A>(RowNorm::rms, eps, w, nullptr, from + i * D, to + i * D, D);
    });
  });
  return y;
}

using Conv = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptionalTensor&,
                                        const Tensor&, const OptionalTensor&, bool);
using Scan = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const Tensor&, const OptionalTensor&,
                                        const OptionalTensor&, const OptionalTensor&,
                                        const Tensor&, const OptionalTensor&,
                                        const OptionalTensor&, bool, bool);

template <typename F>
c10::TypedOperatorHandle<F> op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<F>();
}

// x (B, D), in_proj (2 E, D), conv_weight (E, W), x_proj (R + 2 N, E), dt_weight (E, R), A (E, N),
// out_proj (D, E), conv (B, E, W - 1), ssm (B, E, N), reset (B,); see ssm/mamba.py.
std::tuple<Tensor, Tensor, Tensor> mamba_step(
    const Tensor& x, const Tensor& in_proj, const Tensor& conv_weight, const Tensor& conv_bias,
    const Tensor& x_proj, const Tensor& dt_weight, const Tensor& dt_bias, const Tensor& A,
    const Tensor& D, const Tensor& out_proj, const Tensor& conv, const Tensor& ssm,
    const OptionalTensor& reset, const OptionalTensor& a_override, bool is_signed) {
  static const auto convolve = op<Conv>("statewise_cpu::causal_conv1d_step");
  static const auto scan = op<Scan>("statewise_cpu::selective_scan_step");
  const int64_t E = conv_weight.size(0), N = A.size(1), R = dt_weight.size(1);
  const Tensor inner = at::linear(x, in_proj);
  const auto [u, inputs] =
      convolve.call(inner.narrow(1, 0, E), conv_weight, conv_bias, conv, reset, true);
  const Tensor selected = at::linear(u, x_proj);
  const Tensor dt = at::linear(selected.narrow(1, 0, R), dt_weight);
  const auto part = [&](int64_t first) { return selected.narrow(1, first, N).unsqueeze(1); };
  const auto [y, state] = scan.call(u, dt, A, part(R), part(R + N), D, inner.narrow(1, E, E),
                                    dt_bias, ssm, reset, a_override, true, is_signed);
  return {at::linear(y, out_proj), inputs, state};
}

// ---------------------------------------------------------------- small networks

constexpr int64_t kSmall = 65536;  // products below which a call into BLAS costs more than they do

// x = f(x, i) for every number of a dense tensor.
template <typename A, typename Function>
void in_place(const Tensor& x, Function&& f) {
  A* data = x.mutable_data_ptr<A>();
  at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) data[i] = f(data[i], i);
  });
}

// x weight^T + bias; x (B, D).
Tensor linear(const Tensor& x_, const Tensor& weight, const Tensor& bias) {
  const int64_t B = x_.size(0), D = weight.size(1), R = weight.size(0);
  const bool dense = weight.is_contiguous() && bias.is_contiguous();
  if (!dense || x_.size(1) != D || B * D * R >= kSmall) return at::linear(x_, weight, bias);
  const Tensor x = x_.contiguous(), y = at::empty({B, R}, x.options());
  with_dtype(x, [&](auto zero) {
    using A = decltype(zero);
    const A *from = x.const_data_ptr<A>(), *w = weight.const_data_ptr<A>();
    const A* start = bias.const_data_ptr<A>();
    A* to = y.mutable_data_ptr<A>();
    for (int64_t i = 0; i < B * R; ++i) {
      const A *__restrict row = w + (i % R) * D, *__restrict at = from + (i / R) * D;
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < D; ++k) sum += row[k] * at[k];
      to[i] = sum + start[i % R];
    }
  });
  return y;
}

using Channels = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                            const Tensor&, const Tensor&, const OptionalTensor&);

// share x + gelu(W gelu(v) + bias), v = step(u) + D u, u = LN(x) or x, block after block; x (B, H).
// `parts` holds weight and bias of the norm, empty where there is none, a, b and c as
// ssm_scan_lti_step has them, D, W and bias of every block.
std::tuple<Tensor, std::vector<Tensor>> lti_blocks_step(const Tensor& x, at::TensorList parts,
                                                        at::TensorList states,
                                                        const OptionalTensor& reset, double eps,
                                                        double share) {
  static const auto advance = op<Channels>("statewise_cpu::ssm_scan_lti_step");
  constexpr size_t count = 8;
  TORCH_CHECK(parts.size() == count * states.size(), "lti_blocks_step: ", parts.size(), " parts");
  const int64_t H = x.size(1);
  std::vector<Tensor> after;
  Tensor y = x.contiguous();
  for (size_t i = 0; i < states.size(); ++i) {
    const Tensor* p = &parts[count * i];
    const Tensor before = y, skip = p[5].contiguous();
    const Tensor u = p[0].numel() ? at::layer_norm(before, {H}, p[0], p[1], eps) : before;
    const auto [v, next] = advance.call(u, p[2], p[3], p[4], states[i], reset);
    with_dtype(u, [&](auto zero) {
      using A = decltype(zero);
      const A *through = skip.const_data_ptr<A>(), *from = u.const_data_ptr<A>();
      in_place<A>(v, [=](A value, int64_t k) { return gelu_(value + through[k % H] * from[k]); });
    });
    y = linear(v, p[6], p[7]);
    with_dtype(y, [&](auto zero) {
      using A = decltype(zero);
      const A* from = before.const_data_ptr<A>();
      const A part = static_cast<A>(share);
      in_place<A>(y, [=](A value, int64_t k) { return part * from[k] + gelu_(value); });
    });
    after.push_back(next);
  }
  return {y, after};
}

// W_2 gelu(W_1 tanh([V_k x_k + c_k]) + b_1) + b_2; x_k (B, D_k).
Tensor join_step(at::TensorList xs, at::TensorList weights, at::TensorList biases,
                 const Tensor& weight1, const Tensor& bias1, const Tensor& weight2,
                 const Tensor& bias2) {
  std::vector<Tensor> parts;
  for (size_t k = 0; k < xs.size(); ++k) parts.push_back(linear(xs[k], weights[k], biases[k]));
  const Tensor joined = at::cat(parts, -1);
  with_dtype(joined, [&](auto zero) {
    using A = decltype(zero);
    in_place<A>(joined, [](A value, int64_t) { return tanh_(value); });
  });
  const Tensor hidden = linear(joined, weight1, bias1);
  with_dtype(hidden, [&](auto zero) {
    using A = decltype(zero);
    in_place<A>(hidden, [](A value, int64_t) { return gelu_(value); });
  });
  return linear(hidden, weight2, bias2);
}

// ---------------------------------------------------------------- blocks of S5 and LRU

template <typename A>
const A* data_or_null(const Tensor& x) {
  return x.numel() ? x.const_data_ptr<A>() : nullptr;
}

std::vector<Tensor> all_dense(at::TensorList xs) {
  std::vector<Tensor> dense;
  for (const Tensor& x : xs) dense.push_back(x.contiguous());
  return dense;
}

std::vector<Tensor> all_empty_like(at::TensorList xs) {
  std::vector<Tensor> empty;
  for (const Tensor& x : xs) empty.push_back(at::empty(x.sizes(), x.options()));
  return empty;
}

constexpr size_t kBlockParts = 9;

// Of dense parts and states.
template <typename A>
std::vector<DiagonalBlock<A>> diagonal_blocks(const std::vector<Tensor>& parts,
                                              const std::vector<Tensor>& states,
                                              const std::vector<Tensor>& after) {
  std::vector<DiagonalBlock<A>> blocks;
  for (size_t i = 0; i < states.size(); ++i) {
    const Tensor* p = &parts[kBlockParts * i];
    blocks.push_back({data_or_null<A>(p[0]), data_or_null<A>(p[1]), p[2].const_data_ptr<A>(),
                      p[3].const_data_ptr<A>(), p[4].const_data_ptr<A>(), p[5].const_data_ptr<A>(),
                      data_or_null<A>(p[6]), data_or_null<A>(p[7]), data_or_null<A>(p[8]),
                      states[i].const_data_ptr<A>(), after[i].mutable_data_ptr<A>(),
                      p[3].size(1)});
  }
  return blocks;
}

// x (B, H); `parts` holds of every block weight and bias of the norm, a, W_in^T, W_out^T, D, weight^T
// and bias of the gate and what a reset restores, empty where there is none.
std::tuple<Tensor, std::vector<Tensor>> diagonal_blocks_step(
    const Tensor& x, at::TensorList parts, at::TensorList states, const OptionalTensor& reset,
    int64_t norm, bool post, bool shared, int64_t gate, double eps) {
  TORCH_CHECK(parts.size() == kBlockParts * states.size(), "diagonal_blocks_step: ", parts.size(),
              " parts");
  const Tensor y = x.clone(at::MemoryFormat::Contiguous);
  const auto dense = all_dense(parts), before = all_dense(states), after = all_empty_like(states);
  const OptionalTensor cleared = reset ? OptionalTensor(reset->contiguous()) : reset;
  const bool* flags = cleared ? cleared->const_data_ptr<bool>() : nullptr;
  const BlockForm form{static_cast<RowNorm>(norm), post, shared, static_cast<RowGate>(gate), eps};
  const int64_t B = x.size(0), H = x.size(1);
  with_dtype(y, [&](auto zero) {
    using A = decltype(zero);
    const auto blocks = diagonal_blocks<A>(dense, before, after);
    A* data = y.mutable_data_ptr<A>();
    for_tiles(B, [&] { return TileBuffers<A>(std::min(kTileRows, B), H); },
              [&](auto& buffers, int64_t first, int64_t rows) {
                for (const auto& block : blocks)
                  block_on_tile<A>(form, block, buffers, data + first * H, flags, first, rows, H);
              });
  });
  return {y, after};
}

// ---------------------------------------------------------------- fully connected layers

constexpr size_t kLayerParts = 4;

// Of dense parts.
template <typename A>
std::vector<DenseLayer<A>> dense_layers_of(const std::vector<Tensor>& parts,
                                           at::IntArrayRef norms, at::IntArrayRef silus,
                                           size_t first, size_t count) {
  std::vector<DenseLayer<A>> layers;
  for (size_t i = first; i < first + count; ++i) {
    const Tensor* p = &parts[kLayerParts * i];
    layers.push_back(dense_layer<A>(p[0].const_data_ptr<A>(), p[0].size(0), p[0].size(1),
                                    data_or_null<A>(p[1]), static_cast<RowNorm>(norms[i]),
                                    data_or_null<A>(p[2]), data_or_null<A>(p[3]), silus[i]));
  }
  return layers;
}

// x (..., K); `parts` holds of every layer its weight (N, K), its bias and weight and bias of its
// norm, empty where there is none.
Tensor dense_layers(const Tensor& x_, at::TensorList parts, at::IntArrayRef norms,
                    at::IntArrayRef silus, double eps) {
  TORCH_CHECK(parts.size() == kLayerParts * norms.size() && silus.size() == norms.size(),
              "dense_layers: ", parts.size(), " parts");
  const auto dense = all_dense(parts);
  const Tensor x = x_.contiguous();
  auto shape = x.sizes().vec();
  const int64_t K = shape.back(), B = x.numel() / K, N = parts[parts.size() - kLayerParts].size(0);
  shape.back() = N;
  const Tensor y = at::empty(shape, x.options());
  with_dtype(x, [&](auto zero) {
    using A = decltype(zero);
    const auto layers = dense_layers_of<A>(dense, norms, silus, 0, norms.size());
    const int64_t widest = widest_of<A>({&layers});
    const A* from = x.const_data_ptr<A>();
    A* to = y.mutable_data_ptr<A>();
    for_tiles(B, [&] { return LayerBuffers<A>(widest); },
              [&](auto& buffers, int64_t first, int64_t rows) {
                layers_on_tile<A>(layers, eps, from + first * K, to + first * N, buffers, rows);
              });
  });
  return y;
}

// ---------------------------------------------------------------- steps of a rollout

// stoch and noise (B, S, K), action (B, A), states (B, P, 2). `layers` are parts as in dense_layers
// of the `counts` layers of read, write and prior, `blocks` those of diagonal_blocks_step.
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> imagine_step(
    const Tensor& stoch_, const Tensor& action_, const Tensor& noise_, at::TensorList states,
    at::TensorList layers, at::IntArrayRef norms, at::IntArrayRef silus, at::IntArrayRef counts,
    double eps, at::TensorList blocks, int64_t norm, bool post, bool shared, int64_t gate,
    double block_eps, double unimix) {
  TORCH_CHECK(counts.size() == 3 && layers.size() == kLayerParts * norms.size() &&
                  silus.size() == norms.size() && blocks.size() == kBlockParts * states.size(),
              "imagine_step: ", layers.size(), " and ", blocks.size(), " parts");
  const Tensor stoch = stoch_.contiguous(), action = action_.contiguous();
  const Tensor noise = noise_.contiguous();
  const auto layer_parts = all_dense(layers), block_parts = all_dense(blocks);
  const auto before = all_dense(states), after = all_empty_like(states);
  const int64_t B = stoch.size(0), K = stoch.size(2);
  const int64_t D = layers[kLayerParts * (counts[0] + counts[1] - 1)].size(0);
  const Tensor next = at::empty_like(stoch), log_p = at::empty_like(stoch);
  const Tensor deter = at::empty({B, D}, stoch.options());
  const BlockForm form{static_cast<RowNorm>(norm), post, shared, static_cast<RowGate>(gate),
                       block_eps};
  with_dtype(stoch, [&](auto zero) {
    using A = decltype(zero);
    size_t first = 0;
    const auto take = [&](int64_t count) {
      first += count;
      return dense_layers_of<A>(layer_parts, norms, silus, first - count, count);
    };
    auto read = take(counts[0]), write = take(counts[1]), prior = take(counts[2]);
    imagine_rows<A>({std::move(read), std::move(write), std::move(prior),
                     diagonal_blocks<A>(block_parts, before, after), form, eps,
                     stoch.const_data_ptr<A>(), action.const_data_ptr<A>(),
                     noise.const_data_ptr<A>(), next.mutable_data_ptr<A>(),
                     deter.mutable_data_ptr<A>(), log_p.mutable_data_ptr<A>(), B,
                     stoch.size(1) * K, action.size(1), D, K, A(1 - unimix),
                     A(unimix / static_cast<double>(K))});
  });
  return {next, deter, log_p, after};
}

// ---------------------------------------------------------------- steps of a rollout

// y (N, T, ...) of T tensors (N, ...) of one shape and dtype. Torch copies them on one thread.
Tensor stack_steps(at::TensorList xs) {
  const Tensor& first = xs[0];
  std::vector<Tensor> dense;
  std::vector<const char*> from;
  for (const Tensor& x : xs) {
    TORCH_CHECK(x.sizes() == first.sizes() && x.dtype() == first.dtype(), "stack_steps: one form");
    dense.push_back(x.contiguous());
    from.push_back(static_cast<const char*>(dense.back().const_data_ptr()));
  }
  const int64_t N = first.size(0), T = static_cast<int64_t>(xs.size());
  auto shape = first.sizes().vec();
  shape.insert(shape.begin() + 1, T);
  const Tensor y = at::empty(shape, first.options());
  if (y.numel() == 0) return y;
  const int64_t numbers = first.numel() / N, bytes = numbers * first.element_size();
  char* to = static_cast<char*>(y.mutable_data_ptr());
  for_rows(N, T * numbers, [&](int64_t i) {
    for (int64_t t = 0; t < T; ++t)
      std::memcpy(to + (i * T + t) * bytes, from[t] + i * bytes, bytes);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor? w, float eps) -> Tensor", &rms_norm);
  m.def(
      "mamba_step(Tensor x, Tensor in_proj, Tensor conv_weight, Tensor conv_bias, Tensor x_proj, "
      "Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D, Tensor out_proj, Tensor conv, "
      "Tensor ssm, Tensor? reset, Tensor? a_override, bool is_signed) -> (Tensor, Tensor, Tensor)",
      &mamba_step);
  m.def(
      "lti_blocks_step(Tensor x, Tensor[] parts, Tensor[] states, Tensor? reset, float eps, "
      "float share) -> (Tensor, Tensor[])",
      &lti_blocks_step);
  m.def(
      "join_step(Tensor[] xs, Tensor[] weights, Tensor[] biases, Tensor weight1, Tensor bias1, "
      "Tensor weight2, Tensor bias2) -> Tensor",
      &join_step);
  m.def(
      "diagonal_blocks_step(Tensor x, Tensor[] parts, Tensor[] states, Tensor? reset, int norm, "
      "bool post, bool shared, int gate, float eps) -> (Tensor, Tensor[])",
      &diagonal_blocks_step);
  m.def(
      "dense_layers(Tensor x, Tensor[] parts, int[] norms, int[] silus, float eps) -> Tensor",
      &dense_layers);
  m.def(
      "imagine_step(Tensor stoch, Tensor action, Tensor noise, Tensor[] states, Tensor[] layers, "
      "int[] norms, int[] silus, int[] counts, float eps, Tensor[] blocks, int norm, bool post, "
      "bool shared, int gate, float block_eps, float unimix) -> (Tensor, Tensor, Tensor, Tensor[])",
      &imagine_step);
  m.def("stack_steps(Tensor[] xs) -> Tensor", &stack_steps);
}
