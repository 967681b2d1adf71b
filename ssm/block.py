"""A residual block around a sequence layer.

    v = norm(x);  v = layer(v);  v = norm(v) if after_norm;  v = gate(v);  x = x + v

Gates, with g = gelu (tanh form): full_glu (W1 g(v)) * sigmoid(W2 g(v)); half_glu1 g(v) *
sigmoid(W g(v)); half_glu2 v * sigmoid(W g(v)); gelu g(v); none v. "mlp" is no gate but a second
residual branch, x = x + W2 gelu(W1 norm(x)), as in transformers. Orders and names as in Smith et
al. 2023 and Lu et al. 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import gated_sum, gelu
from statewise.ssm.norm import RMSNorm
from statewise.ssm.protocol import Cache, SequenceModel, State

Norm = Literal["layer", "rms", "none"]
Gate = Literal["full_glu", "half_glu1", "half_glu2", "gelu", "mlp", "none"]
MLP_WIDTH = 4  # times the width of the block


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What surrounds each layer; "plain" is the bare layer and takes none of the rest."""

    kind: Literal["residual", "plain"] = "residual"
    norm: Literal["auto", "layer", "rms", "none"] = "auto"  # auto: what the layer's paper has
    norm_position: Literal["pre", "post"] = "pre"  # before the layer, or after the residual sum
    after_norm: Literal["none", "shared"] = "none"  # the same norm again after the layer
    norm_eps: float = 1e-5  # > 0
    gate: Literal["auto", "full_glu", "half_glu1", "half_glu2", "gelu", "mlp", "none"] = "auto"

    def __post_init__(self) -> None:
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps: expected a positive number, got {self.norm_eps}")
        if self.after_norm == "shared" and self.norm == "none":
            raise ValueError('after_norm: "shared" repeats the norm, but norm is "none"')
        if self.kind == "plain" and (self.norm, self.norm_position, self.gate) != (
            "auto",
            "pre",
            "auto",
        ):
            raise ValueError("kind: a plain block has no norm and no gate: remove those settings")


def resolve(config: BlockConfig, norm: Norm, gate: Gate) -> BlockConfig:
    """Replace "auto" by what the row of a layer says; a plain block keeps it."""
    if config.kind == "plain":
        return config
    return replace(
        config,
        norm=norm if config.norm == "auto" else config.norm,
        gate=gate if config.gate == "auto" else config.gate,
    )


def _norm(config: BlockConfig, d_model: int) -> nn.Module | None:
    if config.norm == "none":
        return None
    make = nn.LayerNorm if config.norm == "layer" else RMSNorm
    return make(d_model, eps=config.norm_eps)


class Block(nn.Module):
    """A layer with norm, gate and residual; a `SequenceModel` with the state of its layer."""

    def __init__(self, layer: SequenceModel, config: BlockConfig | None = None):
        super().__init__()
        assert isinstance(layer, nn.Module)
        config = resolve(BlockConfig() if config is None else config, "layer", "full_glu")
        self.config = config
        self.d_in = self.d_out = d_model = layer.d_out
        self.layer = layer
        residual = config.kind == "residual"
        self.norm = _norm(config, d_model) if residual else None
        self.gate: nn.Linear | None = None
        self.mlp: nn.Sequential | None = None
        if residual and config.gate == "mlp":
            self.mlp = nn.Sequential(
                _norm(config, d_model) or nn.Identity(),
                nn.Linear(d_model, MLP_WIDTH * d_model),
                nn.GELU(approximate="tanh"),
                nn.Linear(MLP_WIDTH * d_model, d_model),
            )
        if residual and config.gate.endswith(("glu", "glu1", "glu2")):
            self.gate = nn.Linear(d_model, 2 * d_model if config.gate == "full_glu" else d_model)

    def _mix(self, v: Tensor) -> Tensor:
        kind = self.config.gate
        if kind == "none":
            return v
        activated = gelu(v)
        if self.gate is None:
            return activated
        kept = activated if kind == "half_glu1" else v
        return kept * self.gate(activated).sigmoid()

    def _around(self, x: Tensor, run: Callable[[Tensor], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Apply everything but the layer, which is `run`: v -> (v, states...)."""
        config, norm = self.config, self.norm
        if config.kind == "plain":
            return run(x)
        pre = norm is not None and config.norm_position == "pre"
        v, *states = run(norm(x) if norm is not None and pre else x)
        if norm is not None and config.after_norm == "shared":
            v = norm(v)
        if config.gate == "full_glu":
            return self._gated(x, v, None if pre else norm), *states
        y = x + (v if self.mlp is not None else self._mix(v))
        if self.mlp is not None:
            y = y + self.mlp(y)
        return norm(y) if norm is not None and not pre else y, *states

    def _gated(self, x: Tensor, v: Tensor, norm: nn.Module | None) -> Tensor:
        """Return x + full_glu(v), or its norm."""
        assert self.gate is not None
        ab = F.linear(gelu(v), self.gate.weight)
        if isinstance(norm, nn.LayerNorm):
            return gated_sum(x, ab, self.gate.bias, norm.weight, norm.bias, norm.eps)
        y = gated_sum(x, ab, self.gate.bias)
        return y if norm is None else norm(y)

    def initial_state(self, batch_size: int) -> State:
        """Return the layer's."""
        return self.layer.initial_state(batch_size)

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        y, last = self._around(x, lambda v: self.layer(v, state, reset))
        return y, last

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way; see `SequenceModel`."""
        y, last, traced = self._around(x, lambda v: self.layer.trace(v, state, reset, every))
        return y, last, traced

    def prepare_step(self) -> Cache:
        """Return the layer's."""
        return self.layer.prepare_step()

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        y, last = self._around(x, lambda v: self.layer.step(v, state, reset, cache=cache))
        return y, last


def conforms(block: Block) -> SequenceModel:
    """Let the type checker compare the block with the protocol."""
    return block
