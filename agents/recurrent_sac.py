"""Recurrent soft actor-critic on any `SequenceModel`: replayed windows, one parallel pass each.

Papers: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (losses: see
`agents.sac_losses`); Ni, Eysenbach & Salakhutdinov 2022, "Recurrent Model-Free RL Can Be a Strong
Baseline for Many POMDPs" (memories of their own for actor and critics); Kapturowski et al. 2019,
"Recurrent Experience Replay in Distributed Reinforcement Learning" (stored memory, burn-in).

    1. windows (B, n + T) from a replay with the memories that actor and critics had before them
    2. n rows fill the memories, without gradient; actor, critics and target critics then run over
       the T rows in one pass each, resets inside
    3. one action is drawn at every row: that of row t serves the actor's loss there and the
       target of row t - 1

The last row of a window is only what followed. A window crosses the ends of episodes; what is
cleared there the stored flags say.

Deviations: actor, critics and temperature learn at the same time from the same weights, where
SAC moves the critics first; the deviation of the policy is bent between bounds, not cut off;
both critics read one memory; the target critics begin with the memory that the critics had.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.generators import restore
from statewise.agents.memory import Memory
from statewise.agents.offline.transitions import follow, frozen_copy
from statewise.agents.optimizer import Optimizer, OptimizerSettings
from statewise.agents.protocol import Metrics, ReplayAgent
from statewise.agents.recurrent_ppo import EncoderFactory
from statewise.agents.sac_losses import (
    actor_loss,
    critic_loss,
    following,
    mean_of_rows,
    soft_target,
    soft_value,
    temperature_loss,
)
from statewise.agents.sac_networks import (
    BoxScale,
    GaussianActor,
    MemoryCritics,
    Temperature,
)
from statewise.agents.state_dicts import check_keys, load_parts, parts_of
from statewise.data.replay_config import ReplayBatch
from statewise.data.step import Step, moved
from statewise.nets.encoder import Encoder, EncoderConfig
from statewise.ssm.build import SequenceConfig
from statewise.ssm.protocol import Cache, State
from statewise.ssm.state import prefixed, select

ACTOR, CRITIC = "actor.", "critic."  # prefixes in an agent's state
_TERMS = {"actor": "actor", "critics": "critic", "temperature": "ent_coef"}  # names in the log


@dataclass(frozen=True, kw_only=True)
class RecurrentSACConfig:
    """Hyper-parameters; ranges in brackets."""

    learning_rate: float = 3e-4  # > 0, Adam, of actor and critics
    temperature_rate: float = 3e-4  # > 0, learning rate of log(alpha)
    ssm_lr_factor: float = 1.0  # > 0, learning rate of state-space parameters, relative
    max_grad_norm: float = 10.0  # > 0, joint, of actor and critics each
    discount: float = 0.99  # [0, 1]
    target_rate: float = 0.005  # (0, 1], share of the critics in an update of the targets
    temperature: float = 1.0  # > 0, alpha at the start
    target_entropy: float = -1.0  # nats per axis of the action, scaled to [-1, 1]
    reward_scale: float = 1.0  # > 0
    initial_exploration: Literal["random", "policy"] = "random"  # before the first update
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)  # of each memory
    head_hidden: tuple[int, ...] = (64,)  # widths of the hidden layers of all heads

    def __post_init__(self) -> None:
        positive = ("learning_rate", "temperature_rate", "ssm_lr_factor", "max_grad_norm")
        for name in (*positive, "temperature", "reward_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount: expected [0, 1], got {self.discount}")
        if not 0 < self.target_rate <= 1:
            raise ValueError(f"target_rate: expected (0, 1], got {self.target_rate}")

    def optimizer(self, rate: float) -> OptimizerSettings:
        """Return how a network learns at a learning rate."""
        return OptimizerSettings(
            learning_rate=rate,
            ssm_lr_factor=self.ssm_lr_factor,
            max_grad_norm=self.max_grad_norm,
            total_updates=1,
        )


class Drawn(NamedTuple):
    """What actor and critics make of T rows, with one action drawn at each."""

    action: Tensor
    """(B, T, A) codes, with the policy's gradient."""
    log_prob: Tensor
    """(B, T), with gradient."""
    features: Tensor
    """(B, T, D) of the critics, with gradient."""
    value: Tensor
    """(B, T), v of the target critics, without gradient."""


class RecurrentSAC:
    """Actor and twin critics with memories, trained on replayed windows by SAC.

    Acting runs both memories, so that a replay can store both.

    Args:
        config: hyper-parameters.
        obs_space: flat Dict of one environment.
        action_space: a float Box with one axis and finite bounds, of one environment.
        seed: of weights and noise.
        device: where it lives.
        encoder: makes an encoder from the observation space, once for the actor and once for the
            critics; None: `Encoder`.

    Raises:
        ValueError: another action space.
    """

    def __init__(
        self,
        config: RecurrentSACConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        seed: int,
        device: torch.device | str = "cpu",
        encoder: EncoderFactory | None = None,
    ):
        self.config, self.action_space = config, action_space
        self.device = torch.device(device)
        self.updates_done = self.steps_seen = 0
        self.scale = BoxScale(action_space).to(self.device)
        width, hidden = self.scale.width, config.head_hidden
        make: Callable[[spaces.Dict], Any] = (
            (lambda space: Encoder(space, config.encoder)) if encoder is None else encoder
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            memories = [Memory(make(obs_space), config.sequence) for _ in range(2)]
            self.actor = GaussianActor(memories[0], width, hidden).to(self.device)
            self.critics = MemoryCritics(memories[1], width, hidden).to(self.device)
        self.temperature = Temperature(config.temperature).to(self.device)
        self.target_critics: MemoryCritics = frozen_copy(self.critics)  # type: ignore[assignment]
        self.networks = {
            "actor": self.actor,
            "critics": self.critics,
            "target_critics": self.target_critics,
            "temperature": self.temperature,
        }
        self.optimizers = {
            "actor": Optimizer(self.actor, config.optimizer(config.learning_rate)),
            "critics": Optimizer(self.critics, config.optimizer(config.learning_rate)),
            "temperature": Optimizer(self.temperature, config.optimizer(config.temperature_rate)),
        }
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._caches: tuple[Cache, Cache] | None = None

    @torch.no_grad()
    def initial_state(self, batch_size: int) -> State:
        """Return the memories of environments that are about to start."""
        actor = self.actor.memory.sequence.initial_state(batch_size)
        critic = self.critics.memory.sequence.initial_state(batch_size)
        return prefixed(actor, ACTOR) | prefixed(critic, CRITIC)

    def stored_state(self, state: State) -> State:
        """Return what a replay stores of a state: all of it."""
        return state

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
        """Choose actions (B, A); there are no extras. See `Agent`."""
        if self._caches is None:
            memories = (self.actor.memory, self.critics.memory)
            self._caches = tuple(one.sequence.prepare_step() for one in memories)  # type: ignore[assignment]
            assert self._caches is not None
        own, theirs = self._caches
        features, actor = self.actor.memory.step(obs, select(state, ACTOR), reset, own)
        _, critic = self.critics.memory.step(obs, select(state, CRITIC), reset, theirs)
        policy = self.actor.policy(features)
        if explore and not self.updates_done and self.config.initial_exploration == "random":
            code = 2 * torch.rand(policy.mean.shape, generator=self.generator, device=self.device)
            code = code - 1
        elif explore:
            code, _ = policy.sample(self._noise(policy.mean))
        else:
            code = policy.mode()
        after = prefixed(actor, ACTOR) | prefixed(critic, CRITIC)
        return self.scale.decode(code), {}, after

    def update(self, batch: ReplayBatch) -> Metrics:
        """Learn from windows (B, n + T), T >= 2; the last row is only what followed.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite. Networks that had learned from
                this batch before stay changed.
        """
        batch = moved(batch, self.device)
        step = _rows_from(batch.step, batch.burn_in)
        drawn = self._draw(batch)
        value_tp1, rows = following(drawn.value, step)
        target = soft_target(
            step.reward[:, :-1] * self.config.reward_scale,
            step.terminated[:, :-1],
            value_tp1,
            self.config.discount,
        )
        metrics = self._learn(drawn, self.scale.encode(step.action[:, :-1]), target, rows)
        follow(self.target_critics, self.critics, self.config.target_rate)
        self.updates_done += 1
        self._caches = None
        return metrics

    def _draw(self, batch: ReplayBatch) -> Drawn:
        """Run the memories over windows and draw an action at every row."""
        step = batch.step
        states = [select(batch.state, prefix) or None for prefix in (ACTOR, CRITIC)]
        rest = step.reset, batch.burn_in
        policy = self.actor.policy(self.actor.memory(step.obs, states[0], *rest))
        action, log_prob = policy.sample(self._noise(policy.mean))
        features = self.critics.memory(step.obs, states[1], *rest)
        with torch.no_grad():
            slow = self.target_critics.memory(step.obs, states[1], *rest)
            q = self.target_critics.heads(slow, action)
            value = soft_value(q, log_prob, self.temperature.value)
        return Drawn(action, log_prob, features, value)

    def _learn(self, drawn: Drawn, taken: Tensor, target: Tensor, rows: Tensor) -> Metrics:
        """Move actor, critics and temperature.

        Args:
            drawn: of T rows.
            taken: (B, T - 1, A) codes of the actions in the replay.
            target: (B, T - 1).
            rows: (B, T - 1) bool, which count.
        """
        action, log_prob = drawn.action[:, :-1], drawn.log_prob[:, :-1]
        features, alpha = drawn.features[:, :-1], self.temperature.value
        q = self.critics.heads(features, taken)
        judged = self.critics.judged(features, action)
        losses = {
            "actor": actor_loss(log_prob, judged, alpha, rows),
            "critics": critic_loss(q, target, rows),
            "temperature": temperature_loss(
                self.temperature.log,
                log_prob,
                self.config.target_entropy * self.scale.width,
                rows,
            ),
        }
        metrics = {
            "ent_coef": float(alpha),
            "entropy": -float(mean_of_rows(log_prob.detach(), rows)),
            "q_mean": float(mean_of_rows(q.detach(), rows)),
            "target_mean": float(mean_of_rows(target, rows)),
        }
        for name, loss in losses.items():
            term = _TERMS[name]
            moved_by = self.optimizers[name].step({term: loss}, loss, self.updates_done)
            metrics[f"{term}_loss"] = float(loss.detach())
            metrics[f"{term}_grad_norm"] = moved_by["grad_norm"]
        return {f"train/{name}": value for name, value in metrics.items()}

    def _noise(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).normal_(generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, moments, the generator and counters."""
        return {
            **parts_of(self.networks, self.optimizers),
            "generator": self.generator.get_state(),
            "updates_done": self.updates_done,
            "steps_seen": self.steps_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: keys or shapes differ; one line that names the first difference.
        """
        check_keys(self.state_dict(), state)
        load_parts(self.networks, self.optimizers, state)
        restore(self.generator, state["generator"])
        self.updates_done, self.steps_seen = int(state["updates_done"]), int(state["steps_seen"])
        self._caches = None


def _rows_from(step: Step, first: int) -> Step:
    """Return the rows (B, T, ...) from a row on."""
    rest = {name: x[:, first:] for name, x in step._asdict().items() if name != "obs"}
    return Step(obs={key: x[:, first:] for key, x in step.obs.items()}, **rest)


def conforms(agent: RecurrentSAC) -> ReplayAgent:
    """Let the type checker compare the agent with the protocol."""
    return agent
