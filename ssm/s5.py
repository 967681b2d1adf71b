"""S5: a multi-input state-space layer with a diagonal complex state.

Paper: Smith, Warrington & Linderman 2023, "Simplified State Space Layers for Sequence
Modeling"; resets as in Lu et al. 2023, "Structured State Space Models for In-Context
Reinforcement Learning".

    x_t = Lambda_bar * x_{t-1} + B_bar u_t,    y_t = s Re(C x_t) + D * u_t

with s = 2 where only one of each conjugate pair is kept, and x_{t-1} replaced by the initial
state where `reset_t`. Zero-order hold: Lambda_bar = exp(Lambda dt), B_bar = Lambda^{-1}
(Lambda_bar - 1) B; bilinear: Lambda_bar = (1 + Lambda dt/2) / (1 - Lambda dt/2), B_bar =
dt / (1 - Lambda dt/2) B.

Deviations: Re(Lambda) = -exp(parameter), so that no training step can make a state grow
("clip" is the release's option, min(Re, -1e-4); others in `ssm/real_part.py`). dt is `dt_scale`
times a parameter. Options beyond the paper, off by default: `init` "ptd" (`ssm/perturb.py`) and
`memory_steps` (`ssm/timescale.py`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from statewise.kernels import Backend, s5_system, s5_system_runs
from statewise.ssm import diagonal, real_part
from statewise.ssm.diagonal import DiagonalLayer, Discrete
from statewise.ssm.init import as_pairs, log_uniform, normal_legs, truncated_normal
from statewise.ssm.perturb import check_perturbation, perturbed_legs
from statewise.ssm.real_part import RealPart
from statewise.ssm.timescale import SPECTRUM_WINDOW, MemorySteps, check_steps, step_range

Eigenvalues = np.ndarray[tuple[int], np.dtype[np.complex128]]


@dataclass(frozen=True, kw_only=True)
class S5Config:
    """Hyper-parameters of one S5 layer; docs/systems/s5.md compares them with the releases."""

    state_size: int | None = None  # N, > 0; None means the layer's width
    blocks: int = 1  # J >= 1, copies of a HiPPO matrix of size N / J
    conj_sym: bool = True  # keep one of each conjugate pair: P = N / 2 states instead of N
    init: Literal["legs", "ptd"] = "legs"  # the normal part of HiPPO-LegS, or all of it, perturbed
    perturbation: float | None = None  # > 0, size of ptd's E relative to A; None means 0.1
    discretization: Literal["zoh", "bilinear"] = "zoh"
    b_init: Literal["normal", "gamma_normalised"] = "normal"  # scaled so that x has the size of u
    c_init: Literal["truncated_normal", "lecun_normal", "complex_normal", "half_normal"] = (
        "truncated_normal"
    )
    dt_min: float = 1e-3  # > 0, smallest initial time step
    dt_max: float = 0.1  # >= dt_min
    memory_steps: MemorySteps | None = None  # shortest, longest, >= 1: in place of dt_min, dt_max
    dt_scale: float = 1.0  # > 0, multiplies every step: data sampled at another rate
    re_param: RealPart = "exp"  # how Re(Lambda) stays negative
    initial_state: Literal["zero", "learned"] = "zero"  # what a reset restores

    def __post_init__(self) -> None:
        if self.state_size is not None and self.state_size < 1:
            raise ValueError(f"state_size: expected at least 1, got {self.state_size}")
        if self.blocks < 1:
            raise ValueError(f"blocks: expected at least 1, got {self.blocks}")
        check_perturbation(self.init, self.perturbation)
        check_steps(self.dt_min, self.dt_max, self.dt_scale, self.memory_steps)


def kept_per_block(N: int, blocks: int, conj_sym: bool) -> int:
    """Return how many eigenvalues of a block are kept, P / J.

    Raises:
        ValueError: N does not split into `blocks` (conjugate-symmetric) blocks.
    """
    divisor = blocks * (2 if conj_sym else 1)
    if N % divisor:
        raise ValueError(
            f"state_size: expected a multiple of {divisor} (blocks {blocks}, conj_sym "
            f"{conj_sym}), got {N}"
        )
    return N // divisor


def initial_eigenvalues(N: int, blocks: int, conj_sym: bool) -> tuple[Eigenvalues, Tensor]:
    """Return Lambda (P,) and V (N, P) of `blocks` normal HiPPO matrices on the diagonal.

    Raises:
        ValueError: N does not split into `blocks` (conjugate-symmetric) blocks.
    """
    kept = kept_per_block(N, blocks, conj_sym)
    eigenvalues, V = normal_legs(N // blocks)
    tiled = np.tile(eigenvalues[:kept], blocks)
    return tiled, torch.block_diag(*(torch.as_tensor(V[:, :kept]) for _ in range(blocks)))


def initial_system(N: int, config: S5Config) -> tuple[Eigenvalues, Tensor, Tensor]:
    """Return Lambda (P,), V (N, P) and the rows of V^-1 (P, N) that `config` starts from.

    Raises:
        ValueError: N does not split into blocks, or a perturbation is too small.
    """
    if config.init == "legs":
        eigenvalues, V = initial_eigenvalues(N, config.blocks, config.conj_sym)
        return eigenvalues, V, V.mH
    kept_per_block(N, config.blocks, config.conj_sym)
    one = perturbed_legs(N // config.blocks, config.perturbation, paired=config.conj_sym)
    V, inverse = (
        torch.block_diag(*(torch.as_tensor(x) for _ in range(config.blocks)))
        for x in (one.V, one.inverse)
    )
    return np.tile(one.w, config.blocks), V, inverse


class S5Layer(DiagonalLayer):
    """One S5 layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = (
        "log_neg_re",
        "re_weight",
        "Lambda_re",
        "Lambda_im",
        "B",
        "log_step",
        "D",
        "h_init",
    )

    def __init__(self, d_model: int, config: S5Config | None = None, backend: Backend = "auto"):
        config = S5Config() if config is None else config
        N = config.state_size or d_model
        eigenvalues, V, V_inverse = initial_system(N, config)
        P = len(eigenvalues)
        super().__init__(d_model, P, config.initial_state, backend)
        self.config = config
        real = torch.as_tensor(eigenvalues.real).to(torch.get_default_dtype())
        self.re_name = real_part.parameter_name(config.re_param, "Lambda_re")
        weight = real_part.initial_weight(config.re_param, real)
        self.register_parameter(self.re_name, nn.Parameter(weight))
        self.Lambda_im = nn.Parameter(
            torch.as_tensor(eigenvalues.imag).to(torch.get_default_dtype())
        )
        B = truncated_normal((N, d_model), N**-0.5, None)
        self.B = nn.Parameter(as_pairs(V_inverse @ B.to(V.dtype)))
        self.C = nn.Parameter(self._initial_output(d_model, N, V))
        steps = step_range(
            SPECTRUM_WINDOW[config.init], config.dt_min, config.dt_max, config.memory_steps
        )
        self.log_step = nn.Parameter(log_uniform((P,), *steps).to(torch.get_default_dtype()))
        if config.b_init == "gamma_normalised":
            self._normalise_input()

    @torch.no_grad()
    def _normalise_input(self) -> None:
        """Scale the rows of B: what stands before them becomes sqrt(1 - |a|^2), as in the LRU.

        With white inputs every state then has the same size, however long it remembers. With the
        papers' start a long memory is a small state, which minutes of training do not find.
        """
        a, gain = self._transition()
        wanted = (1 - a.square().sum(-1)).clamp(min=0).sqrt()
        self.B.mul_((wanted / gain.square().sum(-1).sqrt())[:, None, None])

    def _initial_output(self, H: int, N: int, V: Tensor) -> Tensor:
        if self.config.c_init in ("complex_normal", "half_normal"):
            std = 0.5 if self.config.c_init == "half_normal" else 0.5**0.5
            return torch.randn(H, V.shape[1], 2) * std
        # The two scales differ by sqrt(H): the fan-in of one row, or of the whole array.
        std = (N if self.config.c_init == "truncated_normal" else N * H) ** -0.5
        raw = torch.view_as_complex(truncated_normal((H, N, 2), std, None))
        return as_pairs(raw @ V)

    def eigenvalues(self) -> tuple[Tensor, Tensor]:
        """Return the continuous eigenvalues as (real, imaginary), each (P,), real < 0."""
        return real_part.value(self.config.re_param, getattr(self, self.re_name)), self.Lambda_im

    def _transition(self) -> tuple[Tensor, Tensor]:
        """Return a and the factor before B of the present parameters, pairs (P, 2)."""
        re, im = self.eigenvalues()
        dt = self.config.dt_scale * self.log_step.exp()
        if self.config.discretization == "zoh":
            a = diagonal.polar(re * dt, im * dt)
            # exp(z) - 1 without cancellation, then divided by Lambda
            half = (im * dt / 2).sin()
            less_one = torch.stack(
                (torch.expm1(re * dt) * (im * dt).cos() - 2 * half.square(), a[:, 1]), -1
            )
            inverse = torch.stack((re, -im), -1) / (re.square() + im.square())[:, None]
            return a, diagonal.complex_product(less_one, inverse)
        x, y = re * dt / 2, im * dt / 2
        inverse = torch.stack((1 - x, y), -1) / ((1 - x).square() + y.square())[:, None]
        a = diagonal.complex_product(torch.stack((1 + x, y), -1), inverse)
        return a, dt[:, None] * inverse

    def discretize(self) -> Discrete:
        """Return the discrete system of the present parameters."""
        scale = 2.0 if self.config.conj_sym else 1.0
        parts = (*self.eigenvalues(), self.log_step, self.B, self.C)
        if s5_system_runs(*parts, backend=self.backend):
            rule, dt_scale = self.config.discretization, self.config.dt_scale
            return Discrete(*s5_system(*parts, dt_scale=dt_scale, c_scale=scale, rule=rule))
        a, gain = self._transition()
        w_in = diagonal.input_matrix(diagonal.complex_product(gain[:, None], self.B))
        return Discrete(a, w_in, diagonal.output_matrix(self.C, scale))
