"""Implicit Q-learning: values of the better actions in the data, no action outside them asked.

Paper: Kostrikov et al. 2021, "Offline Reinforcement Learning with Implicit Q-Learning" (equations
5 to 7). V is the value, Q_1, Q_2 the critics, a dash their targets, pi the policy; A is the
advantage min(Q_1', Q_2')(s, a) - V(s). One update moves in this order

    value:     mean L(A),     L(u) = |k - 1[u < 0]| u^2,     k the expectile
    policy:   -mean min(exp(beta A), 100) log pi(a | s)
    critics:   mean (Q_1 - y)^2 + mean (Q_2 - y)^2,
               y_t = c (r_t + b) + gamma (1 - terminated_t) V(s_{t+1})
    targets:   the share tau of the way to the critics

each with the networks that moved before it. pi is a normal distribution with mean tanh and a
deviation that does not depend on the state, on actions scaled to [-1, 1]; of discrete actions a
categorical one. Its learning rate falls to 0 along a cosine over the run.

b and c shift and scale the rewards: the paper takes c = 1000 / (R_max - R_min) of the returns in
the data for locomotion, and b = -1 for AntMaze.

Deviations: observations are normalised.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

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
    relu_net,
    td_target,
    twin_loss,
)
from statewise.agents.optimizer import Schedule
from statewise.agents.protocol import Metrics
from statewise.data.samplers import TransitionBatch
from statewise.nets.distributions import DiagonalGaussian

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0
HIGHEST_WEIGHT = 100.0


@dataclass(frozen=True, kw_only=True)
class IQLConfig(ValueAgentConfig):
    """Settings; the defaults are the paper's for locomotion, but for the scale of the rewards."""

    expectile: float = 0.7  # k in (0, 1); 0.5 is the mean, towards 1 the best action
    temperature: float = 3.0  # beta >= 0, per scaled reward; 0 imitates all actions alike
    schedule: Schedule = "cosine"  # of the policy's learning rate
    reward_shift: float = 0.0  # b, in the units of the rewards
    reward_scale: float = 1.0  # c > 0, after the shift

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile: expected (0, 1), got {self.expectile}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if not self.reward_scale > 0:
            raise ValueError(f"reward_scale: expected a positive number, got {self.reward_scale}")


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Return the mean of L(u), where V = Q - u is smallest at the expectile of Q.

    Args:
        difference: u (B,), positive where the value is too low.
        expectile: k in (0, 1).
    """
    weight = torch.where(difference < 0, 1.0 - expectile, expectile)
    return (weight * difference.square()).mean()


def advantage_weights(advantage: Tensor, temperature: float) -> Tensor:
    """Return min(exp(beta A), 100), (B,), without gradient."""
    return (temperature * advantage).exp().clamp(max=HIGHEST_WEIGHT).detach()


class IQLPolicy(nn.Module):
    """The distribution of actions; see the module.

    Args:
        actor: of its mean, or logits.
    """

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.actor = actor
        self.log_std = None if actor.code.nvec else nn.Parameter(torch.zeros(actor.code.width))

    def gaussian(self, mean: Tensor) -> DiagonalGaussian:
        """Return the distribution around means (B, A) of a Box."""
        assert self.log_std is not None, "discrete actions have no deviation"
        return DiagonalGaussian(mean, self.log_std.clamp(LOG_STD_LOW, LOG_STD_HIGH))

    def log_prob(self, obs: dict[str, Tensor], action: Tensor) -> Tensor:
        """Return log pi (B,) of action codes (B, A)."""
        predicted: Tensor = self.actor(obs)
        if self.log_std is None:
            return -self.actor.code.loss(predicted, action)
        return self.gaussian(predicted).log_prob(action)


class Value(nn.Module):
    """The value of an observation.

    Args:
        inputs: of the observations.
        hidden: widths.
    """

    def __init__(self, inputs: ObsNormalizer, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.inputs = inputs
        self.layers = relu_net(inputs.d_out, hidden, 1)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Return V (B,)."""
        value: Tensor = self.layers(self.inputs(obs))
        return value.squeeze(-1)


class IQL(TransitionAgent):
    """Implicit Q-learning; an `OfflineAgent`.

    Args:
        config: settings.
        obs_space: flat Dict of one environment.
        action_space: Discrete, MultiDiscrete or a float Box, of one environment.
        statistics: of the data set's observations; None where weights will be loaded.
        total_updates: >= 1, of the run: where the schedule of the learning rate ends.
        seed: of the initial weights and of sampled actions.
        device: where the networks live.
    """

    def __init__(
        self,
        config: IQLConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        statistics: ObsStatistics | None,
        total_updates: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        with seeded(seed):
            policy_in, critic_in, value_in = (
                ObsNormalizer(obs_space, statistics, config.encoder) for _ in range(3)
            )
            actor = Actor(policy_in, action_space, config.hidden)
            self.policy = IQLPolicy(actor).to(device)
            self.critics = TwinCritics(critic_in, actor.code.width, config.hidden).to(device)
            self.value = Value(value_in, config.hidden).to(device)
        self.target_critics = frozen_copy(self.critics)
        rate = config.learning_rate
        super().__init__(
            {
                "policy": self.policy,
                "critics": self.critics,
                "value": self.value,
                "target_critics": self.target_critics,
            },
            {
                "policy": adam(self.policy, rate, total_updates, schedule=config.schedule),
                "critics": adam(self.critics, rate, total_updates),
                "value": adam(self.value, rate, total_updates),
            },
            code=actor.code,
            batch_size=config.batch_size,
            seed=seed,
            device=device,
        )
        self.config = config

    def predict(self, obs: dict[str, Tensor]) -> Tensor:
        """Return means or logits (B, A)."""
        predicted: Tensor = self.policy.actor(obs)
        return predicted

    def explored(self, predicted: Tensor) -> Tensor:
        """Return codes drawn around the means of a Box; logits as they are."""
        if self.code.nvec:
            return predicted
        return self.policy.gaussian(predicted).sample(self.generator)

    def learn(self, batch: TransitionBatch) -> Metrics:
        """Move value, policy, critics and targets, in this order."""
        with torch.no_grad():
            q = self.target_critics(batch.obs, batch.action).amin(0)
        value = self._move_value(batch, q)
        policy = self._move_policy(batch, q)
        critics = self._move_critics(batch)
        follow(self.target_critics, self.critics, self.config.target_rate)
        return critics | value | policy

    def _move_value(self, batch: TransitionBatch, q: Tensor) -> Metrics:
        v = self.value(batch.obs)
        loss = expectile_loss(q - v, self.config.expectile)
        self.optimizers["value"].step({"value": loss}, loss, self.updates_made)
        return {"value_loss": float(loss.detach()), "value_mean": float(v.detach().mean())}

    def _move_policy(self, batch: TransitionBatch, q: Tensor) -> Metrics:
        with torch.no_grad():
            weight = advantage_weights(q - self.value(batch.obs), self.config.temperature)
        loss = -(weight * self.policy.log_prob(batch.obs, batch.action)).mean()
        report = self.optimizers["policy"].step({"actor": loss}, loss, self.updates_made)
        return {
            "actor_loss": float(loss.detach()),
            "weight_mean": float(weight.mean()),
            "learning_rate": report["learning_rate"],
        }

    def _move_critics(self, batch: TransitionBatch) -> Metrics:
        config = self.config
        reward = config.reward_scale * (batch.reward + config.reward_shift)
        with torch.no_grad():
            target = td_target(
                reward, batch.terminated, self.value(batch.next_obs), config.discount
            )
        loss = twin_loss(self.critics(batch.obs, batch.action), target)
        report = self.optimizers["critics"].step({"critic": loss}, loss, self.updates_made)
        return {"critic_loss": float(loss.detach()), "grad_norm": report["grad_norm"]}
