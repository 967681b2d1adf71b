"""Actor and critic that learn in the imagination of a world model.

Paper: Hafner et al. 2023, "Mastering Diverse Domains through World Models" (losses as in the code
of that year; R2I leaves them unchanged).

    s_0 posterior states;   a_i ~ pi(sg s_i);   s_{i+1} ~ prior;   i = 0 .. H - 1
    r_i, c_i   reward and continue heads at s_i,   discount_i = gamma c_{i+1}
    R_i = r_{i+1} + discount_i ((1 - lambda) v(s_{i+1}) + lambda R_{i+1}),   R_H = v(s_H)
    w_i = c_0 discount_0 ... discount_{i-1},   S = max(1, moving 5 % .. 95 % range of R)
    actor     mean w_i (-log pi(a_i) sg((R_i - v(s_i)) / S) - entropy H(pi))     "reinforce"
              mean w_i (-(R_i - v(s_i)) / S - entropy H(pi))                     "dynamics"
    critic    mean w_i (-log p_v(sg R_i) - log p_v(sg v_slow(s_i)))
              + replay_value times the same over replayed rows (`replay_value.py`), 2024

c is 0 or 1 with `continues` "mode" (2023), a probability with "probability" (2024). c_0 is 0 where
a rollout starts at a terminal observation. The slow critic is a moving average that only holds the
critic near itself.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from statewise.agents.imagination.actor import Actor
from statewise.agents.imagination.normalizer import ReturnNormalizer
from statewise.agents.imagination.replay_value import Replayed, bootstrap, replayed_returns
from statewise.agents.imagination.returns import imagined_lambda_return, weights
from statewise.agents.optimizer import Optimizer, OptimizerSettings
from statewise.nets.dreamer_layers import Norm, normed_mlp, output_linear
from statewise.nets.symlog import TwoHot
from statewise.ssm.protocol import State
from statewise.worldmodels.model import Imagined, WorldModel
from statewise.worldmodels.state import CORE, FeatureSpec, HiddenNorm, policy_features

KEPT_OUTPUT = ("stoch", "deter")  # of imagined states: what heads and features read
KEPT_HIDDEN = (*KEPT_OUTPUT, CORE)


@dataclass(frozen=True, kw_only=True)
class BehaviorConfig:
    """How actor and critic learn; ranges in brackets."""

    features: FeatureSpec = "output"  # what they read: output [h, z], hidden [z, x], full [h, z, x]
    hidden_norm: HiddenNorm = "none"  # layer: x is brought to mean 0 and deviation 1
    actor_hidden: tuple[int, ...] = (512, 512)  # widths, each >= 1
    critic_hidden: tuple[int, ...] = (512, 512)  # widths, each >= 1
    norm: Norm = "layer"
    actor_outscale: float = 1.0  # >= 0, of the actor's output layer
    unimix: float = 0.01  # [0, 1), uniform share in choices
    gradient: Literal["auto", "reinforce", "dynamics"] = "auto"  # auto: dynamics of boxes
    horizon: int = 15  # H >= 1
    num_starts: int = 0  # >= 0, rollouts per update, drawn among the states; 0: one from each
    near_end: int = 0  # >= 0, states so many rows before an episode's end always start a rollout
    discount_horizon: float = 333.0  # > 1, gamma = 1 - 1 / horizon
    trace: float = 0.95  # [0, 1], lambda
    continues: Literal["mode", "probability"] = "mode"
    entropy: float = 3e-4  # >= 0
    slow_rate: float = 0.02  # (0, 1], of the slow critic, per update
    slow_scale: float = 1.0  # >= 0, weight of its term
    replay_value: float = 0.0  # >= 0, weight of the critic's loss on replayed rows; 2024: 0.3
    learning_rate: float = 3e-5  # > 0, of both
    eps: float = 1e-5  # > 0
    max_grad_norm: float = 100.0  # > 0, of each
    two_hot: Literal["symlog", "symexp"] = "symlog"  # bins of the critic

    def __post_init__(self) -> None:
        if self.features == "output" and self.hidden_norm != "none":
            raise ValueError(
                "hidden_norm: would be ignored with features output: remove it or change features"
            )
        for name in ("horizon",):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        least_0 = ("num_starts", "near_end", "entropy", "slow_scale", "replay_value")
        for name in (*least_0, "actor_outscale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("learning_rate", "eps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.unimix < 1:
            raise ValueError(f"unimix: expected a share in [0, 1), got {self.unimix}")
        if not self.discount_horizon > 1 or not 0 <= self.trace <= 1 or not 0 < self.slow_rate <= 1:
            raise ValueError(
                "expected discount_horizon > 1, trace in [0, 1] and slow_rate in (0, 1], got "
                f"{self.discount_horizon}, {self.trace} and {self.slow_rate}"
            )
        if self.near_end and not self.num_starts:
            raise ValueError(
                "near_end: would be ignored with num_starts 0, where all states start a rollout"
            )


class Critic(nn.Module):
    """Values of features (..., d_in) as distributions over bins."""

    def __init__(self, d_in: int, config: BehaviorConfig) -> None:
        super().__init__()
        self.two_hot = TwoHot(spacing=config.two_hot)
        self.layers = normed_mlp(d_in, config.critic_hidden, norm=config.norm)
        self.out = output_linear(self.layers.d_out, self.two_hot.num_bins, 0.0)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (..., 255)."""
        out: Tensor = self.layers(features, self.out)
        return out

    def value(self, features: Tensor) -> Tensor:
        """Return the mean (...)."""
        return self.two_hot.mean(self(features))


class Rollout(NamedTuple):
    """What is learned from: N rollouts of H steps."""

    features: Tensor
    """(N, H + 1, F)."""
    action: Tensor
    """(N, H, A), vectors."""
    reward: Tensor
    """(N, H), on arriving at states 1 .. H, times the world's `reward_scale`."""
    discount: Tensor
    """(N, H), of states 1 .. H."""
    weight: Tensor
    """(N, H), that of the states 0 .. H - 1."""


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Let gradients pass through modules without computing those of their parameters."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class Behavior(nn.Module):
    """Actor, critic, slow critic and the scale of returns, for one world model.

    Weights are drawn from torch's default generator.

    Args:
        world: its features are read; not a part of this module.
        config: settings.

    Raises:
        ValueError: a setting would be ignored.
    """

    def __init__(self, world: WorldModel, config: BehaviorConfig) -> None:
        super().__init__()
        self.config = config
        latents, dynamics = world.config.latents, world.dynamics
        d_stoch = latents.num * latents.classes
        widths = {
            "output": dynamics.d_deter + d_stoch,
            "hidden": d_stoch + dynamics.d_hidden,
            "full": dynamics.d_deter + d_stoch + dynamics.d_hidden,
        }
        if not world.actions.nvec and config.unimix != BehaviorConfig.unimix:
            raise ValueError(
                f"behavior.unimix: would be ignored with continuous actions, got {config.unimix}: "
                "remove it"
            )
        d_in = widths[config.features]
        self.actor = Actor(
            d_in,
            world.actions,
            config.actor_hidden,
            norm=config.norm,
            unimix=config.unimix,
            outscale=config.actor_outscale,
        )
        self.critic = Critic(d_in, config)
        self.slow = copy.deepcopy(self.critic).requires_grad_(False)
        self.normalizer = ReturnNormalizer()
        settings = OptimizerSettings(
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
            eps=config.eps,
            total_updates=1,
        )
        self.actor_optimizer = Optimizer(self.actor, settings)
        self.critic_optimizer = Optimizer(self.critic, settings)

    @property
    def gradient(self) -> str:
        """How the actor learns: "reinforce" or "dynamics"."""
        if self.config.gradient != "auto":
            return self.config.gradient
        return "reinforce" if self.actor.is_discrete else "dynamics"

    def features(self, state: State) -> Tensor:
        """Return what actor and critic read of states, in every mode."""
        return policy_features(state, self.config.features, self.config.hidden_norm)

    def imagine(
        self,
        world: WorldModel,
        start: State,
        is_terminal: Tensor,
        generator: torch.Generator | None,
    ) -> Rollout:
        """Roll out from states (N, ...).

        Args:
            world: imagines.
            start: (N, ...), without gradient.
            is_terminal: (N,) bool, of the observations where rollouts start.
            generator: of the noise.
        """
        config = self.config
        H, N = config.horizon, len(is_terminal)
        noise = world.noise(H, N, generator=generator)
        own = self.actor.noise((H, N), generator)

        def act(state: State, i: int) -> Tensor:
            return self.actor(self.features(state).detach()).sample(own[i])

        with torch.no_grad():
            cache = world.dynamics.prepare_step()
        keep = KEPT_OUTPUT if config.features == "output" else KEPT_HIDDEN
        imagined = world.imagine(start, act, noise, keep=keep, cache=cache)
        return self._judged(world, imagined, is_terminal)

    def _judged(self, world: WorldModel, imagined: Imagined, is_terminal: Tensor) -> Rollout:
        """Return a rollout with what the heads say of it."""
        config, states = self.config, imagined.states
        stoch, deter = states["stoch"][:, 1:], states["deter"][:, 1:]
        logit = world.continue_logit(stoch, deter)
        goes_on = logit.sigmoid() if config.continues == "probability" else (logit > 0).to(logit)
        # Targets of 1 - 1 / horizon hold the discount already.
        gamma = 1.0 if world.config.cont_horizon else 1 - 1 / config.discount_horizon
        discount = gamma * goes_on
        return Rollout(
            features=policy_features(states, config.features, config.hidden_norm),
            action=imagined.action,
            reward=world.scaled_reward(stoch, deter),
            discount=discount,
            weight=weights(discount.detach(), start=~is_terminal),
        )

    def update(
        self,
        world: WorldModel,
        start: State,
        is_terminal: Tensor,
        generator: torch.Generator | None,
        update: int,
        replayed: Replayed | None = None,
    ) -> dict[str, float]:
        """Imagine, then move actor, critic and slow critic; see `imagine` for the arguments.

        `replayed` is the window that the critic learns from as well, given with `replay_value`.

        Raises:
            NonFiniteLossError: a gradient is not finite.
        """
        learns_through = self.gradient == "dynamics"
        with torch.set_grad_enabled(learns_through), frozen(world, self.critic):
            rollout = self.imagine(world, start, is_terminal, generator)
            value = self.critic.value(rollout.features)
            target = imagined_lambda_return(
                rollout.reward, rollout.discount, value, self.config.trace
            )
            self.normalizer.update(target)
        terms, metrics = self.actor_terms(rollout, value, target)
        total = terms["policy"] + self.config.entropy * terms["entropy"]
        actor = self.actor_optimizer.step(terms, total, update)
        losses = self.critic_terms(rollout, target.detach())
        total = losses["value"] + self.config.slow_scale * losses["slow"]
        if replayed is not None:
            scale = world.config.reward_scale
            losses |= self.replay_terms(replayed, target[:, 0].detach(), scale)
            of_replay = losses["replay_value"] + self.config.slow_scale * losses["replay_slow"]
            total = total + self.config.replay_value * of_replay
        critic = self.critic_optimizer.step(losses, total, update)
        self._move_slow()
        shown = {key: losses[key] for key in ("value", "replay_value") if key in losses}
        return metrics | {
            "actor_loss": float(terms["policy"].detach()),
            **{f"{key}_loss": float(loss.detach()) for key, loss in shown.items()},
            "actor_grad_norm": actor["grad_norm"],
            "critic_grad_norm": critic["grad_norm"],
        }

    def actor_terms(
        self, rollout: Rollout, value: Tensor, target: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the actor's terms, to be minimised, and metrics.

        Args:
            rollout: of the actor.
            value: (N, H + 1), of its features.
            target: (N, H), R.
        """
        policy = self.actor(rollout.features[:, :-1].detach())
        advantage = (target - value[:, :-1]) / self.normalizer.scale
        if self.gradient == "reinforce":
            gain = policy.log_prob(rollout.action.detach()) * advantage.detach()
        else:
            gain = advantage
        entropy = policy.entropy()
        terms = {
            "policy": -(rollout.weight * gain).mean(),
            "entropy": -(rollout.weight * entropy).mean(),
        }
        with torch.no_grad():
            metrics = {
                "return_mean": float(target.mean()),
                "return_scale": float(self.normalizer.scale),
                "entropy": float(entropy.mean()),
                "reward_mean": float(rollout.reward.mean()),
            }
        return terms, metrics

    def critic_terms(self, rollout: Rollout, target: Tensor) -> dict[str, Tensor]:
        """Return the critic's terms, to be minimised."""
        features = rollout.features[:, :-1].detach()
        logits = self.critic(features)
        with torch.no_grad():
            slow = self.slow.value(features)
        loss = self.critic.two_hot.loss
        return {
            "value": (rollout.weight * loss(logits, target)).mean(),
            "slow": (rollout.weight * loss(logits, slow)).mean(),
        }

    def replay_terms(
        self, replayed: Replayed, imagined: Tensor, reward_scale: float
    ) -> dict[str, Tensor]:
        """Return the critic's terms over replayed rows, to be minimised.

        Args:
            replayed: the window.
            imagined: (N,), returns of the rollouts that start in it.
            reward_scale: of the world model.
        """
        logits = self.critic(replayed.features)
        with torch.no_grad():
            value = self.critic.two_hot.mean(logits)
            target, known = replayed_returns(
                replayed.arrival,
                bootstrap(replayed, value, imagined),
                discount=1 - 1 / self.config.discount_horizon,
                trace=self.config.trace,
                reward_scale=reward_scale,
            )
            slow = self.slow.value(replayed.features[:, :-1])
        share = known.to(target.dtype) / known.sum().clamp(min=1)
        loss = self.critic.two_hot.loss
        return {
            "replay_value": (share * loss(logits[:, :-1], target)).sum(),
            "replay_slow": (share * loss(logits[:, :-1], slow)).sum(),
        }

    @torch.no_grad()
    def _move_slow(self) -> None:
        for slow, fast in zip(self.slow.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, self.config.slow_rate)

    def optimizer_state(self) -> dict[str, Any]:
        """Return the moments of both optimisers."""
        return {
            "actor": self.actor_optimizer.state_dict(),
            "critic": self.critic_optimizer.state_dict(),
        }

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Restore what `optimizer_state` returned."""
        self.actor_optimizer.load_state_dict(state["actor"])
        self.critic_optimizer.load_state_dict(state["critic"])
