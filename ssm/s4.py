"""S4: a state-space model per channel whose matrix is diagonal plus low rank (DPLR).

Paper: Gu, Goel & Re 2022, "Efficiently Modeling Long Sequences with Structured State Spaces".

    h_t = Abar h_{t-1} + Bbar x_t,    y_t = 2 Re sum_n C_n h_{t,n} + D x_t     per channel

with the bilinear transform of x' = M x + B u, M z = w z - P 2 Re(P^* z), one of each conjugate
pair kept. With g = 1 / (1 - dt w/2), q(z) = 2 Re(P^* z) and K = (1 + dt/2 q(g P))^-1:

    Abar z = g (1 + dt w/2) z - dt g P K q(g z),    Bbar = dt (g B - dt/2 g P K q(g B))

Re w = -exp(parameter), or another negative function (`ssm/real_part.py`), and the low-rank term is
-P P^*, so Abar is a contraction whatever the training does. dt is `dt_scale` times a parameter.
Channel h uses w, P and B of copy h mod S.

Deviations: C is the parameter, not C (1 - Abar^L), so that no length is built in; the parallel
mode goes in chunks (`ssm/chunked.py`) and takes resets. The release also steps through a diagonal
form of Abar; its eigenvectors have a condition number above 1e14 at the start of LegS with N = 64,
so nothing here diagonalises Abar. The kernel of mode "conv" comes from powers of Abar by default:
the generating function of the paper ("cauchy") needs Abar^L as well once C is the parameter, and
loses digits of gradients where an eigenvalue is nearly 0, as at the start of LegT and Fourier.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from statewise.kernels import Backend, dplr_kernel, ssm_scan_lti_step, truncated_output
from statewise.ssm import real_part
from statewise.ssm.chunked import Dense
from statewise.ssm.dense import DenseLayer
from statewise.ssm.diagonal import complex_product
from statewise.ssm.hippo import B_CLIP, Measure, clip_imaginary, nplr
from statewise.ssm.init import as_pairs, log_uniform
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, State
from statewise.ssm.real_part import RealPart
from statewise.ssm.s4d import check_common, copies, real_parameter, tiled
from statewise.ssm.timescale import MEASURE_WINDOW, MemorySteps, check_steps, step_range

SMALLEST_DECAY = 1e-4  # of Re w at the start; it is 0 for LegT and Fourier


@dataclass(frozen=True, kw_only=True)
class S4Config:
    """Hyper-parameters of one S4 layer."""

    state_size: int = 64  # N >= 4 and even; N / 2 complex states per channel are kept
    measure: Measure = "legs"  # where w, P and B start; legt has rank 2, the others rank 1
    dt_min: float = 1e-3  # > 0, smallest initial step
    dt_max: float = 0.1  # >= dt_min
    memory_steps: MemorySteps | None = None  # shortest, longest, >= 1: in place of dt_min, dt_max
    dt_scale: float = 1.0  # > 0, multiplies every step: data sampled at another rate
    re_param: RealPart = "exp"  # how Re w stays negative
    num_copies: int | None = 1  # S, divides the layer's width; None means one per channel
    kernel: Literal["powers", "cauchy"] = "powers"  # of mode "conv": powers of Abar, or the paper's

    def __post_init__(self) -> None:
        check_common(self.state_size, self.num_copies)
        check_steps(self.dt_min, self.dt_max, self.dt_scale, self.memory_steps)


class LowRank(NamedTuple):
    """The discretised system: Abar z = a z - left (right z), sums over pairs; Bbar = b."""

    a: Tensor
    """(H, N, 2), the diagonal."""
    left: Tensor
    """(H, R, N, 2)."""
    right: Tensor
    """(H, R, N, 2): a real functional, sum over (N, 2) of right * z."""
    b: Tensor
    """(H, N, 2)."""


def _functional(x: Tensor) -> Tensor:
    """Turn pairs x into the weights of z -> 2 Re sum x z."""
    return x * x.new_tensor((2.0, -2.0))


def bilinear(w: Tensor, P: Tensor, B: Tensor, dt: Tensor) -> LowRank:
    """Discretise a DPLR system: w, B (H, N, 2), P (H, R, N, 2), dt (H,)."""
    half = w * dt[:, None, None] / 2
    less = 1 - half[..., 0]
    g = torch.stack((less, half[..., 1]), -1)
    g = g / (less.square() + half[..., 1].square())[..., None]
    more = torch.stack((1 + half[..., 0], half[..., 1]), -1)
    gP, gB = complex_product(g[:, None], P), complex_product(g, B)
    right = _functional(complex_product(g[:, None], P * P.new_tensor((1.0, -1.0))))
    # q(g x) for x = P and B, (H, R, R) and (H, R)
    through = right.flatten(2) @ P.flatten(2).mT
    eye = torch.eye(P.shape[1], dtype=P.dtype, device=P.device)
    inner = eye + dt[:, None, None] / 2 * through
    K = torch.linalg.inv_ex(inner).inverse
    left = dt[:, None, None] * K.mT @ gP.flatten(2)
    driven = (right * B[:, None]).sum((-2, -1))
    b = dt[:, None] * (gB.flatten(1) - 0.5 * (driven[:, None] @ left)[:, 0])
    return LowRank(complex_product(g, more), left.view_as(P), right, b.view_as(B))


class S4Layer(DenseLayer):
    """One S4 layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("log_dt", "log_neg_re", "re_weight", "A_re", "A_im", "P", "B", "D")

    def __init__(self, d_model: int, config: S4Config | None = None, backend: Backend = "auto"):
        config = S4Config() if config is None else config
        N = config.state_size // 2
        super().__init__(d_model, (N, 2), backend)
        self.config = config
        S = copies(d_model, config.num_copies)
        initial = nplr(config.measure, config.state_size)
        real = torch.as_tensor(np.minimum(initial.w.real, -SMALLEST_DECAY))
        self.re_name = real_part.parameter_name(config.re_param, "A_re")
        weight = real_part.initial_weight(config.re_param, real)
        self.register_parameter(self.re_name, real_parameter(weight, S))
        self.A_im = real_parameter(initial.w.imag, S)
        self.P = nn.Parameter(as_pairs(initial.P).repeat(S, 1, 1, 1))
        self.B = nn.Parameter(as_pairs(clip_imaginary(initial.B, B_CLIP)).repeat(S, 1, 1))
        self.C = nn.Parameter(torch.randn(d_model, N, 2) * 0.5**0.5)
        steps = step_range(
            MEASURE_WINDOW[config.measure], config.dt_min, config.dt_max, config.memory_steps
        )
        log_dt = log_uniform((d_model,), *steps)
        self.log_dt = nn.Parameter(log_dt.to(torch.get_default_dtype()))

    def _continuous(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return w, P, B and dt per channel."""
        H = self.d_in
        re = real_part.value(self.config.re_param, getattr(self, self.re_name))
        w = torch.stack((re, self.A_im), -1)
        dt = self.config.dt_scale * self.log_dt.exp()
        return tiled(w, H), tiled(self.P, H), tiled(self.B, H), dt

    def low_rank(self) -> LowRank:
        """Return the discrete system of the present parameters."""
        return bilinear(*self._continuous())

    def discretize(self) -> Dense:
        """Return the discrete system as real matrices over interleaved real and imaginary parts."""
        a, left, right, b = self.low_rank()
        turn = torch.stack((a[..., 0], -a[..., 1], a[..., 1], a[..., 0]), 1)  # (H, 4, N)
        blocks = torch.diag_embed(turn.unflatten(1, (2, 2)))  # (H, 2, 2, N, N)
        diagonal = blocks.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)
        A = diagonal - left.flatten(2).mT @ right.flatten(2)
        return Dense(A, b.flatten(1), _functional(self.C).flatten(1))

    def kernel(self, length: int) -> Tensor:
        """Return the response (H, length) to an impulse, without D."""
        if self.config.kernel == "powers":
            return super().kernel(length)
        with full_precision(self.D.device):
            *pairs, dt = self._continuous()
            w, P, B, C = (torch.view_as_complex(x.contiguous()) for x in (*pairs, self.C))
            P = P.transpose(0, 1)
            truncated = truncated_output(dt, w, P, C, length)
            return dplr_kernel(dt, w, P, B, truncated, length, self.backend)

    def _step_form(self) -> Cache:
        with full_precision(self.D.device):
            a, left, right, b = self.low_rank()
            read = (left * _functional(self.C)[:, None]).sum((-2, -1))
        return {
            "a": a,
            "b": b,
            "c": self.C,
            "left": left.flatten(2).transpose(0, 1),
            "right": right.flatten(2).mT,
            "read": read,
        }

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step in O(N) per channel: the diagonal part, and the low rank taken off."""
        form, before = self._step_form() if cache is None else cache, state["h"]
        with full_precision(x.device):
            seen = (before.flatten(2).transpose(0, 1) @ form["right"]).transpose(0, 1)  # (B, H, R)
        if reset is not None:
            seen = torch.where(reset[:, None, None], seen.new_zeros(()), seen)
        y, h = ssm_scan_lti_step(
            x, form["a"], form["b"], form["c"], before, reset=reset, backend=self.backend
        )
        h = h.flatten(2)
        for r, left in enumerate(form["left"].unbind()):
            h = torch.addcmul(h, seen[..., r : r + 1], left, value=-1)
        y = y - (seen * form["read"]).sum(-1) + x * self.D
        return y, {"h": h.unflatten(2, self.state_shape)}
