"""S4D: one diagonal state-space model per channel.

Paper: Gu, Gupta, Goel & Re 2022, "On the Parameterization and Initialization of Diagonal State
Space Models".

    h_t = a * h_{t-1} + b x_t,    y_t = 2 Re sum_n C_n h_{t,n} + D x_t     per channel

from x' = A x + B u with steps dt: zero-order hold a = exp(dt A), b = (a - 1) / A * B, or bilinear
a = (1 + dt A/2) / (1 - dt A/2), b = dt / (1 - dt A/2) * B. Re A = -exp(parameter), or another
negative function (`ssm/real_part.py`); dt is `dt_scale` times a parameter. Channel h uses A and B
of copy h mod S.

Options beyond the paper, off by default: `init` "ptd" (S4-PTD, `ssm/perturb.py`), where C starts as
a real output of the system before it was diagonalised; `memory_steps` (`ssm/timescale.py`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from statewise.kernels import Backend
from statewise.ssm import lti, real_part
from statewise.ssm.diagonal import complex_product
from statewise.ssm.hippo import B_CLIP, Complex, clip_imaginary, nplr, s4d_eigenvalues
from statewise.ssm.init import as_pairs, hippo_legs, log_uniform
from statewise.ssm.lti import ChannelLayer, Diagonal
from statewise.ssm.perturb import check_perturbation, perturbed_legs
from statewise.ssm.real_part import RealPart
from statewise.ssm.timescale import SPECTRUM_WINDOW, MemorySteps, check_steps, step_range


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """Hyper-parameters of one S4D layer."""

    state_size: int = 64  # N >= 4 and even; N / 2 complex states per channel are kept
    init: Literal["lin", "inv", "legs", "real", "quad", "ptd"] = "lin"  # where A starts
    perturbation: float | None = None  # > 0, size of ptd's E relative to A; None means 0.1
    re_param: RealPart = "exp"  # how Re A stays negative
    discretization: Literal["zoh", "bilinear"] = "zoh"
    dt_min: float = 1e-3  # > 0, smallest initial step
    dt_max: float = 0.1  # >= dt_min
    memory_steps: MemorySteps | None = None  # shortest, longest, >= 1: in place of dt_min, dt_max
    dt_scale: float = 1.0  # > 0, multiplies every step: data sampled at another rate
    dt_tie: bool = True  # one step size per channel; False: one per state
    num_copies: int | None = None  # S, divides the layer's width; None means one per channel
    learn_b: bool = True  # False keeps B at its start (1; for legs the HiPPO input)
    bandlimit: float | None = None  # > 0: C is 0 for frequencies above bandlimit / 2 per step

    def __post_init__(self) -> None:
        check_common(self.state_size, self.num_copies)
        check_perturbation(self.init, self.perturbation)
        check_steps(self.dt_min, self.dt_max, self.dt_scale, self.memory_steps)
        if self.bandlimit is not None and not self.bandlimit > 0:
            raise ValueError(f"bandlimit: expected a positive number, got {self.bandlimit}")


class Start(NamedTuple):
    """Where the diagonal system starts."""

    A: Complex
    """(N,)."""
    B: Complex
    """(N,)."""
    C: Tensor
    """(H, N, 2)."""


def start(d_model: int, config: S4DConfig) -> Start:
    """Return the start that `config` describes: N is half of its `state_size`."""
    N = config.state_size // 2
    if config.init == "ptd":
        system = perturbed_legs(config.state_size, config.perturbation, paired=True)
        C = torch.randn(d_model, config.state_size, dtype=torch.float64)
        B = np.asarray(system.inverse @ hippo_legs(config.state_size)[1], np.complex128)
        return Start(system.w, B, as_pairs(C.to(torch.complex128) @ torch.as_tensor(system.V)))
    A = s4d_eigenvalues(config.init, config.state_size)
    B = np.ones(N, np.complex128)
    if config.init == "legs":
        B = clip_imaginary(nplr("legs", config.state_size).B, B_CLIP)
    return Start(A, B, torch.randn(d_model, N, 2) * 0.5**0.5)


def check_common(state_size: int, num_copies: int | None) -> None:
    """Check what the configurations of the S4 family have in common.

    Raises:
        ValueError: a value is out of its range.
    """
    if state_size < 4 or state_size % 2:
        raise ValueError(f"state_size: expected an even number of at least 4, got {state_size}")
    if num_copies is not None and num_copies < 1:
        raise ValueError(f"num_copies: expected at least 1, got {num_copies}")


def copies(d_model: int, num_copies: int | None) -> int:
    """Return S.

    Raises:
        ValueError: S does not divide the width.
    """
    S = num_copies or d_model
    if d_model % S:
        raise ValueError(f"num_copies: expected a divisor of the width {d_model}, got {S}")
    return S


def tiled(x: Tensor, d_model: int) -> Tensor:
    """Repeat (S, ...) to (H, ...): channel h gets row h mod S."""
    return x.repeat(d_model // x.shape[0], *(1,) * (x.dim() - 1))


def real_parameter(x: np.ndarray | Tensor, rows: int) -> nn.Parameter:
    """Return `rows` copies of a real vector, (rows, N), as a parameter."""
    return nn.Parameter(torch.as_tensor(x).to(torch.get_default_dtype()).repeat(rows, 1))


class S4DLayer(ChannelLayer):
    """One S4D layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("log_dt", "log_neg_re", "re_weight", "A_re", "A_im", "B", "D")

    def __init__(self, d_model: int, config: S4DConfig | None = None, backend: Backend = "auto"):
        config = S4DConfig() if config is None else config
        N = config.state_size // 2
        super().__init__(d_model, N, backend)
        self.config = config
        S = copies(d_model, config.num_copies)
        A, B, C = start(d_model, config)
        self.re_name = real_part.parameter_name(config.re_param, "A_re")
        weight = real_part.initial_weight(config.re_param, torch.as_tensor(A.real))
        self.register_parameter(self.re_name, real_parameter(weight, S))
        self.A_im = real_parameter(A.imag, S)
        self.B: Tensor
        if config.learn_b:
            self.B = nn.Parameter(as_pairs(B).repeat(S, 1, 1))
        else:
            self.register_buffer("B", as_pairs(B)[None])
        self.C = nn.Parameter(C)
        steps = step_range(
            SPECTRUM_WINDOW[config.init], config.dt_min, config.dt_max, config.memory_steps
        )
        log_dt = log_uniform((d_model, 1 if config.dt_tie else N), *steps)
        self.log_dt = nn.Parameter(log_dt.to(torch.get_default_dtype()))

    def discretize(self) -> Diagonal:
        """Return the discrete system of the present parameters."""
        H = self.d_in
        re = real_part.value(self.config.re_param, getattr(self, self.re_name))
        re, im = tiled(re, H), tiled(self.A_im, H)
        dt = self.config.dt_scale * self.log_dt.exp()
        a, gain = lti.discretize(self.config.discretization, re, im, dt)
        return Diagonal(a, complex_product(gain, tiled(self.B, H)), self._output(im * dt))

    def _output(self, angle: Tensor) -> Tensor:
        """Return C, 0 where a state turns faster than the band allows; angle per step."""
        if self.config.bandlimit is None:
            return self.C
        too_fast = angle.abs() >= torch.pi * self.config.bandlimit
        return torch.where(too_fast[..., None], self.C.new_zeros(()), self.C)
