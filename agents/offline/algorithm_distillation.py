"""Algorithm Distillation: a sequence model that imitates how a learner gets better.

Paper: Laskin et al. 2023, "In-context Reinforcement Learning with Algorithm Distillation"
(sections 3 and 4, algorithm 1). From windows of learning histories, of one task each,

    loss = - mean_t log pi(a_t | o_0, a_0, r_0, ..., o_t-1, a_t-1, r_t-1, o_t)

over the ends of episodes: to tell what the learner does next, the model has to tell how far it has
come, and from what. Put into a new task with a memory that is cleared once, it gets better there
from episode to episode, with fixed weights. One token per step,

    u_t = drop(W_2 gelu(W_1 [o_t, a_t-1, c r_t-1, is_first_t]))

with a_t-1 and r_t-1 those of the episode before where an episode begins, and 0 where the memory
is cleared. Any layer of the suite is the core; acting takes one step of its memory per action.

Deviations: the paper's core is a transformer over windows of tokens o, a, r; here it is recurrent,
and acts with all that it has seen of a trial. Windows begin where histories do, with the first of
their episodes, unless `starts` says otherwise: so acting begins, too.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline.acting import Arrived, RecurrentActing
from statewise.agents.offline.inputs import ObsNormalizer
from statewise.agents.offline.protocol import ActingInput, ObsStatistics
from statewise.agents.offline.sequence_agent import (
    SequenceAgent,
    SequenceLearningConfig,
    seeded,
)
from statewise.agents.offline.sequence_policy import ActionHead, SequencePolicy, TokenCore
from statewise.agents.offline.tokens import PolicyRows, cleared
from statewise.agents.optimizer import Schedule
from statewise.data.history_sampler import HistoryConfig, HistoryStart
from statewise.data.samplers import SampledBatch
from statewise.data.shift import to_arrival
from statewise.ssm.build import SequenceConfig, build_sequence

Memory = Literal["history", "episode"]
ObsScale = Literal["data", "none"]
HEARD = 2  # numbers beside observation and action: the last reward, and whether an episode begins


@dataclass(frozen=True, kw_only=True)
class AlgorithmDistillationConfig(SequenceLearningConfig):
    """Settings; the defaults are calibrated for small machines."""

    learning_rate: float = 1e-3  # > 0, AdamW
    schedule: Schedule = "cosine"
    warmup_updates: int = 50  # >= 0
    max_grad_norm: float = 1.0  # > 0
    batch_size: int = 32  # >= 1, windows
    dropout: float = 0.0  # [0, 1)
    ssm_lr_factor: float = 1.0  # > 0, learning rate of state-space parameters, relative
    context: int | None = 160  # >= 1, steps of a window; None: whole histories
    every: int = 1  # k >= 1: windows hold every k-th episode of a history
    starts: HistoryStart = "history"  # of windows; episode: with any episode
    memory: Memory = "history"  # how long it lives; episode: the control that cannot learn
    obs_scale: ObsScale = "data"  # of vectors; none: as they are, for one-hot codes
    reward_scale: float = 1.0  # c > 0, multiplies the rewards that are read
    sequence: SequenceConfig = field(default_factory=SequenceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ssm_lr_factor", "reward_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("every", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


class HistoryTokens(nn.Module):
    """One token per step of what was seen, done and got; a layout of `Tokens`.

    Args:
        d_obs: S, width of the observations with what is `HEARD`.
        d_action: A, width of the action codes.
        d_model: width of the tokens.
        dropout: in [0, 1).
    """

    per_step = 1
    read_at = 0

    def __init__(self, d_obs: int, d_action: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.d_out = d_model
        self.project = nn.Sequential(
            nn.Linear(d_obs + d_action, d_model),
            nn.GELU(),
            nn.Linear(d_model, d_model),
            nn.Dropout(dropout),
        )

    def arriving(self, rows: PolicyRows) -> Tensor:
        """Return the tokens (..., 1, d_out) of rows (...)."""
        tokens: Tensor = self.project(torch.cat((rows.obs, rows.previous), -1))
        return tokens.unsqueeze(-2)

    def leaving(self, previous: Tensor, timestep: Tensor) -> None:
        """Return None: the previous action comes with the next token."""

    def forward(self, rows: PolicyRows) -> tuple[Tensor, Tensor]:
        """Return u_0, u_1, ... and their resets; see `Tokens`."""
        return self.arriving(rows).squeeze(-2), rows.reset


class HistoryPolicy(SequencePolicy):
    """A policy that reads rewards, and runs on over the ends of episodes.

    Args:
        inputs: of the observations.
        tokens: the layout.
        core: over tokens of the layout's width.
        head: over the core's width.
        memory: how long it lives.
        reward_scale: > 0.
    """

    def __init__(
        self,
        inputs: ObsNormalizer,
        tokens: HistoryTokens,
        core: TokenCore,
        head: ActionHead,
        *,
        memory: Memory,
        reward_scale: float,
    ) -> None:
        super().__init__(inputs, tokens, core, head)
        self.memory: Memory = memory
        self.reward_scale = reward_scale

    def resets(self, is_first: Tensor, reset: Tensor) -> Tensor:
        """Return where the memory is cleared."""
        return reset | is_first if self.memory == "episode" else reset

    def heard(self, obs: Tensor, reward: Tensor, is_first: Tensor) -> Tensor:
        """Join observations (..., S) with the last rewards and flags (...)."""
        flags = (self.reward_scale * reward, is_first)
        return torch.cat((obs, *(x.to(obs.dtype).unsqueeze(-1) for x in flags)), -1)

    def rows(self, batch: SampledBatch) -> PolicyRows:
        """Return the inputs of windows (B, T); see `SequencePolicy`."""
        step = batch.step
        reset = self.resets(step.is_first, step.reset)
        # What came before is known wherever the memory is, whether an episode begins or not.
        joint = step._replace(is_first=reset, reset=reset)
        rows = super().rows(batch._replace(step=joint))
        obs = self.heard(rows.obs, to_arrival(joint).reward_in, step.is_first & step.valid)
        return rows._replace(obs=obs, rtg=torch.zeros_like(rows.rtg))


def build_policy(
    config: AlgorithmDistillationConfig,
    obs_space: spaces.Dict,
    action_space: spaces.Space[Any],
    statistics: ObsStatistics | None,
) -> HistoryPolicy:
    """Return the network with its initial weights, drawn from torch's own generator."""
    statistics = statistics if config.obs_scale == "data" else None
    inputs = ObsNormalizer(obs_space, statistics, config.encoder)
    core = build_sequence(config.sequence)
    head = ActionHead(core.d_out, action_space)
    tokens = HistoryTokens(inputs.d_out + HEARD, head.code.width, core.d_in, config.dropout)
    return HistoryPolicy(
        inputs, tokens, core, head, memory=config.memory, reward_scale=config.reward_scale
    )


class AlgorithmDistillation(SequenceAgent):
    """Algorithm Distillation; an `OfflineAgent` of learning histories that acts over trials.

    Args:
        config: settings.
        obs_space: flat Dict of one environment.
        action_space: Discrete, MultiDiscrete or a float Box, of one environment.
        statistics: of the data set's observations; None where weights will be loaded.
        total_updates: >= 1, of the run: where the schedule of the learning rate ends.
        seed: of the initial weights, of dropout and of sampled actions.
        device: where the network lives.
    """

    inputs: tuple[ActingInput, ...] = ("previous_action", "previous_reward", "first_step")
    policy: HistoryPolicy

    def __init__(
        self,
        config: AlgorithmDistillationConfig,
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
            HistoryConfig(
                length=config.context,
                batch_size=config.batch_size,
                every=config.every,
                starts=config.starts,
            ),
            total_updates=total_updates,
            seed=seed,
            ssm_lr_factor=config.ssm_lr_factor,
        )

    def arrived(self, obs: dict[str, Tensor], is_first: Tensor, reset: Tensor) -> Arrived:
        """Return what came with a step; episodes begin where `first_step` says so.

        `is_first` is not read: who plays a trial as one episode tells it at the trial's start
        alone.
        """
        first = obs["first_step"].squeeze(-1) > 0
        reset = self.policy.resets(first, reset)
        vector = self.policy.inputs(obs)
        reward = cleared(obs["previous_reward"].squeeze(-1), ~reset)
        previous = self.policy.code.from_previous(obs["previous_action"]).to(vector.dtype)
        return Arrived(
            obs=self.policy.heard(vector, reward, first),
            previous=cleared(previous, ~reset),
            rtg=vector.new_zeros(len(vector)),
            is_new=reset,
            reset=reset,
        )
