// Elementary functions that the compiler turns into vector instructions.
//
// float: within a few ulp, without the C library; double: the C library's. No function needs
// -ffast-math, which would break the handling of NaN at resets.

#pragma once

#include <algorithm>
#include <cmath>

namespace statewise {
namespace {  // every library has its own

// Cephes' exponential: within 2 ulp, exactly 1 at 0, 0 below -87.
[[gnu::always_inline]] inline float exp_(float x) {
  const float clamped = std::min(std::max(x, -87.0f), 88.0f);
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int bits = (static_cast<int>(n) + 127) << 23;
  const float result = p * __builtin_bit_cast(float, bits);
  return x < -87.0f ? 0.0f : result;
}
[[gnu::always_inline]] inline double exp_(double x) { return std::exp(x); }

// 2^x within 2 ulp, exactly 1 at 0; half the operations of exp_. From 2^-126 down it stays there.
[[gnu::always_inline]] inline float exp2_(float x) {
  const float low = x < -126.0f ? -126.0f : x;
  // The lowest bits of the sum are the nearest integer plus 127: an exponent, of infinity at most.
  const float shifted = low + 12583039.0f, f = low - (shifted - 12583039.0f);
  const int bits = std::min(__builtin_bit_cast(int, shifted), 0x4B400000 + 255) << 23;
  float p = 1.535336137e-4f;
  p = p * f + 1.339887441e-3f;
  p = p * f + 9.618437359e-3f;
  p = p * f + 5.550332471e-2f;
  p = p * f + 2.402264791e-1f;
  p = p * f + 6.931472029e-1f;
  p = p * f + 1.0f;
  return p * __builtin_bit_cast(float, bits);
}
[[gnu::always_inline]] inline double exp2_(double x) { return std::exp2(x); }

// Cephes' logarithm of a normal positive number, within 2 ulp; NaN of NaN.
[[gnu::always_inline]] inline float log_(float x) {
  const int bits = __builtin_bit_cast(int, x);
  const float half = __builtin_bit_cast(float, (bits & 0x007FFFFF) | 0x3F000000);  // in [1/2, 1)
  const bool low = half < 0.707106781f;
  const float n = static_cast<float>((bits >> 23) - (low ? 127 : 126));
  const float r = low ? half + half - 1.0f : half - 1.0f, z = r * r;
  float p = 7.0376836292e-2f;
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const float tail = p * r * z - n * 2.12194440e-4f - 0.5f * z;
  const float result = r + tail + n * 0.693359375f;
  return x == x ? result : x;
}
[[gnu::always_inline]] inline double log_(double x) { return std::log(x); }

// log(1 + y) for y in [0, 1] as 2 atanh(y / (2 + y)).
[[gnu::always_inline]] inline float log1p_(float y) {
  const float s = y / (2.0f + y), q = s * s;
  float p = 1.0f / 17;
  p = p * q + 1.0f / 15;
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return 2.0f * s * (p * q + 1.0f);
}
[[gnu::always_inline]] inline double log1p_(double y) { return std::log1p(y); }

template <typename A>
[[gnu::always_inline]] inline A softplus_(A x) {
  const A value = std::max(x, A(0)) + log1p_(exp_(x < 0 ? x : -x));
  return x > A(20) ? x : value;
}

template <typename A>
[[gnu::always_inline]] inline A sigmoid_(A x) {
  const A e = exp_(x < 0 ? x : -x);
  return (x < 0 ? e : A(1)) / (A(1) + e);
}

constexpr double kLog2E = 1.44269504088896340736;

// 1 / (1 + 2^-x): the sigmoid of x ln 2.
template <typename A>
[[gnu::always_inline]] inline A sigmoid2_(A x) {
  return A(1) / (A(1) + exp2_(-x));
}

// The sigmoid s of 2 sqrt(2 / pi) (x + 0.044715 x^3): x s is the tanh form of gelu.
constexpr double kGeluSlope = 1.59576912160573071176, kGeluCubic = 0.044715;

template <typename A>
[[gnu::always_inline]] inline A gelu_gate_(A x) {
  return sigmoid2_(A(kGeluSlope * kLog2E) * (x + A(kGeluCubic) * x * x * x));
}

template <typename A>
[[gnu::always_inline]] inline A gelu_tanh_(A x) {
  return x * gelu_gate_(x);
}

// Abramowitz & Stegun 7.1.26 with its signs folded in: within 3e-7.
[[gnu::always_inline]] inline float erf_(float x) {
  const float z = x < 0 ? -x : x, t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float value = 1.0f - p * t * exp_(-z * z);
  return x < 0 ? -value : value;
}
[[gnu::always_inline]] inline double erf_(double x) { return std::erf(x); }

template <typename A>
[[gnu::always_inline]] inline A gelu_(A x) {
  return A(0.5) * x * (A(1) + erf_(x * A(0.70710678118654752440)));
}

[[gnu::always_inline]] inline float tanh_(float x) {
  const float e = exp_(x < 0 ? 2.0f * x : -2.0f * x), value = (1.0f - e) / (1.0f + e);
  return x < 0 ? -value : value;
}
[[gnu::always_inline]] inline double tanh_(double x) { return std::tanh(x); }

}  // namespace
}  // namespace statewise
