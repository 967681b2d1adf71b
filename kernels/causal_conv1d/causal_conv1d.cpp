// Short depthwise causal convolution on the CPU, with a state and resets.
//
//   y_t = act(bias + sum_j w_j x_{t-j}),  tap j only if no reset lies in (t - j, t]
//
// One task owns a block of channels of one row and goes through time; inputs before the window come
// from the state (channel, W - 1), the most recent last. Every sum has one order.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../elementary.h"

namespace {

using namespace statewise;

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kBlock = 256;  // channels per task

struct Sizes {
  int64_t B, T, E, W, block, blocks;
};

Sizes sizes(const Tensor& x, const Tensor& w) {
  Sizes s{x.size(0), x.size(1), x.size(2), w.size(1), 0, 0};
  s.block = std::min(kBlock, s.E);
  s.blocks = (s.E + s.block - 1) / s.block;
  return s;
}

template <typename A, typename X>
struct Inputs {
  const X* x;
  int64_t stride_b, stride_t;
  const A *w, *bias, *state;
  const bool* reset;
};

// A block of channels: taps [j][channel], j steps back, and the state [k][channel].
template <typename A, typename X>
struct Block {
  int64_t b, first, count, since = -1;  // steps since the last reset, -1 if there was none
  std::vector<A> taps, state, pre;

  Block(const Sizes& s, const Inputs<A, X>& in, int64_t task)
      : b(task / s.blocks), first((task % s.blocks) * s.block),
        count(std::min(s.block, s.E - first)), taps(s.W * s.block),
        state(std::max<int64_t>(1, (s.W - 1) * s.block)), pre(s.block) {
    for (int64_t j = 0; j < s.W; ++j)
      for (int64_t e = 0; e < count; ++e)
        taps[j * s.block + e] = in.w[(first + e) * s.W + s.W - 1 - j];
    for (int64_t k = 0; k + 1 < s.W; ++k)
      for (int64_t e = 0; e < count; ++e)
        state[k * s.block + e] = in.state[(b * s.E + first + e) * (s.W - 1) + k];
  }

  void note(const Sizes& s, const Inputs<A, X>& in, int64_t t) {
    if (in.reset && in.reset[b * s.T + t]) since = 0;
    else if (since >= 0) ++since;
  }
  // How many taps of step t reach back no further than the last reset.
  int64_t open_taps(const Sizes& s) const {
    return since < 0 ? s.W : std::min(s.W, since + 1);
  }
  const X* input(const Inputs<A, X>& in, int64_t t) const {
    return in.x + b * in.stride_b + t * in.stride_t + first;
  }
  const A* before(const Sizes& s, int64_t t) const {  // t < 0
    return state.data() + (s.W - 1 + t) * s.block;
  }

  // The sum before the activation.
  void sum(const Sizes& s, const Inputs<A, X>& in, int64_t t) {
    A* __restrict y = pre.data();
    for (int64_t e = 0; e < count; ++e) y[e] = in.bias ? in.bias[first + e] : A(0);
    for (int64_t j = 0; j < open_taps(s); ++j) {
      const A* __restrict w = taps.data() + j * s.block;
      const auto add = [&](const auto* __restrict source) {
#pragma omp simd
        for (int64_t e = 0; e < count; ++e) y[e] += w[e] * static_cast<A>(source[e]);
      };
      if (t >= j) add(input(in, t - j));
      else add(before(s, t - j));
    }
  }
};

template <typename A, typename X>
void forward_block(const Sizes& s, const Inputs<A, X>& in, int64_t task, bool silu, X* y,
                   A* new_state) {
  Block<A, X> k(s, in, task);
  for (int64_t t = 0; t < s.T; ++t) {
    k.note(s, in, t);
    k.sum(s, in, t);
    X* __restrict out = y + (k.b * s.T + t) * s.E + k.first;
    const A* __restrict pre = k.pre.data();
    if (silu) {
#pragma omp simd
      for (int64_t e = 0; e < k.count; ++e) out[e] = static_cast<X>(pre[e] * sigmoid_(pre[e]));
    } else {
      for (int64_t e = 0; e < k.count; ++e) out[e] = static_cast<X>(pre[e]);
    }
  }
  for (int64_t i = 0; i + 1 < s.W; ++i) {
    const int64_t t = s.T - (s.W - 1) + i;  // the step this entry holds
    const bool kept = s.W - 2 - i < k.open_taps(s);
    for (int64_t e = 0; e < k.count; ++e) {
      const A value = t >= 0 ? static_cast<A>(k.input(in, t)[e]) : k.before(s, t)[e];
      new_state[(k.b * s.E + k.first + e) * (s.W - 1) + i] = kept ? value : A(0);
    }
  }
}

// dx is (B, T, E) in A and starts at zero, as do dw (B, E, W), dbias (B, E), dstate (B, E, W - 1).
template <typename A, typename X>
void backward_block(const Sizes& s, const Inputs<A, X>& in, int64_t task, bool silu,
                    const X* grad, const A* grad_state, A* dx, A* dw, A* dbias, A* dstate) {
  Block<A, X> k(s, in, task);
  std::vector<A> g_(s.block), dtaps(s.W * s.block), dbias_(s.block),
      dbefore(std::max<int64_t>(1, (s.W - 1) * s.block));
  A* __restrict g = g_.data();
  const auto target = [&](int64_t t) {
    return t >= 0 ? dx + (k.b * s.T + t) * s.E + k.first
                  : dbefore.data() + (s.W - 1 + t) * s.block;
  };
  for (int64_t t = 0; t < s.T; ++t) {
    k.note(s, in, t);
    const X* __restrict gy = grad + (k.b * s.T + t) * s.E + k.first;
    if (silu) {
      k.sum(s, in, t);
      const A* __restrict pre = k.pre.data();
#pragma omp simd
      for (int64_t e = 0; e < k.count; ++e) {
        const A sig = sigmoid_(pre[e]);
        g[e] = static_cast<A>(gy[e]) * sig * (A(1) + pre[e] * (A(1) - sig));
      }
    } else {
      for (int64_t e = 0; e < k.count; ++e) g[e] = static_cast<A>(gy[e]);
    }
    for (int64_t e = 0; e < k.count; ++e) dbias_[e] += g[e];
    for (int64_t j = 0; j < k.open_taps(s); ++j) {
      const A* __restrict w = k.taps.data() + j * s.block;
      A* __restrict dwj = dtaps.data() + j * s.block;
      A* __restrict to = target(t - j);
      const auto add = [&](const auto* __restrict source) {
#pragma omp simd
        for (int64_t e = 0; e < k.count; ++e) {
          to[e] += g[e] * w[e];
          dwj[e] += g[e] * static_cast<A>(source[e]);
        }
      };
      if (t >= j) add(k.input(in, t - j));
      else add(k.before(s, t - j));
    }
  }
  for (int64_t i = 0; i + 1 < s.W; ++i) {
    if (s.W - 2 - i >= k.open_taps(s)) continue;
    A* to = target(s.T - (s.W - 1) + i);
    for (int64_t e = 0; e < k.count; ++e)
      to[e] += grad_state[(k.b * s.E + k.first + e) * (s.W - 1) + i];
  }
  for (int64_t e = 0; e < k.count; ++e) {
    const int64_t channel = k.b * s.E + k.first + e;
    dbias[channel] = dbias_[e];
    for (int64_t j = 0; j < s.W; ++j) dw[channel * s.W + s.W - 1 - j] = dtaps[j * s.block + e];
    for (int64_t i = 0; i + 1 < s.W; ++i)
      dstate[channel * (s.W - 1) + i] = dbefore[i * s.block + e];
  }
}

// ---------------------------------------------------------------- entry points

template <typename Function>
void dispatch(const Tensor& x, Function&& function) {
  if (x.scalar_type() == at::kFloat) function(float{}, float{});
  else if (x.scalar_type() == at::kDouble) function(double{}, double{});
  else if (x.scalar_type() == at::kBFloat16) function(float{}, at::BFloat16{});
  else TORCH_CHECK(false, "causal_conv1d(cpu): float32, float64 or bfloat16, got ", x.scalar_type());
}

struct Operands {
  Tensor x, w, state;
  OptionalTensor bias, reset;

  Operands(const Tensor& x_, const Tensor& w_, const OptionalTensor& bias_, const Tensor& state_,
           const OptionalTensor& reset_)
      : x(x_.size(2) == 1 || x_.stride(2) == 1 ? x_ : x_.contiguous()), w(w_.contiguous()),
        state(state_.contiguous()) {
    if (bias_.has_value()) bias = bias_->contiguous();
    if (reset_.has_value()) reset = reset_->contiguous();
  }

  template <typename A, typename X>
  Inputs<A, X> inputs() const {
    return {x.const_data_ptr<X>(), x.stride(0), x.stride(1), w.const_data_ptr<A>(),
            bias.has_value() ? bias->const_data_ptr<A>() : nullptr, state.const_data_ptr<A>(),
            reset.has_value() ? reset->const_data_ptr<bool>() : nullptr};
  }
};

std::tuple<Tensor, Tensor> causal_conv1d_forward(const Tensor& x, const Tensor& w,
                                                 const OptionalTensor& bias, const Tensor& state,
                                                 const OptionalTensor& reset, bool silu) {
  const Operands o(x, w, bias, state, reset);
  const Sizes s = sizes(x, w);
  Tensor y = at::empty(x.sizes(), x.options());
  Tensor after = at::empty(o.state.sizes(), o.state.options());
  dispatch(x, [&](auto accumulate, auto stored) {
    using A = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<A, X>();
    X* out = y.mutable_data_ptr<X>();
    A* to = after.mutable_data_ptr<A>();
    at::parallel_for(0, s.B * s.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        forward_block<A, X>(s, in, task, silu, out, to);
    });
  });
  return {y, after};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward(
    const Tensor& grad_, const Tensor& grad_state_, const Tensor& x, const Tensor& w,
    const OptionalTensor& bias, const Tensor& state, const OptionalTensor& reset, bool silu) {
  const Operands o(x, w, bias, state, reset);
  const Tensor grad = grad_.contiguous(), grad_state = grad_state_.contiguous();
  const Sizes s = sizes(x, w);
  const auto wide = o.state.options();
  Tensor dx = at::zeros(x.sizes(), wide), dw = at::empty({s.B, s.E, s.W}, wide);
  Tensor dbias = at::empty({s.B, s.E}, wide), dstate = at::empty(o.state.sizes(), wide);
  dispatch(x, [&](auto accumulate, auto stored) {
    using A = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<A, X>();
    const X* gy = grad.const_data_ptr<X>();
    const A* gs = grad_state.const_data_ptr<A>();
    A *to = dx.mutable_data_ptr<A>(), *tow = dw.mutable_data_ptr<A>();
    A *tob = dbias.mutable_data_ptr<A>(), *tos = dstate.mutable_data_ptr<A>();
    at::parallel_for(0, s.B * s.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        backward_block<A, X>(s, in, task, silu, gy, gs, to, tow, tob, tos);
    });
  });
  return {dx.to(x.scalar_type()), dw.sum(0), dbias.sum(0), dstate};
}

// One step: x (B, E), reset (B,); no gradient.
std::tuple<Tensor, Tensor> causal_conv1d_step(const Tensor& x, const Tensor& w,
                                              const OptionalTensor& bias, const Tensor& state,
                                              const OptionalTensor& reset, bool silu) {
  const Operands o(x.unsqueeze(1), w, bias, state, reset);  // (B, 1, E)
  const int64_t B = x.size(0), E = x.size(1), W = w.size(1);
  Tensor y = at::empty(x.sizes(), x.options());
  Tensor after = at::empty(o.state.sizes(), o.state.options());
  dispatch(x, [&](auto accumulate, auto stored) {
    using A = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<A, X>();
    const A* before = o.state.template const_data_ptr<A>();
    X* out = y.mutable_data_ptr<X>();
    A* to = after.mutable_data_ptr<A>();
    const bool* cleared = o.reset.has_value() ? o.reset->const_data_ptr<bool>() : nullptr;
    at::parallel_for(0, B, 16, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const X* row = in.x + b * in.stride_b;
        const bool clear = cleared && cleared[b];
        X* __restrict result = out + b * E;
        for (int64_t e = 0; e < E; ++e) {
          const A* taps = in.w + e * W;
          const A* old = before + (b * E + e) * (W - 1);
          A* kept = to + (b * E + e) * (W - 1);
          A sum = in.bias ? in.bias[e] : A(0);
          for (int64_t j = 0; j + 1 < W; ++j) {
            const A value = clear ? A(0) : old[j];
            sum += taps[j] * value;
            if (j > 0) kept[j - 1] = value;
          }
          const A present = static_cast<A>(row[e]);
          if (W > 1) kept[W - 2] = present;
          sum += taps[W - 1] * present;
          result[e] = static_cast<X>(sum);
        }
        if (!silu) continue;
#pragma omp simd
        for (int64_t e = 0; e < E; ++e) {
          const A pre = static_cast<A>(result[e]);
          result[e] = static_cast<X>(pre * sigmoid_(pre));
        }
      }
    });
  });
  return {y, after};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def(
      "causal_conv1d_forward(Tensor x, Tensor w, Tensor? bias, Tensor state, Tensor? reset, "
      "bool silu) -> (Tensor, Tensor)",
      &causal_conv1d_forward);
  m.def(
      "causal_conv1d_backward(Tensor grad, Tensor grad_state, Tensor x, Tensor w, Tensor? bias, "
      "Tensor state, Tensor? reset, bool silu) -> (Tensor, Tensor, Tensor, Tensor)",
      &causal_conv1d_backward);
  m.def(
      "causal_conv1d_step(Tensor x, Tensor w, Tensor? bias, Tensor state, Tensor? reset, "
      "bool silu) -> (Tensor, Tensor)",
      &causal_conv1d_step);
}
