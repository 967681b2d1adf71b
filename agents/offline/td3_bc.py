"""TD3+BC: TD3 on a data set, with a regression on its actions beside the policy gradient.

Paper: Fujimoto & Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning" (equation 5),
on TD3 (Fujimoto et al. 2018). Q_1, Q_2 are the critics and pi the actor; a dash is a target.

    a'       = clip(pi'(s_{t+1}) + clip(e, -c, c), -1, 1),    e ~ N(0, sigma)
    y_t      = r_t + gamma (1 - terminated_t) min(Q_1', Q_2')(s_{t+1}, a')
    critics:   mean (Q_1 - y)^2 + mean (Q_2 - y)^2
    actor:     mean (pi(s) - a)^2 - lambda mean Q_1(s, pi(s)),   lambda = alpha / mean |Q_1|

Actor and targets move at every d-th update, by the share tau. Actions are scaled to [-1, 1].

Deviations: observations are divided by std + 1e-6 (paper 1e-3); the first update is one of those
that move the actor. A policy gradient needs an action to differentiate: a Box only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents import parallel
from statewise.agents.offline.inputs import ObsNormalizer
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.sequence_agent import seeded
from statewise.agents.offline.transitions import (
    Actor,
    TransitionAgent,
    TwinCritics,
    ValueAgentConfig,
    adam,
    follow,
    frozen_copy,
    td_target,
    twin_loss,
)
from statewise.agents.protocol import Metrics
from statewise.data.samplers import TransitionBatch


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(ValueAgentConfig):
    """Settings; the defaults are the paper's."""

    alpha: float = 2.5  # >= 0, weight of the value against the regression; 0: regression alone
    target_noise: float = 0.2  # sigma >= 0, in actions scaled to [-1, 1]
    target_clip: float = 0.5  # c >= 0, in the same units
    policy_delay: int = 2  # d >= 1, updates per step of actor and targets

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "target_noise", "target_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.policy_delay < 1:
            raise ValueError(f"policy_delay: expected at least 1, got {self.policy_delay}")


def smoothed(action: Tensor, noise: Tensor, limit: float, is_bounded: Tensor) -> Tensor:
    """Return a' (B, A): actions with clipped noise, kept in [-1, 1] where axes have bounds.

    Args:
        action: (B, A) codes.
        noise: (B, A).
        limit: c >= 0.
        is_bounded: (A,) bool.
    """
    moved = action + noise.clamp(-limit, limit)
    return torch.where(is_bounded, moved.clamp(-1.0, 1.0), moved)


def policy_loss(q: Tensor, error: Tensor, alpha: float) -> Tensor:
    """Return the actor's loss; lambda, of the batches of all processes, counts as a constant.

    Args:
        q: (B,) Q_1 of the actor's actions.
        error: (B,) mean squared distance of the actor's actions from the data's.
        alpha: >= 0.
    """
    scale = alpha / parallel.mean(q.abs().mean().detach())
    return error.mean() - scale * q.mean()


class TD3BC(TransitionAgent):
    """TD3+BC; an `OfflineAgent` with a deterministic policy.

    Args:
        config: settings.
        obs_space: flat Dict of one environment.
        action_space: a float Box with one axis, of one environment.
        statistics: of the data set's observations; None where weights will be loaded.
        total_updates: >= 1, of the run; the learning rate is constant.
        seed: of the initial weights and of the noise.
        device: where the networks live.

    Raises:
        ValueError: the action space is no Box.
    """

    def __init__(
        self,
        config: TD3BCConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        statistics: ObsStatistics | None,
        total_updates: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(action_space, spaces.Box):
            raise ValueError(
                f"action_space: expected a float Box for TD3+BC, got {action_space}: use iql or bc"
            )
        with seeded(seed):
            actor_in, critic_in = (
                ObsNormalizer(obs_space, statistics, config.encoder) for _ in range(2)
            )
            self.actor = Actor(actor_in, action_space, config.hidden).to(device)
            width = self.actor.code.width
            self.critics = TwinCritics(critic_in, width, config.hidden).to(device)
        self.target_actor = frozen_copy(self.actor)
        self.target_critics = frozen_copy(self.critics)
        networks = {
            "actor": self.actor,
            "critics": self.critics,
            "target_actor": self.target_actor,
            "target_critics": self.target_critics,
        }
        super().__init__(
            networks,
            {
                name: adam(networks[name], config.learning_rate, total_updates)
                for name in ("actor", "critics")
            },
            code=self.actor.code,
            batch_size=config.batch_size,
            seed=seed,
            device=device,
        )
        self.config = config
        self.actor_report: Metrics = {}

    def predict(self, obs: dict[str, Tensor]) -> Tensor:
        """Return pi(s), (B, A)."""
        predicted: Tensor = self.actor(obs)
        return predicted

    def learn(self, batch: TransitionBatch) -> Metrics:
        """Move the critics, and at every d-th update the actor and the targets.

        The actor's losses are those of its last step.
        """
        report = self._move_critics(batch)
        if self.updates_made % self.config.policy_delay == 0:
            self.actor_report = self._move_actor(batch)
            follow(self.target_actor, self.actor, self.config.target_rate)
            follow(self.target_critics, self.critics, self.config.target_rate)
        return report | self.actor_report

    @torch.no_grad()
    def _target(self, batch: TransitionBatch) -> Tensor:
        """Return y (B,)."""
        action = self.target_actor(batch.next_obs)
        noise = torch.empty_like(action).normal_(generator=self.generator)
        noise = noise * self.config.target_noise
        action = smoothed(action, noise, self.config.target_clip, self.code.is_bounded)
        value_tp1 = self.target_critics(batch.next_obs, action).amin(0)
        return td_target(batch.reward, batch.terminated, value_tp1, self.config.discount)

    def _move_critics(self, batch: TransitionBatch) -> Metrics:
        target = self._target(batch)
        q = self.critics(batch.obs, batch.action)
        loss = twin_loss(q, target)
        report = self.optimizers["critics"].step({"critic": loss}, loss, self.updates_made)
        q_mean = float(q.detach().mean())
        return {"critic_loss": float(loss.detach()), "q_mean": q_mean} | report

    def _move_actor(self, batch: TransitionBatch) -> Metrics:
        action = self.actor(batch.obs)
        error = self.code.loss(action, batch.action)
        loss = policy_loss(self.critics.first(batch.obs, action), error, self.config.alpha)
        self.optimizers["actor"].step({"actor": loss}, loss, self.updates_made)
        return {"actor_loss": float(loss.detach()), "action_loss": float(error.detach().mean())}

    def state_dict(self) -> dict[str, Any]:
        """Return the networks and what goes with them, and the actor's last losses."""
        return super().state_dict() | {"actor_report": dict(self.actor_report)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; see `TransitionAgent`."""
        super().load_state_dict(state)
        self.actor_report = dict(state["actor_report"])
