"""Recurrent PPO over any `SequenceModel`: whole sequences, one parallel scan per minibatch.

Paper: Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (eq. 7 and 9); memory and
resets as in Lu et al. 2023, "Structured State Space Models for In-Context Reinforcement
Learning" (section 4).

The rollout of every environment is one sequence. Its memory is stored once, at its start;
minibatches are sets of environments; each epoch runs the network again over the full sequences
with the stored reset flags. The stored state is a constant: it goes stale over the epochs of one
update, as in every recurrent PPO.

Deviations: a truncated episode bootstraps from its final observation (`truncation: terminate`
gives the release's behaviour); advantages are normalised over the whole rollout, not per
minibatch, because a minibatch is a few whole sequences and its own scale makes solved tasks
collapse (`normalize_advantage: minibatch` for parity); learning rate annealed by environment
steps, per update.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents import parallel
from statewise.agents.generators import restore
from statewise.agents.ppo_network import ActorCritic
from statewise.agents.protocol import Agent, Metrics
from statewise.agents.returns import generalized_advantage
from statewise.agents.state_dicts import (
    check_keys,
    copy_moments,
    give_moments,
    load_weights,
    moments_of,
)
from statewise.data.step import Batch
from statewise.nets.encoder import Encoder, EncoderConfig
from statewise.nets.moments import NormalizedEncoder
from statewise.ssm.build import SequenceConfig
from statewise.ssm.groups import parameter_groups
from statewise.ssm.protocol import Cache, State
from statewise.ssm.state import take

EncoderFactory = Callable[[spaces.Dict], nn.Module]


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is NaN or infinite; the message names the term."""


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """Coefficients of the loss terms."""

    policy_gradient: float = 1.0
    value: float = 0.5
    entropy: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RecurrentPPOConfig:
    """Hyper-parameters; ranges in brackets."""

    learning_rate: float = 3e-4  # > 0, Adam
    anneal: Literal["linear", "constant"] = "linear"  # to 0 over the run's steps
    ssm_lr_factor: float = 1.0  # > 0, learning rate of state-space parameters, relative
    weight_decay: float = 0.0  # >= 0, decoupled; never of state-space parameters, norms, biases
    adam_eps: float = 1e-5  # > 0
    num_epochs: int = 4  # >= 1
    num_minibatches: int = 4  # >= 1, divides the number of environments
    discount: float = 0.99  # [0, 1]
    trace: float = 0.95  # [0, 1], lambda
    clip: float = 0.2  # > 0, of the probability ratio
    value_clip: float = 0.2  # >= 0, of the value's change; 0 = off
    max_grad_norm: float = 0.5  # > 0, joint
    target_kl: float = 0.0  # >= 0, stop the epochs beyond it; 0 = off
    reward_scale: float = 1.0  # > 0; make an episode worth about 1
    normalize_obs: Literal["none", "running"] = "none"  # of boxes without bounds
    truncation: Literal["bootstrap", "terminate"] = "bootstrap"
    normalize_advantage: Literal["rollout", "minibatch", "none"] = "rollout"  # over what
    precision: Literal["float32", "bfloat16"] = "float32"  # of products; states stay float32
    loss_scale: LossScale = field(default_factory=LossScale)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    critic: Literal["shared", "separate"] = "shared"  # encoder and memory of the critic
    head_hidden: tuple[int, ...] = (64,)  # widths of the hidden layers of both heads
    initial_std: float = 1.0  # > 0, standard deviation of actions from a Box before training

    def __post_init__(self) -> None:
        positive = ("learning_rate", "ssm_lr_factor", "adam_eps", "clip", "max_grad_norm")
        for name in (*positive, "reward_scale", "initial_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("value_clip", "target_kl", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 (off) or more, got {getattr(self, name)}")
        for name in ("num_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected [0, 1], got {getattr(self, name)}")


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Average `x` over the rows that are `valid`; both (B, T).

    With several processes this is a share, whose mean over them is the mean over all rows.
    """
    return parallel.mean_share(torch.where(valid, x, 0).sum(), valid.sum())


def standardize(x: Tensor, valid: Tensor) -> Tensor:
    """Shift and scale `x` to mean 0 and deviation 1 over the rows that are `valid`; both (B, T).

    The rows are those of all processes.
    """
    mean = parallel.mean(masked_mean(x, valid))
    variance = parallel.mean(masked_mean((x - mean).square(), valid))
    return (x - mean) / (variance.sqrt() + 1e-8)


def ppo_loss(
    log_prob: Tensor,
    log_prob_old: Tensor,
    advantage: Tensor,
    value: Tensor,
    value_old: Tensor,
    value_target: Tensor,
    entropy: Tensor,
    valid: Tensor,
    *,
    clip: float,
    value_clip: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clipped surrogate, value and entropy terms, each a mean over the valid rows of (B, T).

    Returns the terms, all to be minimised, and detached diagnostics.
    """
    log_ratio = torch.where(valid, log_prob - log_prob_old, 0)
    ratio = log_ratio.exp()
    # eq. 7: the pessimistic bound of the clipped and the unclipped objective
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    # Selected before the square: a mask behind it would leave 0 * NaN in the gradient.
    error = torch.where(valid, value - value_target, 0).square()
    if value_clip > 0:
        near = value_old + (value - value_old).clamp(-value_clip, value_clip)
        error = torch.maximum(error, torch.where(valid, near - value_target, 0).square())
    losses = {
        "policy_gradient": -masked_mean(surrogate, valid),
        "value": 0.5 * masked_mean(error, valid),
        "entropy": -masked_mean(entropy, valid),
    }
    with torch.no_grad():
        metrics = {
            # k3 estimator: unbiased, non-negative
            "approx_kl": masked_mean(ratio - 1 - log_ratio, valid),
            "clip_fraction": masked_mean(((ratio - 1).abs() > clip).float(), valid),
        }
    return losses, metrics


def weighted_sum(losses: dict[str, Tensor], scale: LossScale) -> Tensor:
    """Add the terms with their coefficients; the two sets of names must be equal."""
    weights = vars(scale)
    assert losses.keys() == weights.keys(), (sorted(losses), sorted(weights))
    return sum((weights[name] * loss for name, loss in losses.items()), torch.zeros(()))


def explained_variance(value: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - Var(target - value) / Var(target) over the valid rows; 0 if undefined.

    The rows are those of all processes.
    """
    v, r = value[valid], target[valid]
    if int(parallel.total(torch.tensor(len(r)))) < 2:
        return r.new_zeros(())
    variance = parallel.variance(r)
    return torch.where(variance > 0, 1 - parallel.variance(r - v) / variance, 0)


class RecurrentPPO:
    """Actor-critic with memory, trained by PPO; an `Agent`.

    Args:
        config: hyper-parameters.
        obs_space: flat Dict of one environment.
        action_space: Discrete, MultiDiscrete or Box, of one environment.
        total_steps: valid environment steps over which the learning rate is annealed.
        seed: of the initial weights, the sampled actions and the minibatches.
        device: where the network lives.
        encoder: makes the encoder from the observation space; its module maps a dict of
            (..., ) tensors to (..., d_out) and has the attribute `d_out`. It is called once more
            for a separate critic. None: `nets.Encoder`.
    """

    def __init__(
        self,
        config: RecurrentPPOConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        total_steps: int,
        seed: int,
        device: torch.device | str = "cpu",
        encoder: EncoderFactory | None = None,
    ):
        self.config = config
        self.total_steps = total_steps
        self.steps_seen = 0
        self.device = torch.device(device)
        self.action_space = action_space
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            make = partial(self._make_encoder, obs_space, encoder)
            self.network = ActorCritic(
                make(),
                action_space,
                config.sequence,
                critic_encoder=make if config.critic == "separate" else None,
                head_hidden=config.head_hidden,
                initial_std=config.initial_std,
            ).to(self.device)
        self._adam: torch.optim.AdamW | None = None
        self._moments: dict[str, Any] = {}
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.shuffle = torch.Generator().manual_seed(seed)
        self._cache: Cache | None = None

    def _make_encoder(self, obs_space: spaces.Dict, make: EncoderFactory | None) -> nn.Module:
        front = Encoder(obs_space, self.config.encoder) if make is None else make(obs_space)
        return (
            NormalizedEncoder(obs_space, front) if self.config.normalize_obs == "running" else front
        )

    def initial_state(self, batch_size: int) -> State:
        """Return the state for environments that are about to start."""
        with torch.no_grad():
            return self.network.initial_state(batch_size)

    @torch.inference_mode()
    def act(
        self,
        obs: dict[str, Tensor],
        state: State,
        is_first: Tensor,
        reset: Tensor,
        *,
        explore: bool,
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """Choose actions; extras are `value` and `log_prob`, each (B,). See `Agent`."""
        if self._cache is None:
            self._cache = self.network.prepare_step()
        with self._autocast():
            policy, value, state = self.network.step(obs, state, reset, self._cache)
        action = policy.sample(self.generator) if explore else policy.mode()
        return action, {"value": value, "log_prob": policy.log_prob(action)}, state

    def update(self, batch: Batch) -> Metrics:
        """Run the epochs of one rollout of (B, T) rows; see `Agent`.

        With several processes the rollout is this one's share, and the metrics are of all.
        """
        config, step = self.config, batch.step
        terminated = step.terminated
        if config.truncation == "terminate":
            terminated = terminated | step.truncated
        advantage, target = generalized_advantage(
            step.reward * config.reward_scale,
            batch.extras["value"],
            batch.value_tp1,
            terminated,
            step.truncated,
            discount=config.discount,
            trace=config.trace,
            valid=step.valid,
        )
        if config.normalize_advantage == "rollout":
            advantage = standardize(advantage, step.valid)
        rate = self._set_learning_rate()
        collected: list[dict[str, Tensor]] = []
        num_epochs = 0
        while num_epochs < config.num_epochs:
            num_epochs += 1
            for rows in self._minibatches(len(step.reward)):
                collected.append(self._minibatch_step(batch, rows, advantage, target))
            kl = parallel.mean(collected[-1]["approx_kl"]) if config.target_kl > 0 else None
            if kl is not None and float(kl) > config.target_kl:
                break
        self._cache = None
        for encoder in self.network.encoders():
            if isinstance(encoder, NormalizedEncoder):
                encoder.learn(step.obs, step.valid, parallel.total)
        self.steps_seen += int(parallel.total(step.valid.sum()))
        metrics = parallel.mean_metrics(
            {name: float(torch.stack([m[name] for m in collected]).mean()) for name in collected[0]}
        )
        explained = explained_variance(batch.extras["value"], target, step.valid)
        return metrics | {
            "explained_variance": float(explained),
            "learning_rate": rate,
            "num_epochs": float(num_epochs),
        }

    @property
    def optimizer(self) -> torch.optim.AdamW:
        """The optimiser, made when it is first needed: torch takes seconds to import it."""
        if self._adam is None:
            groups = parameter_groups(
                self.network,
                learning_rate=self.config.learning_rate,
                weight_decay=self.config.weight_decay,
                ssm_factor=self.config.ssm_lr_factor,
            )
            # Without weight decay this is Adam.
            self._adam = torch.optim.AdamW(groups, eps=self.config.adam_eps, fused=True)
            give_moments(self.network, self._adam, self._moments)
        return self._adam

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _set_learning_rate(self) -> float:
        left = 1.0
        if self.config.anneal == "linear":
            left = max(0.0, 1.0 - self.steps_seen / self.total_steps)
        rate = self.config.learning_rate * left
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        return rate

    def _minibatches(self, num_rows: int) -> Iterator[Tensor]:
        """Split the environments, never the time, at random."""
        order = torch.randperm(num_rows, generator=self.shuffle).to(self.device)
        yield from order.chunk(min(self.config.num_minibatches, num_rows))

    def _minibatch_step(
        self, batch: Batch, rows: Tensor, advantage: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        config, step, valid = self.config, batch.step, batch.step.valid[rows]
        # The state was stored at collection time and is not differentiated.
        with self._autocast():
            policy, value, _ = self.network(
                {key: x[rows] for key, x in step.obs.items()},
                take(batch.state, rows),
                step.reset[rows],
            )
        adv = advantage[rows]
        if config.normalize_advantage == "minibatch":
            adv = standardize(adv, valid)
        losses, metrics = ppo_loss(
            policy.log_prob(step.action[rows]),
            batch.extras["log_prob"][rows],
            adv,
            value,
            batch.extras["value"][rows],
            target[rows],
            policy.entropy(),
            valid,
            clip=config.clip,
            value_clip=config.value_clip,
        )
        self.optimizer.zero_grad(set_to_none=True)
        weighted_sum(losses, config.loss_scale).backward()
        parallel.mean_gradients(self.network)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        self._require_finite(losses, norm)
        self.optimizer.step()
        return (
            {f"{name}_loss": loss.detach() for name, loss in losses.items()}
            | metrics
            | {"grad_norm": norm.detach()}
        )

    def _require_finite(self, losses: dict[str, Tensor], norm: Tensor) -> None:
        if bool(norm.isfinite()):
            return
        losses = parallel.mean_losses(losses)
        bad = [f"{name}_loss" for name, loss in losses.items() if not bool(loss.isfinite())]
        raise NonFiniteLossError(
            f"expected a finite update, got {', '.join(bad) or 'a gradient norm'} = NaN or "
            f"infinity after {self.steps_seen} steps: lower agent.learning_rate or scale the "
            "rewards; the last checkpoint is intact"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser moments, generators and the step counter."""
        adam = self._adam
        return {
            "network": self.network.state_dict(),
            "optimizer": self._moments if adam is None else moments_of(self.network, adam),
            "generator": self.generator.get_state(),
            "shuffle": self.shuffle.get_state(),
            "steps_seen": self.steps_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: keys or shapes differ; one line that names the first difference.
        """
        check_keys(self.state_dict(), state)
        moments = copy_moments(self.network, state["optimizer"])
        load_weights(self.network, state["network"])
        self._adam, self._moments = None, moments
        restore(self.generator, state["generator"])
        self.shuffle.set_state(state["shuffle"].cpu())
        self.steps_seen = int(state["steps_seen"])
        self._cache = None


def conforms(agent: RecurrentPPO) -> Agent:
    """Let the type checker compare the agent with the protocol."""
    return agent
