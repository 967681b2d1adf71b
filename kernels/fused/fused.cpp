// What training on the CPU calls once instead of many small operations, with gradients.
//
//   gelu         y = x s,  s the sigmoid of 2 sqrt(2 / pi) (x + 0.044715 x^3): the tanh form
//   add_scaled   y = x + u d,  d of every column
//   gated_sum    z = x + a sigmoid(b);  y = z or the layer norm of z
//   two_hot_loss y = -(1 - w) log p_i - w log p_{i+1},  p the softmax of a row
//   s5_system    the discrete system of S5 from its parameters
//
// Sums over rows are added up in an order that does not depend on the number of threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <optional>
#include <tuple>
#include <utility>

#include "../elementary.h"

namespace {

using namespace statewise;

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using Gradients = torch::autograd::variable_list;

constexpr int64_t kGrain = 16384;  // numbers per task, at least
constexpr int64_t kChunk = 256;    // rows whose sums are added up at once

// Call function(float{}) or function(double{}).
template <typename F>
void with_dtype(const Tensor& x, F&& function) {
  if (x.scalar_type() == at::kDouble) function(double{});
  else function(float{});
}

// Call f(i) for i in [0, count), each with `width` numbers to read.
template <typename F>
void for_rows(int64_t count, int64_t width, F&& f) {
  at::parallel_for(0, count, (kGrain + width - 1) / width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

void forbid_second_derivatives(const char* op) {
  TORCH_CHECK(!at::GradMode::is_enabled(), op, " has no second derivatives: create_graph=False");
}

// ---------------------------------------------------------------- gelu

struct Gelu : Function<Gelu> {
  static Tensor forward(AutogradContext* context, const Tensor& x_) {
    const Tensor x = x_.contiguous(), y = at::empty_like(x);
    context->save_for_backward({x});
    with_dtype(x, [&](auto zero) {
      using A = decltype(zero);
      const A* from = x.const_data_ptr<A>();
      A* to = y.mutable_data_ptr<A>();
      at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) to[i] = gelu_tanh_(from[i]);
      });
    });
    return y;
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("gelu");
    const Tensor x = context->get_saved_variables()[0], g = gradients[0].contiguous();
    const Tensor dx = at::empty_like(x);
    with_dtype(x, [&](auto zero) {
      using A = decltype(zero);
      const A *from = x.const_data_ptr<A>(), *grad = g.const_data_ptr<A>();
      A* to = dx.mutable_data_ptr<A>();
      at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
          const A v = from[i], s = gelu_gate_(v), inner = A(kGeluSlope) * (1 + 3 * A(kGeluCubic) * v * v);
          to[i] = grad[i] * (s + v * s * (1 - s) * inner);
        }
      });
    });
    return {dx};
  }
};

// ---------------------------------------------------------------- scaled sum

struct AddScaled : Function<AddScaled> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& u_,
                        const Tensor& d_) {
    const Tensor u = u_.contiguous(), d = d_.contiguous();
    TORCH_CHECK(x.sizes() == u.sizes() && d.numel() == u.size(-1), "add_scaled: shapes");
    context->save_for_backward({u, d});
    return at::addcmul(x, u, d);
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("add_scaled");
    const auto saved = context->get_saved_variables();
    const Tensor &u = saved[0], &d = saved[1], g = gradients[0].contiguous();
    const int64_t H = d.size(0), rows = g.numel() / H, chunks = (rows + kChunk - 1) / kChunk;
    const Tensor du = at::empty_like(u), sums = at::zeros({chunks, H}, g.options());
    with_dtype(g, [&](auto zero) {
      using A = decltype(zero);
      const A *grad = g.const_data_ptr<A>(), *from = u.const_data_ptr<A>();
      const A* scale = d.const_data_ptr<A>();
      A *to = du.mutable_data_ptr<A>(), *sum = sums.mutable_data_ptr<A>();
      for_rows(chunks, 3 * H * kChunk, [&](int64_t chunk) {
        A* own = sum + chunk * H;
        for (int64_t i = chunk * kChunk * H; i < std::min(rows, (chunk + 1) * kChunk) * H; i += H) {
#pragma omp simd
          for (int64_t k = 0; k < H; ++k) {
            to[i + k] = grad[i + k] * scale[k];
            own[k] += grad[i + k] * from[i + k];
          }
        }
      });
    });
    return {g, du, sums.sum(0)};
  }
};

// ---------------------------------------------------------------- gated sum

// Mean and 1 / deviation of a row.
template <typename A>
std::pair<A, A> moments(const A* row, int64_t H, double eps) {
  A sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < H; ++k) sum += row[k];
  const A mean = sum / static_cast<A>(H);
#pragma omp simd reduction(+ : square)
  for (int64_t k = 0; k < H; ++k) square += (row[k] - mean) * (row[k] - mean);
  return {mean, A(1) / std::sqrt(square / static_cast<A>(H) + static_cast<A>(eps))};
}

// The adjoint of a layer norm of one row: dz from g; `sums` (2 H,) gathers those of weight and bias.
template <typename A>
void norm_adjoint(const A* g, const A* z, A mean, A scale, const A* weight, A* dz, A* sums,
                  int64_t H) {
  A along = 0, across = 0;
#pragma omp simd reduction(+ : along, across)
  for (int64_t k = 0; k < H; ++k) {
    const A normed = (z[k] - mean) * scale, weighted = g[k] * weight[k];
    along += weighted;
    across += weighted * normed;
    sums[k] += g[k] * normed;
    sums[H + k] += g[k];
  }
  along /= static_cast<A>(H), across /= static_cast<A>(H);
#pragma omp simd
  for (int64_t k = 0; k < H; ++k)
    dz[k] = scale * (g[k] * weight[k] - along - (z[k] - mean) * scale * across);
}

struct GatedSum : Function<GatedSum> {
  static Tensor forward(AutogradContext* context, const Tensor& x_, const Tensor& ab_,
                        const OptionalTensor& weight_, const OptionalTensor& bias_, double eps) {
    const Tensor x = x_.contiguous(), ab = ab_.contiguous(), z = at::empty_like(x);
    const int64_t H = x.size(-1), rows = x.numel() / H;
    const bool normed = weight_.has_value();
    TORCH_CHECK(ab.size(-1) == 2 * H && ab.numel() == 2 * x.numel(), "gated_sum: ab (..., 2 H)");
    const Tensor weight = normed ? weight_->contiguous() : Tensor();
    const Tensor bias = normed ? bias_->contiguous() : Tensor();
    const Tensor y = normed ? at::empty_like(x) : z;
    const Tensor moment = normed ? at::empty({rows, 2}, x.options()) : Tensor();
    with_dtype(x, [&](auto zero) {
      using A = decltype(zero);
      const A *from = x.const_data_ptr<A>(), *parts = ab.const_data_ptr<A>();
      const A *w = normed ? weight.const_data_ptr<A>() : nullptr;
      const A *c = normed ? bias.const_data_ptr<A>() : nullptr;
      A *sum = z.mutable_data_ptr<A>(), *to = y.mutable_data_ptr<A>();
      A* kept = normed ? moment.mutable_data_ptr<A>() : nullptr;
      for_rows(rows, 3 * H, [&](int64_t i) {
        const A *in = from + i * H, *a = parts + 2 * i * H, *b = a + H;
        A *row = sum + i * H, *out = to + i * H;
#pragma omp simd
        for (int64_t k = 0; k < H; ++k) row[k] = in[k] + a[k] * sigmoid2_(A(kLog2E) * b[k]);
        if (!normed) return;
        const auto [mean, scale] = moments(row, H, eps);
        kept[2 * i] = mean, kept[2 * i + 1] = scale;
#pragma omp simd
        for (int64_t k = 0; k < H; ++k) out[k] = (row[k] - mean) * scale * w[k] + c[k];
      });
    });
    if (normed) context->save_for_backward({ab, z, moment, weight});
    else context->save_for_backward({ab});
    return y;
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("gated_sum");
    const auto saved = context->get_saved_variables();
    const bool normed = saved.size() > 1;
    const Tensor &ab = saved[0], g = gradients[0].contiguous();
    const int64_t H = g.size(-1), rows = g.numel() / H, chunks = (rows + kChunk - 1) / kChunk;
    const Tensor dx = normed ? at::empty_like(g) : g, dab = at::empty_like(ab);
    const Tensor sums = normed ? at::zeros({chunks, 2 * H}, g.options()) : Tensor();
    with_dtype(g, [&](auto zero) {
      using A = decltype(zero);
      const A *grad = g.const_data_ptr<A>(), *parts = ab.const_data_ptr<A>();
      const A *z = nullptr, *moment = nullptr, *w = nullptr;
      A *to = nullptr, *sum = nullptr, *parts_to = dab.mutable_data_ptr<A>();
      if (normed) {
        z = saved[1].const_data_ptr<A>(), moment = saved[2].const_data_ptr<A>();
        w = saved[3].const_data_ptr<A>();
        to = dx.mutable_data_ptr<A>(), sum = sums.mutable_data_ptr<A>();
      }
      for_rows(chunks, 3 * H * kChunk, [&](int64_t chunk) {
        for (int64_t i = chunk * kChunk; i < std::min(rows, (chunk + 1) * kChunk); ++i) {
          if (normed)
            norm_adjoint(grad + i * H, z + i * H, moment[2 * i], moment[2 * i + 1], w, to + i * H,
                         sum + chunk * 2 * H, H);
          const A *dz = normed ? to + i * H : grad + i * H;
          const A *a = parts + 2 * i * H, *b = a + H;
          A *da = parts_to + 2 * i * H, *db = da + H;
#pragma omp simd
          for (int64_t k = 0; k < H; ++k) {
            const A s = sigmoid2_(A(kLog2E) * b[k]);
            da[k] = dz[k] * s;
            db[k] = dz[k] * a[k] * s * (1 - s);
          }
        }
      });
    });
    if (!normed) return {dx, dab, Tensor(), Tensor(), Tensor()};
    const Tensor total = sums.sum(0);
    return {dx, dab, total.narrow(0, 0, H), total.narrow(0, H, H), Tensor()};
  }
};

// ---------------------------------------------------------------- two-hot loss

// The loss of one row and its gradient, the softmax less the target.
template <typename A>
A two_hot_row(const A* logits, int64_t below, A share, A* gradient, int64_t K) {
  A largest = logits[0], sum = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t k = 0; k < K; ++k) largest = logits[k] > largest ? logits[k] : largest;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < K; ++k) {
    const A value = exp2_(A(kLog2E) * (logits[k] - largest));
    gradient[k] = value;
    sum += value;
  }
  const A scale = A(1) / sum;
#pragma omp simd
  for (int64_t k = 0; k < K; ++k) gradient[k] *= scale;
  gradient[below] -= 1 - share;
  gradient[below + 1] -= share;
  const A at = (1 - share) * logits[below] + share * logits[below + 1];
  return largest + std::log(sum) - at;
}

struct TwoHotLoss : Function<TwoHotLoss> {
  static Tensor forward(AutogradContext* context, const Tensor& logits_, const Tensor& below_,
                        const Tensor& share_) {
    const Tensor logits = logits_.contiguous(), gradient = at::empty_like(logits);
    const Tensor below = below_.contiguous(), share = share_.contiguous();
    const Tensor loss = at::empty(share.sizes(), logits.options());
    const int64_t K = logits.size(-1);
    TORCH_CHECK(below.sizes() == share.sizes() && logits.numel() == K * share.numel(),
                "two_hot_loss: shapes of logits, index and share");
    with_dtype(logits, [&](auto zero) {
      using A = decltype(zero);
      const A *from = logits.const_data_ptr<A>(), *part = share.const_data_ptr<A>();
      const int64_t* index = below.const_data_ptr<int64_t>();
      A *to = loss.mutable_data_ptr<A>(), *grad = gradient.mutable_data_ptr<A>();
      for_rows(share.numel(), K, [&](int64_t i) {
        TORCH_CHECK(0 <= index[i] && index[i] < K - 1, "two_hot_loss: index ", index[i], " of ", K);
        to[i] = two_hot_row(from + i * K, index[i], part[i], grad + i * K, K);
      });
    });
    context->save_for_backward({gradient});
    return loss;
  }

  static Gradients backward(AutogradContext* context, Gradients gradients) {
    forbid_second_derivatives("two_hot_loss");
    return {context->get_saved_variables()[0] * gradients[0].unsqueeze(-1), Tensor(), Tensor()};
  }
};

// ---------------------------------------------------------------- the system of S5

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

Tensor gelu(const Tensor& x) { return Gelu::apply(x); }

// x and u (..., H), d (H,).
Tensor add_scaled(const Tensor& x, const Tensor& u, const Tensor& d) {
  return AddScaled::apply(x, u, d);
}

// x (..., H), ab (..., 2 H), weight and bias (H,) of a layer norm, or none.
Tensor gated_sum(const Tensor& x, const Tensor& ab, const OptionalTensor& weight,
                 const OptionalTensor& bias, double eps) {
  return GatedSum::apply(x, ab, weight, bias, eps);
}

// logits (..., K), below (...) int64 in [0, K - 2], share (...).
Tensor two_hot_loss(const Tensor& logits, const Tensor& below, const Tensor& share) {
  return TwoHotLoss::apply(logits, below, share);
}

// re, im, log_step (P,), B (P, H, 2), C (H, P, 2).
std::tuple<Tensor, Tensor, Tensor> s5_system(const Tensor& re, const Tensor& im,
                                             const Tensor& log_step, const Tensor& B,
                                             const Tensor& C, double dt_scale, double c_scale,
                                             int64_t rule) {
  const auto parts = S5System::apply(re, im, log_step, B, C, dt_scale, c_scale, rule);
  return {parts[0], parts[1], parts[2]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(statewise_cpu, m) {
  m.def("gelu(Tensor x) -> Tensor", &gelu);
  m.def("add_scaled(Tensor x, Tensor u, Tensor d) -> Tensor", &add_scaled);
  m.def("gated_sum(Tensor x, Tensor ab, Tensor? weight, Tensor? bias, float eps) -> Tensor",
        &gated_sum);
  m.def("two_hot_loss(Tensor logits, Tensor below, Tensor share) -> Tensor", &two_hot_loss);
  m.def(
      "s5_system(Tensor re, Tensor im, Tensor log_step, Tensor B, Tensor C, float dt_scale, "
      "float c_scale, int rule) -> (Tensor, Tensor, Tensor)",
      &s5_system);
}
