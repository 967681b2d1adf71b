"""Mamba: a selective state-space layer (S6) behind a short convolution and a gate.

Paper: Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces".

    [x, z] = W_in u;   x = silu(conv(x));   [r, B, C] = W_x x;   d = softplus(W_dt r + b_dt)
    h_t = exp(d A) h_{t-1} + d x B,   y = (C h + D x) silu(z),   out = W_out y

with A = -exp(A_log), and memory of convolution and state cleared where `reset_t`. State keys
"conv" (B, E, W - 1), the inputs of the convolution, and "ssm" (B, E, N), for complex eigenvalues
(B, E, N / 2, 2).

Options beyond the paper, off by default: `eigenvalues` "signed" (Grazzi et al. 2024, decays 2
exp(d A) - 1 in (-1, 1)) and "complex"; `inner_norm` (Jamba); `polarized` (Wang et al. 2025);
`init` "mimetic" (Trockman et al. 2024).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import (
    Backend,
    causal_conv1d,
    conv_step,
    mamba_step,
    mamba_step_runs,
    selective_scan,
    selective_scan_pairs,
    selective_step,
)
from statewise.ssm.init import initial_step_bias, inverse_softplus
from statewise.ssm.norm import RMSNorm
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.windows import trace_by_windows

MIMETIC_SHIFT = 8.0  # of A_log: decays start near 1
NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Hyper-parameters of one Mamba layer; the defaults are those of the release."""

    expand: int = 2  # >= 1, inner width E over the layer's width
    state_size: int = 16  # N >= 1, real numbers per channel; even for complex eigenvalues
    conv_width: int = 4  # W >= 1; 1 is no convolution over time
    dt_rank: int | None = None  # >= 1; None means the layer's width / 16, rounded up
    dt_min: float = 1e-3  # > 0, smallest initial step
    dt_max: float = 0.1  # >= dt_min
    dt_scale: float = 1.0  # > 0, multiplies every step: data sampled at another rate
    eigenvalues: Literal["real", "signed", "complex"] = "real"
    inner_norm: Literal["none", "rms"] = "none"  # of r, B and C; steadier where inputs shift
    polarized: Literal["none", "both"] = "none"  # the last two states: keep nothing, everything
    init: Literal["standard", "mimetic"] = "standard"  # mimetic: starts as linear attention

    def __post_init__(self) -> None:
        for name in ("expand", "state_size", "conv_width", "dt_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(
                f"dt_min: expected 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}"
            )
        if not self.dt_scale > 0:
            raise ValueError(f"dt_scale: expected a positive number, got {self.dt_scale}")
        if self.eigenvalues == "complex" and self.state_size % 2:
            raise ValueError(
                f"state_size: expected an even number with complex eigenvalues, got "
                f"{self.state_size}"
            )
        if self.polarized == "both" and (self.eigenvalues == "complex" or self.state_size < 3):
            raise ValueError(
                "polarized: expected real or signed eigenvalues and a state_size of at least 3, "
                f"got {self.eigenvalues} and {self.state_size}"
            )


class MambaLayer(nn.Module):
    """One Mamba layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("A_log", "A_im", "D", "dt_bias")

    def __init__(self, d_model: int, config: MambaConfig | None = None, backend: Backend = "auto"):
        super().__init__()
        self.config = config = MambaConfig() if config is None else config
        self.backend: Backend = backend
        self.d_in = self.d_out = d_model
        E = self.inner = config.expand * d_model
        self.complex = config.eigenvalues == "complex"
        N = self.num_states = config.state_size // 2 if self.complex else config.state_size
        R = self.rank = config.dt_rank or math.ceil(d_model / 16)
        self.width = N * (2 if self.complex else 1)  # numbers in B or C
        self.in_proj = nn.Linear(d_model, 2 * E, bias=False)
        conv = nn.Conv1d(E, E, config.conv_width, groups=E)  # for its initial values
        self.conv_weight = nn.Parameter(conv.weight.detach()[:, 0].clone())
        self.conv_bias = nn.Parameter(torch.zeros(E) if conv.bias is None else conv.bias.detach())
        self.x_proj = nn.Linear(E, R + 2 * self.width, bias=False)
        self.dt_weight = nn.Parameter((2 * torch.rand(E, R) - 1) * R**-0.5)
        self.dt_bias = nn.Parameter(initial_step_bias(E, config.dt_min, config.dt_max))
        self.A_log = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(E, 1))
        if self.complex:
            self.A_im = nn.Parameter(math.pi * torch.arange(float(N)).repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, d_model, bias=False)
        norms = config.inner_norm == "rms"
        self.norms = nn.ModuleList(
            RMSNorm(n, eps=NORM_EPS) for n in ((R, self.width, self.width) if norms else ())
        )
        kept = torch.full((N,), float("nan"))
        kept[N - 2 :] = torch.tensor((0.0, 1.0))[-N:]
        self.a_override: Tensor | None
        self.register_buffer(
            "a_override", kept if config.polarized == "both" else None, persistent=False
        )
        self.one_call = not self.complex and not norms and config.dt_scale == 1.0
        if config.init == "mimetic":
            self._start_as_attention()

    def _start_as_attention(self) -> None:
        """Start near linear attention: decays of 1, steps of 1, C = B, an identity convolution."""
        R, width = self.rank, self.width
        with torch.no_grad():
            self.A_log.sub_(MIMETIC_SHIFT)
            self.dt_weight.mul_(0.1)
            self.dt_bias.copy_(inverse_softplus(torch.ones(self.inner)))
            self.x_proj.weight[R + width :] = self.x_proj.weight[R : R + width]
            self.conv_weight.mul_(0.1)
            self.conv_weight[:, -1] = 1.0

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        tail = (2,) if self.complex else ()
        zeros = self.D.new_zeros
        return {
            "conv": zeros((batch_size, self.inner, self.config.conv_width - 1)),
            "ssm": zeros((batch_size, self.inner, self.num_states, *tail)),
        }

    def _matrix(self) -> Tensor:
        """Return A (E, N), complex as pairs."""
        with full_precision(self.A_log.device):
            real = -self.A_log.exp()
            return torch.stack((real, self.A_im), -1) if self.complex else real

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return steps before bias and softplus (..., E), B and C (..., 1, N) from inputs."""
        parts = F.linear(x, self.x_proj.weight)
        r, Bm, Cm = torch.split_with_sizes(parts, (self.rank, self.width, self.width), -1)
        if len(self.norms):
            r, Bm, Cm = (norm(part) for norm, part in zip(self.norms, (r, Bm, Cm), strict=True))
        dt = F.linear(r, self.dt_weight)
        if self.complex:
            Bm, Cm = (part.unflatten(-1, (self.num_states, 2)) for part in (Bm, Cm))
            return dt, Bm.unsqueeze(-3), Cm.unsqueeze(-3)
        return dt, Bm.unsqueeze(-2), Cm.unsqueeze(-2)

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        before = self.initial_state(x.shape[0]) if state is None else state
        v, z = self.in_proj(x).split(self.inner, -1)
        v, conv = causal_conv1d(
            v,
            self.conv_weight,
            self.conv_bias,
            state=before["conv"],
            reset=reset,
            activation="silu",
            backend=self.backend,
        )
        dt, Bm, Cm = self._select(v)
        A = self._matrix()
        dt_bias: Tensor | None = self.dt_bias
        if self.config.dt_scale != 1.0:
            dt, dt_bias = self._scaled(dt), None
        common = {"D": self.D, "z": z, "h0": before["ssm"], "reset": reset}
        softplus = dt_bias is not None
        if self.complex:
            y, h = selective_scan_pairs(
                v, dt, A, Bm, Cm, dt_bias=dt_bias, dt_softplus=softplus,
                backend=self.backend, **common,
            )  # fmt: skip
        else:
            y, h = selective_scan(
                v, dt, A, Bm, Cm, dt_bias=dt_bias, dt_softplus=softplus, decay=self._decay(),
                a_override=self.a_override, backend=self.backend, **common,
            )  # fmt: skip
        return self.out_proj(y), {"conv": conv, "ssm": h}

    def _decay(self) -> Literal["exp", "signed"]:
        return "signed" if self.config.eigenvalues == "signed" else "exp"

    def _scaled(self, dt: Tensor) -> Tensor:
        """Return steps in the unit of the data the layer is run on."""
        with full_precision(dt.device):
            return self.config.dt_scale * F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way, window by window."""
        return trace_by_windows(self, x, state, reset, every)

    def _step_in_one_call(
        self, x: Tensor, A: Tensor, state: State, reset: Tensor | None
    ) -> tuple[Tensor, State]:
        y, conv, ssm = mamba_step(
            x,
            (
                self.in_proj.weight, self.conv_weight, self.conv_bias, self.x_proj.weight,
                self.dt_weight, self.dt_bias, A, self.D, self.out_proj.weight,
            ),
            state["conv"], state["ssm"], reset, self.a_override,
            signed=self.config.eigenvalues == "signed",
        )  # fmt: skip
        return y, {"conv": conv, "ssm": ssm}

    def prepare_step(self) -> Cache:
        """Compute A once for many steps; see `SequenceModel`."""
        with torch.no_grad():
            return {"A": self._matrix()}

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        A = self._matrix() if cache is None else cache["A"]
        if self.one_call and mamba_step_runs(x, state["ssm"], self.backend):
            return self._step_in_one_call(x, A, state, reset)
        v, z = F.linear(x, self.in_proj.weight).chunk(2, -1)
        v, conv = conv_step(
            v,
            self.conv_weight,
            self.conv_bias,
            state["conv"],
            reset,
            activation="silu",
            backend=self.backend,
        )
        dt, Bm, Cm = self._select(v)
        dt_bias: Tensor | None = self.dt_bias
        if self.config.dt_scale != 1.0:
            dt, dt_bias = self._scaled(dt), None
        h = state["ssm"]
        if self.complex:
            parts = (A, Bm, Cm, h)
            A, Bm, Cm, h = (torch.view_as_complex(part.to(h.dtype).contiguous()) for part in parts)
        y, h = selective_step(
            v,
            dt,
            A,
            Bm,
            Cm,
            h,
            D=self.D,
            z=z,
            dt_bias=dt_bias,
            dt_softplus=dt_bias is not None,
            decay=self._decay(),
            reset=reset,
            a_override=self.a_override,
            backend=self.backend,
        )
        h = torch.view_as_real(h) if self.complex else h
        return F.linear(y, self.out_proj.weight), {"conv": conv, "ssm": h}


def conforms(layer: MambaLayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
