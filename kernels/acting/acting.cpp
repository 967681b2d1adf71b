// What acting on the CPU calls once per step instead of many small operations; no gradient.
//
//   rms_norm     y = x w / sqrt(mean(x^2) + eps), rows of x
//   mamba_step   one step of a Mamba layer: its products by torch, its convolution and its scan by
//                the steps of causal_conv1d and selective_scan, which must be loaded

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kLanes = 16;     // partial sums, so that their order is ours
constexpr int64_t kGrain = 16384;  // numbers per task, at least

template <typename A>
void normalize(const A* __restrict x, const A* __restrict w, A* __restrict y, int64_t D, A eps) {
  A part[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= D; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) part[k] += x[i + k] * x[i + k];
  A sum = 0;
  for (; i < D; ++i) sum += x[i] * x[i];
  for (int64_t k = 0; k < kLanes; ++k) sum += part[k];
  const A scale = A(1) / std::sqrt(sum / static_cast<A>(D) + eps);
  for (i = 0; i < D; ++i) y[i] = x[i] * scale * (w ? w[i] : A(1));
}

template <typename A>
void normalize_rows(const Tensor& x, const OptionalTensor& w, const Tensor& y, double eps) {
  const int64_t D = x.size(-1);
  const A *from = x.const_data_ptr<A>(), *weight = w ? w->const_data_ptr<A>() : nullptr;
  A* to = y.mutable_data_ptr<A>();
  at::parallel_for(0, x.numel() / D, (kGrain + D - 1) / D, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      normalize<A>(from + row * D, weight, to + row * D, D, static_cast<A>(eps));
  });
}

// x (..., D), w (D,), both float32 or both float64.
Tensor rms_norm(const Tensor& x, const OptionalTensor& w, double eps) {
  const Tensor dense = x.contiguous();
  const OptionalTensor weight = w ? OptionalTensor(w->contiguous()) : w;
  Tensor y = at::empty(dense.sizes(), dense.options());
  if (x.numel() == 0) return y;
  if (x.scalar_type() == at::kDouble)
    normalize_rows<double>(dense, weight, y, eps);
  else
    normalize_rows<float>(dense, weight, y, eps);
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

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor? w, float eps) -> Tensor", &rms_norm);
  m.def(
      "mamba_step(Tensor x, Tensor in_proj, Tensor conv_weight, Tensor conv_bias, Tensor x_proj, "
      "Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D, Tensor out_proj, Tensor conv, "
      "Tensor ssm, Tensor? reset, Tensor? a_override, bool is_signed) -> (Tensor, Tensor, Tensor)",
      &mamba_step);
}
