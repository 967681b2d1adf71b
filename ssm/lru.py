"""LRU: a linear recurrent unit with eigenvalues on a ring.

Paper: Orvieto et al. 2023, "Resurrecting Recurrent Neural Networks for Long Sequences".

    x_t = lambda * x_{t-1} + exp(gamma_log) * (B u_t),    y_t = Re(C x_t) + D * u_t
    lambda = exp(-exp(nu_log) + i exp(theta_log)),        so that |lambda| < 1

gamma starts at sqrt(1 - |lambda|^2) and is free afterwards.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from statewise.kernels import Backend
from statewise.ssm import diagonal
from statewise.ssm.diagonal import DiagonalLayer, Discrete

SMALLEST_DRAW = 1e-6  # keeps the logarithms of the ring finite


@dataclass(frozen=True, kw_only=True)
class LRUConfig:
    """Hyper-parameters of one LRU layer."""

    state_size: int | None = None  # P, > 0 complex states; None means half the layer's width
    r_min: float = 0.0  # in [0, r_max), smallest initial |lambda|
    r_max: float = 1.0  # in (0, 1], largest; 0.9 and 0.999 for long memory
    max_phase: float = 6.28  # in (0, 2 pi], largest initial angle; pi / 10 for long memory
    initial_state: Literal["zero", "learned"] = "zero"  # what a reset restores

    def __post_init__(self) -> None:
        if self.state_size is not None and self.state_size < 1:
            raise ValueError(f"state_size: expected at least 1, got {self.state_size}")
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(
                f"r_min: expected 0 <= r_min < r_max <= 1, got {self.r_min} and {self.r_max}"
            )
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase: expected (0, 2 pi], got {self.max_phase}")


class LRULayer(DiagonalLayer):
    """One LRU layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im", "D", "h_init")

    def __init__(self, d_model: int, config: LRUConfig | None = None, backend: Backend = "auto"):
        config = LRUConfig() if config is None else config
        P = config.state_size or max(1, d_model // 2)
        super().__init__(d_model, P, config.initial_state, backend)
        self.config = config
        u1 = torch.rand(P).clamp(min=SMALLEST_DRAW, max=1 - SMALLEST_DRAW)
        u2 = torch.rand(P).clamp(min=SMALLEST_DRAW)
        square = u1 * (config.r_max**2 - config.r_min**2) + config.r_min**2
        self.nu_log = nn.Parameter((-0.5 * square.log()).log())
        self.theta_log = nn.Parameter((config.max_phase * u2).log())
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-square))
        scale = (2 * d_model) ** -0.5
        self.B_re = nn.Parameter(torch.randn(P, d_model) * scale)
        self.B_im = nn.Parameter(torch.randn(P, d_model) * scale)
        self.C_re = nn.Parameter(torch.randn(d_model, P) * P**-0.5)
        self.C_im = nn.Parameter(torch.randn(d_model, P) * P**-0.5)

    def discretize(self) -> Discrete:
        """Return the discrete system of the present parameters."""
        a = diagonal.polar(-self.nu_log.exp(), self.theta_log.exp())
        B = torch.stack((self.B_re, self.B_im), -1) * self.gamma_log.exp()[:, None, None]
        C = torch.stack((self.C_re, self.C_im), -1)
        return Discrete(a, diagonal.input_matrix(B), diagonal.output_matrix(C, 1.0))
