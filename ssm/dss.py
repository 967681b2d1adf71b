"""DSS: the first diagonal state-space model per channel.

Paper: Gupta, Gu & Berant 2022, "Diagonal State Spaces are as Effective as Structured State
Spaces", propositions 1a and 1b; B = 1, and A starts from the normal part of HiPPO-LegS.

    exp      h_t = a * h_{t-1} + (a - 1) / A x_t,   y_t = 2 Re sum_n C_n h_{t,n} + D x_t
    softmax  y = K * x + D x,   K_l = 2 Re sum_n C_n / A_n softmax_l(dt A_n l),   l < L

per channel, a = exp(dt A), dt `dt_scale` times a parameter. "exp" keeps Re A = -exp(parameter), or
another negative function (`ssm/real_part.py`), and is a recurrence like S4D.
"softmax" normalises over a window of a fixed length L, so that Re A may have any sign: it is a
convolution alone and refuses to step, to carry a state and to reset inside a window.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from statewise.kernels import Backend, fft_conv, vandermonde_pairs
from statewise.ssm import lti, real_part
from statewise.ssm.diagonal import complex_product, polar
from statewise.ssm.hippo import s4d_eigenvalues
from statewise.ssm.init import log_uniform
from statewise.ssm.lti import ChannelLayer, Diagonal, Mode, pick
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, State
from statewise.ssm.real_part import RealPart
from statewise.ssm.s4d import check_common, copies, real_parameter, tiled
from statewise.ssm.timescale import check_steps

GUARD = 1e-7  # of the denominator of the softmax, as in the release


@dataclass(frozen=True, kw_only=True)
class DSSConfig:
    """Hyper-parameters of one DSS layer."""

    state_size: int = 64  # N >= 4 and even; N / 2 complex states per channel are kept
    kernel: Literal["exp", "softmax"] = "exp"  # softmax: convolution over whole windows alone
    length: int | None = None  # L >= 1, longest window; only with softmax, which needs it
    dt_min: float = 1e-3  # > 0, smallest initial step
    dt_max: float = 0.1  # >= dt_min
    dt_scale: float = 1.0  # > 0, multiplies every step: data sampled at another rate
    re_param: RealPart = "exp"  # how Re A stays negative; only with kernel exp
    num_copies: int | None = 1  # S, divides the layer's width; None means one A per channel

    def __post_init__(self) -> None:
        check_common(self.state_size, self.num_copies)
        check_steps(self.dt_min, self.dt_max, self.dt_scale)
        if (self.length is not None) != (self.kernel == "softmax"):
            raise ValueError(
                f"length: expected a number with kernel softmax and None with exp, got "
                f"{self.length} with {self.kernel}"
            )
        if self.length is not None and self.length < 1:
            raise ValueError(f"length: expected at least 1, got {self.length}")
        if self.kernel == "softmax" and self.re_param != "exp":
            raise ValueError(
                f"re_param: would be ignored with kernel softmax, got {self.re_param}: remove it, "
                "or use kernel exp"
            )


def softmax_kernel(re: Tensor, im: Tensor, dt: Tensor, C: Tensor, length: int) -> Tensor:
    """Return K (H, length) of kernel softmax: re, im (H, N), dt (H, 1), C (H, N, 2).

    Where Re A > 0 the largest exponent is taken off, which turns the powers of exp(dt A) into
    those of exp(-dt A), in reverse.
    """
    grows = re > 0
    sign = torch.where(grows, -1.0, 1.0).to(re.dtype)
    decay, angle = sign * re * dt, sign * im * dt
    below = complex_product(lti.less_one(length * decay, length * angle), torch.stack((re, im), -1))
    inverse = below * below.new_tensor((1.0, -1.0)) / (below.square().sum(-1, True) + GUARD)
    weight = complex_product(C, complex_product(lti.less_one(decay, angle), inverse))
    a, zero = polar(decay, angle), weight.new_zeros(())
    falling = vandermonde_pairs(torch.where(grows[..., None], zero, weight), a, length)
    growing = vandermonde_pairs(torch.where(grows[..., None], weight, zero), a, length)
    return falling + growing.flip(-1)


class DSSLayer(ChannelLayer):
    """One DSS layer of width `d_model`; a `SequenceModel` with kernel "exp"."""

    ssm_parameters = ("log_dt", "log_neg_re", "re_weight", "A_re", "A_im", "D")

    def __init__(self, d_model: int, config: DSSConfig | None = None, backend: Backend = "auto"):
        config = DSSConfig() if config is None else config
        N = config.state_size // 2
        super().__init__(d_model, N, backend)
        self.config = config
        S = copies(d_model, config.num_copies)
        A = s4d_eigenvalues("legs", config.state_size)
        # The softmax takes any real part: its parameter is Re A itself.
        form: RealPart = config.re_param if config.kernel == "exp" else "clip"
        self.re_name = real_part.parameter_name(form, "A_re")
        weight = real_part.initial_weight(form, torch.as_tensor(A.real))
        self.register_parameter(self.re_name, real_parameter(weight, S))
        self.A_im = real_parameter(A.imag, S)
        self.C = nn.Parameter(torch.randn(d_model, N, 2) * 0.5**0.5)
        log_dt = log_uniform((d_model, 1), config.dt_min, config.dt_max)
        self.log_dt = nn.Parameter(log_dt.to(torch.get_default_dtype()))

    def _refuse(self, what: str) -> None:
        if self.config.kernel == "softmax":
            raise ValueError(
                f"dss: kernel 'softmax' is a convolution over whole windows and cannot {what}: use "
                "kernel 'exp'"
            )

    def eigenvalues(self) -> tuple[Tensor, Tensor]:
        """Return real and imaginary parts of A, (H, N) each."""
        re = getattr(self, self.re_name)
        if self.config.kernel == "exp":
            re = real_part.value(self.config.re_param, re)
        return tiled(re, self.d_in), tiled(self.A_im, self.d_in)

    def steps(self) -> Tensor:
        """Return dt (H, 1)."""
        return self.config.dt_scale * self.log_dt.exp()

    def discretize(self) -> Diagonal:
        """Return the discrete system of the present parameters; kernel "exp" alone."""
        self._refuse("be stepped")
        re, im = self.eigenvalues()
        a, b = lti.discretize("zoh", re, im, self.steps())
        return Diagonal(a, b, self.C)

    def kernel(self, length: int) -> Tensor:
        """Return the response (H, length) to an impulse, without D."""
        if self.config.length is None:
            return super().kernel(length)
        if length > self.config.length:
            self._refuse(f"run {length} steps with length {self.config.length}")
        with full_precision(self.D.device):
            re, im = self.eigenvalues()
            whole = softmax_kernel(re, im, self.steps(), self.C, self.config.length)
            return whole[:, :length]

    def initial_state(self, batch_size: int) -> State:
        """Return zeros; nothing with kernel "softmax"."""
        return super().initial_state(batch_size) if self.config.kernel == "exp" else {}

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        mode: Mode = "auto",
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `ChannelLayer.forward`.

        Raises:
            ValueError: mode "conv" or kernel "softmax" and a reset after step 0; kernel "softmax"
                and a state, mode "scan" or a window longer than `length`.
        """
        if self.config.kernel == "exp":
            return super().forward(x, state, reset, mode)
        if state:
            self._refuse("start from a state")
        if mode == "scan":
            self._refuse("scan")
        pick("conv", reset)
        with full_precision(x.device):
            y = fft_conv(x.to(self.D.dtype), self.kernel(x.shape[1]), D=self.D)
        return y.to(x.dtype), {}

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way; kernel "exp" alone."""
        self._refuse("return states")
        return super().trace(x, state, reset, every)

    def prepare_step(self) -> Cache:
        """Discretise once for many steps; kernel "exp" alone."""
        self._refuse("be stepped")
        return super().prepare_step()
