// Selective scan (S6) on the CPU.
//
//   d = softplus(dt + bias);  a = exp(d A) or 2 exp(d A) - 1;  h = a prev + d u B
//   y = (sum_n C h + D u) silu(z)                  complex: 2 Re of the sum
//
// One task owns a block of channels of one batch row and runs through time with the state in L1,
// laid out [n][channel] so that every inner loop runs over channels. Forward keeps the state every
// kChunk steps; backward computes the states of a chunk again into a buffer of the task. Every sum
// has one order, whatever the number of threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../elementary.h"

namespace {

using namespace statewise;

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kChunk = 32;  // steps between kept states; `op.py` knows it, too
constexpr int64_t kBlock = 64;  // channels per task
constexpr int64_t kAhead = 4;   // steps between asking for a row of inputs and reading it
constexpr int kWide = 4;        // states that a pass over the channels takes at once
constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// ---------------------------------------------------------------- what a call works on

template <typename X>
struct View {  // (B, T, width) with dense rows
  const X* data = nullptr;
  int64_t stride_b = 0, stride_t = 0, stride_g = 0;
  const X* at(int64_t b, int64_t t, int64_t g = 0) const {
    return data + b * stride_b + t * stride_t + g * stride_g;
  }
};

struct Sizes {
  int64_t B, T, E, N, G, per_group, block, blocks_per_group, blocks, chunks;
};

struct Flags {
  bool softplus, is_signed;
};

template <typename A, typename X>
struct Inputs {
  View<X> u, z, Bm, Cm;
  View<A> dt;
  const A *A_, *D, *bias, *h0, *override_;
  const bool* reset;
};

Sizes sizes(const Tensor& u, const Tensor& A, const Tensor& Bm, bool step = false) {
  Sizes s{};
  s.B = u.size(0), s.T = step ? 1 : u.size(1), s.E = u.size(step ? 1 : 2), s.N = A.size(1);
  s.G = Bm.size(step ? 1 : 2);
  s.per_group = s.E / s.G;
  s.block = std::min(kBlock, s.per_group);
  s.blocks_per_group = (s.per_group + s.block - 1) / s.block;
  s.blocks = s.G * s.blocks_per_group;
  s.chunks = (s.T + kChunk - 1) / kChunk;
  return s;
}

template <typename A>
inline A decay(A log2, bool is_signed) {
  const A a = exp2_(log2);
  return is_signed ? A(2) * a - A(1) : a;
}

// The channels of a block, which all belong to one group.
struct Channels {
  int64_t group, first, count;
};

Channels channels(const Sizes& s, int64_t block) {
  const int64_t group = block / s.blocks_per_group, inside = block % s.blocks_per_group;
  const int64_t first = group * s.per_group + inside * s.block;
  return {group, first, std::min(s.block, (group + 1) * s.per_group - first)};
}

// A, transposed to [n][channel], its imaginary part, and per n whether the decay is given. A real A
// is held times log2(e), so that decays are powers of 2.
template <typename A, bool cplx>
struct Decays {
  std::vector<A> re, im;
  const A* given;
  bool is_signed;

  Decays(const Sizes& s, const Channels& c, const A* source, const A* override_, bool sign)
      : re(s.N * s.block), im(cplx ? s.N * s.block : 0), given(override_), is_signed(sign) {
    constexpr int64_t w = cplx ? 2 : 1;
    for (int64_t n = 0; n < s.N; ++n)
      for (int64_t e = 0; e < c.count; ++e) {
        const A* entry = source + w * ((c.first + e) * s.N + n);
        re[n * s.block + e] = cplx ? entry[0] : entry[0] * A(kLog2e);
        if constexpr (cplx) im[n * s.block + e] = entry[1];
      }
  }
  bool fixed(int64_t n) const { return given && !std::isnan(given[n]); }

  // a (count) for the steps d (count) and state n.
  void evaluate(int64_t n, int64_t block, int64_t count, const A* __restrict d, A* __restrict ar,
                A* __restrict ai) const {
    if (fixed(n)) {
      std::fill_n(ar, count, given[n]);
      if constexpr (cplx) std::fill_n(ai, count, A(0));
      return;
    }
    const A* __restrict r = re.data() + n * block;
    if constexpr (cplx) {
      const A* __restrict i = im.data() + n * block;
      for (int64_t e = 0; e < count; ++e) {
        const A radius = exp_(d[e] * r[e]);
        ar[e] = radius * std::cos(d[e] * i[e]);
        ai[e] = radius * std::sin(d[e] * i[e]);
      }
    } else {
      for (int64_t e = 0; e < count; ++e) ar[e] = decay<A>(d[e] * r[e], is_signed);
    }
  }
};

// State [n][channel], real parts then imaginary ones; outside it is (channel, n[, 2]).
template <typename A, bool cplx>
void load_state(const Sizes& s, const Channels& c, const A* row, A* h) {
  constexpr int64_t w = cplx ? 2 : 1;
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t e = 0; e < c.count; ++e)
      for (int64_t k = 0; k < w; ++k)
        h[(k * s.N + n) * s.block + e] = row[w * ((c.first + e) * s.N + n) + k];
}

template <typename A, bool cplx>
void store_state(const Sizes& s, const Channels& c, const A* h, A* row) {
  constexpr int64_t w = cplx ? 2 : 1;
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t e = 0; e < c.count; ++e)
      for (int64_t k = 0; k < w; ++k)
        row[w * ((c.first + e) * s.N + n) + k] = h[(k * s.N + n) * s.block + e];
}

// Bring the rows that a step reads into the cache. A block reads short pieces, far apart, which the
// processor does not foresee.
template <typename X>
inline void foresee(const X* row, int64_t count) {
  if (!row) return;
  for (int64_t e = 0; e < count; e += 64 / sizeof(X)) __builtin_prefetch(row + e);
}

template <typename A, typename X>
inline void foresee(const Inputs<A, X>& in, const Channels& c, int64_t b, int64_t t) {
  foresee(in.dt.at(b, t) + c.first, c.count);
  foresee(in.u.at(b, t) + c.first, c.count);
  if (in.z.data) foresee(in.z.at(b, t) + c.first, c.count);
}

// d and d * u of one step.
template <typename A, typename X>
void drive(const Inputs<A, X>& in, const Flags& flags, const Channels& c, int64_t b, int64_t t,
           A* __restrict raw, A* __restrict d, A* __restrict du) {
  const A* __restrict dt = in.dt.at(b, t) + c.first;
  const X* __restrict u = in.u.at(b, t) + c.first;
  const A* __restrict bias = in.bias ? in.bias + c.first : nullptr;
  for (int64_t e = 0; e < c.count; ++e) raw[e] = bias ? dt[e] + bias[e] : dt[e];
  if (flags.softplus) {
#pragma omp simd
    for (int64_t e = 0; e < c.count; ++e) d[e] = softplus_(raw[e]);
  } else {
    std::copy_n(raw, c.count, d);
  }
#pragma omp simd
  for (int64_t e = 0; e < c.count; ++e) du[e] = d[e] * static_cast<A>(u[e]);
}

// h = a prev + du B and y += C h for kWide states, all decays exponentials; `a` is kept where Keep.
template <typename A, typename X, bool Keep, bool Signed>
inline void advance_real(int64_t count, int64_t block, const A* __restrict d,
                         const A* __restrict du, const A* __restrict rate, const X* Bt,
                         const X* Ct, const A* prev, A* next, A* __restrict a, A* __restrict y) {
  static_assert(kWide == 4);
  const A b0 = Bt[0], b1 = Bt[1], b2 = Bt[2], b3 = Bt[3];
  const A c0 = Ct[0], c1 = Ct[1], c2 = Ct[2], c3 = Ct[3];
  const auto one = [&](int64_t e, int64_t i, A b, A c) {
    const A f = decay<A>(d[e] * rate[i], Signed), h = f * prev[i] + du[e] * b;
    if constexpr (Keep) a[i] = f;
    next[i] = h;
    return c * h;
  };
#pragma omp simd
  for (int64_t e = 0; e < count; ++e)
    y[e] += one(e, e, b0, c0) + one(e, block + e, b1, c1) + one(e, 2 * block + e, b2, c2) +
            one(e, 3 * block + e, b3, c3);
}

// As above for one state whose decay is in `ar` and `ai`; complex: y += 2 Re(C h).
template <typename A, bool cplx>
inline void advance(int64_t count, const A* __restrict ar, const A* __restrict ai,
                    const A* __restrict du, A br, A bi, A cr, A ci, const A* pr, const A* pi,
                    A* hr, A* hi, A* __restrict y) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    if constexpr (cplx) {
      const A r = ar[e] * pr[e] - ai[e] * pi[e] + du[e] * br;
      const A i = ar[e] * pi[e] + ai[e] * pr[e] + du[e] * bi;
      hr[e] = r, hi[e] = i;
      y[e] += A(2) * (cr * r - ci * i);
    } else {
      const A r = ar[e] * pr[e] + du[e] * br;
      hr[e] = r;
      y[e] += cr * r;
    }
  }
}

// All states of a block at one step, from `prev` to `next`, which may be one; the decays go to `a`,
// those of real states only where `keep`.
template <typename A, typename X, bool cplx>
inline void all_states(const Sizes& s, const Channels& c, const Decays<A, cplx>& decays,
                       const X* Bt, const X* Ct, const A* d, const A* du, const A* prev, A* next,
                       A* a, bool keep, A* y) {
  constexpr int64_t w = cplx ? 2 : 1;
  const int64_t half = s.N * s.block;
  int64_t n = 0;
  if constexpr (!cplx) {
    const auto run = decays.is_signed ? (keep ? advance_real<A, X, true, true>
                                              : advance_real<A, X, false, true>)
                                      : (keep ? advance_real<A, X, true, false>
                                              : advance_real<A, X, false, false>);
    for (; !decays.given && n + kWide <= s.N; n += kWide) {
      const int64_t o = n * s.block;
      run(c.count, s.block, d, du, &decays.re[o], Bt + n, Ct + n, prev + o, next + o, a + o, y);
    }
  }
  for (; n < s.N; ++n) {
    const int64_t o = n * s.block;
    A *ar = a + o, *ai = cplx ? a + half + o : nullptr;
    decays.evaluate(n, s.block, c.count, d, ar, ai);
    const A bi = cplx ? A(Bt[w * n + w - 1]) : A(0), ci = cplx ? A(Ct[w * n + w - 1]) : A(0);
    advance<A, cplx>(c.count, ar, ai, du, A(Bt[w * n]), bi, A(Ct[w * n]), ci, prev + o,
                     cplx ? prev + half + o : nullptr, next + o,
                     cplx ? next + half + o : nullptr, y);
  }
}

// ---------------------------------------------------------------- forward

template <typename A, typename X, bool cplx>
void forward_block(const Sizes& s, const Inputs<A, X>& in, const Flags& flags, int64_t b,
                   int64_t block, X* out, A* last, A* kept) {
  constexpr int64_t w = cplx ? 2 : 1;
  const Channels c = channels(s, block);
  const Decays<A, cplx> decays(s, c, in.A_, in.override_, flags.is_signed);
  const int64_t half = s.N * s.block;
  std::vector<A> h(w * half, A(0)), a(w * half), scratch(4 * s.block);
  A *raw = scratch.data(), *d = raw + s.block, *du = d + s.block, *y = du + s.block;
  load_state<A, cplx>(s, c, in.h0 + w * b * s.E * s.N, h.data());
  for (int64_t t = 0; t < s.T; ++t) {
    if (kept && t % kChunk == 0) {
      A* to = kept + w * ((b * s.chunks + t / kChunk) * s.E + c.first) * s.N;
      for (int64_t k = 0; k < w * s.N; ++k) std::copy_n(&h[k * s.block], c.count, to + k * c.count);
    }
    if (in.reset && in.reset[b * s.T + t]) std::fill(h.begin(), h.end(), A(0));
    if (t + kAhead < s.T) foresee(in, c, b, t + kAhead);
    drive(in, flags, c, b, t, raw, d, du);
    const X* __restrict u = in.u.at(b, t) + c.first;
    for (int64_t e = 0; e < c.count; ++e)
      y[e] = in.D ? in.D[c.first + e] * static_cast<A>(u[e]) : A(0);
    all_states<A, X, cplx>(s, c, decays, in.Bm.at(b, t, c.group), in.Cm.at(b, t, c.group), d, du,
                           h.data(), h.data(), a.data(), false, y);
    X* __restrict o = out + (b * s.T + t) * s.E + c.first;
    if (in.z.data) {
      const X* __restrict z = in.z.at(b, t) + c.first;
#pragma omp simd
      for (int64_t e = 0; e < c.count; ++e) {
        const A gate = static_cast<A>(z[e]);
        o[e] = static_cast<X>(y[e] * gate * sigmoid_(gate));
      }
    } else {
      for (int64_t e = 0; e < c.count; ++e) o[e] = static_cast<X>(y[e]);
    }
  }
  store_state<A, cplx>(s, c, h.data(), last + w * b * s.E * s.N);
}

// ---------------------------------------------------------------- backward

template <typename A, typename X>
struct Gradients {
  X *u, *z;
  A *dt, *Bm, *Cm;         // Bm, Cm: (B, blocks or 1, T, G or 1, N[, 2]), see `backward`
  A *A_, *D, *bias, *h0;   // per row: (B, E, N[, 2]), (B, E), (B, E), (B, E, N[, 2])
};

// Buffers of one task.
template <typename A, bool cplx>
struct Work {
  static constexpr int64_t w = cplx ? 2 : 1;
  // States before and after each step of a chunk, decays, and vectors of channels.
  std::vector<A> h, a, raw, d, du, pre, v, dA, dD, dbias, zero;
  explicit Work(const Sizes& s)
      : h((kChunk + 1) * w * s.N * s.block), a(kChunk * w * s.N * s.block), raw(kChunk * s.block),
        d(kChunk * s.block), du(kChunk * s.block), pre(kChunk * s.block), v(w * s.N * s.block),
        dA(w * s.N * s.block), dD(s.block), dbias(s.block), zero(w * s.N * s.block) {}

  // The state that step i of the chunk found: nothing after a reset.
  const A* found(int64_t i, bool reset) const {
    return reset ? zero.data() : h.data() + i * static_cast<int64_t>(v.size());
  }
};

// Compute the states of one chunk again, from the one that forward kept.
template <typename A, typename X, bool cplx>
void replay(const Sizes& s, const Inputs<A, X>& in, const Flags& flags, const Channels& c,
            const Decays<A, cplx>& decays, int64_t b, int64_t chunk, const A* kept,
            Work<A, cplx>& k) {
  constexpr int64_t w = cplx ? 2 : 1;
  const int64_t half = s.N * s.block, size = w * half;
  const int64_t begin = chunk * kChunk, end = std::min(s.T, begin + kChunk);
  const A* from = kept + w * ((b * s.chunks + chunk) * s.E + c.first) * s.N;
  for (int64_t n = 0; n < w * s.N; ++n)
    std::copy_n(from + n * c.count, c.count, &k.h[n * s.block]);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t i = t - begin;
    A *raw = &k.raw[i * s.block], *d = &k.d[i * s.block], *du = &k.du[i * s.block];
    A *y = &k.pre[i * s.block], *next = &k.h[(i + 1) * size], *a = &k.a[i * size];
    const A* prev = k.found(i, in.reset && in.reset[b * s.T + t]);
    if (t + kAhead < end) foresee(in, c, b, t + kAhead);
    drive(in, flags, c, b, t, raw, d, du);
    const X* __restrict u = in.u.at(b, t) + c.first;
    for (int64_t e = 0; e < c.count; ++e)
      y[e] = in.D ? in.D[c.first + e] * static_cast<A>(u[e]) : A(0);
    all_states<A, X, cplx>(s, c, decays, in.Bm.at(b, t, c.group), in.Cm.at(b, t, c.group), d, du,
                           prev, next, a, true, y);
  }
}

// The adjoint of W real states at one step. Slope: 0 the decay was given, 1 exp, 2 signed. `dd` gets
// the sum of l A log2(e), `dsum` that of v B.
template <typename A, typename X, int W, int Slope>
inline void adjoint_real(int64_t count, int64_t block, const X* Bt, const X* Ct,
                         const A* __restrict a, const A* __restrict rate, const A* __restrict d,
                         const A* __restrict du, const A* __restrict gy, const A* __restrict prev,
                         const A* __restrict h, A* __restrict v, A* __restrict dA,
                         A* __restrict dd, A* __restrict dsum, A* dB, A* dC) {
  static_assert(W == 1 || W == 2);
  const A b0 = Bt[0], b1 = Bt[W - 1], c0 = Ct[0], c1 = Ct[W - 1];
  A sum_b0 = 0, sum_b1 = 0, sum_c0 = 0, sum_c1 = 0;
  const auto one = [&](int64_t e, int64_t o, A b, A c, A& sum_b, A& sum_c, A& to_d, A& to_sum) {
    const A x = v[o + e] + c * gy[e], left = a[o + e] * x;
    sum_c += gy[e] * h[o + e];
    sum_b += x * du[e];
    if constexpr (Slope != 0) {
      const A dlog = (Slope == 2 ? left + x : left) * prev[o + e];
      dA[o + e] += dlog * d[e];
      to_d += dlog * rate[o + e];
    }
    to_sum += x * b;
    v[o + e] = left;
  };
#pragma omp simd reduction(+ : sum_b0, sum_b1, sum_c0, sum_c1)
  for (int64_t e = 0; e < count; ++e) {
    A to_d = dd[e], to_sum = dsum[e];
    one(e, 0, b0, c0, sum_b0, sum_c0, to_d, to_sum);
    if constexpr (W == 2) one(e, block, b1, c1, sum_b1, sum_c1, to_d, to_sum);
    dd[e] = to_d, dsum[e] = to_sum;
  }
  dB[0] += sum_b0, dC[0] += sum_c0;
  if constexpr (W == 2) dB[1] += sum_b1, dC[1] += sum_c1;
}

// As above for complex numbers in torch's convention; y = 2 Re(C h), so the adjoint of h is
// 2 conj(C) g.
template <typename A>
inline void adjoint_complex(int64_t count, int slope, const A* b, const A* cc, int64_t half,
                            const A* __restrict a, const A* __restrict Ar,
                            const A* __restrict Ai, const A* __restrict d,
                            const A* __restrict du, const A* __restrict u,
                            const A* __restrict gy, const A* __restrict prev,
                            const A* __restrict h, A* __restrict v, A* __restrict dA,
                            A* __restrict dd, A* __restrict dsum, A* dB, A* dC) {
  const A use = slope == 0 ? A(0) : A(1);
  for (int64_t e = 0; e < count; ++e) {
    const A vr = v[e] + A(2) * cc[0] * gy[e], vi = v[half + e] - A(2) * cc[1] * gy[e];
    const A hr = h[e], hi = h[half + e], pr = prev[e], pi = prev[half + e];
    const A ar = a[e], ai = a[half + e];
    dC[0] += A(2) * gy[e] * hr, dC[1] -= A(2) * gy[e] * hi;
    dB[0] += vr * du[e], dB[1] += vi * du[e];
    // dlog = v conj(prev) conj(a)
    const A qr = vr * pr + vi * pi, qi = vi * pr - vr * pi;
    const A lr = use * (qr * ar + qi * ai), li = use * (qi * ar - qr * ai);
    dA[e] += lr * d[e], dA[half + e] += li * d[e];
    const A real = vr * b[0] + vi * b[1];
    dd[e] += lr * Ar[e] + li * Ai[e] + real * u[e];
    dsum[e] += real;
    v[e] = ar * vr + ai * vi;
    v[half + e] = ar * vi - ai * vr;
  }
}

template <typename A, typename X, bool cplx>
void backward_step(const Sizes& s, const Inputs<A, X>& in, const Flags& flags, const Channels& c,
                   const Decays<A, cplx>& decays, int64_t b, int64_t t, const X* grad,
                   Work<A, cplx>& k, const Gradients<A, X>& g, A* dB, A* dC) {
  constexpr int64_t w = cplx ? 2 : 1;
  const int64_t half = s.N * s.block, size = w * half, i = t % kChunk, at = (b * s.T + t) * s.E;
  const A *d = &k.d[i * s.block], *du = &k.du[i * s.block], *raw = &k.raw[i * s.block];
  const bool reset = in.reset && in.reset[b * s.T + t];
  const A *pre = &k.pre[i * s.block], *prev = k.found(i, reset), *h = &k.h[(i + 1) * size];
  const A* a = &k.a[i * size];
  A gy[kBlock], dd[kBlock], dsum[kBlock], u[kBlock];
  const X *gt = grad + at + c.first, *ut = in.u.at(b, t) + c.first;
  for (int64_t e = 0; e < c.count; ++e) gy[e] = static_cast<A>(gt[e]), u[e] = static_cast<A>(ut[e]);
  if (in.z.data) {
    const X* __restrict z = in.z.at(b, t) + c.first;
    X* __restrict dz = g.z + at + c.first;
#pragma omp simd
    for (int64_t e = 0; e < c.count; ++e) {
      const A gate = static_cast<A>(z[e]), sig = sigmoid_(gate);
      dz[e] = static_cast<X>(gy[e] * pre[e] * sig * (A(1) + gate * (A(1) - sig)));
      gy[e] *= gate * sig;
    }
  }
  for (int64_t e = 0; e < c.count; ++e) dd[e] = 0, dsum[e] = 0, k.dD[e] += gy[e] * u[e];
  const X *Bt = in.Bm.at(b, t, c.group), *Ct = in.Cm.at(b, t, c.group);
  for (int64_t n = 0; n < s.N; ++n) {
    const int64_t o = n * s.block;
    const int slope = decays.fixed(n) ? 0 : flags.is_signed ? 2 : 1;
    if constexpr (cplx) {
      const A bn[2] = {A(Bt[2 * n]), A(Bt[2 * n + 1])}, cn[2] = {A(Ct[2 * n]), A(Ct[2 * n + 1])};
      adjoint_complex<A>(c.count, slope, bn, cn, half, a + o, &decays.re[o], &decays.im[o], d, du,
                         u, gy, prev + o, h + o, &k.v[o], &k.dA[o], dd, dsum, dB + 2 * n,
                         dC + 2 * n);
    } else {
      const int64_t wide = slope != 0 && n + 1 < s.N && !decays.fixed(n + 1) ? 2 : 1;
      const auto run = slope == 0  ? adjoint_real<A, X, 1, 0>
                       : wide == 1 ? (slope == 1 ? adjoint_real<A, X, 1, 1> : adjoint_real<A, X, 1, 2>)
                                   : (slope == 1 ? adjoint_real<A, X, 2, 1> : adjoint_real<A, X, 2, 2>);
      run(c.count, s.block, Bt + n, Ct + n, a + o, &decays.re[o], d, du, gy, prev + o, h + o,
          &k.v[o], &k.dA[o], dd, dsum, dB + n, dC + n);
      n += wide - 1;
    }
  }
  if constexpr (!cplx)
    for (int64_t e = 0; e < c.count; ++e) dd[e] = A(kLn2) * dd[e] + u[e] * dsum[e];
  X* __restrict gu = g.u + at + c.first;
  A* __restrict gdt = g.dt + at + c.first;
  for (int64_t e = 0; e < c.count; ++e) {
    const A skip = in.D ? in.D[c.first + e] * gy[e] : A(0);
    gu[e] = static_cast<X>(dsum[e] * d[e] + skip);
  }
  if (flags.softplus) {
#pragma omp simd
    for (int64_t e = 0; e < c.count; ++e) {
      const A below = dd[e] * sigmoid_(raw[e]);  // outside of the choice: a division in it is scalar
      gdt[e] = raw[e] > A(20) ? dd[e] : below;
    }
  } else {
    std::copy_n(dd, c.count, gdt);
  }
  for (int64_t e = 0; e < c.count; ++e) k.dbias[e] += gdt[e];
  if (reset) std::fill(k.v.begin(), k.v.end(), A(0));
}

template <typename A, typename X, bool cplx>
void backward_block(const Sizes& s, const Inputs<A, X>& in, const Flags& flags, int64_t b,
                    int64_t block, const X* grad, const A* grad_last, const A* kept,
                    const Gradients<A, X>& g, A* dB, A* dC) {
  constexpr int64_t w = cplx ? 2 : 1;
  const Channels c = channels(s, block);
  const Decays<A, cplx> decays(s, c, in.A_, in.override_, flags.is_signed);
  Work<A, cplx> k(s);
  load_state<A, cplx>(s, c, grad_last + w * b * s.E * s.N, k.v.data());
  for (int64_t chunk = s.chunks - 1; chunk >= 0; --chunk) {
    replay<A, X, cplx>(s, in, flags, c, decays, b, chunk, kept, k);
    for (int64_t t = std::min(s.T, (chunk + 1) * kChunk) - 1; t >= chunk * kChunk; --t) {
      if (t >= kAhead) foresee(grad + (b * s.T + t - kAhead) * s.E + c.first, c.count);
      const int64_t offset = w * (t * s.G + c.group) * s.N;
      backward_step<A, X, cplx>(s, in, flags, c, decays, b, t, grad, k, g, dB + offset,
                                dC + offset);
    }
  }
  store_state<A, cplx>(s, c, k.v.data(), g.h0 + w * b * s.E * s.N);
  store_state<A, cplx>(s, c, k.dA.data(), g.A_ + w * b * s.E * s.N);
  std::copy_n(k.dD.data(), c.count, g.D + b * s.E + c.first);
  std::copy_n(k.dbias.data(), c.count, g.bias + b * s.E + c.first);
}

// ---------------------------------------------------------------- entry points

// One step has no axis of time.
template <typename X>
View<X> view(const Tensor& x, bool grouped, bool step) {
  const int64_t group = step ? 1 : 2;
  return {x.const_data_ptr<X>(), x.stride(0), step ? 0 : x.stride(1), grouped ? x.stride(group) : 0};
}

// Rows must be dense; outer strides may be anything, 0 included.
Tensor dense_rows(const Tensor& x, int64_t inner) {
  int64_t expected = 1;
  for (int64_t k = 1; k <= inner; ++k) {
    if (x.size(-k) != 1 && x.stride(-k) != expected) return x.contiguous();
    expected *= x.size(-k);
  }
  return x;
}

OptionalTensor dense(const OptionalTensor& x) {
  if (!x.has_value()) return x;
  return x->contiguous();
}

template <typename A>
const A* data(const OptionalTensor& x) {
  return x.has_value() ? x->const_data_ptr<A>() : nullptr;
}

// Owns what had to be made dense.
struct Operands {
  Tensor u, dt, A, Bm, Cm, h0;
  OptionalTensor D, z, bias, reset, override_;

  template <typename T, typename X>
  Inputs<T, X> inputs(bool step = false) const {
    return {view<X>(u, false, step),    z.has_value() ? view<X>(*z, false, step) : View<X>{},
            view<X>(Bm, true, step),    view<X>(Cm, true, step),
            view<T>(dt, false, step),   A.const_data_ptr<T>(),
            data<T>(D),                 data<T>(bias),
            h0.const_data_ptr<T>(),     data<T>(override_),
            data<bool>(reset)};
  }
};

Operands operands(const Tensor& u, const Tensor& dt, const Tensor& A, const Tensor& Bm,
                  const Tensor& Cm, const OptionalTensor& D, const OptionalTensor& z,
                  const OptionalTensor& bias, const Tensor& h0, const OptionalTensor& reset,
                  const OptionalTensor& override_, bool pairs) {
  const int64_t inner = pairs ? 2 : 1;
  OptionalTensor gate;
  if (z.has_value()) gate = dense_rows(*z, 1);
  return {dense_rows(u, 1),  dense_rows(dt, 1),     A.contiguous(), dense_rows(Bm, inner),
          dense_rows(Cm, inner), h0.contiguous(),   dense(D),       gate,
          dense(bias),       dense(reset),          dense(override_)};
}

template <typename Function>
void dispatch(const Tensor& u, bool pairs, Function&& function) {
  const auto with = [&](auto accumulate, auto stored) {
    if (pairs) function(accumulate, stored, std::true_type{});
    else function(accumulate, stored, std::false_type{});
  };
  if (u.scalar_type() == at::kFloat) with(float{}, float{});
  else if (u.scalar_type() == at::kDouble) with(double{}, double{});
  else if (u.scalar_type() == at::kBFloat16) with(float{}, at::BFloat16{});
  else TORCH_CHECK(false, "selective_scan(cpu): float32, float64 or bfloat16, got ", u.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> selective_scan_forward(
    const Tensor& u, const Tensor& dt, const Tensor& A, const Tensor& Bm, const Tensor& Cm,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& bias,
    const Tensor& h0, const OptionalTensor& reset, const OptionalTensor& override_, bool softplus,
    bool is_signed, bool pairs, bool keep) {
  const Operands o = operands(u, dt, A, Bm, Cm, D, z, bias, h0, reset, override_, pairs);
  const Sizes s = sizes(u, A, Bm);
  const int64_t w = pairs ? 2 : 1;
  Tensor y = at::empty(u.sizes(), u.options());
  Tensor last = at::empty(o.h0.sizes(), o.h0.options());
  Tensor kept = at::empty({keep ? s.B * s.chunks * s.E * s.N * w : 0}, o.h0.options());
  const Flags flags{softplus, is_signed};
  dispatch(u, pairs, [&](auto accumulate, auto stored, auto cplx) {
    using T = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<T, X>();
    T* to = keep ? kept.mutable_data_ptr<T>() : nullptr;
    X* out = y.mutable_data_ptr<X>();
    T* final_ = last.mutable_data_ptr<T>();
    at::parallel_for(0, s.B * s.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        forward_block<T, X, decltype(cplx)::value>(s, in, flags, task / s.blocks, task % s.blocks,
                                                   out, final_, to);
    });
  });
  return {y, last, kept};
}

using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Nine selective_scan_backward(const Tensor& grad_, const Tensor& grad_last_, const Tensor& u,
                             const Tensor& dt, const Tensor& A, const Tensor& Bm, const Tensor& Cm,
                             const OptionalTensor& D, const OptionalTensor& z,
                             const OptionalTensor& bias, const Tensor& h0,
                             const OptionalTensor& reset, const OptionalTensor& override_,
                             const Tensor& kept, bool softplus, bool is_signed, bool pairs) {
  const Operands o = operands(u, dt, A, Bm, Cm, D, z, bias, h0, reset, override_, pairs);
  const Tensor grad = grad_.contiguous(), grad_last = grad_last_.contiguous();
  const Sizes s = sizes(u, A, Bm);
  const int64_t w = pairs ? 2 : 1;
  const auto wide = o.h0.options();
  Tensor du = at::empty(u.sizes(), u.options()), ddt = at::empty(u.sizes(), wide);
  Tensor dz = at::empty(z.has_value() ? u.sizes() : at::IntArrayRef{0}, u.options());
  Tensor dA = at::empty(o.h0.sizes(), wide), dh0 = at::empty(o.h0.sizes(), wide);
  Tensor dD = at::empty({s.B, s.E}, wide), dbias = at::empty({s.B, s.E}, wide);
  // Blocks of a group share B and C. Where rows alone keep the threads busy, a task is a row and
  // adds its blocks one after the other; else every block has a part of its own, added in the
  // same order afterwards.
  const bool rows = s.B >= at::get_num_threads() || s.blocks == 1;
  const int64_t parts = rows ? 1 : s.blocks_per_group, row_size = w * s.T * s.G * s.N;
  Tensor dB = at::zeros({parts, s.B, row_size}, wide), dC = at::zeros({parts, s.B, row_size}, wide);
  const Flags flags{softplus, is_signed};
  dispatch(u, pairs, [&](auto accumulate, auto stored, auto cplx) {
    using T = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<T, X>();
    const Gradients<T, X> g{du.mutable_data_ptr<X>(),
                            z.has_value() ? dz.mutable_data_ptr<X>() : nullptr,
                            ddt.mutable_data_ptr<T>(),
                            dB.mutable_data_ptr<T>(),
                            dC.mutable_data_ptr<T>(),
                            dA.mutable_data_ptr<T>(),
                            dD.mutable_data_ptr<T>(),
                            dbias.mutable_data_ptr<T>(),
                            dh0.mutable_data_ptr<T>()};
    const X* gy = grad.const_data_ptr<X>();
    const T* gl = grad_last.const_data_ptr<T>();
    const T* from = kept.const_data_ptr<T>();
    const auto run = [&](int64_t b, int64_t block) {
      const int64_t part = rows ? 0 : block % s.blocks_per_group;
      const int64_t offset = (part * s.B + b) * row_size;
      backward_block<T, X, decltype(cplx)::value>(s, in, flags, b, block, gy, gl, from, g,
                                                  g.Bm + offset, g.Cm + offset);
    };
    at::parallel_for(0, rows ? s.B : s.B * s.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        if (!rows) run(task / s.blocks, task % s.blocks);
        else
          for (int64_t block = 0; block < s.blocks; ++block) run(task, block);
      }
    });
  });
  // One order of additions, with one thread or many: part 0, then 1, ...
  Tensor sum_b = dB.select(0, 0), sum_c = dC.select(0, 0);
  for (int64_t part = 1; part < parts; ++part)
    sum_b.add_(dB.select(0, part)), sum_c.add_(dC.select(0, part));
  const auto shape = [&](const Tensor& sum) {
    return parts == 1 ? sum.reshape(Bm.sizes()) : sum.reshape(Bm.sizes()).clone();
  };
  return {du,        ddt,       dA.sum(0), shape(sum_b), shape(sum_c),
          dD.sum(0), dz,        dbias.sum(0), dh0};
}

// ---------------------------------------------------------------- one step of acting

// The sum of x in a fixed order, four chains at a time.
template <typename A>
inline A sum_of(const A* x, int64_t count) {
  A part[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int64_t k = 0; k < 4; ++k) part[k] += x[i + k];
  for (; i < count; ++i) part[0] += x[i];
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// The channels c of row b, real A: the state stays (channel, n), for one step does not pay for
// another order. `work` (block * N) holds the decays, then the terms of y.
template <typename A, typename X>
void step_block(const Sizes& s, const Inputs<A, X>& in, const Flags& flags, int64_t b,
                const Channels& c, A* __restrict work, X* __restrict out, A* __restrict last) {
  A raw[kBlock], d[kBlock], du[kBlock];
  drive(in, flags, c, b, 0, raw, d, du);
  const int64_t first = c.first * s.N, row = b * s.E * s.N + first, size = c.count * s.N;
  const A* __restrict rate = in.A_ + first;
  const A* __restrict h = in.h0 + row;
  const X *__restrict Bt = in.Bm.at(b, 0, c.group), *__restrict Ct = in.Cm.at(b, 0, c.group);
  for (int64_t e = 0; e < c.count; ++e)
    for (int64_t n = 0; n < s.N; ++n) work[e * s.N + n] = d[e] * rate[e * s.N + n];
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) work[i] = exp_(work[i]);
  if (flags.is_signed)
    for (int64_t i = 0; i < size; ++i) work[i] = A(2) * work[i] - A(1);
  for (int64_t n = 0; in.override_ && n < s.N; ++n)
    for (int64_t e = 0; e < c.count && !std::isnan(in.override_[n]); ++e)
      work[e * s.N + n] = in.override_[n];
  if (in.reset && in.reset[b]) std::fill_n(work, size, A(0));
  else
    for (int64_t i = 0; i < size; ++i) work[i] *= h[i];
  A* __restrict to = last + row;
  for (int64_t e = 0; e < c.count; ++e) {
    A *__restrict w = work + e * s.N, *__restrict next = to + e * s.N;
    for (int64_t n = 0; n < s.N; ++n) {
      next[n] = w[n] + du[e] * static_cast<A>(Bt[n]);
      w[n] = next[n] * static_cast<A>(Ct[n]);
    }
    const A skip = in.D ? in.D[c.first + e] * static_cast<A>(in.u.at(b, 0)[c.first + e]) : A(0);
    raw[e] = skip + sum_of(w, s.N);
  }
  X* y = out + b * s.E + c.first;
  if (!in.z.data) {
    for (int64_t e = 0; e < c.count; ++e) y[e] = static_cast<X>(raw[e]);
    return;
  }
  const X* __restrict z = in.z.at(b, 0) + c.first;
#pragma omp simd
  for (int64_t e = 0; e < c.count; ++e) {
    const A gate = static_cast<A>(z[e]);
    y[e] = static_cast<X>(raw[e] * gate * sigmoid_(gate));
  }
}

// One step: u (B, E), Bm (B, G, N), A real; no gradient.
std::tuple<Tensor, Tensor> selective_scan_step(
    const Tensor& u, const Tensor& dt, const Tensor& A, const Tensor& Bm, const Tensor& Cm,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& bias,
    const Tensor& h0, const OptionalTensor& reset, const OptionalTensor& override_, bool softplus,
    bool is_signed) {
  const Operands o = operands(u, dt, A, Bm, Cm, D, z, bias, h0, reset, override_, false);
  const Sizes s = sizes(u, A, Bm, true);
  Tensor y = at::empty(u.sizes(), u.options()), last = at::empty(h0.sizes(), o.h0.options());
  const Flags flags{softplus, is_signed};
  dispatch(u, false, [&](auto accumulate, auto stored, auto) {
    using T = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<T, X>(true);
    X* out = y.mutable_data_ptr<X>();
    T* to = last.mutable_data_ptr<T>();
    at::parallel_for(0, s.B * s.blocks, 16, [&](int64_t begin, int64_t end) {
      std::vector<T> work(s.block * s.N);
      for (int64_t task = begin; task < end; ++task)
        step_block(s, in, flags, task / s.blocks, channels(s, task % s.blocks), work.data(), out,
                   to);
    });
  });
  return {y, last};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def(
      "selective_scan_forward(Tensor u, Tensor dt, Tensor A, Tensor Bm, Tensor Cm, Tensor? D, "
      "Tensor? z, Tensor? bias, Tensor h0, Tensor? reset, Tensor? a_override, bool softplus, "
      "bool is_signed, bool pairs, bool keep) -> (Tensor, Tensor, Tensor)",
      &selective_scan_forward);
  m.def(
      "selective_scan_backward(Tensor grad, Tensor grad_last, Tensor u, Tensor dt, Tensor A, "
      "Tensor Bm, Tensor Cm, Tensor? D, Tensor? z, Tensor? bias, Tensor h0, Tensor? reset, "
      "Tensor? a_override, Tensor kept, bool softplus, bool is_signed, bool pairs) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      &selective_scan_backward);
  m.def(
      "selective_scan_step(Tensor u, Tensor dt, Tensor A, Tensor Bm, Tensor Cm, Tensor? D, "
      "Tensor? z, Tensor? bias, Tensor h0, Tensor? reset, Tensor? a_override, bool softplus, "
      "bool is_signed) -> (Tensor, Tensor)",
      &selective_scan_step);
}
