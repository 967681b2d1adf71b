"""Mamba-2: one decay per head, a large state, and time in products of matrices (SSD).

Paper: Dao & Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality".

    [z, x, B, C, d] = W_in u;   [x, B, C] = silu(conv([x, B, C]));   d = softplus(d + b_dt)
    h_t = exp(d A) h_{t-1} + d x B^T    per head, h (P, N);   y = h C + D x
    out = W_out (rmsnorm(y silu(z)) * w)

with A = -exp(A_log) one number per head, and memory of convolution and state cleared where
`reset_t`. State keys "conv" (B, E + 2 G N, W - 1), the inputs of the convolution, and "ssm"
(B, H, P, N).

Deviations: the default state has 64 numbers per channel instead of 128, and a width that 64 does
not divide takes narrower heads. `init` "mimetic" is Trockman et al. 2024.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import Backend, causal_conv1d, conv_step, rms_norm, ssd_scan, ssd_step
from statewise.ssm.init import initial_step_bias, inverse_softplus
from statewise.ssm.mamba import MIMETIC_SHIFT
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.windows import trace_by_windows

HEAD_DIM = 64
NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """Hyper-parameters of one Mamba-2 layer."""

    expand: int = 2  # >= 1, inner width E over the layer's width
    state_size: int = 64  # N >= 1, per channel; the release has 128
    head_dim: int | None = None  # P >= 1, divides E; None means 64, or what divides E and 64
    groups: int = 1  # G >= 1, divides the heads: B and C are shared by the heads of a group
    conv_width: int = 4  # W >= 1; 1 is no convolution over time
    chunk: int = 64  # >= 1, steps per product; results do not depend on it
    dt_min: float = 1e-3  # > 0, smallest initial step
    dt_max: float = 0.1  # >= dt_min
    dt_scale: float = 1.0  # > 0, multiplies every step: data sampled at another rate
    init: Literal["standard", "mimetic"] = "standard"  # mimetic: starts as linear attention

    def __post_init__(self) -> None:
        for name in ("expand", "state_size", "head_dim", "groups", "conv_width", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(
                f"dt_min: expected 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}"
            )
        if not self.dt_scale > 0:
            raise ValueError(f"dt_scale: expected a positive number, got {self.dt_scale}")


def _head_sizes(inner: int, config: Mamba2Config) -> tuple[int, int]:
    """Return the number of heads and their width."""
    P = config.head_dim or math.gcd(inner, HEAD_DIM)
    if inner % P:
        raise ValueError(f"head_dim: expected a divisor of the inner width {inner}, got {P}")
    heads = inner // P
    if heads % config.groups:
        raise ValueError(f"groups: expected a divisor of the {heads} heads, got {config.groups}")
    return heads, P


class Mamba2Layer(nn.Module):
    """One Mamba-2 layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("A_log", "D", "dt_bias")

    def __init__(self, d_model: int, config: Mamba2Config | None = None, backend: Backend = "auto"):
        super().__init__()
        self.config = config = Mamba2Config() if config is None else config
        self.backend: Backend = backend
        self.d_in = self.d_out = d_model
        E = self.inner = config.expand * d_model
        self.num_heads, self.head_dim = H, _ = _head_sizes(E, config)
        self.mixing = config.groups * config.state_size  # numbers in B or C
        self.convolved = E + 2 * self.mixing
        self.in_proj = nn.Linear(d_model, E + self.convolved + H, bias=False)
        conv = nn.Conv1d(self.convolved, self.convolved, config.conv_width, groups=self.convolved)
        assert conv.bias is not None
        self.conv_weight = nn.Parameter(conv.weight.detach()[:, 0].clone())
        self.conv_bias = nn.Parameter(conv.bias.detach().clone())
        self.dt_bias = nn.Parameter(initial_step_bias(H, config.dt_min, config.dt_max))
        self.A_log = nn.Parameter((1 + 15 * torch.rand(H)).log())
        self.D = nn.Parameter(torch.ones(H))
        self.norm_weight = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, d_model, bias=False)
        if config.init == "mimetic":
            self._start_as_attention()

    def _start_as_attention(self) -> None:
        """Start near linear attention: decays of 1, steps of 1, C = B, an identity convolution."""
        B_rows = slice(2 * self.inner, 2 * self.inner + self.mixing)
        C_rows = slice(B_rows.stop, B_rows.stop + self.mixing)
        with torch.no_grad():
            self.A_log.sub_(MIMETIC_SHIFT)
            self.in_proj.weight[C_rows.stop :].mul_(0.1)
            self.dt_bias.copy_(inverse_softplus(torch.ones(self.num_heads)))
            self.in_proj.weight[C_rows] = self.in_proj.weight[B_rows]
            self.conv_weight.mul_(0.1)
            self.conv_weight[:, -1] = 1.0

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        zeros = self.D.new_zeros
        return {
            "conv": zeros((batch_size, self.convolved, self.config.conv_width - 1)),
            "ssm": zeros((batch_size, self.num_heads, self.head_dim, self.config.state_size)),
        }

    def _decay(self) -> Tensor:
        with full_precision(self.A_log.device):
            return -self.A_log.exp()

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gate (..., E), what is convolved, and the steps (..., H)."""
        parts = F.linear(x, self.in_proj.weight)
        sizes = (self.inner, self.convolved, self.num_heads)
        z, v, dt = torch.split_with_sizes(parts, sizes, -1)
        with full_precision(x.device):
            dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
            return z, v, dt if self.config.dt_scale == 1.0 else self.config.dt_scale * dt

    def _select(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (..., H, P), B and C (..., G, N)."""
        x, Bm, Cm = torch.split_with_sizes(v, (self.inner, self.mixing, self.mixing), -1)
        groups = (self.config.groups, self.config.state_size)
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x, Bm.unflatten(-1, groups), Cm.unflatten(-1, groups)

    def _merge(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate, normalise and project y (..., H, P)."""
        gated = (y.flatten(-2) * F.silu(z)).unflatten(-1, (self.config.groups, -1))
        normed = rms_norm(gated, None, NORM_EPS).flatten(-2)
        return F.linear(normed * self.norm_weight, self.out_proj.weight)

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        before = self.initial_state(x.shape[0]) if state is None else state
        z, v, dt = self._project(x)
        v, conv = causal_conv1d(
            v,
            self.conv_weight,
            self.conv_bias,
            state=before["conv"],
            reset=reset,
            activation="silu",
            backend=self.backend,
        )
        u, Bm, Cm = self._select(v)
        y, h = ssd_scan(
            u,
            dt,
            self._decay(),
            Bm,
            Cm,
            chunk=self.config.chunk,
            D=self.D,
            h0=before["ssm"],
            reset=reset,
            backend=self.backend,
        )
        return self._merge(y, z), {"conv": conv, "ssm": h}

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way, window by window."""
        return trace_by_windows(self, x, state, reset, every)

    def prepare_step(self) -> Cache:
        """Compute A once for many steps; see `SequenceModel`."""
        with torch.no_grad():
            return {"A": self._decay(), "D": self.D[:, None].clone()}

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        A, D = (self._decay(), self.D[:, None]) if cache is None else (cache["A"], cache["D"])
        z, v, dt = self._project(x)
        v, conv = conv_step(
            v,
            self.conv_weight,
            self.conv_bias,
            state["conv"],
            reset,
            activation="silu",
            backend=self.backend,
        )
        u, Bm, Cm = self._select(v)
        y, h = ssd_step(u, dt, A, Bm, Cm, state["ssm"], D=D, reset=reset, backend=self.backend)
        return self._merge(y, z), {"conv": conv, "ssm": h}


def conforms(layer: Mamba2Layer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
