"""Decision S4, offline stage: a state-space policy on whole episodes that acts with O(1) memory.

Paper: Bar David et al. 2023, "Decision S4: Efficient Sequence-Based RL via State Spaces Layers"
(sections 3.1 and 3.2). One token per step (`tokens.py`), then blocks

    x = x + gelu(W drop(gelu(layer(LN x))))

and a linear head without bias. The layer of the paper is S4; S4D, its diagonal form, is the
default, and any other layer of the suite can take its place. The loss is that of
`sequence_agent.py`, on whole episodes padded on the right.

Deviations, which `parity: paper` undoes: norm and residual branch; the first step of an episode
counts in the loss; A, B and the step sizes learn. Always: state-space parameters take no weight
decay; `squash: tanh` bends the output into the bounds, where "clip" has the linear output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline.acting import RecurrentActing
from statewise.agents.offline.inputs import ObsNormalizer, Squash
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.sequence_agent import SequenceAgent, SequenceAgentConfig, seeded
from statewise.agents.offline.sequence_policy import ActionHead, SequencePolicy
from statewise.agents.offline.tokens import SingleTokens
from statewise.agents.offline.wrapped import Wrapped
from statewise.agents.optimizer import Schedule
from statewise.data.samplers import TrajectoryConfig
from statewise.data.step import Step
from statewise.kernels import Backend, lti_blocks_step, lti_blocks_step_runs
from statewise.ssm.block import Block, BlockConfig
from statewise.ssm.build import NO_BACKEND, SEQUENCES, Kind, SequenceConfig
from statewise.ssm.lti import ChannelLayer
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.stack import Stack
from statewise.ssm.state import select

Freeze = Literal["none", "dynamics", "all"]
NORM_EPS = 1e-5
NOT_DYNAMICS = ("D", "h_init")  # of what a layer declares in `ssm_parameters`


@dataclass(frozen=True, kw_only=True)
class DecisionS4Sequence(SequenceConfig):
    """The layers, with other defaults than elsewhere; `block` is this system's own."""

    kind: Kind = "s4d"
    num_layers: int = 3  # >= 1
    d_model: int = 64  # H >= 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block != BlockConfig():
            raise ValueError("block: would be ignored: Decision S4 has a block of its own")


@dataclass(frozen=True, kw_only=True)
class DecisionS4Config(SequenceAgentConfig):
    """Settings; the defaults are calibrated for small machines."""

    learning_rate: float = 1e-3  # > 0, AdamW
    schedule: Schedule = "cosine"
    warmup_updates: int = 100  # >= 0
    batch_size: int = 16  # >= 1, episodes
    dropout: float = 0.0  # [0, 1)
    ssm_lr_factor: float = 1.0  # > 0, learning rate of state-space parameters, relative
    d_embed: int = 128  # E >= 1, width of each of the three embeddings
    squash: Squash = "tanh"  # what keeps a Box within its bounds
    parity: Literal["ours", "paper"] = "ours"
    freeze: Literal["auto", "none", "dynamics", "all"] = "auto"  # of the layers; dynamics: A, B, dt
    buckets: int = 1  # >= 1 groups of episodes of like lengths; less padding
    packing: Literal["none", "rows"] = "none"  # rows: short episodes share a line
    sequence: DecisionS4Sequence = field(default_factory=DecisionS4Sequence)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ssm_lr_factor > 0:
            raise ValueError(f"ssm_lr_factor: expected a positive number, got {self.ssm_lr_factor}")
        for name in ("d_embed", "buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.freeze == "dynamics" and self.sequence.kind in NO_BACKEND:
            raise ValueError(
                f"freeze: expected none or all with kind {self.sequence.kind!r}, which has no "
                "dynamics of its own, got 'dynamics'"
            )


def freeze_layer(layer: SequenceModel, freeze: Freeze) -> None:
    """Take parameters of a layer out of learning.

    "dynamics" are the recurrence's own: A, B and dt; of selective layers what does not depend on
    the input. "all" is the whole layer.
    """
    assert isinstance(layer, nn.Module), type(layer)
    declared = getattr(layer, "ssm_parameters", ())
    for name, parameter in layer.named_parameters():
        is_dynamics = name in declared and name not in NOT_DYNAMICS
        if freeze == "all" or (freeze == "dynamics" and is_dynamics):
            parameter.requires_grad_(False)


class Mix(nn.Module):
    """What follows the layer in a block of width `d_model`."""

    def __init__(self, d_model: int, dropout: float, residual: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.linear = nn.Linear(d_model, d_model)
        self.residual = residual

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        """Mix the outputs v of the layer and add the share `residual` of x, both (..., D)."""
        mixed = F.gelu(self.linear(self.drop(F.gelu(v))))
        return torch.add(mixed, x, alpha=self.residual)


def _parts(block: Block, cache: Cache) -> tuple[Tensor, ...] | None:
    """Return what `lti_blocks_step` needs of a block; None where its layer is not diagonal."""
    wrapped = cast("Wrapped", block.layer)
    layer, norm, mix = wrapped.layer, wrapped.before, wrapped.after
    assert isinstance(mix, Mix), type(mix)
    if not isinstance(layer, ChannelLayer):
        return None
    none = layer.D.new_zeros(0)
    weights = (norm.weight, norm.bias) if isinstance(norm, nn.LayerNorm) else (none, none)
    return *weights, cache["a"], cache["b"], cache["c"], layer.D, mix.linear.weight, mix.linear.bias


class MixedStack(Stack):
    """The blocks; acting with diagonal layers is one call into C++ for all of them.

    Args:
        blocks: plain ones around `Wrapped(norm, layer, Mix)`.
        residual: the share of all of them.
        backend: of the layers.
    """

    def __init__(self, blocks: Sequence[Block], residual: float, backend: Backend) -> None:
        super().__init__(blocks)
        self.residual = residual
        self.backend: Backend = backend
        self._known: tuple[Cache, list[tuple[Tensor, ...]] | None] | None = None

    def _all_parts(self, cache: Cache) -> list[tuple[Tensor, ...]] | None:
        """Return those of all blocks, found once per cache."""
        if self._known is None or self._known[0] is not cache:
            found = [_parts(block, select(cache, prefix)) for prefix, block in self._each()]
            known = [parts for parts in found if parts is not None]
            self._known = (cache, known if len(known) == len(found) else None)
        return self._known[1]

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        parts = None if cache is None or self.training else self._all_parts(cache)
        keys = [f"{i}.h" for i in range(len(self.blocks))]
        if parts is None or not lti_blocks_step_runs(x, state[keys[0]], self.backend):
            return super().step(x, state, reset, cache=cache)
        states = [state[key] for key in keys]
        y, after = lti_blocks_step(x, parts, states, reset, eps=NORM_EPS, share=self.residual)
        return y, dict(zip(keys, after, strict=True))


def build_core(config: DecisionS4Config) -> Stack:
    """Return the blocks; initial weights come from torch's own generator."""
    sequence, is_paper = config.sequence, config.parity == "paper"
    freeze: Freeze = config.freeze if config.freeze != "auto" else "none"
    if config.freeze == "auto" and is_paper:
        freeze = "dynamics"
    residual, blocks = 0.0 if is_paper else 1.0, []
    for _ in range(sequence.num_layers):
        layer = SEQUENCES[sequence.kind].make(sequence)
        freeze_layer(layer, freeze)
        norm = nn.Identity() if is_paper else nn.LayerNorm(sequence.d_model, eps=NORM_EPS)
        mix = Mix(sequence.d_model, config.dropout, residual)
        blocks.append(Block(Wrapped(norm, layer, mix), BlockConfig(kind="plain")))
    return MixedStack(blocks, residual, sequence.backend)


def build_policy(
    config: DecisionS4Config,
    obs_space: spaces.Dict,
    action_space: spaces.Space[Any],
    statistics: ObsStatistics | None,
) -> SequencePolicy:
    """Return the network with its initial weights, drawn from torch's own generator."""
    inputs = ObsNormalizer(obs_space, statistics, config.encoder)
    head = ActionHead(config.sequence.d_model, action_space, squash=config.squash, bias=False)
    tokens = SingleTokens(
        inputs.d_out,
        head.code.width,
        d_embed=config.d_embed,
        d_model=config.sequence.d_model,
        return_scale=config.return_scale,
        dropout=config.dropout,
        action_input=config.action_input,
    )
    return SequencePolicy(inputs, tokens, build_core(config), head)


class DecisionS4(SequenceAgent):
    """Decision S4; an `OfflineAgent` that learns from whole episodes and acts step by step.

    Args:
        config: settings.
        obs_space: flat Dict of one environment.
        action_space: Discrete, MultiDiscrete or a float Box, of one environment.
        statistics: of the data set's observations; None where weights will be loaded.
        total_updates: >= 1, of the run: where the schedule of the learning rate ends.
        seed: of the initial weights, of dropout and of sampled actions.
        device: where the network lives.
    """

    def __init__(
        self,
        config: DecisionS4Config,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        statistics: ObsStatistics | None,
        total_updates: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        with seeded(seed):
            policy = build_policy(config, obs_space, action_space, statistics).to(device)
        super().__init__(
            config,
            policy,
            RecurrentActing(policy),
            TrajectoryConfig(
                batch_size=config.batch_size, buckets=config.buckets, packing=config.packing
            ),
            total_updates=total_updates,
            seed=seed,
            ssm_lr_factor=config.ssm_lr_factor,
        )
        self.parity = config.parity

    def counted(self, step: Step) -> Tensor:
        """Return the rows that count in the loss; the paper's has no first steps."""
        rows = super().counted(step)
        return rows & ~step.is_first if self.parity == "paper" else rows
