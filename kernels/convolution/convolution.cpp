// The kernels of the convolution mode on the CPU.
//
// Vandermonde: k_l = 2 Re sum_n w_n a_n^l. A table holds kSpan powers, an anchor w a^{jQ} in double
// moves it along; nothing of the size N L is made.
// Cauchy: f_k = sum_n v_n / (4i sigma - 2 kappa s_n) + its conjugate partner, double throughout. The
// two terms over one denominator are
//
//   (2i sigma Re v - kappa Re(v conj(s))) / (kappa^2 |s|^2 - 4 sigma^2 - 4i sigma kappa Re s)
//
// so the reciprocals serve all numerators, which stay real. One task owns whole channels: every sum
// has one order, whatever the number of threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "../powers.h"

namespace {

using namespace statewise;

using at::Tensor;
using Complex = c10::complex<double>;

constexpr int64_t kGrain = 32768;  // terms that are worth a thread
constexpr int64_t kNodes = 64;     // nodes of the Cauchy sums worked on at once

int64_t grain(int64_t terms) { return std::max<int64_t>(1, kGrain / (terms + 1)); }

// ---------------------------------------------------------------- Vandermonde

// a^Q, its derivative Q a^{Q-1}, and the same for the powers a^{jQ} walked through.
struct Anchor {
  Complex jump, slope, power = 1, derivative = 0;
  Anchor(Complex a, int64_t Q) : jump(1), slope(0) {
    for (int64_t l = 0; l < Q; ++l) slope = slope * a + jump, jump *= a;
  }
  void move() { derivative = derivative * jump + power * slope, power *= jump; }
};

std::vector<Anchor> anchors(const std::vector<Complex>& a, int64_t Q) {
  std::vector<Anchor> made;
  for (const Complex z : a) made.emplace_back(z, Q);
  return made;
}

template <typename A>
std::vector<Complex> numbers(const A* pairs, int64_t N) {
  std::vector<Complex> made(N);
  for (int64_t n = 0; n < N; ++n) made[n] = Complex(pairs[2 * n], pairs[2 * n + 1]);
  return made;
}

template <typename A>
void vandermonde(int64_t H, int64_t N, int64_t L, const A* w_, const A* a_, A* k) {
  const int64_t Q = std::min(kSpan, L);
  at::parallel_for(0, H, grain(N * L), [&](int64_t h, int64_t end) {
    Numbers<A> u(N);
    A out[kSpan];
    for (; h < end; ++h) {
      const Powers<A> powers(a_ + 2 * h * N, N, Q);
      const auto w = numbers(w_ + 2 * h * N, N);
      auto walk = anchors(numbers(a_ + 2 * h * N, N), Q);
      for (int64_t l = 0; l < L; l += Q) {
        for (int64_t n = 0; n < N; ++n) {
          const Complex start = 2.0 * w[n] * walk[n].power;
          u.re()[n] = static_cast<A>(start.real()), u.im()[n] = static_cast<A>(start.imag());
          walk[n].move();
        }
        const int64_t count = std::min(Q, L - l);
        emit(powers, u, count, out);
        std::copy_n(out, count, k + h * L + l);
      }
    }
  });
}

// With D = sum_l g_l a^l: d w = 2 D, d a = 2 w dD/da; the stored gradients are the conjugates.
template <typename A>
void vandermonde_backward(int64_t H, int64_t N, int64_t L, const A* g_, const A* w_, const A* a_,
                          A* dw, A* da) {
  const int64_t Q = std::min(kSpan, L);
  at::parallel_for(0, H, grain(N * L), [&](int64_t h, int64_t end) {
    Numbers<A> sum(N), slope(N);
    A g[kSpan + 1], g_slopes[kSpan];
    for (; h < end; ++h) {
      const Powers<A> powers(a_ + 2 * h * N, N, Q);
      const auto w = numbers(w_ + 2 * h * N, N);
      auto walk = anchors(numbers(a_ + 2 * h * N, N), Q);
      std::vector<Complex> value(N, 0), derivative(N, 0);
      for (int64_t l = 0; l < L; l += Q) {
        const int64_t count = std::min(Q, L - l);
        std::copy_n(g_ + h * L + l, count, g);
        g[count] = 0;
        for (int64_t i = 0; i < count; ++i) g_slopes[i] = static_cast<A>(i + 1) * g[i + 1];
        absorb<A, 2>(powers, count, {g, g_slopes}, {&sum, &slope});
        for (int64_t n = 0; n < N; ++n) {
          const Complex s(sum.re()[n], sum.im()[n]), d(slope.re()[n], slope.im()[n]);
          value[n] += walk[n].power * s;
          derivative[n] += walk[n].power * d + walk[n].derivative * s;
          walk[n].move();
        }
      }
      for (int64_t n = 0; n < N; ++n) {
        const Complex a = 2.0 * w[n] * derivative[n], b = 2.0 * value[n];
        A *to_a = da + 2 * (h * N + n), *to_w = dw + 2 * (h * N + n);
        to_a[0] = static_cast<A>(a.real()), to_a[1] = -static_cast<A>(a.imag());
        to_w[0] = static_cast<A>(b.real()), to_w[1] = -static_cast<A>(b.imag());
      }
    }
  });
}

// ---------------------------------------------------------------- Cauchy

struct Nodes {
  int64_t count;
  std::vector<double> sigma, kappa;
  explicit Nodes(int64_t L) : count(L / 2 + 1), sigma(count), kappa(count) {
    for (int64_t k = 0; k < count; ++k) {
      const double half = M_PI * static_cast<double>(k) / static_cast<double>(L);
      sigma[k] = 2 * std::sin(half), kappa[k] = std::cos(half);
    }
  }
};

// Real and imaginary part of sigma / D and kappa / D on a stretch of nodes, sigma with its factor 2.
struct Reciprocals {
  double sr[kNodes], si[kNodes], kr[kNodes], ki[kNodes];

  void compute(const double* __restrict sigma, const double* __restrict kappa, int64_t count,
               double square, double re) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
      const double x = kappa[k] * kappa[k] * square - sigma[k] * sigma[k];
      const double y = -2 * sigma[k] * kappa[k] * re;
      const double scale = 1 / (x * x + y * y);
      const double r = x * scale, i = -y * scale;
      sr[k] = sigma[k] * r, si[k] = sigma[k] * i;
      kr[k] = kappa[k] * r, ki[k] = kappa[k] * i;
    }
  }
};

// The sums over n depend on v through Re v and Re(v conj(s)).
struct Numerator {
  double p, q;
  Numerator(const double* v, const double* s) : p(v[0]), q(v[0] * s[0] + v[1] * s[1]) {}
};

void cauchy(int64_t R, int64_t H, int64_t N, const Nodes& nodes, const double* v, const double* s,
            double* f) {
  at::parallel_for(0, H, grain(R * N * nodes.count), [&](int64_t h, int64_t end) {
    std::vector<double> sums(2 * R * kNodes);
    Reciprocals e;
    for (; h < end; ++h)
      for (int64_t from = 0; from < nodes.count; from += kNodes) {
        const int64_t count = std::min(kNodes, nodes.count - from);
        std::fill(sums.begin(), sums.end(), 0.0);
        for (int64_t n = 0; n < N; ++n) {
          const double* sn = s + 2 * (h * N + n);
          e.compute(&nodes.sigma[from], &nodes.kappa[from], count, sn[0] * sn[0] + sn[1] * sn[1],
                    sn[0]);
          for (int64_t r = 0; r < R; ++r) {
            const Numerator top(v + 2 * ((r * H + h) * N + n), sn);
            double *__restrict re = &sums[2 * r * kNodes], *__restrict im = re + kNodes;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) {
              re[k] -= top.q * e.kr[k] + top.p * e.si[k];
              im[k] += top.p * e.sr[k] - top.q * e.ki[k];
            }
          }
        }
        for (int64_t r = 0; r < R; ++r)
          for (int64_t k = 0; k < count; ++k) {
            double* out = f + 2 * ((r * H + h) * nodes.count + from + k);
            out[0] = sums[2 * r * kNodes + k], out[1] = sums[(2 * r + 1) * kNodes + k];
          }
      }
  });
}

// The adjoint on one stretch of nodes and for one n: adds to dp, dq (R) and returns what goes to
// |s|^2 and Re s. The cotangents g are [r][re, im][node].
std::pair<double, double> adjoint(int64_t R, int64_t count, const Reciprocals& e,
                                  const double* __restrict kappa, const double* g, const double* p,
                                  const double* q, double* dp, double* dq) {
  double wr[kNodes] = {}, wi[kNodes] = {};  // sum_r conj(g) (2i sigma p - kappa q) / D
  for (int64_t r = 0; r < R; ++r) {
    const double *__restrict gr = g + 2 * r * kNodes, *__restrict gi = gr + kNodes;
    const double pr = p[r], qr = q[r];
    double by_p = 0, by_q = 0;
#pragma omp simd reduction(+ : by_p, by_q)
    for (int64_t k = 0; k < count; ++k) {
      by_p += gi[k] * e.sr[k] - gr[k] * e.si[k];
      by_q -= gr[k] * e.kr[k] + gi[k] * e.ki[k];
      const double re = -qr * e.kr[k] - pr * e.si[k], im = pr * e.sr[k] - qr * e.ki[k];
      wr[k] += gr[k] * re + gi[k] * im;
      wi[k] += gr[k] * im - gi[k] * re;
    }
    dp[r] += by_p, dq[r] += by_q;
  }
  double square = 0, real = 0;
#pragma omp simd reduction(+ : square, real)
  for (int64_t k = 0; k < count; ++k) {
    square -= kappa[k] * (wr[k] * e.kr[k] - wi[k] * e.ki[k]);
    real -= 2 * kappa[k] * (wr[k] * e.si[k] + wi[k] * e.sr[k]);
  }
  return {square, real};
}

void cauchy_backward(int64_t R, int64_t H, int64_t N, const Nodes& nodes, const double* g_,
                     const double* v, const double* s, double* dv, double* ds) {
  at::parallel_for(0, H, grain(R * N * nodes.count), [&](int64_t h, int64_t end) {
    std::vector<double> g(2 * R * kNodes), p(N * R), q(N * R), dp(N * R), dq(N * R);
    std::vector<double> square(N), real(N);
    Reciprocals e;
    for (; h < end; ++h) {
      const double* sh = s + 2 * h * N;
      for (int64_t r = 0; r < R; ++r)
        for (int64_t n = 0; n < N; ++n) {
          const Numerator top(v + 2 * ((r * H + h) * N + n), sh + 2 * n);
          p[n * R + r] = top.p, q[n * R + r] = top.q;
        }
      for (auto* sums : {&dp, &dq, &square, &real}) std::fill(sums->begin(), sums->end(), 0.0);
      for (int64_t from = 0; from < nodes.count; from += kNodes) {
        const int64_t count = std::min(kNodes, nodes.count - from);
        for (int64_t r = 0; r < R; ++r)
          for (int64_t k = 0; k < count; ++k) {
            const double* in = g_ + 2 * ((r * H + h) * nodes.count + from + k);
            g[2 * r * kNodes + k] = in[0], g[(2 * r + 1) * kNodes + k] = in[1];
          }
        for (int64_t n = 0; n < N; ++n) {
          const double* sn = sh + 2 * n;
          e.compute(&nodes.sigma[from], &nodes.kappa[from], count, sn[0] * sn[0] + sn[1] * sn[1],
                    sn[0]);
          const auto more = adjoint(R, count, e, &nodes.kappa[from], g.data(), &p[n * R],
                                    &q[n * R], &dp[n * R], &dq[n * R]);
          square[n] += more.first, real[n] += more.second;
        }
      }
      for (int64_t n = 0; n < N; ++n) {
        const double* sn = sh + 2 * n;
        double* to = ds + 2 * (h * N + n);
        to[0] = 2 * square[n] * sn[0] + real[n], to[1] = 2 * square[n] * sn[1];
        for (int64_t r = 0; r < R; ++r) {
          const int64_t at = 2 * ((r * H + h) * N + n);
          dv[at] = dp[n * R + r] + dq[n * R + r] * sn[0], dv[at + 1] = dq[n * R + r] * sn[1];
          to[0] += dq[n * R + r] * v[at], to[1] += dq[n * R + r] * v[at + 1];
        }
      }
    }
  });
}

// ---------------------------------------------------------------- entry points

template <typename Function>
void dispatch_dtype(const Tensor& x, Function&& function) {
  if (x.scalar_type() == at::kFloat) function(float{});
  else if (x.scalar_type() == at::kDouble) function(double{});
  else TORCH_CHECK(false, "vandermonde(cpu): float32 or float64, got ", x.scalar_type());
}

Tensor vandermonde_forward(const Tensor& w_, const Tensor& a_, int64_t L) {
  const Tensor w = w_.contiguous(), a = a_.contiguous();
  Tensor k = at::empty({w.size(0), L}, w.options());
  dispatch_dtype(w, [&](auto number) {
    using A = decltype(number);
    vandermonde<A>(w.size(0), w.size(1), L, w.const_data_ptr<A>(), a.const_data_ptr<A>(),
                   k.mutable_data_ptr<A>());
  });
  return k;
}

std::tuple<Tensor, Tensor> vandermonde_backward(const Tensor& grad_, const Tensor& w_,
                                                const Tensor& a_) {
  const Tensor grad = grad_.contiguous(), w = w_.contiguous(), a = a_.contiguous();
  Tensor dw = at::empty(w.sizes(), w.options()), da = at::empty(a.sizes(), a.options());
  dispatch_dtype(w, [&](auto number) {
    using A = decltype(number);
    vandermonde_backward<A>(w.size(0), w.size(1), grad.size(1), grad.const_data_ptr<A>(),
                            w.const_data_ptr<A>(), a.const_data_ptr<A>(), dw.mutable_data_ptr<A>(),
                            da.mutable_data_ptr<A>());
  });
  return {dw, da};
}

Tensor cauchy_forward(const Tensor& v_, const Tensor& s_, int64_t L) {
  const Tensor v = v_.contiguous(), s = s_.contiguous();
  const Nodes nodes(L);
  Tensor f = at::empty({v.size(0), v.size(1), nodes.count, 2}, v.options());
  cauchy(v.size(0), v.size(1), v.size(2), nodes, v.const_data_ptr<double>(),
         s.const_data_ptr<double>(), f.mutable_data_ptr<double>());
  return f;
}

std::tuple<Tensor, Tensor> cauchy_backward(const Tensor& grad_, const Tensor& v_,
                                           const Tensor& s_, int64_t L) {
  const Tensor grad = grad_.contiguous(), v = v_.contiguous(), s = s_.contiguous();
  Tensor dv = at::empty(v.sizes(), v.options()), ds = at::empty(s.sizes(), s.options());
  cauchy_backward(v.size(0), v.size(1), v.size(2), Nodes(L), grad.const_data_ptr<double>(),
                  v.const_data_ptr<double>(), s.const_data_ptr<double>(),
                  dv.mutable_data_ptr<double>(), ds.mutable_data_ptr<double>());
  return {dv, ds};
}

}  // namespace

// Each library has an op named <op>_forward: its presence tells that the library is loaded.
TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def("convolution_forward(Tensor w, Tensor a, int L) -> Tensor",
        [](const Tensor& w, const Tensor& a, int64_t L) { return vandermonde_forward(w, a, L); });
  m.def("convolution_backward(Tensor grad, Tensor w, Tensor a) -> (Tensor, Tensor)",
        [](const Tensor& grad, const Tensor& w, const Tensor& a) {
          return vandermonde_backward(grad, w, a);
        });
  m.def("cauchy_forward(Tensor v, Tensor s, int L) -> Tensor",
        [](const Tensor& v, const Tensor& s, int64_t L) { return cauchy_forward(v, s, L); });
  m.def("cauchy_backward(Tensor grad, Tensor v, Tensor s, int L) -> (Tensor, Tensor)",
        [](const Tensor& grad, const Tensor& v, const Tensor& s, int64_t L) {
          return cauchy_backward(grad, v, s, L);
        });
}
