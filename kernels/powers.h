// Powers of complex numbers in tables, and products with them.
//
// A stretch of up to kSpan steps of h = a h + b x is three small products: what the first state
// adds to the outputs (`emit`), what the inputs add to the last state (`absorb`), and a short
// convolution (`dot`). None has a chain from step to step, so all of them run at the speed of the
// multipliers. The tables are computed in double and rounded once.

#pragma once

#include <cstdint>
#include <vector>

namespace statewise {

constexpr int64_t kSpan = 32;  // powers in a table: steps worked on at once

template <typename A>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(32)));
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(32)));
};
template <typename A>
using Vector = typename Lanes<A>::Vector;
template <typename A>
constexpr int64_t kLanes = 32 / sizeof(A);

template <typename A>
inline Vector<A> load(const A* p) {
  Vector<A> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <typename A>
inline void store(A* p, Vector<A> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <typename A>
inline int64_t round_up(int64_t n) {
  return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// Zeroed memory that starts on a cache line.
template <typename A>
class Buffer {
  struct alignas(64) Line {
    A numbers[64 / sizeof(A)] = {};
  };
  std::vector<Line> lines_;

 public:
  Buffer() = default;
  explicit Buffer(int64_t n) : lines_((n * sizeof(A) + 63) / 64) {}
  A* data() { return lines_.data()->numbers; }
  const A* data() const { return lines_.data()->numbers; }
};

// Split complex numbers, padded with zeros to whole vectors.
template <typename A>
struct Numbers {
  int64_t padded = 0;
  Buffer<A> memory;
  Numbers() = default;
  explicit Numbers(int64_t n) : padded(round_up<A>(n)), memory(2 * padded) {}
  A* re() { return memory.data(); }
  A* im() { return memory.data() + padded; }
  const A* re() const { return memory.data(); }
  const A* im() const { return memory.data() + padded; }
};

// a^l for l <= count <= kSpan, [l][n] and, without the last, [n][l].
template <typename A>
struct Powers {
  int64_t N = 0, padded = 0;
  Buffer<A> rows, columns;

  // `a` are N interleaved pairs.
  Powers(const A* a, int64_t n, int64_t count)
      : N(n), padded(round_up<A>(n)), rows(2 * (kSpan + 1) * padded), columns(2 * kSpan * n) {
    std::vector<double> re(n, 1.0), im(n, 0.0);
    for (int64_t l = 0; l <= count; ++l) {
      A* row = rows.data() + 2 * l * padded;
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) {
        row[k] = static_cast<A>(re[k]), row[padded + k] = static_cast<A>(im[k]);
        const double r = re[k] * a[2 * k] - im[k] * a[2 * k + 1];
        im[k] = re[k] * a[2 * k + 1] + im[k] * a[2 * k], re[k] = r;
      }
    }
    for (int64_t l = 0; l < count; ++l)
      for (int64_t k = 0; k < n; ++k) {
        column_re(k)[l] = re_of(l)[k];
        column_im(k)[l] = im_of(l)[k];
      }
  }
  const A* re_of(int64_t l) const { return rows.data() + 2 * l * padded; }
  const A* im_of(int64_t l) const { return re_of(l) + padded; }
  const A* column_re(int64_t n) const { return columns.data() + 2 * n * kSpan; }
  const A* column_im(int64_t n) const { return column_re(n) + kSpan; }

 private:
  A* column_re(int64_t n) { return columns.data() + 2 * n * kSpan; }
  A* column_im(int64_t n) { return column_re(n) + kSpan; }
};

template <typename A, int M>
inline void emit_vectors(const Powers<A>& p, const Numbers<A>& u, int64_t first, A* out) {
  Vector<A> re[M] = {}, im[M] = {};
  const A *ur = u.re(), *ui = u.im();
  for (int64_t n = 0; n < p.N; ++n) {
    const A *r = p.column_re(n) + first, *i = p.column_im(n) + first;
    for (int m = 0; m < M; ++m) {
      re[m] += ur[n] * load(r + m * kLanes<A>);
      im[m] += ui[n] * load(i + m * kLanes<A>);
    }
  }
  for (int m = 0; m < M; ++m) store(out + first + m * kLanes<A>, re[m] - im[m]);
}

// out_l = Re sum_n u_n a_n^l for l < count, and some more to fill a vector.
template <typename A>
inline void emit(const Powers<A>& p, const Numbers<A>& u, int64_t count, A* out) {
  int64_t first = 0;
  for (; first + 3 * kLanes<A> < count; first += 4 * kLanes<A>) emit_vectors<A, 4>(p, u, first, out);
  for (; first < count; first += kLanes<A>) emit_vectors<A, 1>(p, u, first, out);
}

template <typename A, int M, int S>
inline void absorb_vectors(const Powers<A>& p, int64_t first, int64_t count, const A* const* series,
                           Numbers<A>* const* sums) {
  Vector<A> re[S][M] = {}, im[S][M] = {};
  for (int64_t l = 0; l < count; ++l) {
    const A *r = p.re_of(l) + first, *i = p.im_of(l) + first;
    for (int m = 0; m < M; ++m) {
      const Vector<A> tr = load(r + m * kLanes<A>), ti = load(i + m * kLanes<A>);
      for (int k = 0; k < S; ++k) re[k][m] += series[k][l] * tr, im[k][m] += series[k][l] * ti;
    }
  }
  for (int k = 0; k < S; ++k)
    for (int m = 0; m < M; ++m) {
      store(sums[k]->re() + first + m * kLanes<A>, re[k][m]);
      store(sums[k]->im() + first + m * kLanes<A>, im[k][m]);
    }
}

// sums[k]_n = sum_{l < count} series[k]_l a_n^l for S series at once.
template <typename A, int S>
inline void absorb(const Powers<A>& p, int64_t count, const A* const (&series)[S],
                   Numbers<A>* const (&sums)[S]) {
  constexpr int M = 4 / S;
  int64_t first = 0;
  for (; first + M * kLanes<A> <= p.padded; first += M * kLanes<A>)
    absorb_vectors<A, M, S>(p, first, count, series, sums);
  for (; first < p.padded; first += kLanes<A>)
    absorb_vectors<A, 1, S>(p, first, count, series, sums);
}

// sum_{k < count} s_k times the vector at p + k * stride, in four chains.
template <typename A, int stride>
inline Vector<A> dot(const A* s, const A* p, int64_t count) {
  Vector<A> sum[4] = {};
  int64_t k = 0;
  for (; k + 4 <= count; k += 4)
    for (int j = 0; j < 4; ++j) sum[j] += s[k + j] * load(p + (k + j) * stride);
  for (; k < count; ++k) sum[0] += s[k] * load(p + k * stride);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace statewise
