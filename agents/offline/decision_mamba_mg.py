"""Multi-grained Decision Mamba with self-evolution.

Paper: Lv et al. 2024, "Decision Mamba: A Multi-Grained State Space Model with Self-Evolution
Regularization for Offline RL". Tokens and action head are those of Decision Transformer, the
layers those of `multi_grained`; the token of a_t also predicts what follows:

    loss = w_a l(a_hat_t, target_t) + w_s h(s_hat_{t+1} - s_{t+1}) + w_R h(R_hat_{t+1} - R_{t+1})

with l as in `sequence_agent`, h the smooth absolute error, R divided by `return_scale`, the last
two over pairs of steps of one episode, and target_t from `self_evolution`.

Deviations: the fine branch is causal, and labels are refined by a policy that is truly past. The
release leaks labels through its fine branch and sets beta to 0; `parity: release` repeats both,
and warns. Three layers of width 128 for 24 of 768. Embeddings are linear and the head has one
layer and a tanh, as the release has it for Hopper only; the time embedding is added before the
norm, not after; windows are padded on the right; the optimiser is that of the other systems. The
features of a picture are a target without gradient.

`train_on` and `inference` are those of `decision_mamba`; `recurrent` needs a fine branch with a
step mode, `causal_window`.
"""

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline.decision_mamba import (
    DecisionMambaConfig,
    acting_of,
    sampling_of,
)
from statewise.agents.offline.inputs import ObsNormalizer
from statewise.agents.offline.multi_grained import TRIPLET, Fine, Fusion, build_core
from statewise.agents.offline.protocol import ObsStatistics, OfflineBatch
from statewise.agents.offline.self_evolution import SelfEvolutionConfig, Teacher, refined
from statewise.agents.offline.sequence_agent import SequenceAgent, seeded
from statewise.agents.offline.sequence_policy import ActionHead, SequencePolicy, TokenCore
from statewise.agents.offline.tokens import PolicyRows, TripleTokens, normal_weights
from statewise.agents.offline.triples import build_ends
from statewise.agents.protocol import Metrics
from statewise.agents.recurrent_ppo import masked_mean
from statewise.agents.state_dicts import load_weights
from statewise.data.samplers import SampledBatch
from statewise.data.step import Step

ACTION_TOKEN = TRIPLET - 1


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Coefficients of the terms of the loss."""

    action: float = 0.9  # > 0
    next_obs: float = 0.05  # >= 0
    next_return: float = 0.05  # >= 0

    def __post_init__(self) -> None:
        if not self.action > 0:
            raise ValueError(f"action: expected a positive number, got {self.action}")
        for name in ("next_obs", "next_return"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DecisionMambaMGConfig(DecisionMambaConfig):
    """Settings; the defaults are the release's where `DecisionMambaConfig` has others."""

    weight_decay: float = 1e-5  # >= 0, as in `SequenceAgentConfig`
    warmup_updates: int = 2500  # >= 0, linear
    dropout: float = 0.0  # [0, 1), of the sum of both branches; the release has none at work
    fine: Fine = "causal_window"  # what the fine branch sees; paper_release leaks labels
    fusion: Fusion = "sum"  # of the branches
    loss_weights: LossWeights = field(default_factory=LossWeights)
    self_evolution: SelfEvolutionConfig = field(default_factory=SelfEvolutionConfig)
    parity: Literal["ours", "release"] = "ours"  # release: fine paper_release, labels not refined

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parity == "release":
            self._check_release()
        if fine_of(self) == "paper_release" and self.train_on != "windows":
            raise ValueError(
                "train_on: expected 'windows' with fine 'paper_release', which mixes the steps of "
                f"a line, got {self.train_on!r}: use another fine branch"
            )
        if fine_of(self) != "causal_window" and self.inference == "recurrent":
            raise ValueError(
                "inference: expected 'window' with a fine branch without a step mode, got "
                f"'recurrent' with {fine_of(self)!r}: use fine 'causal_window'"
            )

    def _check_release(self) -> None:
        defaults = {"fusion": "sum", "self_evolution": SelfEvolutionConfig()}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}: would be ignored with parity 'release', got {getattr(self, name)}: "
                    "remove the setting or change parity"
                )
        if self.fine == "shifted_triplet":
            raise ValueError(
                "fine: expected 'paper_release' or nothing with parity 'release', got "
                "'shifted_triplet': remove the setting or change parity"
            )


def fine_of(config: DecisionMambaMGConfig) -> Fine:
    """Return the fine branch that `fine` and `parity` ask for."""
    return "paper_release" if config.parity == "release" else config.fine


def evolution_of(config: DecisionMambaMGConfig) -> SelfEvolutionConfig | None:
    """Return how labels are refined; None where they are not."""
    evolution = config.self_evolution
    off = config.parity == "release" or min(evolution.beta_max, evolution.beta_final) == 0
    return None if off else evolution


def followed(step: Step) -> Tensor:
    """Return for which rows 0 .. T - 2 the next row is a step of the same episode, (B, T - 1)."""
    return step.valid[:, :-1] & step.valid[:, 1:] & ~step.is_first[:, 1:]


def smooth_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the smooth absolute error, d^2 / 2 up to |d| = 1 and |d| - 1/2 beyond.

    Both (..., S); the mean over the last axis, (...). No gradient reaches `target`.
    """
    return F.smooth_l1_loss(predicted, target.detach(), reduction="none").mean(-1)


class MultiGrainedPolicy(SequencePolicy):
    """A policy that also predicts the next observation and return to go at action tokens."""

    def __init__(
        self, inputs: ObsNormalizer, tokens: TripleTokens, core: TokenCore, head: ActionHead
    ) -> None:
        super().__init__(inputs, tokens, core, head)
        self.next_obs = nn.Linear(core.d_out, inputs.d_out)
        self.next_return = nn.Linear(core.d_out, 1)


def build_policy(
    config: DecisionMambaMGConfig,
    obs_space: spaces.Dict,
    action_space: spaces.Space[Any],
    statistics: ObsStatistics | None,
) -> MultiGrainedPolicy:
    """Return the network with its initial weights, drawn from torch's own generator."""
    inputs, tokens, head = build_ends(config, obs_space, action_space, statistics)
    core = build_core(
        fine_of(config),
        config.fusion,
        config.num_layers,
        d_model=config.d_model,
        dropout=config.dropout,
        mamba=config.mamba,
        backend=config.backend,
    )
    policy = MultiGrainedPolicy(inputs, tokens, core, head)
    for module in (tokens, head, policy.next_obs, policy.next_return):
        normal_weights(module)
    return policy


class DecisionMambaMG(SequenceAgent):
    """Multi-grained Decision Mamba; an `OfflineAgent`.

    Args:
        config: settings.
        obs_space: flat Dict of one environment.
        action_space: Discrete, MultiDiscrete or a float Box, of one environment.
        statistics: of the data set's observations; None where weights will be loaded.
        total_updates: >= 1, of the run.
        seed: of the initial weights, of dropout and of sampled actions.
        device: where the network lives.

    Warns:
        UserWarning: with a fine branch that leaks labels.
    """

    policy: MultiGrainedPolicy

    def __init__(
        self,
        config: DecisionMambaMGConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        statistics: ObsStatistics | None,
        total_updates: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if fine_of(config) == "paper_release":
            warnings.warn(
                "fine 'paper_release' lets most predictions of a window see the action they are "
                "to predict, as the released code does; keep it out of result tables",
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
        self.weights = asdict(config.loss_weights)
        self.return_scale = config.return_scale
        evolution = evolution_of(config)
        self.teacher = None if evolution is None else Teacher(policy, evolution, total_updates)

    def share(self) -> float:
        """Return beta, the share of the past policy in the labels of the next update."""
        return 0.0 if self.teacher is None else self.teacher.share(self.updates_made)

    def labels(self, rows: PolicyRows, batch: SampledBatch) -> Tensor:
        """Return the targets of the action term, codes (B, T, A)."""
        beta = self.share()
        if self.teacher is None or beta == 0:
            return rows.action
        return refined(rows.action, self.teacher.labels(batch), beta)

    def losses(self, rows: PolicyRows, batch: SampledBatch) -> dict[str, Tensor]:
        """Return the terms of the loss by name, as `weights` has them."""
        policy = self.policy
        outputs = policy.outputs(rows)
        predicted = policy.head(policy.at(outputs, policy.tokens.read_at))
        error = policy.code.loss(predicted, self.labels(rows, batch))
        at_action = policy.at(outputs, ACTION_TOKEN)[:, :-1]
        rtg_tp1 = rows.rtg[:, 1:, None] / self.return_scale
        pairs = followed(batch.step)
        next_obs = smooth_error(policy.next_obs(at_action), rows.obs[:, 1:])
        next_return = smooth_error(policy.next_return(at_action), rtg_tp1)
        return {
            "action": masked_mean(error, self.counted(batch.step)),
            "next_obs": masked_mean(next_obs, pairs),
            "next_return": masked_mean(next_return, pairs),
        }

    def update(self, batch: OfflineBatch) -> Metrics:
        """Take one gradient step; see `SequenceAgent`. Adds `beta` where labels are refined."""
        if self.teacher is None:
            return super().update(batch)
        beta, kept = self.share(), self.teacher.kept(self.policy)
        report = super().update(batch)
        self.teacher.follow(self.policy, kept, self.updates_made)
        return report | {"beta": beta}

    def state_dict(self) -> dict[str, Any]:
        """Return what `SequenceAgent` does, and the weights of the past policy if there is one."""
        if self.teacher is None:
            return super().state_dict()
        return super().state_dict() | {"teacher": self.teacher.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: keys or shapes differ; one line that names the first difference.
        """
        super().load_state_dict(state)
        if self.teacher is not None:
            load_weights(self.teacher.network, state["teacher"])
