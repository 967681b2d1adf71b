"""Decision Mamba: Decision Transformer with Mamba in place of attention.

Paper: Ota 2024, "Decision Mamba: Reinforcement Learning via Sequence Modeling with Selective
State Spaces" (section 3). Tokens, head and loss are those of Decision Transformer; the layers

    x = x + Mamba(LN x);   x = x + drop(W_2 gelu(W_1 LN x))

and a last LN. All linear layers and tables start at N(0, 0.02); those of Mamba as
`mamba.init` has them where that is not the default.

Deviations: the initial step sizes of Mamba are kept log-uniform in [0.001, 0.1]. The release
overwrites them, so that they start at softplus(0) = 0.69 and memory at a few tokens;
`parity: release` repeats that, and warns. State-space parameters take no weight decay.

`train_on: trajectories` learns from whole episodes, and `inference: recurrent` then acts with
the memory of the core, three tokens per step, at a cost that does not grow. That is another
policy than the paper's, which encodes the last K steps at every action.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline.acting import Acting, RecurrentActing, WindowActing
from statewise.agents.offline.protocol import ObsStatistics, Sampling
from statewise.agents.offline.sequence_agent import SequenceAgent, seeded
from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import TOKEN_STD, normal_weights
from statewise.agents.offline.triples import PAPER_CONTEXT, TripleConfig, build_ends
from statewise.agents.offline.wrapped import Wrapped
from statewise.data.samplers import TrajectoryConfig, WindowConfig
from statewise.kernels import Backend
from statewise.ssm.block import Block, BlockConfig
from statewise.ssm.mamba import MambaConfig, MambaLayer
from statewise.ssm.stack import Stack

MLP_WIDTH = 4  # times the width of the model


@dataclass(frozen=True, kw_only=True)
class DecisionMambaConfig(TripleConfig):
    """Settings; the defaults are the paper's."""

    ssm_lr_factor: float = 1.0  # > 0, learning rate of state-space parameters, relative
    backend: Backend = "auto"  # of the scans
    mamba: MambaConfig = field(default_factory=MambaConfig)
    train_on: Literal["windows", "trajectories"] = "windows"
    inference: Literal["window", "recurrent"] = "window"
    parity: Literal["ours", "release"] = "ours"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ssm_lr_factor > 0:
            raise ValueError(f"ssm_lr_factor: expected a positive number, got {self.ssm_lr_factor}")
        if (self.train_on, self.inference) == ("windows", "recurrent"):
            raise ValueError(
                "inference: expected 'window' with train_on 'windows', got 'recurrent', whose "
                "memory would be longer than any it was trained with: use train_on 'trajectories'"
            )
        if self.inference == "recurrent" and self.context != PAPER_CONTEXT:
            raise ValueError(
                f"context: would be ignored with inference 'recurrent', got {self.context}: "
                "remove the setting or change inference"
            )


class AddMLP(nn.Module):
    """The two residual branches of a layer of width `d_model`, given the output of the first."""

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, MLP_WIDTH * d_model),
            nn.GELU(),
            nn.Linear(MLP_WIDTH * d_model, d_model),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        """Add v, then the network, to x; all (..., D)."""
        y = x + v
        return y + self.mlp(self.norm(y))


class LastNorm(nn.Module):
    """A norm of width `d_model` behind a stack."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        """Normalise v (..., D); x, what went into the stack, has no branch here."""
        return self.norm(v)


class MambaCore(Wrapped):
    """The layers and their last norm, a `TokenReader`.

    Args:
        layers: each around a `MambaLayer`.
    """

    def __init__(self, layers: Sequence[Wrapped]) -> None:
        blocks = [Block(layer, BlockConfig(kind="plain")) for layer in layers]
        super().__init__(nn.Identity(), Stack(blocks), LastNorm(layers[0].d_out))

    def read(self, x: Tensor, reset: Tensor, at: slice) -> Tensor:
        """Return the outputs of some tokens; see `TokenReader`."""
        *blocks, last = cast("Stack", self.layer).blocks
        for block in blocks:
            x, _ = block(x, None, reset)
        top = cast("Wrapped", last.layer)
        v, _ = top.layer(top.before(x), None, reset)
        x, v = x[:, at], v[:, at]
        norm: Tensor = self.after(x, top.after(x, v))
        return norm


def build_core(config: DecisionMambaConfig) -> MambaCore:
    """Return the layers; initial weights come from torch's own generator."""
    D, layers = config.d_model, []
    for _ in range(config.num_layers):
        layer = MambaLayer(D, config.mamba, config.backend)
        layers.append(Wrapped(nn.LayerNorm(D), layer, AddMLP(D, config.dropout)))
    core = MambaCore(layers)
    # A start that was chosen would be lost among weights of 0.02.
    normal_weights(core, kept=(MambaLayer,) if config.mamba.init == "mimetic" else ())
    return core


def overwrite_steps(core: nn.Module) -> None:
    """Start the step sizes of all Mamba layers where the release does."""
    for layer in core.modules():
        if isinstance(layer, MambaLayer):
            nn.init.normal_(layer.dt_weight, std=TOKEN_STD)
            nn.init.zeros_(layer.dt_bias)


def build_policy(
    config: DecisionMambaConfig,
    obs_space: spaces.Dict,
    action_space: spaces.Space[Any],
    statistics: ObsStatistics | None,
) -> SequencePolicy:
    """Return the network with its initial weights, drawn from torch's own generator."""
    inputs, tokens, head = build_ends(config, obs_space, action_space, statistics)
    core = build_core(config)
    for module in (tokens, head):
        normal_weights(module)
    if config.parity == "release":
        overwrite_steps(core)
    return SequencePolicy(inputs, tokens, core, head)


def sampling_of(config: DecisionMambaConfig) -> Sampling:
    """Return the batches that `train_on` asks for."""
    if config.train_on == "windows":
        return WindowConfig(length=config.context, batch_size=config.batch_size)
    return TrajectoryConfig(batch_size=config.batch_size)


def acting_of(config: DecisionMambaConfig, policy: SequencePolicy) -> Acting:
    """Return the way to act that `inference` asks for."""
    if config.inference == "window":
        return WindowActing(policy, config.context)
    return RecurrentActing(policy)


class DecisionMamba(SequenceAgent):
    """Decision Mamba; an `OfflineAgent`.

    Args:
        config: settings.
        obs_space: flat Dict of one environment.
        action_space: Discrete, MultiDiscrete or a float Box, of one environment.
        statistics: of the data set's observations; None where weights will be loaded.
        total_updates: >= 1, of the run.
        seed: of the initial weights, of dropout and of sampled actions.
        device: where the network lives.

    Warns:
        UserWarning: with `parity` "release", which repeats a defect.
    """

    def __init__(
        self,
        config: DecisionMambaConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        statistics: ObsStatistics | None,
        total_updates: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if config.parity == "release":
            warnings.warn(
                "parity 'release' starts Mamba with step sizes near 0.69, as the released code "
                "does: memory is a few tokens at first; keep it out of result tables",
                UserWarning,
                stacklevel=2,
            )
        with seeded(seed):
            policy = build_policy(config, obs_space, action_space, statistics).to(device)
        super().__init__(
            config,
            policy,
            acting_of(config, policy),
            sampling_of(config),
            total_updates=total_updates,
            seed=seed,
            ssm_lr_factor=config.ssm_lr_factor,
        )
