// What training on the CPU calls once instead of many small operations, with gradients.
//
//   gelu         y = x s,  s the sigmoid of 2 sqrt(2 / pi) (x + 0.044715 x^3): the tanh form
//   add_scaled   y = x + u d,  d of every column
//   gated_sum    see norms.h
//   norm_silu    see norms.h
//   two_hot_loss y = -(1 - w) log p_i - w log p_{i+1},  p the softmax of a row
//   s5_system    see s5_system.h
//
// Sums over rows are added up in an order that does not depend on the number of threads.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "../adjoint.h"
#include "../elementary.h"
#include "norms.h"
#include "s5_system.h"

namespace {

using namespace statewise;

// ---------------------------------------------------------------- gelu

struct Gelu : Function<Gelu> {
  static Tensor forward(AutogradContext* context, const Tensor& x_) {
    const Tensor x = x_.contiguous(), y = at::empty_like(x);
    context->save_for_backward({x});
    with_dtype(x, [&](auto zero) {
      using A = decltype(zero);
      const A* from = x.const_data_ptr<A>();
      A* to = y.mutable_data_ptr<A>();
      at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) to[i] = gelu_tanh_(from[i]);
      });
    });
    return y;
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("gelu");
    const Tensor x = context->get_saved_variables()[0], g = gradients[0].contiguous();
    const Tensor dx = at::empty_like(x);
    with_dtype(x, [&](auto zero) {
      using A = decltype(zero);
      const A *from = x.const_data_ptr<A>(), *grad = g.const_data_ptr<A>();
      A* to = dx.mutable_data_ptr<A>();
      at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
          const A v = from[i], s = gelu_gate_(v), inner = A(kGeluSlope) * (1 + 3 * A(kGeluCubic) * v * v);
          to[i] = grad[i] * (s + v * s * (1 - s) * inner);
        }
      });
    });
    return {dx};
  }
};

// ---------------------------------------------------------------- scaled sum

struct AddScaled : Function<AddScaled> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& u_,
                        const Tensor& d_) {
    const Tensor u = u_.contiguous(), d = d_.contiguous();
    TORCH_CHECK(x.sizes() == u.sizes() && d.numel() == u.size(-1), "add_scaled: shapes");
    context->save_for_backward({u, d});
    return at::addcmul(x, u, d);
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("add_scaled");
    const auto saved = context->get_saved_variables();
    const Tensor &u = saved[0], &d = saved[1], g = gradients[0].contiguous();
    const int64_t H = d.size(0), rows = g.numel() / H, chunks = (rows + kChunk - 1) / kChunk;
    const Tensor du = at::empty_like(u), sums = at::zeros({chunks, H}, g.options());
    with_dtype(g, [&](auto zero) {
      using A = decltype(zero);
      const A *grad = g.const_data_ptr<A>(), *from = u.const_data_ptr<A>();
      const A* scale = d.const_data_ptr<A>();
      A *to = du.mutable_data_ptr<A>(), *sum = sums.mutable_data_ptr<A>();
      for_rows(chunks, 3 * H * kChunk, [&](int64_t chunk) {
        A* own = sum + chunk * H;
        for (int64_t i = chunk * kChunk * H; i < std::min(rows, (chunk + 1) * kChunk) * H; i += H) {
#pragma omp simd
          for (int64_t k = 0; k < H; ++k) {
            to[i + k] = grad[i + k] * scale[k];
            own[k] += grad[i + k] * from[i + k];
          }
        }
      });
    });
    return {g, du, sums.sum(0)};
  }
};

// ---------------------------------------------------------------- two-hot loss

// The logarithm of the sum of exp(x) of a row.
template <typename A>
A log_sum_exp(const A* x, int64_t K) {
  A largest = x[0], sum = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t k = 0; k < K; ++k) largest = x[k] > largest ? x[k] : largest;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < K; ++k) sum += exp2_(A(kLog2E) * (x[k] - largest));
  return largest + std::log(sum);
}

struct TwoHotLoss : Function<TwoHotLoss> {
  static Tensor forward(AutogradContext* context, const Tensor& logits_, const Tensor& below_,
                        const Tensor& share_) {
    const Tensor logits = logits_.contiguous(), below = below_.contiguous();
    const Tensor share = share_.contiguous(), log_sums = at::empty(share.sizes(), logits.options());
    const Tensor loss = at::empty_like(log_sums);
    const int64_t K = logits.size(-1);
    TORCH_CHECK(below.sizes() == share.sizes() && logits.numel() == K * share.numel(),
                "two_hot_loss: shapes of logits, index and share");
    with_dtype(logits, [&](auto zero) {
      using A = decltype(zero);
      const A *from = logits.const_data_ptr<A>(), *part = share.const_data_ptr<A>();
      const int64_t* index = below.const_data_ptr<int64_t>();
      A *to = loss.mutable_data_ptr<A>(), *kept = log_sums.mutable_data_ptr<A>();
      for_rows(share.numel(), K, [&](int64_t i) {
        TORCH_CHECK(0 <= index[i] && index[i] < K - 1, "two_hot_loss: index ", index[i], " of ", K);
        const A* at = from + i * K + index[i];
        kept[i] = log_sum_exp(from + i * K, K);
        to[i] = kept[i] - ((1 - part[i]) * at[0] + part[i] * at[1]);
      });
    });
    context->save_for_backward({logits, below, share, log_sums});
    return loss;
  }

  // Of a row, the softmax less the target.
  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("two_hot_loss");
    const auto saved = context->get_saved_variables();
    const Tensor &logits = saved[0], g = gradients[0].contiguous(), dx = at::empty_like(logits);
    const int64_t K = logits.size(-1);
    with_dtype(logits, [&](auto zero) {
      using A = decltype(zero);
      const A *from = logits.const_data_ptr<A>(), *part = saved[2].const_data_ptr<A>();
      const A *kept = saved[3].const_data_ptr<A>(), *grad = g.const_data_ptr<A>();
      const int64_t* index = saved[1].const_data_ptr<int64_t>();
      A* to = dx.mutable_data_ptr<A>();
      for_rows(g.numel(), 2 * K, [&](int64_t i) {
        const A *x = from + i * K, log_sum = kept[i], factor = grad[i];
        A* out = to + i * K;
#pragma omp simd
        for (int64_t k = 0; k < K; ++k) out[k] = factor * exp2_(A(kLog2E) * (x[k] - log_sum));
        out[index[i]] -= factor * (1 - part[i]);
        out[index[i] + 1] -= factor * part[i];
      });
    });
    return {dx, Tensor(), Tensor()};
  }
};

Tensor gelu(const Tensor& x) { return Gelu::apply(x); }

// x and u (..., H), d (H,).
Tensor add_scaled(const Tensor& x, const Tensor& u, const Tensor& d) {
  return AddScaled::apply(x, u, d);
}

// x (..., H), ab (..., 2 H), ab_bias (2 H,), weight and bias (H,) of a layer norm, or none.
Tensor gated_sum(const Tensor& x, const Tensor& ab, const Tensor& ab_bias,
                 const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  return GatedSum::apply(x, ab, ab_bias, weight, bias, eps);
}

// x (..., H); weight and bias (H,) of a layer norm, weight alone of "rms", neither of "none".
Tensor norm_silu(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                 int64_t norm, double eps) {
  return NormSilu::apply(x, weight, bias, static_cast<RowNorm>(norm), eps);
}

// logits (..., K), below (...) int64 in [0, K - 2], share (...).
Tensor two_hot_loss(const Tensor& logits, const Tensor& below, const Tensor& share) {
  return TwoHotLoss::apply(logits, below, share);
}

// re, im, log_step (P,), B (P, H, 2), C (H, P, 2).
std::tuple<Tensor, Tensor, Tensor> s5_system(const Tensor& re, const Tensor& im,
                                             const Tensor& log_step, const Tensor& B,
                                             const Tensor& C, double dt_scale, double c_scale,
                                             int64_t rule) {
  const auto parts = S5System::apply(re, im, log_step, B, C, dt_scale, c_scale, rule);
  return {parts[0], parts[1], parts[2]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def("gelu(Tensor x) -> Tensor", &gelu);
  m.def("add_scaled(Tensor x, Tensor u, Tensor d) -> Tensor", &add_scaled);
  m.def(
      "gated_sum(Tensor x, Tensor ab, Tensor ab_bias, Tensor? weight, Tensor? bias, float eps) -> "
      "Tensor",
      &gated_sum);
  m.def("norm_silu(Tensor x, Tensor? weight, Tensor? bias, int norm, float eps) -> Tensor",
        &norm_silu);
  m.def("two_hot_loss(Tensor logits, Tensor below, Tensor share) -> Tensor", &two_hot_loss);
  m.def(
      "s5_system(Tensor re, Tensor im, Tensor log_step, Tensor B, Tensor C, float dt_scale, "
      "float c_scale, int rule) -> (Tensor, Tensor, Tensor)",
      &s5_system);
}
