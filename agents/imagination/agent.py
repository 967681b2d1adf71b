"""Agents with a world model: it learns from replayed windows, they learn in its imagination.

    1. a step of the world model on windows (B, T), one parallel pass where its memory has one
    2. rollouts of the actor from states of those windows, without gradient into the model
    3. a step of the actor, of the critic, of the slow critic

Acting runs the same memory step by step. The state holds the world's and the vector of the last
action, which the world model reads with the next observation.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.generators import restore
from statewise.agents.imagination.actor import from_vector
from statewise.agents.imagination.behavior import Behavior, BehaviorConfig
from statewise.agents.imagination.replay_value import Replayed
from statewise.agents.optimizer import Clip, Kind, Optimizer, OptimizerSettings
from statewise.agents.protocol import Metrics
from statewise.agents.recurrent_ppo import EncoderFactory
from statewise.agents.state_dicts import check_keys, load_weights
from statewise.data.replay_config import ReplayBatch
from statewise.data.shift import Arrival, to_arrival
from statewise.data.step import Step, moved
from statewise.ssm.protocol import Cache, State
from statewise.ssm.state import detach, flatten_time, take
from statewise.worldmodels.config import WorldModelConfig
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.state import Observed

ACTION = "action"  # in an agent's state: the vector of the last action


@dataclass(frozen=True, kw_only=True)
class WorldOptimizerConfig:
    """How a world model learns."""

    learning_rate: float = 1e-4  # > 0
    eps: float = 1e-8  # > 0
    max_grad_norm: float = 1000.0  # > 0, see `clip`
    clip: Clip = "joint"  # by_name: state-space parameters apart; adaptive: each to its own size
    ssm_lr_factor: float = 1.0  # > 0, learning rate of state-space parameters, relative
    weight_decay: float = 0.0  # >= 0, decoupled; never of state-space parameters, norms, biases
    warmup_updates: int = 0  # >= 0
    kind: Kind = "adam"  # or laprop

    def settings(self, total_updates: int = 1) -> OptimizerSettings:
        """Return what `Optimizer` takes.

        Args:
            total_updates: >= 1, of the run; a constant learning rate does not read it.

        Raises:
            ValueError: a field is out of its range.
        """
        return OptimizerSettings(**vars(self), total_updates=total_updates)

    def __post_init__(self) -> None:
        self.settings()


@dataclass(frozen=True, kw_only=True)
class ImaginationConfig:
    """Hyper-parameters of an agent that imagines."""

    world: WorldModelConfig = field(default_factory=WorldModelConfig)
    optimizer: WorldOptimizerConfig = field(default_factory=WorldOptimizerConfig)
    behavior: BehaviorConfig = field(default_factory=BehaviorConfig)
    initial_exploration: Literal["random", "policy"] = "random"  # before the first update

    def __post_init__(self) -> None:
        large = self.world.core == "parallel" and self.world.parallel.gives_few_states
        if large and self.behavior.features != "output":
            raise ValueError(
                "behavior.features: expected output with"
                f" {self.world.parallel.sequence.kind}, whose memory is too large to be read, got"
                f" {self.behavior.features}"
            )
        horizon = self.world.cont_horizon
        if horizon and self.behavior.continues != "probability":
            raise ValueError(
                "behavior.continues: expected probability with world.cont_horizon, whose discount "
                f"rounding would remove, got {self.behavior.continues}"
            )
        if horizon and self.behavior.discount_horizon != horizon:
            raise ValueError(
                f"behavior.discount_horizon: expected that of world.cont_horizon, {horizon}, which "
                f"takes its place in imagination, got {self.behavior.discount_horizon}"
            )


def burned_in(world: WorldModel, batch: ReplayBatch, arrival: Arrival, noise: Tensor) -> State:
    """Return the state after the rows that only fill the memory, without gradient."""
    n = batch.burn_in
    obs = {key: x[:, :n] for key, x in batch.step.obs.items()}
    action = world.action_in(arrival)[:, :n]
    with torch.no_grad():
        seen = world.observe(
            obs, action, batch.state or None, batch.step.reset[:, :n], noise[:, :n]
        )
    return seen.last


def observe_batch(
    world: WorldModel, batch: ReplayBatch, generator: torch.Generator | None, trace: int
) -> tuple[Step, Arrival, Observed]:
    """Run a world model over replayed windows; return the rows that count, and what it saw."""
    arrival = to_arrival(batch.step, previous=batch.previous)
    B, T = arrival.counts.shape
    noise = world.noise(B, T, generator=generator)
    state: State | None = batch.state or None
    step = batch.step
    if batch.burn_in:
        state = burned_in(world, batch, arrival, noise)
        n = batch.burn_in
        step = Step(
            obs={key: x[:, n:] for key, x in step.obs.items()},
            **{k: x[:, n:] for k, x in step._asdict().items() if k != "obs"},
        )
        arrival = Arrival(*(x[:, n:] for x in arrival))
        noise = noise[:, n:]
    seen = world.observe(step.obs, world.action_in(arrival), state, step.reset, noise, trace=trace)
    return step, arrival, seen


def choose_starts(
    step: Step, arrival: Arrival, every: int, config: BehaviorConfig, generator: torch.Generator
) -> Tensor:
    """Return the numbers (N,) of the traced rows, flat over (B, T // every), that start rollouts.

    All that count, or `num_starts` of them drawn without replacement beside those at most
    `near_end` rows before the last observation of an episode.
    """
    rows = slice(every - 1, None, every)
    counts = arrival.counts[:, rows]
    if not config.num_starts:
        return counts.flatten().nonzero().squeeze(1)
    near = torch.zeros_like(arrival.counts)
    if config.near_end:
        episode = step.is_first.cumsum(1)
        for n in range(1, min(config.near_end, near.shape[1] - 1) + 1):
            same = episode[:, :-n] == episode[:, n:]
            near[:, :-n] |= arrival.is_last[:, n:] & same
        near &= arrival.counts
    near = near[:, rows].flatten()
    others = (counts.flatten() & ~near).nonzero().squeeze(1)
    order = torch.randperm(len(others), generator=generator)[: config.num_starts]
    return torch.cat((near.nonzero().squeeze(1), others[order.to(others.device)]))


def learn_world(
    world: WorldModel, optimizer: Optimizer, window: tuple[Step, Arrival, Observed], update: int
) -> Metrics:
    """Take a step of a world model; return losses, norm of the gradient and learning rate.

    Args:
        world: learns.
        optimizer: of its parameters.
        window: the rows, as stored and as arrivals, and what the world model saw, with gradient.
        update: number of this step, from 0.

    Raises:
        NonFiniteLossError: the loss or its gradient is not finite.
    """
    step, arrival, seen = window
    total, terms = world.loss(step.obs, arrival, seen)
    moved = optimizer.step(terms, total, update)
    losses = {f"{name}_loss": float(term.detach()) for name, term in terms.items()}
    return {f"world_model/{name}": value for name, value in (losses | moved).items()}


class ImaginationAgent:
    """A world model with an actor and a critic; an `Agent` that updates on replayed windows.

    Args:
        config: hyper-parameters.
        obs_space: flat, of one environment.
        action_space: of one environment.
        seed: of weights and noise.
        device: where it lives.
        encoder: makes the encoder from the observation space; its module maps a dict of (..., )
            tensors to (..., d_out) and has the attribute `d_out`. None: `ObsEncoder`.
    """

    def __init__(
        self,
        config: ImaginationConfig,
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            front = None if encoder is None else encoder(obs_space)
            self.world = WorldModel(obs_space, action_space, config.world, front).to(self.device)
            self.behavior = Behavior(self.world, config.behavior).to(self.device)
        self.world.eval()
        self.optimizer = Optimizer(self.world, config.optimizer.settings())
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.choice = torch.Generator().manual_seed(seed)
        self._cache: Cache | None = None

    @torch.no_grad()
    def initial_state(self, batch_size: int) -> State:
        """Return the state for environments that are about to start."""
        action = torch.zeros(batch_size, self.world.actions.width, device=self.device)
        return detach(self.world.initial_state(batch_size)) | {ACTION: action}

    def stored_state(self, state: State) -> State:
        """Return what a replay stores of a state: the part that the world model knows."""
        return {key: x for key, x in state.items() if key != ACTION}

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
        """Choose actions; there are no extras. See `Agent`."""
        if self._cache is None:
            self._cache = self.world.dynamics.prepare_step()
        num = len(is_first)
        noise = self.world.noise(num, generator=self.generator)
        world = self.stored_state(state)
        after = self.world.observe_step(obs, state[ACTION], world, reset, noise, cache=self._cache)
        policy = self.behavior.actor(self.behavior.features(after))
        if explore and not self.updates_done and self.config.initial_exploration == "random":
            vector = self.behavior.actor.random((num,), self.generator)
        elif explore:
            vector = policy.sample(self.behavior.actor.noise((num,), self.generator))
        else:
            vector = policy.mode()
        vector = self.world.actions.clip(vector)
        action = from_vector(self.action_space, self.world.actions, vector)
        return action, {}, after | {ACTION: vector}

    def update(self, batch: ReplayBatch, context: ReplayBatch | None = None) -> Metrics:
        """Learn from windows (B, T): the world model, then actor and critic in imagination.

        Args:
            batch: of the world model, and where rollouts start without a context.
            context: windows whose last rows start the rollouts.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite.
        """
        batch = moved(batch, self.device)
        self.world.train()
        behaves = self.config.behavior
        reads_memory = bool(behaves.replay_value) and behaves.features != "output"
        trace = self.world.dynamics.trace_from if context is None or reads_memory else 0
        step, arrival, seen = observe_batch(self.world, batch, self.generator, trace)
        metrics = learn_world(self.world, self.optimizer, (step, arrival, seen), self.updates_done)
        self.world.eval()
        if context is not None:
            start, is_terminal = self._ends_of(context)
            index = None
        else:
            index = choose_starts(step, arrival, trace, behaves, self.choice)
            start = take(flatten_time(detach(seen.states())), index)
            is_terminal = arrival.is_terminal[:, trace - 1 :: trace].flatten()[index]
        behavior = self.behavior.update(
            self.world,
            start,
            is_terminal,
            self.generator,
            self.updates_done,
            self._replayed(arrival, seen, index) if behaves.replay_value else None,
        )
        self.updates_done += 1
        self._cache = None
        return metrics | {f"imagine/{name}": value for name, value in behavior.items()}

    @torch.no_grad()
    def _replayed(self, arrival: Arrival, seen: Observed, index: Tensor | None) -> Replayed:
        """Return what the critic sees of a window.

        Args:
            arrival: its rows.
            seen: what the world model saw; its memory at every row if the critic reads it.
            index: of the traced rows that start rollouts; None if others do.
        """
        state = {"stoch": seen.stoch, "deter": seen.deter}
        if self.config.behavior.features != "output":
            state |= seen.traced
        if index is None:
            rows = torch.zeros(0, dtype=torch.long, device=self.device)
        else:
            of_line = seen.deter.shape[1] // seen.every
            line, number = index // of_line, index % of_line
            rows = line * seen.deter.shape[1] + (number + 1) * seen.every - 1
        return Replayed(self.behavior.features(detach(state)), arrival, rows)

    @torch.no_grad()
    def _ends_of(self, context: ReplayBatch) -> tuple[State, Tensor]:
        """Return the states after windows, and whether they are terminal."""
        _, arrival, seen = observe_batch(self.world, moved(context, self.device), self.generator, 0)
        return seen.last, arrival.is_terminal[:, -1]

    def state_dict(self) -> dict[str, Any]:
        """Return weights, moments, generators and counters."""
        return {
            "world": self.world.state_dict(),
            "behavior": self.behavior.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "behavior_optimizer": self.behavior.optimizer_state(),
            "generator": self.generator.get_state(),
            "choice": self.choice.get_state(),
            "updates_done": self.updates_done,
            "steps_seen": self.steps_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: keys or shapes differ; one line that names the first difference.
        """
        check_keys(self.state_dict(), state)
        load_weights(self.world, state["world"])
        load_weights(self.behavior, state["behavior"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.behavior.load_optimizer_state(state["behavior_optimizer"])
        restore(self.generator, state["generator"])
        self.choice.set_state(state["choice"].cpu())
        self.updates_done, self.steps_seen = state["updates_done"], state["steps_seen"]
        self._cache = None
