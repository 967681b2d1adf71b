"""Gated DeltaNet: heads that hold a matrix from keys to values and correct it at every step.

Paper: Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule";
details from the authors' release (flash-linear-attention).

    q, k, v = silu(conv(W x));   q, k = q / |q| / sqrt(dk), k / |k|          per head
    g = -exp(A_log) softplus(W_a x + dt_bias),   beta = sigmoid(W_b x)
    S_t = exp(g) S_{t-1};   S_t += beta k (v - S_t^T k)^T;   o = S_t^T q
    y = W_o (rms_norm(o) * silu(W_g x))

With `allow_neg_eigval` beta is doubled, so that the eigenvalue 1 - beta along a key reaches -1
(Grazzi et al. 2024, "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues").

State keys: "conv" (B, H (2 dk + dv), W - 1), the inputs of the convolution; "s" (B, H, dk, dv).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import Backend, causal_conv1d, conv_step, delta_rule, delta_rule_step
from statewise.ssm.init import initial_step_bias
from statewise.ssm.norm import RMSNorm
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.windows import trace_by_windows

WIDTH_PER_HEAD = 64
NORM_EPS = 1e-5
KEY_EPS = 1e-6
LARGEST_RATE = 16.0  # of exp(A_log) at the start
SMALLEST_RATE = 1e-3  # keeps its logarithm finite

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
    """Hyper-parameters of one Gated DeltaNet layer."""

    num_heads: int | None = None  # H >= 1; None means one per 64 of the layer's width
    head_dim: int | None = None  # dk >= 1; None means 3/4 of the layer's width over all heads
    expand_v: int = 2  # >= 1, dv over dk
    conv_width: int = 4  # W >= 1; 1 is no convolution over time
    chunk: int = 64  # >= 1, steps that are solved together; changes speed, not results
    allow_neg_eigval: bool = False  # beta in (0, 2) instead of (0, 1): tracks states, as in parity
    gate: Literal["silu", "none"] = "silu"  # of the output
    dt_min: float = 1e-3  # > 0, smallest initial step
    dt_max: float = 0.1  # >= dt_min

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "expand_v", "conv_width", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(
                f"dt_min: expected 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}"
            )


class GatedDeltaNetLayer(nn.Module):
    """One Gated DeltaNet layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("A_log", "dt_bias")

    def __init__(
        self, d_model: int, config: GatedDeltaNetConfig | None = None, backend: Backend = "auto"
    ):
        super().__init__()
        self.config = config = GatedDeltaNetConfig() if config is None else config
        self.backend: Backend = backend
        self.d_in = self.d_out = d_model
        H = self.num_heads = config.num_heads or max(1, d_model // WIDTH_PER_HEAD)
        K = self.key_dim = config.head_dim or max(1, 3 * d_model // (4 * H))
        V = self.value_dim = config.expand_v * K
        E = self.inner = H * (2 * K + V)
        gate = H * V if config.gate == "silu" else 0
        self.widths = (E, gate, H, H)  # of q, k and v; gate; a; b
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        conv = nn.Conv1d(E, E, config.conv_width, groups=E)  # for its initial values
        self.conv_weight = nn.Parameter(conv.weight.detach()[:, 0].clone())
        rate = (LARGEST_RATE * torch.rand(H)).clamp(min=SMALLEST_RATE)
        self.A_log = nn.Parameter(rate.log())
        self.dt_bias = nn.Parameter(initial_step_bias(H, config.dt_min, config.dt_max))
        self.norm = RMSNorm(V, eps=NORM_EPS)
        self.out_proj = nn.Linear(H * V, d_model, bias=False)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        zeros = self.A_log.new_zeros
        return {
            "conv": zeros((batch_size, self.inner, self.config.conv_width - 1)),
            "s": zeros((batch_size, self.num_heads, self.key_dim, self.value_dim)),
        }

    def _rate(self) -> Tensor:
        """Return exp(A_log), (H,)."""
        return self.A_log.exp()

    def _operands(self, mixed: Tensor, a: Tensor, b: Tensor, rate: Tensor) -> Operands:
        """Return q, k, v (..., H, *), g and beta (..., H) in the dtype of the state."""
        H, K = self.num_heads, self.key_dim
        dtype = rate.dtype
        # Elementwise, in the dtype of the state: autocast rounds none of it.
        keys, v = mixed.to(dtype).split((2 * H * K, H * self.value_dim), -1)
        keys = keys.unflatten(-1, (2, H, K))
        keys = keys * (keys.square().sum(-1, keepdim=True) + KEY_EPS).rsqrt()
        q, k = keys.unbind(-3)
        g = -rate * F.softplus(a.to(dtype) + self.dt_bias)
        beta = b.to(dtype).sigmoid()
        beta = 2 * beta if self.config.allow_neg_eigval else beta
        return q * K**-0.5, k, v.unflatten(-1, (H, self.value_dim)), g, beta

    def _output(self, o: Tensor, gate: Tensor) -> Tensor:
        """Norm, gate and projection of o (..., H, dv)."""
        o = self.norm(o).flatten(-2).to(gate.dtype)
        return self.out_proj(o * F.silu(gate) if self.config.gate == "silu" else o)

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps by chunks; see `SequenceModel`."""
        before = self.initial_state(x.shape[0]) if state is None else state
        mixed, gate, a, b = self.in_proj(x).split(self.widths, -1)
        mixed, conv = causal_conv1d(
            mixed,
            self.conv_weight,
            state=before["conv"],
            reset=reset,
            activation="silu",
            backend=self.backend,
        )
        q, k, v, g, beta = self._operands(mixed, a, b, self._rate())
        o, s = delta_rule(
            q,
            k,
            v,
            g,
            beta,
            h0=before["s"],
            reset=reset,
            chunk=self.config.chunk,
            backend=self.backend,
        )
        return self._output(o, gate), {"conv": conv, "s": s}

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way, window by window."""
        return trace_by_windows(self, x, state, reset, every)

    def prepare_step(self) -> Cache:
        """Compute exp(A_log) once for many steps; see `SequenceModel`."""
        with torch.no_grad():
            return {"rate": self._rate()}

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step of the recurrence; see `SequenceModel`."""
        rate = self._rate() if cache is None else cache["rate"]
        mixed, gate, a, b = self.in_proj(x).split(self.widths, -1)
        mixed, conv = conv_step(
            mixed, self.conv_weight, None, state["conv"], reset, activation="silu"
        )
        operands = self._operands(mixed, a, b, rate)
        with full_precision(x.device):
            o, s = delta_rule_step(*operands, state["s"], reset)
        return self._output(o, gate), {"conv": conv, "s": s}


def conforms(layer: GatedDeltaNetLayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
