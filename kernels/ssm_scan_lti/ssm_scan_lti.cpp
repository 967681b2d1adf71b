// Time-invariant diagonal scan on the CPU: h = a prev + b x, y = 2 Re sum_n c h.
//
// Time is cut into segments: at every kSpan-th step and at every reset. A segment of q steps that
// starts from the state h is, with the powers of a in a table (`powers.h`),
//
//   y_i = Re sum_n (2 c a h)_n a_n^i + sum_{l <= i} k_l x_{i-l},   k_l = Re sum_n (2 c b)_n a_n^l
//   h'  = a^q h + b sum_j a^{q-1-j} x_j
//
// and its adjoint is made of the same products. One task owns a block of channels and a group of
// batch rows, both chosen by the shape alone, so that every sum has one order whatever the number
// of threads. Forward keeps the state every kKeep steps, backward computes the one in between.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../powers.h"

namespace {

using namespace statewise;

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kKeep = 64;     // steps between kept states; `torch.py` knows it, too
constexpr int64_t kBlock = 16;    // channels per task: a cache line of floats
constexpr int64_t kTile = 1024;   // steps brought into [channel][time] order at once
constexpr int64_t kRow = kTile + 16;  // not a power of two, which would share cache sets
constexpr int64_t kTasks = 32;    // tasks to aim at
constexpr int64_t kGrain = 32768;  // state updates that are worth a thread

static_assert(kKeep == 2 * kSpan && kTile % kKeep == 0, "a state is computed over one segment");

// ---------------------------------------------------------------- what a call works on

struct Sizes {
  int64_t B, T, H, N, blocks, groups, grain;
  int64_t chunks() const { return (T - 1) / kKeep; }  // kept states per row
};

Sizes sizes(const Tensor& x, const Tensor& a) {
  Sizes s{x.size(0), x.size(1), x.size(2), a.size(1), 0, 0, 1};
  s.blocks = (s.H + kBlock - 1) / kBlock;
  s.groups = std::clamp<int64_t>(kTasks / s.blocks, 1, s.B);
  const int64_t rows = (s.B + s.groups - 1) / s.groups;
  s.grain = std::max<int64_t>(1, kGrain / (rows * s.T * std::min(s.H, kBlock) * s.N + 1));
  return s;
}

template <typename X>
struct View {  // (B, T, H) with dense rows
  const X* data = nullptr;
  int64_t stride_b = 0, stride_t = 0;
  const X* at(int64_t b, int64_t t) const { return data + b * stride_b + t * stride_t; }
};

template <typename X>
View<X> view(const Tensor& x) {
  return {x.const_data_ptr<X>(), x.stride(0), x.stride(1)};
}

struct Segment {
  int64_t begin, count;  // steps
  bool fresh;            // starts at a reset
};

// The segments of steps [begin, end) of one row; begin is a multiple of kSpan.
std::vector<Segment> segments(const bool* reset, int64_t begin, int64_t end) {
  std::vector<Segment> found;
  for (int64_t t = begin; t < end; ++t) {
    const bool cut = reset && reset[t];
    if (cut || t % kSpan == 0) found.push_back({t, 0, cut});
    ++found.back().count;
  }
  return found;
}

// The rows and channels of a task.
struct Range {
  int64_t row, row_end, first, count, group;
};

Range range(const Sizes& s, int64_t task) {
  const int64_t group = task / s.blocks, first = task % s.blocks * kBlock;
  return {group * s.B / s.groups, (group + 1) * s.B / s.groups, first,
          std::min(kBlock, s.H - first), group};
}

template <typename A>
void multiply_add(const Numbers<A>& u, const Numbers<A>& v, Numbers<A>& sum) {
  const A *__restrict ur = u.re(), *__restrict ui = u.im();
  const A *__restrict vr = v.re(), *__restrict vi = v.im();
  A *__restrict sr = sum.re(), *__restrict si = sum.im();
#pragma omp simd
  for (int64_t n = 0; n < sum.padded; ++n) {
    sr[n] += ur[n] * vr[n] - ui[n] * vi[n];
    si[n] += ur[n] * vi[n] + ui[n] * vr[n];
  }
}

// out = p + u v, where p may be missing, and may be out.
template <typename A>
void product(const A* ur, const A* ui, const Numbers<A>& v, const Numbers<A>* p, Numbers<A>& out) {
  const A *vr = v.re(), *vi = v.im(), *pr = p ? p->re() : nullptr, *pi = p ? p->im() : nullptr;
  A *outr = out.re(), *outi = out.im();
#pragma omp simd
  for (int64_t n = 0; n < out.padded; ++n) {
    const A r = ur[n] * vr[n] - ui[n] * vi[n], i = ur[n] * vi[n] + ui[n] * vr[n];
    outr[n] = p ? pr[n] + r : r;
    outi[n] = p ? pi[n] + i : i;
  }
}

template <typename A>
void load_pairs(const A* source, int64_t N, Numbers<A>& out, A sign = 1) {
  for (int64_t n = 0; n < N; ++n) out.re()[n] = source[2 * n], out.im()[n] = sign * source[2 * n + 1];
}

template <typename A>
void store_pairs(const Numbers<A>& z, int64_t N, A* out, A sign = 1) {
  for (int64_t n = 0; n < N; ++n) out[2 * n] = z.re()[n], out[2 * n + 1] = sign * z.im()[n];
}

// The parameters of one channel, its powers and its short kernel.
template <typename A>
struct Channel {
  Powers<A> powers;
  Numbers<A> b, ca;  // ca = 2 c a
  Buffer<A> k;

  Channel(const A* a_, const A* b_, const A* c_, int64_t N, int64_t count)
      : powers(a_, N, count), b(N), ca(N), k(2 * kSpan) {
    load_pairs(b_, N, b);
    Numbers<A> cb(N);
    for (int64_t n = 0; n < N; ++n) {
      const A *a = a_ + 2 * n, *c = c_ + 2 * n, *d = b_ + 2 * n;
      ca.re()[n] = 2 * (c[0] * a[0] - c[1] * a[1]), ca.im()[n] = 2 * (c[0] * a[1] + c[1] * a[0]);
      cb.re()[n] = 2 * (c[0] * d[0] - c[1] * d[1]), cb.im()[n] = 2 * (c[0] * d[1] + c[1] * d[0]);
    }
    emit(powers, cb, count, k.data());
  }
};

template <typename A>
std::vector<Channel<A>> channels(const Sizes& s, const Range& r, const A* a, const A* b,
                                 const A* c) {
  std::vector<Channel<A>> made;
  made.reserve(r.count);
  for (int64_t h = r.first; h < r.first + r.count; ++h) {
    const int64_t at = 2 * h * s.N;
    made.emplace_back(a + at, b + at, c + at, s.N, std::min(kSpan, s.T));
  }
  return made;
}

// Steps [begin, end) of some channels of a row, [channel][time].
template <typename A, typename X>
void read_tile(View<X> x, const Range& r, int64_t b, int64_t begin, int64_t end, A* tile) {
  for (int64_t t = begin; t < end; ++t) {
    const X* row = x.at(b, t) + r.first;
    for (int64_t h = 0; h < r.count; ++h) tile[h * kRow + t - begin] = static_cast<A>(row[h]);
  }
}

template <typename A, typename X>
void write_tile(const Sizes& s, const Range& r, int64_t b, int64_t begin, int64_t end,
                const A* tile, X* x) {
  for (int64_t t = begin; t < end; ++t) {
    X* row = x + (b * s.T + t) * s.H + r.first;
    for (int64_t h = 0; h < r.count; ++h) row[h] = static_cast<X>(tile[h * kRow + t - begin]);
  }
}

// A short series between zeros, so that whole vectors may be read on both sides of it.
template <typename A>
struct Padded {
  Buffer<A> memory = Buffer<A>(4 * kSpan);
  A* data() { return memory.data() + kSpan; }
  void fill(const A* x, int64_t count) {
    std::copy_n(x, count, data());
    std::fill_n(data() + count, 2 * kSpan - count, A(0));
  }
  void fill_reversed(const A* x, int64_t count) {
    std::reverse_copy(x, x + count, data());
    std::fill_n(data() + count, 2 * kSpan - count, A(0));
  }
};

// ---------------------------------------------------------------- forward

template <typename A>
struct Scratch {
  Padded<A> series, reversed;
  Numbers<A> u, sum;
  A out[kSpan];
  explicit Scratch(int64_t N) : u(N), sum(N) {}
};

// h = a^q h + b sum_j a^{q-1-j} x_j; the state before counts unless the segment is fresh.
template <typename A>
void advance(const Channel<A>& channel, const Segment& segment, const A* x, Scratch<A>& w,
             Numbers<A>& h) {
  const int64_t q = segment.count;
  w.reversed.fill_reversed(x, q);
  absorb<A, 1>(channel.powers, q, {w.reversed.data()}, {&w.sum});
  if (!segment.fresh)
    product<A>(channel.powers.re_of(q), channel.powers.im_of(q), h, nullptr, h);
  product<A>(channel.b.re(), channel.b.im(), w.sum, segment.fresh ? nullptr : &h, h);
}

template <typename A>
void outputs(const Channel<A>& channel, const Segment& segment, const A* x, const Numbers<A>& h,
             Scratch<A>& w, A* y) {
  const int64_t q = segment.count;
  w.series.fill(x, q);
  if (segment.fresh) {
    std::fill_n(w.out, kSpan, A(0));
  } else {
    product<A>(channel.ca.re(), channel.ca.im(), h, nullptr, w.u);
    emit(channel.powers, w.u, q, w.out);
  }
  for (int64_t i = 0; i < q; i += kLanes<A>) {
    const int64_t taps = std::min(q, i + kLanes<A>);
    store(w.out + i, load(w.out + i) + dot<A, -1>(channel.k.data(), w.series.data() + i, taps));
  }
  std::copy_n(w.out, q, y);
}

template <typename A, typename X>
void forward(const Sizes& s, View<X> x, const A* a, const A* b, const A* c, const A* h0,
             const bool* reset, X* y, A* last, A* kept) {
  at::parallel_for(0, s.blocks * s.groups, s.grain, [&](int64_t begin, int64_t end) {
    Buffer<A> in(kBlock * kRow), out(kBlock * kRow);
    Scratch<A> scratch(s.N);
    for (int64_t task = begin; task < end; ++task) {
      const Range r = range(s, task);
      const std::vector<Channel<A>> made = channels(s, r, a, b, c);
      std::vector<Numbers<A>> h(r.count, Numbers<A>(s.N));
      for (int64_t row = r.row; row < r.row_end; ++row) {
        for (int64_t e = 0; e < r.count; ++e)
          load_pairs(h0 + 2 * (row * s.H + r.first + e) * s.N, s.N, h[e]);
        for (int64_t t = 0; t < s.T; t += kTile) {
          const int64_t stop = std::min(s.T, t + kTile);
          read_tile(x, r, row, t, stop, in.data());
          const auto parts = segments(reset ? reset + row * s.T : nullptr, t, stop);
          for (int64_t e = 0; e < r.count; ++e)
            for (const Segment& part : parts) {
              if (kept && part.begin > 0 && part.begin % kKeep == 0) {
                const int64_t at = row * s.chunks() + part.begin / kKeep - 1;
                store_pairs(h[e], s.N, kept + 2 * (at * s.H + r.first + e) * s.N);
              }
              const int64_t at = e * kRow + part.begin - t;
              outputs(made[e], part, in.data() + at, h[e], scratch, out.data() + at);
              advance(made[e], part, in.data() + at, scratch, h[e]);
            }
          write_tile(s, r, row, t, stop, out.data(), y);
        }
        for (int64_t e = 0; e < r.count; ++e)
          store_pairs(h[e], s.N, last + 2 * (row * s.H + r.first + e) * s.N);
      }
    }
  });
}

// ---------------------------------------------------------------- backward
//
// With m the conjugate of the adjoint of h', everything is the derivative of
// sum_i g_i y_i + Re(m h'): G0 = sum_i g_i a^i, G1 = sum_i (i + 1) g_i a^i, X0 = sum_j x_j a^{q-1-j}
// and X1 = dX0 / da give
//
//   d c = 2 a h G0,  d b = m X0,  d a = 2 c h G1 + m (q a^{q-1} h + b X1),  d h = 2 c a G0 + m a^q
//
// plus what comes through the short kernel, k_l = 2 Re sum_n c b a^l, whose gradient is summed
// first. The stored gradients are the conjugates of these.

enum Sum { kHG0, kHG1, kMX0, kMX1, kMH, kSums };

template <typename A>
struct Sums {
  Numbers<A> of[kSums];
  Buffer<A> k = Buffer<A>(kSpan);
  Sums() = default;
  explicit Sums(int64_t N) {
    for (Numbers<A>& sum : of) sum = Numbers<A>(N);
  }
  // Add to sums of a wider type, and start again from 0.
  void flush(Sums<double>& total, int64_t N) {
    for (int which = 0; which < kSums; ++which) {
      for (int64_t n = 0; n < N; ++n) {
        total.of[which].re()[n] += of[which].re()[n];
        total.of[which].im()[n] += of[which].im()[n];
      }
      std::fill_n(of[which].re(), 2 * of[which].padded, A(0));
    }
    for (int64_t l = 0; l < kSpan; ++l) total.k.data()[l] += k.data()[l];
    std::fill_n(k.data(), kSpan, A(0));
  }
};

template <typename A>
struct Adjoint {
  Padded<A> g, reversed;
  A g_slopes[kSpan], x_slopes[kSpan], out[kSpan];
  Numbers<A> u, G0, G1, X0, X1, h;
  explicit Adjoint(int64_t N) : u(N), G0(N), G1(N), X0(N), X1(N), h(N) {}
};

// dx_j = sum_l k_l g_{j+l} + Re sum_n (m b)_n a_n^{q-1-j}
template <typename A>
void input_gradient(const Channel<A>& channel, int64_t q, const Numbers<A>& m, Adjoint<A>& w,
                    A* dx) {
  const A* g = w.g.data();
  product<A>(channel.b.re(), channel.b.im(), m, nullptr, w.u);
  emit(channel.powers, w.u, q, w.out);
  std::reverse(w.out, w.out + q);
  for (int64_t j = 0; j < q; j += kLanes<A>)
    store(w.out + j, load(w.out + j) + dot<A, 1>(channel.k.data(), g + j, q - j));
  std::copy_n(w.out, q, dx);
}

// Adds what a segment gives to the sums; h is null where the segment is fresh.
template <typename A>
void parameter_sums(const Channel<A>& channel, int64_t q, const A* x, const Numbers<A>& m,
                    const Numbers<A>* h, Adjoint<A>& w, Sums<A>& sums) {
  const A* g = w.g.data();
  w.reversed.fill_reversed(x, q);
  const A* xr = w.reversed.data();
  for (int64_t i = 0; i < q; ++i) {
    w.g_slopes[i] = static_cast<A>(i + 1) * g[i];
    w.x_slopes[i] = static_cast<A>(i + 1) * xr[i + 1];
  }
  absorb<A, 2>(channel.powers, q, {g, w.g_slopes}, {&w.G0, &w.G1});
  absorb<A, 2>(channel.powers, q, {xr, w.x_slopes}, {&w.X0, &w.X1});
  multiply_add(m, w.X0, sums.of[kMX0]);
  multiply_add(m, w.X1, sums.of[kMX1]);
  if (h) {
    multiply_add(*h, w.G0, sums.of[kHG0]);
    multiply_add(*h, w.G1, sums.of[kHG1]);
    product<A>(channel.powers.re_of(q - 1), channel.powers.im_of(q - 1), *h, nullptr, w.u);
    for (int64_t n = 0; n < 2 * w.u.padded; ++n) w.u.re()[n] *= static_cast<A>(q);
    multiply_add(m, w.u, sums.of[kMH]);
  }
  A* k = sums.k.data();
  for (int64_t l = 0; l < q; l += kLanes<A>)
    store(k + l, load(k + l) + dot<A, -1>(g + l, xr + q - 1, q - l));
}

// Turns the sums of one channel into the gradients of a, b and c (pairs).
template <typename A>
void parameter_gradients(const Sums<double>& sums, const A* a, const A* b, const A* c, int64_t N,
                         int64_t count, A* da, A* db, A* dc) {
  using Z = c10::complex<double>;
  const auto sum = [&](Sum which, int64_t n) {
    return Z(sums.of[which].re()[n], sums.of[which].im()[n]);
  };
  const auto put = [](A* out, Z z) {
    out[0] = static_cast<A>(z.real()), out[1] = -static_cast<A>(z.imag());
  };
  for (int64_t n = 0; n < N; ++n) {
    const Z a_(a[2 * n], a[2 * n + 1]), b_(b[2 * n], b[2 * n + 1]), c_(c[2 * n], c[2 * n + 1]);
    Z value = 0, slope = 0, power = 1, before = 0;
    for (int64_t l = 0; l < count; ++l) {
      value += sums.k.data()[l] * power;
      slope += static_cast<double>(l) * sums.k.data()[l] * before;
      before = power, power *= a_;
    }
    put(dc + 2 * n, 2.0 * (a_ * sum(kHG0, n) + b_ * value));
    put(db + 2 * n, sum(kMX0, n) + 2.0 * c_ * value);
    put(da + 2 * n,
        2.0 * c_ * (sum(kHG1, n) + b_ * slope) + sum(kMH, n) + b_ * sum(kMX1, n));
  }
}

template <typename A, typename X>
struct Arguments {
  View<X> g, x;
  const A *g_last, *a, *b, *c, *h0, *kept;
  const bool* reset;
  X* dx;              // null where it is not asked for
  A *da, *db, *dc;    // (groups, H, N, 2), null where they are not asked for
  A* dh0;
};

// The state before a segment that starts on the grid of kSpan steps.
template <typename A, typename X>
void start_state(const Sizes& s, const Arguments<A, X>& in, const Channel<A>& channel, int64_t row,
                 int64_t h, const std::vector<Segment>& parts, size_t index, const A* x,
                 Scratch<A>& scratch, Numbers<A>& out) {
  const Segment& part = parts[index];
  const auto load_kept = [&](int64_t t) {
    const int64_t at = row * s.chunks() + t / kKeep - 1;
    load_pairs(t == 0 ? in.h0 + 2 * (row * s.H + h) * s.N : in.kept + 2 * (at * s.H + h) * s.N,
               s.N, out);
  };
  if (part.begin % kKeep == 0) return load_kept(part.begin);
  const Segment& before = parts[index - 1];
  if (!before.fresh) load_kept(before.begin);
  advance(channel, before, x - before.count, scratch, out);
}

// All segments of one channel and tile, from the last to the first; m is carried.
template <typename A, typename X>
void backward_tile(const Sizes& s, const Arguments<A, X>& in, const Channel<A>& channel,
                   int64_t row, int64_t h, int64_t begin, const std::vector<Segment>& parts,
                   const A* x, const A* g, A* dx, Numbers<A>& m, Scratch<A>& scratch,
                   Adjoint<A>& w, Sums<A>& sums) {
  for (size_t index = parts.size(); index-- > 0;) {
    const Segment& part = parts[index];
    const int64_t q = part.count, at = part.begin - begin;
    w.g.fill(g + at, q);
    if (in.dx) input_gradient(channel, q, m, w, dx + at);
    if (in.da) {
      if (!part.fresh)
        start_state(s, in, channel, row, h, parts, index, x + at, scratch, w.h);
      parameter_sums(channel, q, x + at, m, part.fresh ? nullptr : &w.h, w, sums);
    } else if (!part.fresh) {
      absorb<A, 1>(channel.powers, q, {w.g.data()}, {&w.G0});
    }
    if (part.fresh) {  // nothing passes a reset
      std::fill_n(m.re(), 2 * m.padded, A(0));
      continue;
    }
    product<A>(channel.powers.re_of(q), channel.powers.im_of(q), m, nullptr, m);
    product<A>(channel.ca.re(), channel.ca.im(), w.G0, &m, m);
  }
}

template <typename A, typename X>
void backward(const Sizes& s, const Arguments<A, X>& in) {
  at::parallel_for(0, s.blocks * s.groups, s.grain, [&](int64_t begin, int64_t end) {
    Buffer<A> x(kBlock * kRow), g(kBlock * kRow), dx(kBlock * kRow);
    Scratch<A> scratch(s.N);
    Adjoint<A> w(s.N);
    for (int64_t task = begin; task < end; ++task) {
      const Range r = range(s, task);
      const std::vector<Channel<A>> made = channels(s, r, in.a, in.b, in.c);
      std::vector<Numbers<A>> m(r.count, Numbers<A>(s.N));
      std::vector<Sums<double>> totals(in.da ? r.count : 0, Sums<double>(s.N));
      Sums<A> sums(s.N);
      for (int64_t row = r.row; row < r.row_end; ++row) {
        for (int64_t e = 0; e < r.count; ++e)
          load_pairs(in.g_last + 2 * (row * s.H + r.first + e) * s.N, s.N, m[e], A(-1));
        for (int64_t t = (s.T - 1) / kTile * kTile; t >= 0; t -= kTile) {
          const int64_t stop = std::min(s.T, t + kTile);
          read_tile(in.g, r, row, t, stop, g.data());
          if (in.da) read_tile(in.x, r, row, t, stop, x.data());
          const auto parts = segments(in.reset ? in.reset + row * s.T : nullptr, t, stop);
          for (int64_t e = 0; e < r.count; ++e) {
            backward_tile(s, in, made[e], row, r.first + e, t, parts, x.data() + e * kRow,
                          g.data() + e * kRow, dx.data() + e * kRow, m[e], scratch, w, sums);
            if (in.da) sums.flush(totals[e], s.N);
          }
          if (in.dx) write_tile(s, r, row, t, stop, dx.data(), in.dx);
        }
        for (int64_t e = 0; e < r.count; ++e)
          store_pairs(m[e], s.N, in.dh0 + 2 * (row * s.H + r.first + e) * s.N, A(-1));
      }
      for (int64_t e = 0; in.da && e < r.count; ++e) {
        const int64_t from = 2 * (r.first + e) * s.N, to = 2 * r.group * s.H * s.N + from;
        parameter_gradients(totals[e], in.a + from, in.b + from, in.c + from, s.N,
                            std::min(kSpan, s.T), in.da + to, in.db + to, in.dc + to);
      }
    }
  });
}

// ---------------------------------------------------------------- one step

template <typename A>
void step(int64_t B, int64_t H, int64_t N, const A* x, const A* a, const A* b, const A* c,
          const A* h, const bool* reset, A* y, A* next) {
  at::parallel_for(0, B * H, std::max<int64_t>(1, kGrain / (N + 1)), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t at = 2 * (i % H) * N;
      const bool fresh = reset && reset[i / H];
      const A *__restrict ar = a + at, *__restrict br = b + at, *__restrict cr = c + at;
      const A* __restrict before = h + 2 * i * N;
      A* __restrict after = next + 2 * i * N;
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t n = 0; n < 2 * N; n += 2) {
        const A hr = fresh ? A(0) : before[n], hi = fresh ? A(0) : before[n + 1];
        const A r = ar[n] * hr - ar[n + 1] * hi + br[n] * x[i];
        const A s = ar[n] * hi + ar[n + 1] * hr + br[n + 1] * x[i];
        after[n] = r, after[n + 1] = s;
        sum += cr[n] * r - cr[n + 1] * s;
      }
      y[i] = 2 * sum;
    }
  });
}

// ---------------------------------------------------------------- entry points

template <typename Function>
void dispatch_dtype(const Tensor& x, Function&& function) {
  if (x.scalar_type() == at::kFloat) function(float{}, float{});
  else if (x.scalar_type() == at::kDouble) function(double{}, double{});
  else if (x.scalar_type() == at::kBFloat16) function(float{}, at::BFloat16{});
  else TORCH_CHECK(false, "ssm_scan_lti(cpu): float32, float64 or bfloat16, got ", x.scalar_type());
}

Tensor dense_rows(const Tensor& x) { return x.stride(-1) == 1 ? x : x.contiguous(); }

OptionalTensor contiguous(const OptionalTensor& x) {
  return x.has_value() ? OptionalTensor(x->contiguous()) : x;
}

const bool* flags(const OptionalTensor& reset) {
  return reset.has_value() ? reset->const_data_ptr<bool>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> ssm_scan_lti_forward(const Tensor& x_, const Tensor& a_,
                                                        const Tensor& b_, const Tensor& c_,
                                                        const Tensor& h0_,
                                                        const OptionalTensor& reset_, bool keep) {
  const Tensor x = dense_rows(x_), a = a_.contiguous(), b = b_.contiguous(), c = c_.contiguous();
  const Tensor h0 = h0_.contiguous();
  const OptionalTensor reset = contiguous(reset_);
  const Sizes s = sizes(x, a);
  Tensor y = at::empty(x.sizes(), x.options()), last = at::empty(h0.sizes(), h0.options());
  Tensor kept = at::empty({s.B, keep ? s.chunks() : 0, s.H, s.N, 2}, h0.options());
  dispatch_dtype(x, [&](auto accumulate, auto stored) {
    using A = decltype(accumulate);
    using X = decltype(stored);
    forward<A, X>(s, view<X>(x), a.const_data_ptr<A>(), b.const_data_ptr<A>(),
                  c.const_data_ptr<A>(), h0.const_data_ptr<A>(), flags(reset),
                  y.mutable_data_ptr<X>(), last.mutable_data_ptr<A>(),
                  keep ? kept.mutable_data_ptr<A>() : nullptr);
  });
  return {y, last, kept};
}

// Groups of rows were kept apart so that the order of this sum is fixed.
Tensor over_groups(const Tensor& parts) {
  if (parts.dim() == 1) return parts;
  Tensor sum = parts.size(0) == 1 ? parts[0] : parts[0].clone();
  for (int64_t i = 1; i < parts.size(0); ++i) sum.add_(parts[i]);
  return sum;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ssm_scan_lti_backward(
    const Tensor& grad_, const Tensor& grad_last_, const Tensor& x_, const Tensor& a_,
    const Tensor& b_, const Tensor& c_, const Tensor& h0_, const OptionalTensor& reset_,
    const Tensor& kept_, bool need_x, bool need_parameters) {
  const Tensor g = dense_rows(grad_), x = dense_rows(x_), g_last = grad_last_.contiguous();
  const Tensor a = a_.contiguous(), b = b_.contiguous(), c = c_.contiguous();
  const Tensor h0 = h0_.contiguous(), kept = kept_.contiguous();
  const OptionalTensor reset = contiguous(reset_);
  const Sizes s = sizes(x, a);
  Tensor dx = need_x ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  Tensor dh0 = at::empty(h0.sizes(), h0.options());
  const auto partial = [&] {
    return need_parameters ? at::empty({s.groups, s.H, s.N, 2}, h0.options())
                           : at::empty({0}, h0.options());
  };
  Tensor da = partial(), db = partial(), dc = partial();
  dispatch_dtype(x, [&](auto accumulate, auto stored) {
    using A = decltype(accumulate);
    using X = decltype(stored);
    const auto parameter = [&](Tensor& p) {
      return need_parameters ? p.mutable_data_ptr<A>() : nullptr;
    };
    backward<A, X>(s, {view<X>(g), view<X>(x), g_last.const_data_ptr<A>(), a.const_data_ptr<A>(),
                       b.const_data_ptr<A>(), c.const_data_ptr<A>(), h0.const_data_ptr<A>(),
                       kept.const_data_ptr<A>(), flags(reset),
                       need_x ? dx.mutable_data_ptr<X>() : nullptr, parameter(da), parameter(db),
                       parameter(dc), dh0.mutable_data_ptr<A>()});
  });
  return {dx, over_groups(da), over_groups(db), over_groups(dc), dh0};
}

std::tuple<Tensor, Tensor> ssm_scan_lti_step(const Tensor& x_, const Tensor& a_, const Tensor& b_,
                                             const Tensor& c_, const Tensor& h_,
                                             const OptionalTensor& reset_) {
  const Tensor x = x_.contiguous(), h = h_.contiguous();
  const Tensor a = a_.contiguous(), b = b_.contiguous(), c = c_.contiguous();
  const OptionalTensor reset = contiguous(reset_);
  Tensor y = at::empty(x.sizes(), x.options()), next = at::empty(h.sizes(), h.options());
  dispatch_dtype(x, [&](auto accumulate, auto) {
    using A = decltype(accumulate);
    step<A>(h.size(0), h.size(1), h.size(2), x.const_data_ptr<A>(), a.const_data_ptr<A>(),
            b.const_data_ptr<A>(), c.const_data_ptr<A>(), h.const_data_ptr<A>(), flags(reset),
            y.mutable_data_ptr<A>(), next.mutable_data_ptr<A>());
  });
  return {y, next};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def(
      "ssm_scan_lti_forward(Tensor x, Tensor abar, Tensor bbar, Tensor c, Tensor h0, "
      "Tensor? reset, bool keep) -> (Tensor, Tensor, Tensor)",
      &ssm_scan_lti_forward);
  m.def(
      "ssm_scan_lti_backward(Tensor grad, Tensor grad_last, Tensor x, Tensor abar, Tensor bbar, "
      "Tensor c, Tensor h0, Tensor? reset, Tensor kept, bool need_x, bool need_parameters) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      &ssm_scan_lti_backward);
  m.def(
      "ssm_scan_lti_step(Tensor x, Tensor abar, Tensor bbar, Tensor c, Tensor h, Tensor? reset) "
      "-> (Tensor, Tensor)",
      &ssm_scan_lti_step);
}
