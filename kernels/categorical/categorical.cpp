// Categorical latents on the CPU, one call each in training, with gradients.
//
//   mixed_log_softmax  y = log((1 - unimix) softmax(x) + unimix / K), rows of K
//   free_kl            k = sum of q (log q - log p) over the classes; both halves are max(k, free)
//   draw_one_hot       1 at the largest log p + noise of every row, else 0; straight-through
//   gumbel_            x = -log(-log u), u even in (0, 1), by a counter

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "../adjoint.h"
#include "../elementary.h"
#include "../latent_rows.h"

namespace {

using namespace statewise;

// ---------------------------------------------------------------- softmax with a uniform share

constexpr int64_t kTile = 512;  // numbers, about, whose exponentials are taken one after the other

// With t = exp(y) - floor = keep s, s the softmax: w = g t / (t + floor), and dx = w - s sum(w).
template <typename A, typename Count>
void mixed_tile_adjoint(const A* g, const A* y, A* dx, A keep, A floor, int64_t rows, Count K) {
#pragma omp simd
  for (int64_t i = 0; i < rows * K; ++i) dx[i] = exp2_(A(kLog2E) * y[i]) - floor;
  const auto weighted = [=](A grad, A t) {
    return floor == A(0) ? grad : grad * (t / (t + floor));
  };
  for (int64_t i = 0; i < rows * K; i += K) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < K; ++k) sum += weighted(g[i + k], dx[i + k]);
    const A scale = sum / keep;
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) dx[i + k] = weighted(g[i + k], dx[i + k]) - dx[i + k] * scale;
  }
}

// Call f(A{}, 1 - unimix, unimix / K, rows, K, offset) for every tile of y (..., K).
template <typename F>
void over_tiles(const Tensor& y, double unimix, F&& f) {
  const int64_t classes = y.size(-1), count = y.numel() / classes;
  const int64_t tile = std::max<int64_t>(1, kTile / classes);
  with_dtype(y, [&](auto zero) {
    using A = decltype(zero);
    const A keep = A(1 - unimix), floor = A(unimix / static_cast<double>(classes));
    with_classes(classes, [&](auto K) {
      for_rows((count + tile - 1) / tile, 4 * tile * classes, [&](int64_t i) {
        const int64_t rows = std::min(tile, count - i * tile);
        f(zero, keep, floor, rows, K, i * tile * classes);
      });
    });
  });
}

struct MixedLogSoftmax : Function<MixedLogSoftmax> {
  static Tensor forward(AutogradContext* context, const Tensor& x_, double unimix) {
    const Tensor x = x_.contiguous(), y = at::empty_like(x);
    over_tiles(y, unimix, [&](auto zero, auto keep, auto floor, int64_t rows, auto K, int64_t i) {
      using A = decltype(zero);
      mixed_tile(x.const_data_ptr<A>() + i, y.mutable_data_ptr<A>() + i, keep, floor, rows, K);
    });
    context->saved_data["unimix"] = unimix;
    context->save_for_backward({y});
    return y;
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("mixed_log_softmax");
    const Tensor y = context->get_saved_variables()[0], g = gradients[0].contiguous();
    const Tensor dx = at::empty_like(y);
    const double unimix = context->saved_data["unimix"].toDouble();
    over_tiles(y, unimix, [&](auto zero, auto keep, auto floor, int64_t rows, auto K, int64_t i) {
      using A = decltype(zero);
      mixed_tile_adjoint(g.const_data_ptr<A>() + i, y.const_data_ptr<A>() + i,
                         dx.mutable_data_ptr<A>() + i, keep, floor, rows, K);
    });
    return {dx, Tensor()};
  }
};

// ---------------------------------------------------------------- divergence

struct FreeKL : Function<FreeKL> {
  // log_q and log_p (..., W) of one shape.
  static Gradients forward(AutogradContext* context, const Tensor& log_q_, const Tensor& log_p_,
                           double free) {
    const Tensor log_q = log_q_.contiguous(), log_p = log_p_.contiguous();
    const int64_t W = log_q.size(-1);
    auto shape = log_q.sizes().vec();
    shape.pop_back();
    const Tensor dyn = at::empty(shape, log_q.options()), rep = at::empty_like(dyn);
    const Tensor counts = at::empty_like(dyn, at::kBool);
    with_dtype(log_q, [&](auto zero) {
      using A = decltype(zero);
      const A *q = log_q.const_data_ptr<A>(), *p = log_p.const_data_ptr<A>();
      A *to = dyn.mutable_data_ptr<A>(), *other = rep.mutable_data_ptr<A>();
      bool* over = counts.mutable_data_ptr<bool>();
      for_rows(dyn.numel(), 2 * W, [&](int64_t i) {
        const A *a = q + i * W, *b = p + i * W;
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < W; ++k) sum += exp2_(A(kLog2E) * a[k]) * (a[k] - b[k]);
        over[i] = sum >= A(free);
        to[i] = other[i] = sum < A(free) ? A(free) : sum;  // NaN stays
      });
    });
    context->save_for_backward({log_q, log_p, counts});
    return {dyn, rep};
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("free_kl");
    const auto saved = context->get_saved_variables();
    const Tensor &log_q = saved[0], &log_p = saved[1], &counts = saved[2];
    const Tensor dyn = gradients[0].contiguous(), rep = gradients[1].contiguous();
    const Tensor dq = at::empty_like(log_q), dp = at::empty_like(log_p);
    const int64_t W = log_q.size(-1);
    with_dtype(log_q, [&](auto zero) {
      using A = decltype(zero);
      const A *q = log_q.const_data_ptr<A>(), *p = log_p.const_data_ptr<A>();
      const A *g_dyn = dyn.const_data_ptr<A>(), *g_rep = rep.const_data_ptr<A>();
      const bool* over = counts.const_data_ptr<bool>();
      A *q_to = dq.mutable_data_ptr<A>(), *p_to = dp.mutable_data_ptr<A>();
      for_rows(counts.numel(), 4 * W, [&](int64_t i) {
        const A of_p = over[i] ? -g_dyn[i] : A(0), of_q = over[i] ? g_rep[i] : A(0);
        const A *a = q + i * W, *b = p + i * W;
        A *da = q_to + i * W, *db = p_to + i * W;
#pragma omp simd
        for (int64_t k = 0; k < W; ++k) {
          const A at = exp2_(A(kLog2E) * a[k]);
          db[k] = at * of_p;
          da[k] = at * (a[k] - b[k] + 1) * of_q;
        }
      });
    });
    return {dq, dp, Tensor()};
  }
};

// ---------------------------------------------------------------- samples

struct DrawOneHot : Function<DrawOneHot> {
  static Tensor forward(AutogradContext* context, const Tensor& log_p_, const Tensor& noise_) {
    const Tensor log_p = log_p_.contiguous(), noise = noise_.contiguous();
    TORCH_CHECK(log_p.sizes() == noise.sizes(), "draw_one_hot: two shapes");
    context->save_for_backward({log_p});
    const Tensor y = at::empty_like(log_p);
    const int64_t classes = log_p.size(-1);
    with_dtype(log_p, [&](auto zero) {
      using A = decltype(zero);
      const A *p = log_p.const_data_ptr<A>(), *g = noise.const_data_ptr<A>();
      A* to = y.mutable_data_ptr<A>();
      with_classes(classes, [&](auto K) {
        for_rows(log_p.numel() / classes, classes, [&](int64_t i) {
          draw_row<A>(p + i * classes, g + i * classes, to + i * classes, K);
        });
      });
    });
    return y;
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("draw_one_hot");
    const Tensor log_p = context->get_saved_variables()[0], g = gradients[0].contiguous();
    const Tensor dp = at::empty_like(log_p);
    with_dtype(log_p, [&](auto zero) {
      using A = decltype(zero);
      const A *p = log_p.const_data_ptr<A>(), *from = g.const_data_ptr<A>();
      A* to = dp.mutable_data_ptr<A>();
      at::parallel_for(0, dp.numel(), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) to[i] = from[i] * exp2_(A(kLog2E) * p[i]);
      });
    });
    return {dp, Tensor()};
  }
};

// ---------------------------------------------------------------- noise

constexpr int64_t kWords = 256;  // drawn one after the other, so that loops are over words alone

// Word i of SplitMix64 that starts at `seed`.
[[gnu::always_inline]] inline uint64_t word(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The middle of one of 2^23 or 2^52 parts of (0, 1); all of them are exact.
[[gnu::always_inline]] inline float even(uint32_t bits) {
  return __builtin_bit_cast(float, 0x3F800000u | (bits >> 9)) - (1.0f - 0x1p-24f);
}
[[gnu::always_inline]] inline double even(uint64_t bits) {
  return __builtin_bit_cast(double, 0x3FF0000000000000u | (bits >> 12)) - (1.0 - 0x1p-53);
}

// x dense. A word makes two numbers of float32, the lower half first, or one of float64.
void gumbel_(Tensor x, int64_t seed) {
  TORCH_CHECK(x.is_contiguous(), "gumbel_: a dense tensor");
  const int64_t count = x.numel();
  with_dtype(x, [&](auto zero) {
    using A = decltype(zero);
    using Bits = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;
    constexpr int64_t numbers = kWords * sizeof(uint64_t) / sizeof(A);  // of a task
    A* data = x.mutable_data_ptr<A>();
    for_rows((count + numbers - 1) / numbers, 4 * numbers, [&](int64_t task) {
      uint64_t words[kWords];
      Bits bits[numbers];
#pragma omp simd
      for (int64_t i = 0; i < kWords; ++i)
        words[i] = word(static_cast<uint64_t>(seed), static_cast<uint64_t>(task * kWords + i));
      std::memcpy(bits, words, sizeof(words));
      A* to = data + task * numbers;
      const int64_t rest = std::min(numbers, count - task * numbers);
#pragma omp simd
      for (int64_t i = 0; i < rest; ++i) to[i] = -log_(-log_(even(bits[i])));
    });
  });
}

// ---------------------------------------------------------------- calls

// x (..., K), unimix in [0, 1).
Tensor mixed_log_softmax(const Tensor& x, double unimix) {
  return MixedLogSoftmax::apply(x, unimix);
}

// log_q and log_p (..., W), W all classes of all variables.
std::tuple<Tensor, Tensor> free_kl(const Tensor& log_q, const Tensor& log_p, double free) {
  TORCH_CHECK(log_q.sizes() == log_p.sizes(), "free_kl: two shapes");
  const auto halves = FreeKL::apply(log_q, log_p, free);
  return {halves[0], halves[1]};
}

// log_p and noise (..., K).
Tensor draw_one_hot(const Tensor& log_p, const Tensor& noise) {
  return DrawOneHot::apply(log_p, noise);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def("mixed_log_softmax(Tensor x, float unimix) -> Tensor", &mixed_log_softmax);
  m.def("free_kl(Tensor log_q, Tensor log_p, float free) -> (Tensor, Tensor)", &free_kl);
  m.def("draw_one_hot(Tensor log_p, Tensor noise) -> Tensor", &draw_one_hot);
  m.def("gumbel_(Tensor(a!) x, int seed) -> ()", &gumbel_);
}
