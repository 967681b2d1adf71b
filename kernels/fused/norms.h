// Sums and activations of rows with a norm, and their adjoints.
//
//   gated_sum    z = x + (a + ca) sigmoid(b + cb);  y = z or the layer norm of z
//   norm_silu    y = n sigmoid(n),  n a norm of x or x itself

#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "../adjoint.h"
#include "../elementary.h"
#include "../row_norm.h"

namespace {

using namespace statewise;

template <typename A>
const A* pointer(const Tensor& x) {
  return x.defined() ? x.const_data_ptr<A>() : nullptr;
}

// The adjoint of the norm of one row: dz, which may be g, from g; `sums` (2 H,) gathers those of
// weight and bias.
template <typename A>
void norm_adjoint(const A* g, const A* z, A mean, A scale, const A* weight, A* dz, A* sums,
                  int64_t H, bool centred = true) {
  A along = 0, across = 0;
#pragma omp simd reduction(+ : along, across)
  for (int64_t k = 0; k < H; ++k) {
    const A normed = (z[k] - mean) * scale, weighted = g[k] * weight[k];
    along += weighted;
    across += weighted * normed;
    sums[k] += g[k] * normed;
    sums[H + k] += g[k];
  }
  along = centred ? along / static_cast<A>(H) : A(0), across /= static_cast<A>(H);
#pragma omp simd
  for (int64_t k = 0; k < H; ++k)
    dz[k] = scale * (g[k] * weight[k] - along - (z[k] - mean) * scale * across);
}

// x + (a + ca) sigmoid(b + cb) of a row; ab (2 H,) holds a and b, c (2 H,) ca and cb.
template <typename A>
void gated_row(const A* x, const A* ab, const A* c, A* y, int64_t H) {
#pragma omp simd
  for (int64_t k = 0; k < H; ++k)
    y[k] = x[k] + (ab[k] + c[k]) * sigmoid2_(A(kLog2E) * (ab[H + k] + c[H + k]));
}

// The gradient of ab from dy; `sums` (2 H,) gathers that of c.
template <typename A>
void gated_row_adjoint(const A* dy, const A* ab, const A* c, A* dab, A* sums, int64_t H) {
#pragma omp simd
  for (int64_t k = 0; k < H; ++k) {
    const A s = sigmoid2_(A(kLog2E) * (ab[H + k] + c[H + k]));
    const A da = dy[k] * s, db = da * (ab[k] + c[k]) * (1 - s);
    sums[k] += dab[k] = da;
    sums[H + k] += dab[H + k] = db;
  }
}

struct GatedSum : Function<GatedSum> {
  static Tensor forward(AutogradContext* context, const Tensor& x_, const Tensor& ab_,
                        const Tensor& c_, const OptionalTensor& weight_,
                        const OptionalTensor& bias_, double eps) {
    const Tensor x = x_.contiguous(), ab = ab_.contiguous(), z = at::empty_like(x);
    const Tensor c = c_.contiguous();
    const int64_t H = x.size(-1), rows = x.numel() / H;
    const bool normed = weight_.has_value();
    TORCH_CHECK(ab.size(-1) == 2 * H && ab.numel() == 2 * x.numel(), "gated_sum: ab (..., 2 H)");
    TORCH_CHECK(c.numel() == 2 * H, "gated_sum: ab_bias (2 H,)");
    const Tensor weight = normed ? weight_->contiguous() : Tensor();
    const Tensor bias = normed ? bias_->contiguous() : Tensor();
    const Tensor y = normed ? at::empty_like(x) : z;
    const Tensor moment = normed ? at::empty({rows, 2}, x.options()) : Tensor();
    with_dtype(x, [&](auto zero) {
      using A = decltype(zero);
      const A *from = x.const_data_ptr<A>(), *parts = ab.const_data_ptr<A>();
      const A *start = c.const_data_ptr<A>(), *w = pointer<A>(weight), *b = pointer<A>(bias);
      A *sum = z.mutable_data_ptr<A>(), *to = y.mutable_data_ptr<A>();
      A* kept = normed ? moment.mutable_data_ptr<A>() : nullptr;
      for_rows(rows, 3 * H, [&](int64_t i) {
        gated_row(from + i * H, parts + 2 * i * H, start, sum + i * H, H);
        if (!normed) return;
        const auto [mean, scale] = moments(RowNorm::layer, sum + i * H, H, eps);
        kept[2 * i] = mean, kept[2 * i + 1] = scale;
        normed_row(sum + i * H, mean, scale, w, b, to + i * H, H);
      });
    });
    context->save_for_backward({ab, c, normed ? z : Tensor(), moment, weight});
    return y;
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("gated_sum");
    const auto saved = context->get_saved_variables();
    const Tensor &ab = saved[0], &c = saved[1], g = gradients[0].contiguous();
    const bool normed = saved[2].defined();
    const int64_t H = g.size(-1), rows = g.numel() / H, chunks = (rows + kChunk - 1) / kChunk;
    const Tensor dx = normed ? at::empty_like(g) : g, dab = at::empty_like(ab);
    const Tensor sums = at::zeros({chunks, 4 * H}, g.options());  // of c, weight and bias
    with_dtype(g, [&](auto zero) {
      using A = decltype(zero);
      const A *grad = g.const_data_ptr<A>(), *parts = ab.const_data_ptr<A>();
      const A *z = pointer<A>(saved[2]), *moment = pointer<A>(saved[3]), *w = pointer<A>(saved[4]);
      const A* start = c.const_data_ptr<A>();
      A *to = normed ? dx.mutable_data_ptr<A>() : nullptr, *sum = sums.mutable_data_ptr<A>();
      A* parts_to = dab.mutable_data_ptr<A>();
      for_rows(chunks, 3 * H * kChunk, [&](int64_t chunk) {
        A* own = sum + chunk * 4 * H;
        for (int64_t i = chunk * kChunk; i < std::min(rows, (chunk + 1) * kChunk); ++i) {
          if (normed)
            norm_adjoint(grad + i * H, z + i * H, moment[2 * i], moment[2 * i + 1], w, to + i * H,
                         own + 2 * H, H);
          const A* dz = normed ? to + i * H : grad + i * H;
          gated_row_adjoint(dz, parts + 2 * i * H, start, parts_to + 2 * i * H, own, H);
        }
      });
    });
    const Tensor total = sums.sum(0), dc = total.narrow(0, 0, 2 * H);
    if (!normed) return {dx, dab, dc, Tensor(), Tensor(), Tensor()};
    return {dx, dab, dc, total.narrow(0, 2 * H, H), total.narrow(0, 3 * H, H), Tensor()};
  }
};

template <typename A>
void silu_row(const A* n, A* y, int64_t H) {
#pragma omp simd
  for (int64_t k = 0; k < H; ++k) y[k] = n[k] * sigmoid2_(A(kLog2E) * n[k]);
}

// y = g silu'(n)
template <typename A>
void silu_row_adjoint(const A* g, const A* n, A* y, int64_t H) {
#pragma omp simd
  for (int64_t k = 0; k < H; ++k) {
    const A s = sigmoid2_(A(kLog2E) * n[k]);
    y[k] = g[k] * s * (1 + n[k] * (1 - s));
  }
}

struct NormSilu : Function<NormSilu> {
  static Tensor forward(AutogradContext* context, const Tensor& x_, const OptionalTensor& weight_,
                        const OptionalTensor& bias_, RowNorm norm, double eps) {
    const Tensor x = x_.contiguous(), y = at::empty_like(x);
    const Tensor weight = weight_ ? weight_->contiguous() : Tensor();
    const Tensor bias = bias_ ? bias_->contiguous() : Tensor();
    const int64_t H = x.size(-1), rows = x.numel() / H;
    const Tensor moment = norm == RowNorm::none ? Tensor() : at::empty({rows, 2}, x.options());
    with_dtype(x, [&](auto zero) {
      using A = decltype(zero);
      const A *from = x.const_data_ptr<A>(), *w = pointer<A>(weight), *b = pointer<A>(bias);
      A *to = y.mutable_data_ptr<A>(), *kept = nullptr;
      if (norm != RowNorm::none) kept = moment.mutable_data_ptr<A>();
      for_rows(rows, 2 * H, [&](int64_t i) {
        const A* in = from + i * H;
        A* out = to + i * H;
        if (kept) {
          const auto [mean, scale] = moments(norm, in, H, eps);
          kept[2 * i] = mean, kept[2 * i + 1] = scale;
          normed_row(in, mean, scale, w, b, out, H);
        }
        silu_row(kept ? out : in, out, H);
      });
    });
    context->saved_data["centred"] = norm == RowNorm::layer;
    context->save_for_backward({x, weight, bias, moment});
    return y;
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("norm_silu");
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &moment = saved[3];
    const bool centred = context->saved_data["centred"].toBool(), normed = moment.defined();
    const Tensor g = gradients[0].contiguous(), dx = at::empty_like(x);
    const int64_t H = x.size(-1), rows = x.numel() / H, chunks = (rows + kChunk - 1) / kChunk;
    const Tensor sums = normed ? at::zeros({chunks, 2 * H}, g.options()) : Tensor();
    with_dtype(x, [&](auto zero) {
      using A = decltype(zero);
      const A *from = x.const_data_ptr<A>(), *grad = g.const_data_ptr<A>();
      const A *w = pointer<A>(weight), *b = pointer<A>(bias), *kept = pointer<A>(moment);
      A *to = dx.mutable_data_ptr<A>(), *sum = normed ? sums.mutable_data_ptr<A>() : nullptr;
      for_rows(chunks, 3 * H * kChunk, [&](int64_t chunk) {
        for (int64_t i = chunk * kChunk; i < std::min(rows, (chunk + 1) * kChunk); ++i) {
          const A *in = from + i * H, mean = kept ? kept[2 * i] : A(0);
          const A scale = kept ? kept[2 * i + 1] : A(0);
          A* out = to + i * H;
          if (kept) normed_row(in, mean, scale, w, b, out, H);
          silu_row_adjoint(grad + i * H, kept ? out : in, out, H);
          if (kept) norm_adjoint(out, in, mean, scale, w, out, sum + chunk * 2 * H, H, centred);
        }
      });
    });
    if (!normed) return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
    const Tensor total = sums.sum(0);
    return {dx, total.narrow(0, 0, H), bias.defined() ? total.narrow(0, H, H) : Tensor(), Tensor(),
            Tensor()};
  }
};

}  // namespace
