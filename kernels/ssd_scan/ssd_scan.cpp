// The scan of Mamba-2 (SSD) on the CPU: chunks of time as products of matrices.
//
//   h_t = exp(dt A) h + dt x B^T;  y_t = h C + D x
//   in a chunk, c the running sum of dt A:
//     y_i = exp(c_i) C_i h + sum_{j<=i} exp(c_i - c_j) (C_i . B_j) dt_j x_j
//     h'  = exp(c_L) h + sum_j exp(c_L - c_j) dt_j x_j B_j^T
//
// A chunk ends at `chunk` steps, before a reset, and before and after a step that is not finite:
// inside it nothing has to be masked, so no zero meets an infinity. One task owns a few heads of
// one batch row, which share the products C B^T. Backward makes the states at the starts of the
// chunks again. States are held as (N, P) so that every product runs along P or N. Every sum has
// one order, whatever the number of threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../elementary.h"
#include "../gemm.h"

namespace {

using namespace statewise;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kSpan = 4;  // heads of a task, at most

struct Sizes {
  int64_t B, T, H, P, G, N, per_group, spans, chunk;  // spans: tasks of one group
};

template <typename X>
struct View {  // (B, T, ...) with dense rows
  const X* data = nullptr;
  int64_t stride_b = 0, stride_t = 0;
  const X* at(int64_t b, int64_t t) const { return data + b * stride_b + t * stride_t; }
};

template <typename A, typename X>
struct Inputs {
  View<X> x, Bm, Cm;
  View<A> dt;
  const A *A_, *D, *h0;
  const bool* reset;
};

// The heads of one task.
struct Heads {
  int64_t b, group, part, first, count;
};

Heads heads(const Sizes& s, int64_t task) {
  const int64_t part = task % s.spans, rest = task / s.spans;
  const int64_t group = rest % s.G, inside = part * kSpan;
  return {rest / s.G, group, part, group * s.per_group + inside,
          std::min(kSpan, s.per_group - inside)};
}

struct Chunk {
  int64_t begin, length;
  bool fresh;     // a reset clears the state before it
  int64_t state;  // number of its kept state, -1 if it is fresh
};

template <typename X>
bool finite(const X* x, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += static_cast<float>(x[i] - x[i]);
  return sum == 0;
}

// The chunks of the task's row; `grad` (B, T, H, P) also counts where it is given.
template <typename A, typename X>
std::vector<Chunk> chunks(const Sizes& s, const Inputs<A, X>& in, const Heads& k, const X* grad) {
  const int64_t width = k.count * s.P;
  const auto whole = [&](int64_t t) {
    return finite(in.x.at(k.b, t) + k.first * s.P, width) &&
           finite(in.Bm.at(k.b, t) + k.group * s.N, s.N) &&
           finite(in.Cm.at(k.b, t) + k.group * s.N, s.N) &&
           finite(in.dt.at(k.b, t) + k.first, k.count) &&
           (!grad || finite(grad + ((k.b * s.T + t) * s.H + k.first) * s.P, width));
  };
  std::vector<Chunk> found;
  int64_t kept = 0;
  for (int64_t t = 0; t < s.T;) {
    const bool fresh = in.reset && in.reset[k.b * s.T + t];
    int64_t end = t + 1;
    if (whole(t))
      while (end < std::min(s.T, t + s.chunk) && !(in.reset && in.reset[k.b * s.T + end]) &&
             whole(end))
        ++end;
    found.push_back({t, end - t, fresh, fresh ? -1 : kept++});
    t = end;
  }
  return found;
}

// ---------------------------------------------------------------- one chunk

// What the heads of a chunk share: B and C (L, Np), their transposes (N, Lp), and C B^T (L, Lp).
template <typename A>
struct Shared {
  int64_t Np, Lp;
  std::vector<A> B, C, BT, CT, S;

  Shared(const Sizes& s, bool transposed_c)
      : Np(round_up(s.N, Lanes<A>::pair)), Lp(round_up(s.chunk, Lanes<A>::pair)),
        B(s.chunk * Np), C(s.chunk * Np), BT(s.N * Lp), CT(transposed_c ? s.N * Lp : 0),
        S(s.chunk * Lp) {}

  template <typename X>
  void load(const Sizes& s, const Inputs<A, X>& in, const Heads& k, const Chunk& c) {
    for (int64_t i = 0; i < c.length; ++i) {
      const X* b = in.Bm.at(k.b, c.begin + i) + k.group * s.N;
      const X* r = in.Cm.at(k.b, c.begin + i) + k.group * s.N;
      for (int64_t n = 0; n < s.N; ++n) {
        B[i * Np + n] = static_cast<A>(b[n]);
        C[i * Np + n] = static_cast<A>(r[n]);
      }
    }
    transpose(B.data(), Np, c.length, s.N, BT.data(), Lp);
    if (!CT.empty()) transpose(C.data(), Np, c.length, s.N, CT.data(), Lp);
    multiply(C.data(), Np, BT.data(), Lp, S.data(), Lp, c.length, s.N,
             round_up(c.length, Lanes<A>::pair), false);
  }
};

// What belongs to one head: decays, dt x as U (L, Pp), and decays between steps G (L, Lp).
template <typename A>
struct Head {
  int64_t Pp, Lp;
  std::vector<double> c;       // running log-decays
  std::vector<A> E, F, U, G;   // exp(c_i); exp(c_L - c_j)

  Head(const Sizes& s, int64_t lp)
      : Pp(round_up(s.P, Lanes<A>::pair)), Lp(lp), c(s.chunk), E(s.chunk), F(s.chunk),
        U(s.chunk * Pp), G(s.chunk * lp) {}

  template <typename X>
  void load(const Sizes& s, const Inputs<A, X>& in, const Heads& k, const Chunk& chunk,
            int64_t head) {
    const int64_t L = chunk.length;
    double sum = 0;
    for (int64_t i = 0; i < L; ++i) {
      const A step = in.dt.at(k.b, chunk.begin + i)[head];
      const X* x = in.x.at(k.b, chunk.begin + i) + head * s.P;
      c[i] = sum += static_cast<double>(step) * in.A_[head];
      for (int64_t p = 0; p < s.P; ++p) U[i * Pp + p] = step * static_cast<A>(x[p]);
    }
    for (int64_t i = 0; i < L; ++i) {
      E[i] = exp_(static_cast<A>(c[i]));
      F[i] = exp_(static_cast<A>(c[L - 1] - c[i]));
    }
  }

  // Differences in double: large sums must not swallow small decays.
  void between(int64_t L) {
    for (int64_t i = 0; i < L; ++i) {
      A* __restrict row = &G[i * Lp];
      for (int64_t j = 0; j <= i; ++j) row[j] = static_cast<A>(c[i] - c[j]);
#pragma omp simd
      for (int64_t j = 0; j <= i; ++j) row[j] = exp_(row[j]);
    }
  }

  A total(int64_t L) const { return E[L - 1]; }
};

// h (N, Pp) after the chunk. U is scaled by F on the way.
template <typename A>
void advance(const Sizes& s, const Chunk& c, const Shared<A>& shared, Head<A>& head, A* h) {
  const int64_t L = c.length, Pp = head.Pp;
  for (int64_t j = 0; j < L; ++j)
    for (int64_t p = 0; p < Pp; ++p) head.U[j * Pp + p] *= head.F[j];
  const A factor = head.total(L);
  if (!c.fresh)
    for (int64_t i = 0; i < s.N * Pp; ++i) h[i] *= factor;
  multiply(shared.BT.data(), shared.Lp, head.U.data(), Pp, h, Pp, s.N, L, Pp, !c.fresh);
}

template <typename A>
void load_state(const Sizes& s, const A* from, A* h, int64_t Pp) {
  std::fill_n(h, s.N * Pp, A(0));
  transpose(from, s.N, s.P, s.N, h, Pp);
}

template <typename A>
void store_state(const Sizes& s, const A* h, A* to, int64_t Pp) {
  transpose(h, Pp, s.N, s.P, to, s.N);
}

// ---------------------------------------------------------------- forward

template <typename A, typename X>
void forward_task(const Sizes& s, const Inputs<A, X>& in, int64_t task, X* out, A* last) {
  const Heads k = heads(s, task);
  Shared<A> shared(s, false);
  Head<A> head(s, shared.Lp);
  const int64_t Pp = head.Pp, size = s.N * Pp, Lp = shared.Lp;
  std::vector<A> h(k.count * size), W(s.chunk * Lp), Y(s.chunk * Pp);
  for (int64_t r = 0; r < k.count; ++r)
    load_state(s, in.h0 + (k.b * s.H + k.first + r) * s.P * s.N, &h[r * size], Pp);
  for (const Chunk& c : chunks(s, in, k, static_cast<const X*>(nullptr))) {
    const int64_t L = c.length;
    shared.load(s, in, k, c);
    for (int64_t r = 0; r < k.count; ++r) {
      const int64_t n = k.first + r;
      head.load(s, in, k, c, n);
      head.between(L);
      for (int64_t i = 0; i < L; ++i) {
        for (int64_t j = 0; j <= i; ++j) W[i * Lp + j] = head.G[i * Lp + j] * shared.S[i * Lp + j];
        std::fill(&W[i * Lp + i + 1], &W[i * Lp] + L, A(0));
      }
      if (!c.fresh) {
        multiply(shared.C.data(), shared.Np, &h[r * size], Pp, Y.data(), Pp, L, s.N, Pp, false);
        for (int64_t i = 0; i < L; ++i)
          for (int64_t p = 0; p < Pp; ++p) Y[i * Pp + p] *= head.E[i];
      }
      multiply(W.data(), Lp, head.U.data(), Pp, Y.data(), Pp, L, L, Pp, !c.fresh, Part::lower);
      for (int64_t i = 0; i < L; ++i) {
        const X* x = in.x.at(k.b, c.begin + i) + n * s.P;
        X* y = out + ((k.b * s.T + c.begin + i) * s.H + n) * s.P;
        for (int64_t p = 0; p < s.P; ++p) {
          const A skip = in.D ? in.D[n * s.P + p] * static_cast<A>(x[p]) : A(0);
          y[p] = static_cast<X>(Y[i * Pp + p] + skip);
        }
      }
      advance(s, c, shared, head, &h[r * size]);
    }
  }
  for (int64_t r = 0; r < k.count; ++r)
    store_state(s, &h[r * size], last + (k.b * s.H + k.first + r) * s.P * s.N, Pp);
}

// ---------------------------------------------------------------- backward

template <typename A, typename X>
struct Gradients {
  X* x;
  A *dt, *Bm, *Cm;   // Bm, Cm: (spans, B, T, G, N)
  A *A_, *D, *h0;    // per row: (B, H), (B, H, P), (B, H, P, N)
};

// Buffers of the adjoint of one head in one chunk.
template <typename A>
struct Adjoint {
  std::vector<A> g, gE, dU, R, W, UT, dW, mixed, hT;
  std::vector<double> dc;
  Adjoint(const Sizes& s, int64_t Pp, int64_t Np, int64_t Lp)
      : g(s.chunk * Pp), gE(s.chunk * Pp), dU(s.chunk * Pp), R(s.chunk * Pp), W(s.chunk * Lp),
        UT(s.P * Lp), dW(s.chunk * Lp), mixed(s.chunk * Np), hT(s.P * Np), dc(s.chunk) {}
};

// The states at the starts of all chunks that are not fresh, of every head of the task.
template <typename A, typename X>
std::vector<A> replay(const Sizes& s, const Inputs<A, X>& in, const Heads& k,
                      const std::vector<Chunk>& all, Shared<A>& shared, Head<A>& head) {
  const int64_t size = s.N * head.Pp;
  int64_t kept = 0;
  for (const Chunk& c : all) kept += !c.fresh;
  std::vector<A> starts(k.count * kept * size), h(k.count * size);
  for (int64_t r = 0; r < k.count; ++r)
    load_state(s, in.h0 + (k.b * s.H + k.first + r) * s.P * s.N, &h[r * size], head.Pp);
  for (const Chunk& c : all) {
    const bool final_ = c.begin + c.length == s.T;
    if (!final_) shared.load(s, in, k, c);
    for (int64_t r = 0; r < k.count; ++r) {
      if (!c.fresh) std::copy_n(&h[r * size], size, &starts[(c.state * k.count + r) * size]);
      if (final_) continue;
      head.load(s, in, k, c, k.first + r);
      advance(s, c, shared, head, &h[r * size]);
    }
  }
  return starts;
}

// Through the products between steps: dU = W^T g, and dS += (g U^T) o G.
template <typename A>
void adjoint_inside(const Sizes& s, int64_t L, const Shared<A>& shared, const Head<A>& head,
                    Adjoint<A>& w, A* dS) {
  const int64_t Lp = shared.Lp, Pp = head.Pp;
  for (int64_t i = 0; i < L; ++i)
    for (int64_t j = 0; j <= i; ++j)  // transposed: [j][i]
      w.W[j * Lp + i] = head.G[i * Lp + j] * shared.S[i * Lp + j];
  for (int64_t j = 0; j < L; ++j) std::fill_n(&w.W[j * Lp], j, A(0));
  multiply(w.W.data(), Lp, w.g.data(), Pp, w.dU.data(), Pp, L, L, Pp, false, Part::upper);
  transpose(head.U.data(), Pp, L, s.P, w.UT.data(), Lp);
  multiply(w.g.data(), Pp, w.UT.data(), Lp, w.dW.data(), Lp, L, s.P,
           round_up(L, Lanes<A>::pair), false);
  for (int64_t i = 0; i < L; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const A through = w.dW[i * Lp + j] * head.G[i * Lp + j];
      const double change = static_cast<double>(through) * shared.S[i * Lp + j];
      dS[i * Lp + j] += through;
      if (i == j) continue;  // exactly nothing, not a difference of rounded products
      w.dc[i] += change;
      w.dc[j] -= change;
    }
}

// Through the state after the chunk, whose adjoint gh (N, Pp) is: dU, dB, decays to the end.
template <typename A>
void adjoint_state(const Sizes& s, int64_t L, const Shared<A>& shared, const Head<A>& head,
                   Adjoint<A>& w, const A* gh, A* dB) {
  const int64_t Pp = head.Pp, Np = shared.Np;
  multiply(shared.B.data(), Np, gh, Pp, w.R.data(), Pp, L, s.N, Pp, false);
  transpose(gh, Pp, s.N, s.P, w.hT.data(), Np);
  multiply(head.U.data(), Pp, w.hT.data(), Np, w.mixed.data(), Np, L, s.P, Np, false);
  for (int64_t j = 0; j < L; ++j) {
    double change = 0;
    for (int64_t p = 0; p < Pp; ++p) w.dU[j * Pp + p] += head.F[j] * w.R[j * Pp + p];
    for (int64_t n = 0; n < s.N; ++n) {
      const A through = head.F[j] * w.mixed[j * Np + n];
      dB[j * Np + n] += through;
      change += static_cast<double>(through) * shared.B[j * Np + n];
    }
    if (j == L - 1) continue;
    w.dc[L - 1] += change;
    w.dc[j] -= change;
  }
}

// Through the state before the chunk, h (N, Pp): dC, decays from the start, and gh becomes its
// adjoint.
template <typename A>
void adjoint_start(const Sizes& s, int64_t L, const Shared<A>& shared, const Head<A>& head,
                   Adjoint<A>& w, const A* h, A* gh, A* dC) {
  const int64_t Pp = head.Pp, Np = shared.Np;
  for (int64_t i = 0; i < L; ++i)
    for (int64_t p = 0; p < Pp; ++p) w.gE[i * Pp + p] = head.E[i] * w.g[i * Pp + p];
  transpose(h, Pp, s.N, s.P, w.hT.data(), Np);
  multiply(w.gE.data(), Pp, w.hT.data(), Np, w.mixed.data(), Np, L, s.P, Np, false);
  for (int64_t i = 0; i < L; ++i)
    for (int64_t n = 0; n < s.N; ++n) {
      dC[i * Np + n] += w.mixed[i * Np + n];
      w.dc[i] += static_cast<double>(w.mixed[i * Np + n]) * shared.C[i * Np + n];
    }
  double product = 0;
  const A factor = head.total(L);
  for (int64_t i = 0; i < s.N * Pp; ++i) {
    product += static_cast<double>(h[i]) * gh[i];
    gh[i] *= factor;
  }
  w.dc[L - 1] += factor * product;
  multiply(shared.CT.data(), shared.Lp, w.gE.data(), Pp, gh, Pp, s.N, L, Pp, true);
}

template <typename A, typename X>
void finish(const Sizes& s, const Inputs<A, X>& in, const Heads& k, const Chunk& c, int64_t n,
            Adjoint<A>& w, int64_t Pp, const Gradients<A, X>& out) {
  double later = 0;
  for (int64_t i = c.length - 1; i >= 0; --i) {
    later += w.dc[i];  // the adjoint of dt A
    const int64_t at = (k.b * s.T + c.begin + i) * s.H + n;
    const X* x = in.x.at(k.b, c.begin + i) + n * s.P;
    const A step = in.dt.at(k.b, c.begin + i)[n];
    A direct = 0;
    for (int64_t p = 0; p < s.P; ++p) {
      const A value = static_cast<A>(x[p]), g = w.g[i * Pp + p], du = w.dU[i * Pp + p];
      direct += du * value;
      out.x[at * s.P + p] = static_cast<X>(step * du + (in.D ? in.D[n * s.P + p] * g : A(0)));
      if (in.D) out.D[(k.b * s.H + n) * s.P + p] += g * value;
    }
    out.dt[at] = static_cast<A>(in.A_[n] * later) + direct;
    out.A_[k.b * s.H + n] += static_cast<A>(step * later);
  }
}

// dC += dS B and dB += dS^T C, then out.
template <typename A, typename X>
void mix(const Sizes& s, const Heads& k, const Chunk& c, const Shared<A>& shared,
         std::vector<A>& dS, std::vector<A>& turned, std::vector<A>& dB, std::vector<A>& dC,
         const Gradients<A, X>& out) {
  const int64_t L = c.length, Lp = shared.Lp, Np = shared.Np;
  multiply(dS.data(), Lp, shared.B.data(), Np, dC.data(), Np, L, L, Np, true, Part::lower);
  transpose(dS.data(), Lp, L, L, turned.data(), Lp);
  multiply(turned.data(), Lp, shared.C.data(), Np, dB.data(), Np, L, L, Np, true, Part::upper);
  for (int64_t i = 0; i < L; ++i) {
    const int64_t at = ((k.part * s.B + k.b) * s.T + c.begin + i) * s.G + k.group;
    std::copy_n(&dB[i * Np], s.N, out.Bm + at * s.N);
    std::copy_n(&dC[i * Np], s.N, out.Cm + at * s.N);
  }
}

template <typename A, typename X>
void backward_task(const Sizes& s, const Inputs<A, X>& in, int64_t task, const X* grad,
                   const A* grad_last, const Gradients<A, X>& out) {
  const Heads k = heads(s, task);
  Shared<A> shared(s, true);
  Head<A> head(s, shared.Lp);
  const int64_t Pp = head.Pp, size = s.N * Pp, Lp = shared.Lp, Np = shared.Np;
  const std::vector<Chunk> all = chunks(s, in, k, grad);
  const std::vector<A> starts = replay(s, in, k, all, shared, head);
  std::vector<A> gh(k.count * size), dS(s.chunk * Lp), turned(s.chunk * Lp);
  std::vector<A> dB(s.chunk * Np), dC(s.chunk * Np);
  Adjoint<A> w(s, Pp, Np, Lp);
  for (int64_t r = 0; r < k.count; ++r)
    load_state(s, grad_last + (k.b * s.H + k.first + r) * s.P * s.N, &gh[r * size], Pp);
  for (auto c = all.rbegin(); c != all.rend(); ++c) {
    const int64_t L = c->length;
    shared.load(s, in, k, *c);
    for (auto* buffer : {&dS, &dB, &dC}) std::fill(buffer->begin(), buffer->end(), A(0));
    for (int64_t r = 0; r < k.count; ++r) {
      const int64_t n = k.first + r;
      A* g = &gh[r * size];
      head.load(s, in, k, *c, n);
      head.between(L);
      for (int64_t i = 0; i < L; ++i) {
        const X* from = grad + ((k.b * s.T + c->begin + i) * s.H + n) * s.P;
        for (int64_t p = 0; p < s.P; ++p) w.g[i * Pp + p] = static_cast<A>(from[p]);
      }
      std::fill(w.dc.begin(), w.dc.end(), 0.0);
      adjoint_inside(s, L, shared, head, w, dS.data());
      adjoint_state(s, L, shared, head, w, g, dB.data());
      if (c->fresh) std::fill_n(g, size, A(0));
      else adjoint_start(s, L, shared, head, w, &starts[(c->state * k.count + r) * size], g,
                         dC.data());
      finish(s, in, k, *c, n, w, Pp, out);
    }
    mix(s, k, *c, shared, dS, turned, dB, dC, out);
  }
  for (int64_t r = 0; r < k.count; ++r)
    store_state(s, &gh[r * size], out.h0 + (k.b * s.H + k.first + r) * s.P * s.N, Pp);
}

// ---------------------------------------------------------------- entry points

// Inner axes must be dense; the strides of rows and steps may be anything.
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

// Owns what had to be made dense.
struct Operands {
  Tensor x, dt, A, Bm, Cm, h0;
  OptionalTensor D, reset;

  template <typename T, typename X>
  Inputs<T, X> inputs(bool step = false) const {
    const auto view = [&](const Tensor& v, auto* type) {
      using E = std::remove_pointer_t<decltype(type)>;
      return View<E>{v.const_data_ptr<E>(), v.stride(0), step ? 0 : v.stride(1)};
    };
    return {view(x, static_cast<X*>(nullptr)),
            view(Bm, static_cast<X*>(nullptr)),
            view(Cm, static_cast<X*>(nullptr)),
            view(dt, static_cast<T*>(nullptr)),
            A.const_data_ptr<T>(),
            D.has_value() ? D->const_data_ptr<T>() : nullptr,
            h0.const_data_ptr<T>(),
            reset.has_value() ? reset->const_data_ptr<bool>() : nullptr};
  }
};

Operands operands(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& Bm,
                  const Tensor& Cm, const OptionalTensor& D, const Tensor& h0,
                  const OptionalTensor& reset) {
  return {dense_rows(x, 2),  dense_rows(dt, 1), A.contiguous(), dense_rows(Bm, 2),
          dense_rows(Cm, 2), h0.contiguous(),   dense(D),       dense(reset)};
}

Sizes sizes(const Tensor& x, const Tensor& Bm, int64_t chunk) {
  Sizes s{};
  s.B = x.size(0), s.T = x.size(1), s.H = x.size(2), s.P = x.size(3);
  s.G = Bm.size(2), s.N = Bm.size(3), s.per_group = s.H / s.G;
  s.spans = (s.per_group + kSpan - 1) / kSpan;
  s.chunk = std::min(chunk, s.T);
  return s;
}

template <typename Function>
void dispatch(const Tensor& x, Function&& function) {
  if (x.scalar_type() == at::kFloat) function(float{}, float{});
  else if (x.scalar_type() == at::kDouble) function(double{}, double{});
  else if (x.scalar_type() == at::kBFloat16) function(float{}, at::BFloat16{});
  else TORCH_CHECK(false, "ssd_scan(cpu): float32, float64 or bfloat16, got ", x.scalar_type());
}

std::tuple<Tensor, Tensor> ssd_scan_forward(const Tensor& x, const Tensor& dt, const Tensor& A,
                                            const Tensor& Bm, const Tensor& Cm,
                                            const OptionalTensor& D, const Tensor& h0,
                                            const OptionalTensor& reset, int64_t chunk) {
  const Operands o = operands(x, dt, A, Bm, Cm, D, h0, reset);
  const Sizes s = sizes(x, Bm, chunk);
  Tensor y = at::empty(x.sizes(), x.options()), last = at::empty(h0.sizes(), h0.options());
  dispatch(x, [&](auto accumulate, auto stored) {
    using T = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<T, X>();
    X* out = y.mutable_data_ptr<X>();
    T* to = last.mutable_data_ptr<T>();
    at::parallel_for(0, s.B * s.G * s.spans, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) forward_task<T, X>(s, in, task, out, to);
    });
  });
  return {y, last};
}

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Seven ssd_scan_backward(const Tensor& grad_, const Tensor& grad_last_, const Tensor& x,
                        const Tensor& dt, const Tensor& A, const Tensor& Bm, const Tensor& Cm,
                        const OptionalTensor& D, const Tensor& h0, const OptionalTensor& reset,
                        int64_t chunk) {
  const Operands o = operands(x, dt, A, Bm, Cm, D, h0, reset);
  const Tensor grad = grad_.contiguous(), grad_last = grad_last_.contiguous();
  const Sizes s = sizes(x, Bm, chunk);
  const auto wide = h0.options();
  Tensor dx = at::empty(x.sizes(), x.options()), ddt = at::empty(dt.sizes(), wide);
  Tensor dB = at::empty({s.spans, s.B, s.T, s.G, s.N}, wide), dC = at::empty_like(dB);
  Tensor dA = at::zeros({s.B, s.H}, wide), dh0 = at::empty(h0.sizes(), wide);
  Tensor dD = at::zeros({s.B, D.has_value() ? s.H : 0, s.P}, wide);
  dispatch(x, [&](auto accumulate, auto stored) {
    using T = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<T, X>();
    const Gradients<T, X> out{dx.mutable_data_ptr<X>(), ddt.mutable_data_ptr<T>(),
                              dB.mutable_data_ptr<T>(), dC.mutable_data_ptr<T>(),
                              dA.mutable_data_ptr<T>(), dD.mutable_data_ptr<T>(),
                              dh0.mutable_data_ptr<T>()};
    const X* g = grad.const_data_ptr<X>();
    const T* gl = grad_last.const_data_ptr<T>();
    at::parallel_for(0, s.B * s.G * s.spans, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) backward_task<T, X>(s, in, task, g, gl, out);
    });
  });
  const Tensor skip = D.has_value() ? dD.sum(0) : at::empty({0}, wide);
  return {dx, ddt, dA.sum(0), dB.sum(0), dC.sum(0), skip, dh0};
}

// One step: x (B, H, P), dt (B, H), Bm, Cm (B, G, N), D (H, P) or (H, 1); no gradient.
std::tuple<Tensor, Tensor> ssd_scan_step(const Tensor& x, const Tensor& dt, const Tensor& A,
                                         const Tensor& Bm, const Tensor& Cm,
                                         const OptionalTensor& D, const Tensor& h0,
                                         const OptionalTensor& reset) {
  const Operands o = operands(x, dt, A, Bm, Cm, D, h0, reset);
  const int64_t B = x.size(0), H = x.size(1), P = x.size(2), G = Bm.size(1), N = Bm.size(2);
  const int64_t skip = D.has_value() ? D->size(1) : 1;
  Tensor y = at::empty(x.sizes(), x.options()), last = at::empty(h0.sizes(), h0.options());
  dispatch(x, [&](auto accumulate, auto stored) {
    using T = decltype(accumulate);
    using X = decltype(stored);
    const auto in = o.inputs<T, X>(true);
    X* out = y.mutable_data_ptr<X>();
    T* to = last.mutable_data_ptr<T>();
    at::parallel_for(0, B * H, 16, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / H, n = task % H, g = n / (H / G);
        const X *xs = in.x.at(b, 0) + n * P, *Bt = in.Bm.at(b, 0) + g * N;
        const X* Ct = in.Cm.at(b, 0) + g * N;
        const T step = in.dt.at(b, 0)[n], a = exp_(step * in.A_[n]);
        const bool cleared = in.reset && in.reset[b];
        for (int64_t p = 0; p < P; ++p) {
          const T* __restrict h = in.h0 + (task * P + p) * N;
          T* __restrict next = to + (task * P + p) * N;
          const T u = step * static_cast<T>(xs[p]);
          T sum = in.D ? in.D[n * skip + p % skip] * static_cast<T>(xs[p]) : T(0);
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < N; ++i) {
            next[i] = (cleared ? T(0) : a * h[i]) + u * static_cast<T>(Bt[i]);
            sum += next[i] * static_cast<T>(Ct[i]);
          }
          out[task * P + p] = static_cast<X>(sum);
        }
      }
    });
  });
  return {y, last};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def(
      "ssd_scan_forward(Tensor x, Tensor dt, Tensor A, Tensor Bm, Tensor Cm, Tensor? D, "
      "Tensor h0, Tensor? reset, int chunk) -> (Tensor, Tensor)",
      &ssd_scan_forward);
  m.def(
      "ssd_scan_backward(Tensor grad, Tensor grad_last, Tensor x, Tensor dt, Tensor A, "
      "Tensor Bm, Tensor Cm, Tensor? D, Tensor h0, Tensor? reset, int chunk) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      &ssd_scan_backward);
  m.def(
      "ssd_scan_step(Tensor x, Tensor dt, Tensor A, Tensor Bm, Tensor Cm, Tensor? D, Tensor h0, "
      "Tensor? reset) -> (Tensor, Tensor)",
      &ssd_scan_step);
}
