"""S4D: one diagonal state-space model per channel.

Paper: Gu, Gupta, Goel & Re 2022, "On the Parameterization and Initialization of Diagonal State
Space Models".

    h_t = a * h_{t-1} + b x_t,    y_t = 2 Re sum_n C_n h_{t,n} + D x_t     per channel

from x' = A x + B u with steps dt: zero-order hold a = exp(dt A), b = (a - 1) / A * B, or bilinear
a = (1 + dt A/2) / (1 - dt A/2), b = dt / (1 - dt A/2) * B. Re A = -exp(parameter). Channel h uses
A and B of copy h mod S.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from statewise.kernels import Backend
from statewise.ssm import lti
from statewise.ssm.diagonal import complex_product
from statewise.ssm.hippo import B_CLIP, clip_imaginary, nplr, s4d_eigenvalues
from statewise.ssm.init import as_pairs, log_uniform
from statewise.ssm.lti import ChannelLayer, Diagonal


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """Hyper-parameters of one S4D layer."""

    state_size: int = 64  # N >= 4 and even; N / 2 complex states per channel are kept
    init: Literal["lin", "inv", "legs", "real", "quad"] = "lin"  # where A starts
    discretization: Literal["zoh", "bilinear"] = "zoh"
    dt_min: float = 1e-3  # > 0, smallest initial step
    dt_max: float = 0.1  # >= dt_min
    dt_tie: bool = True  # one step size per channel; False: one per state
    num_copies: int | None = None  # S, divides the layer's width; None means one per channel
    learn_b: bool = True  # False keeps B at its start (1; for legs the HiPPO input)
    bandlimit: float | None = None  # > 0: C is 0 for frequencies above bandlimit / 2 per step

    def __post_init__(self) -> None:
        check_common(self.state_size, self.dt_min, self.dt_max, self.num_copies)
        if self.bandlimit is not None and not self.bandlimit > 0:
            raise ValueError(f"bandlimit: expected a positive number, got {self.bandlimit}")


def check_common(state_size: int, dt_min: float, dt_max: float, num_copies: int | None) -> None:
    """Check what the configurations of the S4 family have in common.

    Raises:
        ValueError: a value is out of its range.
    """
    if state_size < 4 or state_size % 2:
        raise ValueError(f"state_size: expected an even number of at least 4, got {state_size}")
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min: expected 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
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


def real_parameter(x: np.ndarray, rows: int) -> nn.Parameter:
    """Return `rows` copies of a real vector, (rows, N), as a parameter."""
    return nn.Parameter(torch.as_tensor(x).to(torch.get_default_dtype()).repeat(rows, 1))


class S4DLayer(ChannelLayer):
    """One S4D layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("log_dt", "log_neg_re", "A_im", "B", "D")

    def __init__(self, d_model: int, config: S4DConfig | None = None, backend: Backend = "auto"):
        config = S4DConfig() if config is None else config
        N = config.state_size // 2
        super().__init__(d_model, N, backend)
        self.config = config
        S = copies(d_model, config.num_copies)
        A = s4d_eigenvalues(config.init, config.state_size)
        B = np.ones(N, np.complex128)
        if config.init == "legs":
            B = clip_imaginary(nplr("legs", config.state_size).B, B_CLIP)
        self.log_neg_re = real_parameter(np.log(-A.real), S)
        self.A_im = real_parameter(A.imag, S)
        self.B: Tensor
        if config.learn_b:
            self.B = nn.Parameter(as_pairs(B).repeat(S, 1, 1))
        else:
            self.register_buffer("B", as_pairs(B)[None])
        self.C = nn.Parameter(torch.randn(d_model, N, 2) * 0.5**0.5)
        log_dt = log_uniform((d_model, 1 if config.dt_tie else N), config.dt_min, config.dt_max)
        self.log_dt = nn.Parameter(log_dt.to(torch.get_default_dtype()))

    def discretize(self) -> Diagonal:
        """Return the discrete system of the present parameters."""
        H = self.d_in
        re, im = tiled(-self.log_neg_re.exp(), H), tiled(self.A_im, H)
        dt = self.log_dt.exp()
        a, gain = lti.discretize(self.config.discretization, re, im, dt)
        return Diagonal(a, complex_product(gain, tiled(self.B, H)), self._output(im * dt))

    def _output(self, angle: Tensor) -> Tensor:
        """Return C, 0 where a state turns faster than the band allows; angle per step."""
        if self.config.bandlimit is None:
            return self.C
        too_fast = angle.abs() >= torch.pi * self.config.bandlimit
        return torch.where(too_fast[..., None], self.C.new_zeros(()), self.C)
