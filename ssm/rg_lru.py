"""RG-LRU: a gated linear recurrence behind a short convolution, and a gate beside them.

Paper: De et al. 2024, "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient
Language Models"; details from the release of RecurrentGemma.

    v = conv(W_v x);   r = sigmoid(W_r v + b_r),   i = sigmoid(W_i v + b_i)
    a_t = exp(-c r softplus(a_param))
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i * v),     y = W_o (gelu(W_z x) * h)

W_r and W_i are block-diagonal; all matrices have biases.

At the first step of a memory there is nothing to mix with: h_t = i * v, unscaled. That is every
step with a reset and, as in the release, the first step after the initial state, which says so.

State keys: "conv" (B, E, W - 1), the inputs of the convolution; "h" (B, E); "begun" (B, 1), 0 in
the initial state and 1 after a step (above 0.5 counts as begun).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import Backend, causal_conv1d, conv_step, gelu, linear_scan
from statewise.kernels.segments import starts
from statewise.ssm.history import windows_after
from statewise.ssm.init import inverse_softplus
from statewise.ssm.protocol import Cache, SequenceModel, State

WIDTH_PER_HEAD = 32
SMALLEST_ROOT = 1e-6  # of 4 x in the derivative of sqrt(x), which is then at most 1000


@dataclass(frozen=True, kw_only=True)
class RGLRUConfig:
    """Hyper-parameters of one RG-LRU layer; the defaults are those of the paper."""

    lru_width: int | None = None  # E >= 1; None means the layer's width
    heads: int | None = None  # >= 1, blocks of the gates, divides E; None: of 32, if that divides
    conv_width: int = 4  # W >= 1; 1 is no convolution over time
    c: float = 8.0  # > 0, strength of the gate: a lies between radius^c and 1
    radius_min: float = 0.9  # > 0, smallest initial radius
    radius_max: float = 0.999  # in [radius_min, 1)

    def __post_init__(self) -> None:
        for name in ("lru_width", "heads", "conv_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not self.c > 0:
            raise ValueError(f"c: expected a positive number, got {self.c}")
        if not 0 < self.radius_min <= self.radius_max < 1:
            raise ValueError(
                "radius_min: expected 0 < radius_min <= radius_max < 1, got "
                f"{self.radius_min} and {self.radius_max}"
            )


def bounded_sqrt(x: Tensor) -> Tensor:
    """Return sqrt(x) for x >= 0, with a derivative of at most 1000 (it is infinite at 0)."""
    root = x.sqrt()
    if not torch.is_grad_enabled():
        return root
    # The value of the second term is 0; the derivative of the first is cut off.
    slope = (4 * x).clamp(min=SMALLEST_ROOT).rsqrt().detach()
    return root.detach() + slope * (x - x.detach())


class RGLRULayer(nn.Module):
    """One RG-LRU layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters = ("a_param",)

    def __init__(self, d_model: int, config: RGLRUConfig | None = None, backend: Backend = "auto"):
        super().__init__()
        self.config = config = RGLRUConfig() if config is None else config
        self.backend: Backend = backend
        self.d_in = self.d_out = d_model
        E = self.inner = config.lru_width or d_model
        divides = E % WIDTH_PER_HEAD == 0
        heads = config.heads or (E // WIDTH_PER_HEAD if divides else 1)
        if E % heads:
            raise ValueError(f"heads: expected a divisor of the lru_width {E}, got {heads}")
        self.in_proj = nn.Linear(d_model, 2 * E)
        conv = nn.Conv1d(E, E, config.conv_width, groups=E)  # for its initial values
        self.conv_weight = nn.Parameter(conv.weight.detach()[:, 0].clone())
        self.conv_bias = nn.Parameter(torch.zeros(E))
        block = E // heads
        self.gate_weight = nn.Parameter(torch.randn(heads, block, 2 * block) * block**-0.5)
        self.gate_bias = nn.Parameter(torch.zeros(2 * E))
        low, high = config.radius_min**2, config.radius_max**2
        radius = (low + (high - low) * torch.rand(E)).sqrt()
        self.a_param = nn.Parameter(inverse_softplus(-radius.log()))
        self.out_proj = nn.Linear(E, d_model)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        zeros, E = self.a_param.new_zeros, self.inner
        return {
            "conv": zeros((batch_size, E, self.config.conv_width - 1)),
            "h": zeros((batch_size, E)),
            "begun": zeros((batch_size, 1)),
        }

    def _rate(self) -> Tensor:
        """Return log a at an open gate: -c softplus(a_param), (E,)."""
        return -self.config.c * F.softplus(self.a_param)

    def _gated(self, v: Tensor, rate: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Return decays and inputs of the recurrence, of the shape of v (..., E).

        Args:
            v: (..., E).
            rate: (E,), from `_rate`.
            fresh: (...) bool, first steps of a memory.
        """
        heads, block, _ = self.gate_weight.shape
        parts = v.reshape(-1, heads, block).transpose(0, 1) @ self.gate_weight
        gates = parts.unflatten(-1, (2, block)).permute(1, 2, 0, 3).flatten(-2)
        # From here on elementwise, in the dtype of the state: autocast rounds none of it.
        gates = (gates.to(rate.dtype) + self.gate_bias.view(2, -1)).sigmoid()
        r, i = gates.unflatten(0, v.shape[:-1]).unbind(-2)
        log_a = r * rate
        scale = bounded_sqrt(-torch.expm1(2 * log_a))
        scale = torch.where(fresh[..., None], 1.0, scale)
        return log_a.exp(), scale * i * v

    def _run(self, x: Tensor, before: State, reset: Tensor | None) -> tuple[Tensor, State, State]:
        """Return y, the final state, and for each step "conv" (its input), "h" and "begun"."""
        (B, T), dtype = x.shape[:2], self.a_param.dtype
        v, z = self.in_proj(x).split(self.inner, -1)
        convolved, conv = causal_conv1d(
            v,
            self.conv_weight,
            self.conv_bias,
            state=before["conv"],
            reset=reset,
            backend=self.backend,
        )
        fresh = torch.zeros((B, T), dtype=torch.bool, device=x.device) if reset is None else reset
        if T:
            opening = fresh[:, :1] | ~(before["begun"] > 0.5)
            fresh = torch.cat((opening, fresh[:, 1:]), 1)
        a, b = self._gated(convolved, self._rate(), fresh)
        h, last = linear_scan(a, b, h0=before["h"], reset=reset, backend=self.backend)
        y = self.out_proj(gelu(z) * h.to(z.dtype))
        # Set to 1 where a memory begins, then carried.
        opened = fresh.cummax(1).values[..., None]
        begun = torch.where(opened, 1.0, before["begun"][:, None])
        after = begun[:, -1] if T else before["begun"].clone()
        steps = {"conv": v.to(dtype), "h": h, "begun": begun}
        return y, {"conv": conv, "h": last, "begun": after}, steps

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        before = self.initial_state(x.shape[0]) if state is None else state
        y, last, _ = self._run(x, before, reset)
        return y, last

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way, which cost nothing more."""
        before = self.initial_state(x.shape[0]) if state is None else state
        y, last, steps = self._run(x, before, reset)
        inputs = torch.cat((before["conv"].transpose(1, 2), steps["conv"]), 1)
        conv = windows_after(inputs, starts(reset, x), self.config.conv_width - 1, every)
        traced = {key: steps[key][:, every - 1 :: every] for key in ("h", "begun")}
        return y, last, {"conv": conv.transpose(2, 3), **traced}

    def prepare_step(self) -> Cache:
        """Compute the rates of decay once for many steps; see `SequenceModel`."""
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
        """Run one step; see `SequenceModel`."""
        rate = self._rate() if cache is None else cache["rate"]
        v, z = self.in_proj(x).split(self.inner, -1)
        v, conv = conv_step(v, self.conv_weight, self.conv_bias, state["conv"], reset)
        h, begun = state["h"], state["begun"]
        fresh = ~(begun[:, 0] > 0.5)
        if reset is not None:
            fresh = fresh | reset
            h = torch.where(reset[:, None], 0.0, h)
        a, b = self._gated(v, rate, fresh)
        h = torch.addcmul(b, a, h)
        y = self.out_proj(gelu(z) * h.to(z.dtype))
        return y, {"conv": conv, "h": h, "begun": torch.where(fresh[:, None], 1.0, begun)}


def conforms(layer: RGLRULayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
