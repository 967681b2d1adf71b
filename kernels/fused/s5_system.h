// The discrete system of an S5 layer from its parameters, and the adjoint.

#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <complex>
#include <utility>

#include "../adjoint.h"

namespace {

using namespace statewise;

using Complex = std::complex<double>;

// Eigenvalue after a step, and the factor before B.
struct Transition {
  Complex a, gain;
};

enum class Rule : int64_t { zoh, bilinear };

Transition transition(Rule rule, Complex eigenvalue, double dt) {
  const Complex z = eigenvalue * dt;
  if (rule == Rule::bilinear) return {(2.0 + z) / (2.0 - z), 2.0 * dt / (2.0 - z)};
  const double half = std::sin(z.imag() / 2), radius = std::exp(z.real());
  const Complex a(radius * std::cos(z.imag()), radius * std::sin(z.imag()));
  // exp(z) - 1 without cancellation
  const Complex less_one(
      std::expm1(z.real()) * std::cos(z.imag()) - 2 * half * half, a.imag());
  return {a, less_one / eigenvalue};
}

// The gradients of the eigenvalue and of dt, from those of a and of the gain.
std::pair<Complex, double> transition_adjoint(Rule rule, Complex eigenvalue, double dt,
                                              Complex da, Complex dgain) {
  const Transition at = transition(rule, eigenvalue, dt);
  Complex a_value, a_step, gain_value, gain_step;  // derivatives by eigenvalue and by dt
  if (rule == Rule::bilinear) {
    const Complex w = 2.0 / (2.0 - eigenvalue * dt), square = w * w;
    a_value = dt * square, a_step = eigenvalue * square;
    gain_value = 0.5 * dt * dt * square, gain_step = square;
  } else {
    a_value = dt * at.a, a_step = eigenvalue * at.a;
    gain_value = (dt * at.a - at.gain) / eigenvalue, gain_step = at.a;
  }
  return {std::conj(a_value) * da + std::conj(gain_value) * dgain,
          (std::conj(a_step) * da + std::conj(gain_step) * dgain).real()};
}

// B (P, H, 2) and C (H, P, 2) with their gain and scale as the real matrices (2 P, H) and (H, 2 P).
struct S5System : Function<S5System> {
  static Gradients forward(AutogradContext* context, const Tensor& re_, const Tensor& im_,
                           const Tensor& log_step_, const Tensor& B_, const Tensor& C_,
                           double dt_scale, double c_scale, int64_t rule) {
    const Tensor re = re_.contiguous(), im = im_.contiguous(), log_step = log_step_.contiguous();
    const Tensor B = B_.contiguous(), C = C_.contiguous();
    const int64_t P = re.size(0), H = B.size(1);
    const Tensor a = at::empty({P, 2}, re.options()), w_in = at::empty({2 * P, H}, re.options());
    const Tensor w_out = at::empty({H, 2 * P}, re.options());
    with_dtype(re, [&](auto zero) {
      using A = decltype(zero);
      const A *r = re.const_data_ptr<A>(), *i = im.const_data_ptr<A>();
      const A *s = log_step.const_data_ptr<A>(), *b = B.const_data_ptr<A>();
      const A* c = C.const_data_ptr<A>();
      A *decay = a.mutable_data_ptr<A>(), *in = w_in.mutable_data_ptr<A>();
      A* out = w_out.mutable_data_ptr<A>();
      for (int64_t p = 0; p < P; ++p) {
        const double dt = dt_scale * std::exp(static_cast<double>(s[p]));
        const Transition at = transition(static_cast<Rule>(rule), {double(r[p]), double(i[p])}, dt);
        decay[2 * p] = A(at.a.real()), decay[2 * p + 1] = A(at.a.imag());
        const A x = A(at.gain.real()), y = A(at.gain.imag());
        const A* row = b + 2 * p * H;
        A *real = in + 2 * p * H, *imaginary = real + H;
        for (int64_t h = 0; h < H; ++h) {
          real[h] = x * row[2 * h] - y * row[2 * h + 1];
          imaginary[h] = x * row[2 * h + 1] + y * row[2 * h];
        }
      }
      const A scale = A(c_scale);
      for (int64_t k = 0; k < H * P; ++k) {
        out[2 * k] = scale * c[2 * k];
        out[2 * k + 1] = -scale * c[2 * k + 1];
      }
    });
    context->save_for_backward({re, im, log_step, B});
    context->saved_data["dt_scale"] = dt_scale;
    context->saved_data["c_scale"] = c_scale;
    context->saved_data["rule"] = rule;
    return {a, w_in, w_out};
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("s5_system");
    const auto saved = context->get_saved_variables();
    const double dt_scale = context->saved_data["dt_scale"].toDouble();
    const double c_scale = context->saved_data["c_scale"].toDouble();
    const auto rule = static_cast<Rule>(context->saved_data["rule"].toInt());
    const Tensor &re = saved[0], &im = saved[1], &log_step = saved[2], &B = saved[3];
    const int64_t P = re.size(0), H = B.size(1);
    const Tensor ga = gradients[0].contiguous(), gin = gradients[1].contiguous();
    const Tensor gout = gradients[2].contiguous();
    const Tensor dre = at::empty_like(re), dim = at::empty_like(im), dstep = at::empty_like(re);
    const Tensor dB = at::empty_like(B), dC = at::empty({H, P, 2}, B.options());
    with_dtype(re, [&](auto zero) {
      using A = decltype(zero);
      const A *r = re.const_data_ptr<A>(), *i = im.const_data_ptr<A>();
      const A *s = log_step.const_data_ptr<A>(), *b = B.const_data_ptr<A>();
      const A *da = ga.const_data_ptr<A>(), *in = gin.const_data_ptr<A>();
      const A* out = gout.const_data_ptr<A>();
      A *r_to = dre.mutable_data_ptr<A>(), *i_to = dim.mutable_data_ptr<A>();
      A *s_to = dstep.mutable_data_ptr<A>(), *b_to = dB.mutable_data_ptr<A>();
      A* c_to = dC.mutable_data_ptr<A>();
      for (int64_t p = 0; p < P; ++p) {
        const double dt = dt_scale * std::exp(static_cast<double>(s[p]));
        const Complex eigenvalue(r[p], i[p]);
        const Transition at = transition(rule, eigenvalue, dt);
        const A x = A(at.gain.real()), y = A(at.gain.imag());
        const A *row = b + 2 * p * H, *real = in + 2 * p * H, *imaginary = real + H;
        A* to = b_to + 2 * p * H;
        A gain_re = 0, gain_im = 0;
        for (int64_t h = 0; h < H; ++h) {
          to[2 * h] = x * real[h] + y * imaginary[h];
          to[2 * h + 1] = x * imaginary[h] - y * real[h];
          gain_re += real[h] * row[2 * h] + imaginary[h] * row[2 * h + 1];
          gain_im += imaginary[h] * row[2 * h] - real[h] * row[2 * h + 1];
        }
        const auto [value, step] = transition_adjoint(
            rule, eigenvalue, dt, {double(da[2 * p]), double(da[2 * p + 1])},
            {double(gain_re), double(gain_im)});
        r_to[p] = A(value.real()), i_to[p] = A(value.imag()), s_to[p] = A(step * dt);
      }
      const A scale = A(c_scale);
      for (int64_t k = 0; k < H * P; ++k) {
        c_to[2 * k] = scale * out[2 * k];
        c_to[2 * k + 1] = -scale * out[2 * k + 1];
      }
    });
    return {dre, dim, dstep, dB, dC, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace
