"""LSSL: a dense state-space model per channel, the ancestor of S4 and its check.

Paper: Gu, Johnson, Goel, Saab, Dao, Rudra & Re 2021, "Combining Recurrent, Convolutional, and
Continuous-time Models with Linear State Space Layers".

    h_t = Abar h_{t-1} + Bbar x_t,    y_t = C h_t + D x_t     per channel

from x' = A x + B u by the generalised bilinear transform with steps dt:

    Abar = (I - alpha dt A)^-1 (I + (1 - alpha) dt A),    Bbar = (I - alpha dt A)^-1 dt B

dt is `dt_scale` times a parameter.

Deviations: one output per channel; the mixing of channels is left to the block.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from statewise.kernels import Backend
from statewise.ssm.chunked import Dense
from statewise.ssm.dense import DenseLayer
from statewise.ssm.hippo import Measure, hippo
from statewise.ssm.init import log_uniform
from statewise.ssm.timescale import check_steps

LARGEST = 64


@dataclass(frozen=True, kw_only=True)
class LSSLConfig:
    """Hyper-parameters of one LSSL layer."""

    state_size: int = 32  # N in [2, 64], even for fourier
    measure: Measure = "legs"  # where A and B start
    learn: Literal["fixed", "shared", "per_channel"] = "shared"  # A and B: never, one, one each
    learn_dt: bool = False  # True also trains the step sizes, one per channel
    alpha: float = 0.5  # in [0, 1]; 0 Euler, 1 backward Euler, 0.5 bilinear
    dt_min: float = 1e-3  # > 0, smallest initial step
    dt_max: float = 0.1  # >= dt_min
    dt_scale: float = 1.0  # > 0, multiplies every step: data sampled at another rate

    def __post_init__(self) -> None:
        N = self.state_size
        if not 2 <= N <= LARGEST or (self.measure == "fourier" and N % 2):
            raise ValueError(
                f"state_size: expected 2 to {LARGEST}, even with measure fourier, got {N}: use S4 "
                "for larger states"
            )
        check_steps(self.dt_min, self.dt_max, self.dt_scale)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected [0, 1], got {self.alpha}")


def generalized_bilinear(A: Tensor, B: Tensor, dt: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Discretise x' = A x + B u: A (S, N, N), B (S, N), dt (H,), results (H, N, N), (H, N)."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    scaled = dt[:, None, None] * A
    driven = (dt[:, None] * B)[..., None]
    right = torch.cat((eye + (1 - alpha) * scaled, driven), -1)
    both = torch.linalg.solve(eye - alpha * scaled, right)
    return both[..., :-1], both[..., -1]


class LSSLLayer(DenseLayer):
    """One LSSL layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("A", "B", "log_dt", "D")
    A: Tensor
    B: Tensor
    log_dt: Tensor

    def __init__(self, d_model: int, config: LSSLConfig | None = None, backend: Backend = "auto"):
        config = LSSLConfig() if config is None else config
        super().__init__(d_model, (config.state_size,), backend)
        self.config = config
        system = hippo(config.measure, config.state_size)
        rows = d_model if config.learn == "per_channel" else 1
        self._hold("A", np.stack([system.A] * rows), config.learn != "fixed")
        self._hold("B", np.stack([system.B] * rows), config.learn != "fixed")
        dt = log_uniform((d_model,), config.dt_min, config.dt_max)
        self._hold("log_dt", dt.numpy(), config.learn_dt)
        self.C = nn.Parameter(torch.randn(d_model, config.state_size))

    def _hold(self, name: str, value: np.ndarray, learn: bool) -> None:
        tensor = torch.as_tensor(value).to(torch.get_default_dtype())
        if learn:
            setattr(self, name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def discretize(self) -> Dense:
        """Return the discrete system of the present parameters."""
        dt = self.config.dt_scale * self.log_dt.exp()
        A, B = generalized_bilinear(self.A, self.B, dt, self.config.alpha)
        return Dense(A, B, self.C)
