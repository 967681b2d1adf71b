// Linear scan on the CPU: h_t = a_t * prev_t + b_t, prev_t = reset_t ? h_init : h_{t-1}.
//
// One task owns a block of channels of one batch row and runs through time with the state in
// L1. Every (row, channel) is summed in time order by one task, so results do not depend on the
// number of threads. Complex numbers are interleaved real pairs.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../adjoint.h"

namespace {

using namespace statewise;

constexpr int64_t kWide = 512;   // channels per task when rows alone keep all threads busy
constexpr int64_t kNarrow = 64;  // channels per task when they do not
constexpr int64_t kWorth = 32768;  // elements that are worth a thread

// Where the coefficients of step (b, t) start; strides are 0 for time-invariant ones.
template <typename T>
struct Coefficients {
  const T* data;
  int64_t stride_b, stride_t;
  const T* at(int64_t b, int64_t t) const { return data + b * stride_b + t * stride_t; }
};

template <typename A>
Coefficients<A> coefficients(const Tensor& a, bool varying) {
  return {a.const_data_ptr<A>(), varying ? a.stride(0) : 0, varying ? a.stride(1) : 0};
}

struct Sizes {
  int64_t B, T, D, block, blocks, grain;
};

Sizes sizes(const Tensor& b, bool pairs) {
  Sizes s{b.size(0), b.size(1), b.size(2), 0, 0, 1};
  const int64_t wanted = s.B >= at::get_num_threads() ? kWide : kNarrow;
  s.block = std::max<int64_t>(1, std::min(s.D, wanted));
  s.blocks = (s.D + s.block - 1) / s.block;
  const int64_t work = std::max<int64_t>(1, s.T * s.block * (pairs ? 2 : 1));
  s.grain = std::max<int64_t>(1, kWorth / work);
  return s;
}

// Time runs backwards there, which the hardware's prefetcher does not follow by itself.
template <typename X>
void prefetch(const X* data, int64_t n) {
  for (int64_t d = 0; d < n; d += 64 / static_cast<int64_t>(sizeof(X)))
    __builtin_prefetch(data + d);
}

const bool* flags(const OptionalTensor& reset) {
  return reset.has_value() ? reset->const_data_ptr<bool>() : nullptr;
}

template <typename A>
const A* optional_data(const OptionalTensor& x) {
  return x.has_value() ? x->const_data_ptr<A>() : nullptr;
}

// ---------------------------------------------------------------- real, A accumulates, X stored

template <typename A, typename X>
void forward_real(const Sizes& s, Coefficients<A> a, const X* b, const A* h0, const bool* reset,
                  const A* h_init, X* h, A* h_last) {
  at::parallel_for(0, s.B * s.blocks, s.grain, [&](int64_t begin, int64_t end) {
    std::vector<A> state(s.block);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / s.blocks, d0 = (task % s.blocks) * s.block;
      const int64_t n = std::min(s.block, s.D - d0);
      A* __restrict v = state.data();
      std::copy_n(h0 + row * s.D + d0, n, v);
      for (int64_t t = 0; t < s.T; ++t) {
        if (reset && reset[row * s.T + t]) {
          if (h_init) std::copy_n(h_init + d0, n, v);
          else std::fill_n(v, n, A(0));
        }
        const A* __restrict at_ = a.at(row, t) + d0;
        const int64_t offset = (row * s.T + t) * s.D + d0;
        const X* __restrict bt = b + offset;
        X* __restrict ht = h + offset;
#pragma omp simd
        for (int64_t d = 0; d < n; ++d) {
          v[d] = at_[d] * v[d] + static_cast<A>(bt[d]);
          ht[d] = static_cast<X>(v[d]);
        }
      }
      std::copy_n(v, n, h_last + row * s.D + d0);
    }
  });
}

// Adjoint: v_t = g_t + a_{t+1} v_{t+1} unless t+1 is a reset; da_t = v_t prev_t; db_t = v_t.
template <typename A, typename X, bool varying, bool need_a>
void backward_real(const Sizes& s, Coefficients<A> a, const X* g, const A* g_last, const X* h,
                   const A* h0, const bool* reset, const A* h_init, A* da, X* db, A* dh0,
                   A* dh_init) {
  at::parallel_for(0, s.B * s.blocks, s.grain, [&](int64_t begin, int64_t end) {
    std::vector<A> carry_(s.block), zero(s.block, A(0)), sum(s.block), init_sum(s.block);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / s.blocks, d0 = (task % s.blocks) * s.block;
      const int64_t n = std::min(s.block, s.D - d0);
      A* __restrict carry = carry_.data();
      std::copy_n(g_last + row * s.D + d0, n, carry);
      std::fill(sum.begin(), sum.end(), A(0));
      std::fill(init_sum.begin(), init_sum.end(), A(0));
      for (int64_t t = s.T - 1; t >= 0; --t) {
        const bool cut = reset && reset[row * s.T + t];
        const int64_t offset = (row * s.T + t) * s.D + d0;
        const A* __restrict at_ = a.at(row, t) + d0;
        const X* __restrict gt = g + offset;
        X* __restrict dbt = db + offset;
        A* __restrict dat = varying ? da + offset : sum.data();
        if (t > 1) {
          prefetch(gt - 2 * s.D, n);
          if (varying) prefetch(a.at(row, t - 2) + d0, n);
          if (need_a) prefetch(h + offset - 3 * s.D, n);
        }
        const auto step = [&](const auto* __restrict prev) {
#pragma omp simd
          for (int64_t d = 0; d < n; ++d) {
            const A v = static_cast<A>(gt[d]) + carry[d];
            dbt[d] = static_cast<X>(v);
            if constexpr (need_a && varying) dat[d] = v * static_cast<A>(prev[d]);
            if constexpr (need_a && !varying) dat[d] += v * static_cast<A>(prev[d]);
            carry[d] = at_[d] * v;
          }
        };
        if (cut) step(h_init ? h_init + d0 : zero.data());
        else if (t == 0) step(h0 + row * s.D + d0);
        else step(h + offset - s.D);
        if (cut) {
          for (int64_t d = 0; d < n; ++d) init_sum[d] += carry[d];
          std::fill_n(carry, n, A(0));
        }
      }
      std::copy_n(carry, n, dh0 + row * s.D + d0);
      if (need_a && !varying) std::copy_n(sum.data(), n, da + row * s.D + d0);
      if (dh_init) std::copy_n(init_sum.data(), n, dh_init + row * s.D + d0);
    }
  });
}

// ---------------------------------------------------------------- complex, interleaved pairs

template <typename A, typename X>
void forward_complex(const Sizes& s, Coefficients<A> a, const X* b, const A* h0,
                     const bool* reset, const A* h_init, X* h, A* h_last) {
  at::parallel_for(0, s.B * s.blocks, s.grain, [&](int64_t begin, int64_t end) {
    std::vector<A> re_(s.block), im_(s.block);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / s.blocks, d0 = (task % s.blocks) * s.block;
      const int64_t n = std::min(s.block, s.D - d0);
      A* __restrict re = re_.data();
      A* __restrict im = im_.data();
      const auto load = [&](const A* source) {
        for (int64_t d = 0; d < n; ++d) re[d] = source[2 * d], im[d] = source[2 * d + 1];
      };
      load(h0 + 2 * (row * s.D + d0));
      for (int64_t t = 0; t < s.T; ++t) {
        if (reset && reset[row * s.T + t]) {
          if (h_init) load(h_init + 2 * d0);
          else std::fill_n(re, n, A(0)), std::fill_n(im, n, A(0));
        }
        const A* __restrict at_ = a.at(row, t) + 2 * d0;
        const int64_t offset = 2 * ((row * s.T + t) * s.D + d0);
        const X* __restrict bt = b + offset;
        X* __restrict ht = h + offset;
#pragma omp simd
        for (int64_t d = 0; d < n; ++d) {
          const A ar = at_[2 * d], ai = at_[2 * d + 1];
          const A r = ar * re[d] - ai * im[d] + static_cast<A>(bt[2 * d]);
          const A i = ar * im[d] + ai * re[d] + static_cast<A>(bt[2 * d + 1]);
          re[d] = r, im[d] = i;
          ht[2 * d] = static_cast<X>(r), ht[2 * d + 1] = static_cast<X>(i);
        }
      }
      A* last = h_last + 2 * (row * s.D + d0);
      for (int64_t d = 0; d < n; ++d) last[2 * d] = re[d], last[2 * d + 1] = im[d];
    }
  });
}

// As the real adjoint with conj(a) in the carry and conj(prev) in da.
template <typename A, typename X, bool varying, bool need_a>
void backward_complex(const Sizes& s, Coefficients<A> a, const X* g, const A* g_last, const X* h,
                      const A* h0, const bool* reset, const A* h_init, A* da, X* db, A* dh0,
                      A* dh_init) {
  at::parallel_for(0, s.B * s.blocks, s.grain, [&](int64_t begin, int64_t end) {
    std::vector<A> re_(s.block), im_(s.block), sum_re_(s.block), sum_im_(s.block),
        init_sum(2 * s.block), zero(2 * s.block, A(0));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / s.blocks, d0 = (task % s.blocks) * s.block;
      const int64_t n = std::min(s.block, s.D - d0);
      A* __restrict re = re_.data();
      A* __restrict im = im_.data();
      A* __restrict sum_re = sum_re_.data();
      A* __restrict sum_im = sum_im_.data();
      const A* last = g_last + 2 * (row * s.D + d0);
      for (int64_t d = 0; d < n; ++d) re[d] = last[2 * d], im[d] = last[2 * d + 1];
      std::fill(sum_re_.begin(), sum_re_.end(), A(0));
      std::fill(sum_im_.begin(), sum_im_.end(), A(0));
      std::fill(init_sum.begin(), init_sum.end(), A(0));
      for (int64_t t = s.T - 1; t >= 0; --t) {
        const bool cut = reset && reset[row * s.T + t];
        const int64_t offset = 2 * ((row * s.T + t) * s.D + d0);
        const A* __restrict at_ = a.at(row, t) + 2 * d0;
        const X* __restrict gt = g + offset;
        X* __restrict dbt = db + offset;
        A* __restrict dat = varying ? da + offset : nullptr;
        if (t > 1) {
          prefetch(gt - 4 * s.D, 2 * n);
          if (varying) prefetch(a.at(row, t - 2) + 2 * d0, 2 * n);
          if (need_a) prefetch(h + offset - 6 * s.D, 2 * n);
        }
        const auto step = [&](const auto* __restrict prev) {
#pragma omp simd
          for (int64_t d = 0; d < n; ++d) {
            const A vr = static_cast<A>(gt[2 * d]) + re[d];
            const A vi = static_cast<A>(gt[2 * d + 1]) + im[d];
            dbt[2 * d] = static_cast<X>(vr), dbt[2 * d + 1] = static_cast<X>(vi);
            const A ar = at_[2 * d], ai = at_[2 * d + 1];
            re[d] = ar * vr + ai * vi;
            im[d] = ar * vi - ai * vr;
            if constexpr (need_a) {
              const A pr = static_cast<A>(prev[2 * d]), pi = static_cast<A>(prev[2 * d + 1]);
              const A dr = vr * pr + vi * pi, di = vi * pr - vr * pi;
              if constexpr (varying) dat[2 * d] = dr, dat[2 * d + 1] = di;
              else sum_re[d] += dr, sum_im[d] += di;
            }
          }
        };
        if (cut) step(h_init ? h_init + 2 * d0 : zero.data());
        else if (t == 0) step(h0 + 2 * (row * s.D + d0));
        else step(h + offset - 2 * s.D);
        if (cut) {
          for (int64_t d = 0; d < n; ++d)
            init_sum[2 * d] += re[d], init_sum[2 * d + 1] += im[d];
          std::fill_n(re, n, A(0)), std::fill_n(im, n, A(0));
        }
      }
      A* first = dh0 + 2 * (row * s.D + d0);
      for (int64_t d = 0; d < n; ++d) first[2 * d] = re[d], first[2 * d + 1] = im[d];
      if (need_a && !varying) {
        A* sums = da + 2 * (row * s.D + d0);
        for (int64_t d = 0; d < n; ++d) sums[2 * d] = sum_re[d], sums[2 * d + 1] = sum_im[d];
      }
      if (dh_init) std::copy_n(init_sum.data(), 2 * n, dh_init + 2 * (row * s.D + d0));
    }
  });
}

template <typename A, typename X, bool varying, bool need_a>
auto backward_of(bool pairs) {
  return pairs ? backward_complex<A, X, varying, need_a> : backward_real<A, X, varying, need_a>;
}

template <typename A, typename X>
auto backward_of(bool pairs, bool varying, bool need_a) {
  if (varying)
    return need_a ? backward_of<A, X, true, true>(pairs) : backward_of<A, X, true, false>(pairs);
  return need_a ? backward_of<A, X, false, true>(pairs) : backward_of<A, X, false, false>(pairs);
}

// ---------------------------------------------------------------- entry points

template <typename Function>
void dispatch_dtype(const Tensor& b, Function&& function) {
  if (b.scalar_type() == at::kFloat) function(float{}, float{});
  else if (b.scalar_type() == at::kDouble) function(double{}, double{});
  else if (b.scalar_type() == at::kBFloat16) function(float{}, at::BFloat16{});
  else TORCH_CHECK(false, "linear_scan(cpu): float32, float64 or bfloat16, got ", b.scalar_type());
}

// The last axes must be dense; outer strides may be anything, 0 included.
Tensor dense_inside(const Tensor& a, bool pairs) {
  const int64_t last = a.dim() - 1;
  const bool dense = pairs ? a.stride(last) == 1 && a.stride(last - 1) == 2 : a.stride(last) == 1;
  return dense ? a : a.contiguous();
}

std::tuple<Tensor, Tensor> linear_scan_forward(const Tensor& a_, const Tensor& b_,
                                               const Tensor& h0_, const OptionalTensor& reset_,
                                               const OptionalTensor& h_init_, bool pairs) {
  const bool varying = a_.dim() == b_.dim();
  const Tensor a = dense_inside(a_, pairs), b = b_.contiguous(), h0 = h0_.contiguous();
  OptionalTensor reset, h_init;
  if (reset_.has_value()) reset = reset_->contiguous();
  if (h_init_.has_value()) h_init = h_init_->contiguous();
  Tensor h = at::empty_like(b, at::MemoryFormat::Contiguous);
  Tensor h_last = at::empty_like(h0, at::MemoryFormat::Contiguous);
  const Sizes s = sizes(b, pairs);
  dispatch_dtype(b, [&](auto accumulate, auto stored) {
    using A = decltype(accumulate);
    using X = decltype(stored);
    const auto run = pairs ? forward_complex<A, X> : forward_real<A, X>;
    run(s, coefficients<A>(a, varying), b.const_data_ptr<X>(), h0.const_data_ptr<A>(),
        flags(reset), optional_data<A>(h_init), h.mutable_data_ptr<X>(),
        h_last.mutable_data_ptr<A>());
  });
  return {h, h_last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_scan_backward(
    const Tensor& grad_h_, const Tensor& grad_last_, const Tensor& a_, const Tensor& h_,
    const Tensor& h0_, const OptionalTensor& reset_, const OptionalTensor& h_init_, bool pairs,
    bool need_a) {
  const bool varying = a_.dim() == h_.dim();
  const Tensor a = dense_inside(a_, pairs), g = grad_h_.contiguous();
  const Tensor g_last = grad_last_.contiguous(), h = h_.contiguous(), h0 = h0_.contiguous();
  OptionalTensor reset, h_init;
  if (reset_.has_value()) reset = reset_->contiguous();
  if (h_init_.has_value()) h_init = h_init_->contiguous();
  const auto options = h0.options();
  Tensor db = at::empty_like(h, at::MemoryFormat::Contiguous);
  Tensor dh0 = at::empty_like(h0, at::MemoryFormat::Contiguous);
  Tensor da = !need_a ? at::empty({0}, options)
                      : varying ? at::empty(h.sizes(), options) : at::empty(h0.sizes(), options);
  Tensor dh_init = h_init.has_value() ? at::empty(h0.sizes(), options) : at::empty({0}, options);
  const Sizes s = sizes(h, pairs);
  dispatch_dtype(h, [&](auto accumulate, auto stored) {
    using A = decltype(accumulate);
    using X = decltype(stored);
    const auto run = backward_of<A, X>(pairs, varying, need_a);
    run(s, coefficients<A>(a, varying), g.const_data_ptr<X>(), g_last.const_data_ptr<A>(),
        h.const_data_ptr<X>(), h0.const_data_ptr<A>(), flags(reset), optional_data<A>(h_init),
        need_a ? da.mutable_data_ptr<A>() : nullptr, db.mutable_data_ptr<X>(),
        dh0.mutable_data_ptr<A>(), h_init.has_value() ? dh_init.mutable_data_ptr<A>() : nullptr);
  });
  // Rows were kept apart so that the order of this sum is fixed.
  if (need_a && !varying) da = da.sum(0);
  if (h_init.has_value()) dh_init = dh_init.sum(0);
  return {da, db, dh0, dh_init};
}

// The same with its adjoint: an update calls it once per layer, and Python's turn would take longer.
struct LinearScan : Function<LinearScan> {
  static Gradients forward(AutogradContext* context, const Tensor& a, const Tensor& b,
                           const Tensor& h0, const OptionalTensor& reset,
                           const OptionalTensor& h_init, bool pairs) {
    const auto [h, last] = linear_scan_forward(a, b, h0, reset, h_init, pairs);
    context->saved_data["pairs"] = pairs;
    context->save_for_backward({a, h, h0, reset.value_or(Tensor()), h_init.value_or(Tensor())});
    return {h, last};
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("linear_scan");
    const auto saved = context->get_saved_variables();
    const auto given = [](const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; };
    const OptionalTensor h_init = given(saved[4]);
    const bool need_a = context->needs_input_grad(0);
    const auto [da, db, dh0, dh_init] = linear_scan_backward(
        gradients[0], gradients[1], saved[0], saved[1], saved[2], given(saved[3]), h_init,
        context->saved_data["pairs"].toBool(), need_a);
    return {need_a ? da : Tensor(), db, dh0, Tensor(), h_init ? dh_init : Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> linear_scan(const Tensor& a, const Tensor& b, const Tensor& h0,
                                       const OptionalTensor& reset, const OptionalTensor& h_init,
                                       bool pairs) {
  const auto both = LinearScan::apply(a, b, h0, reset, h_init, pairs);
  return {both[0], both[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def(
      "linear_scan(Tensor a, Tensor b, Tensor h0, Tensor? reset, Tensor? h_init, bool pairs) -> "
      "(Tensor, Tensor)",
      &linear_scan);
  m.def(
      "linear_scan_forward(Tensor a, Tensor b, Tensor h0, Tensor? reset, Tensor? h_init, "
      "bool pairs) -> (Tensor, Tensor)",
      &linear_scan_forward);
  m.def(
      "linear_scan_backward(Tensor grad_h, Tensor grad_last, Tensor a, Tensor h, Tensor h0, "
      "Tensor? reset, Tensor? h_init, bool pairs, bool need_a) "
      "-> (Tensor, Tensor, Tensor, Tensor)",
      &linear_scan_backward);
}
