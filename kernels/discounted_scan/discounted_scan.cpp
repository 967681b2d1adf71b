// Discounted scan on the CPU: y_t = x_t + discount_t * y_{t+1}, y_T = last. One task per row.
// A discount of 0 selects x_t, so that a non-finite y_{t+1} does not pass.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

namespace {

using at::Tensor;

constexpr int64_t kGrain = 32768;  // elements that are worth a thread

int64_t grain(int64_t T) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, T)); }

Tensor discounted_scan_forward(const Tensor& x_, const Tensor& discount_, const Tensor& last_) {
  const Tensor x = x_.contiguous(), discount = discount_.contiguous(), last = last_.contiguous();
  Tensor y = at::empty_like(x, at::MemoryFormat::Contiguous);
  const int64_t B = x.size(0), T = x.size(1);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "discounted_scan(cpu)", [&] {
    const scalar_t* xs = x.const_data_ptr<scalar_t>();
    const scalar_t* ds = discount.const_data_ptr<scalar_t>();
    const scalar_t* ls = last.const_data_ptr<scalar_t>();
    scalar_t* ys = y.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B, grain(T), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        scalar_t next = ls[b];
        for (int64_t t = T - 1; t >= 0; --t) {
          const scalar_t d = ds[b * T + t];
          next = d == 0 ? xs[b * T + t] : xs[b * T + t] + d * next;
          ys[b * T + t] = next;
        }
      }
    });
  });
  return y;
}

// Adjoint, forward in time: v_t = g_t + discount_{t-1} v_{t-1}; dx_t = v_t;
// ddiscount_t = v_t y_{t+1}; dlast = discount_{T-1} v_{T-1}.
std::tuple<Tensor, Tensor, Tensor> discounted_scan_backward(const Tensor& grad_,
                                                            const Tensor& discount_,
                                                            const Tensor& y_,
                                                            const Tensor& last_) {
  const Tensor grad = grad_.contiguous(), discount = discount_.contiguous();
  const Tensor y = y_.contiguous(), last = last_.contiguous();
  Tensor dx = at::empty_like(y, at::MemoryFormat::Contiguous);
  Tensor dd = at::empty_like(y, at::MemoryFormat::Contiguous);
  Tensor dlast = at::empty_like(last, at::MemoryFormat::Contiguous);
  const int64_t B = y.size(0), T = y.size(1);
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "discounted_scan(cpu)", [&] {
    const scalar_t* gs = grad.const_data_ptr<scalar_t>();
    const scalar_t* ds = discount.const_data_ptr<scalar_t>();
    const scalar_t* ys = y.const_data_ptr<scalar_t>();
    const scalar_t* ls = last.const_data_ptr<scalar_t>();
    scalar_t* dxs = dx.mutable_data_ptr<scalar_t>();
    scalar_t* dds = dd.mutable_data_ptr<scalar_t>();
    scalar_t* dls = dlast.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B, grain(T), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        scalar_t carry = 0;
        for (int64_t t = 0; t < T; ++t) {
          const int64_t k = b * T + t;
          const scalar_t v = gs[k] + carry;
          dxs[k] = v;
          dds[k] = v * (t + 1 < T ? ys[k + 1] : ls[b]);
          carry = ds[k] == 0 ? scalar_t(0) : ds[k] * v;
        }
        dls[b] = carry;
      }
    });
  });
  return {dx, dd, dlast};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def("discounted_scan_forward(Tensor x, Tensor discount, Tensor last) -> Tensor",
        &discounted_scan_forward);
  m.def(
      "discounted_scan_backward(Tensor grad, Tensor discount, Tensor y, Tensor last) "
      "-> (Tensor, Tensor, Tensor)",
      &discounted_scan_backward);
}
