// Products of small matrices that fit into the caches, row after row.
//
// The vectors are those of the compiler, so the code is the same for every instruction set. Every
// sum runs over k in ascending order: results do not depend on threads or on the row block.

#pragma once

#include <algorithm>
#include <cstdint>

namespace statewise {
namespace {  // every library has its own

template <typename A>
struct Lanes {
  typedef A type __attribute__((vector_size(32), aligned(sizeof(A)), may_alias));
  static constexpr int64_t count = 32 / sizeof(A);
  static constexpr int64_t pair = 2 * count;  // columns come in multiples of this
};

inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

enum class Part { all, lower, upper };  // of a square left factor: which entries are not zero

// c (M, N) = or += a (M, k1 - k0) b (k1 - k0, N), for M rows at once.
template <typename A, int M>
void multiply_rows(const A* a, int64_t lda, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t k0,
                   int64_t k1, int64_t N, bool add) {
  using V = typename Lanes<A>::type;
  constexpr int64_t w = Lanes<A>::count;
  for (int64_t j = 0; j < N; j += 2 * w) {
    V sum[M][2] = {};
    for (int64_t k = k0; k < k1; ++k) {
      const V left = *reinterpret_cast<const V*>(b + k * ldb + j);
      const V right = *reinterpret_cast<const V*>(b + k * ldb + j + w);
      for (int i = 0; i < M; ++i) {
        const A factor = a[i * lda + k];
        sum[i][0] += factor * left;
        sum[i][1] += factor * right;
      }
    }
    for (int i = 0; i < M; ++i)
      for (int half = 0; half < 2; ++half) {
        V& to = *reinterpret_cast<V*>(c + i * ldc + j + half * w);
        to = add ? to + sum[i][half] : sum[i][half];
      }
  }
}

// c (M, N) = or += a (M, K) b (K, N), row-major with leading dimensions; N is a multiple of
// Lanes::pair, and the rows of b and c are as long. `part` leaves out the zeros of a square a.
template <typename A>
void multiply(const A* a, int64_t lda, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t M,
              int64_t K, int64_t N, bool add, Part part = Part::all) {
  constexpr int64_t rows = 6;
  for (int64_t i = 0; i < M; i += rows) {
    const int64_t count = std::min(rows, M - i);
    const int64_t k0 = part == Part::upper ? i : 0;
    const int64_t k1 = part == Part::lower ? std::min(K, i + count) : K;
    const A* from = a + i * lda;
    A* to = c + i * ldc;
    switch (count) {
      case 6: multiply_rows<A, 6>(from, lda, b, ldb, to, ldc, k0, k1, N, add); break;
      case 5: multiply_rows<A, 5>(from, lda, b, ldb, to, ldc, k0, k1, N, add); break;
      case 4: multiply_rows<A, 4>(from, lda, b, ldb, to, ldc, k0, k1, N, add); break;
      case 3: multiply_rows<A, 3>(from, lda, b, ldb, to, ldc, k0, k1, N, add); break;
      case 2: multiply_rows<A, 2>(from, lda, b, ldb, to, ldc, k0, k1, N, add); break;
      default: multiply_rows<A, 1>(from, lda, b, ldb, to, ldc, k0, k1, N, add);
    }
  }
}

// to (columns, ldt) = from (rows, ldf) transposed, square by square: their lines stay in the cache.
template <typename A>
void transpose(const A* from, int64_t ldf, int64_t rows, int64_t columns, A* to, int64_t ldt) {
  constexpr int64_t side = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += side)
    for (int64_t j0 = 0; j0 < columns; j0 += side)
      for (int64_t j = j0; j < std::min(j0 + side, columns); ++j)
        for (int64_t i = i0; i < std::min(i0 + side, rows); ++i) to[j * ldt + i] = from[i * ldf + j];
}

}  // namespace
}  // namespace statewise
