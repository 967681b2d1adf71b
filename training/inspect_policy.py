"""How the memory of a policy reads a played episode in parallel mode, for every kind of agent.

A reader gives, for some steps of the episode, the sequences that the memory reads before the
actions there are chosen, and a function from those sequences to what is asked of the actions: the
log-probability of the chosen one where actions are choices, the action itself where it is numbers
(the log-density has no gradient at its own mode).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.imagination.agent import ImaginationAgent
from statewise.agents.offline.acting import WindowActing
from statewise.agents.offline.sequence_agent import SequenceAgent
from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import PolicyRows, cleared
from statewise.agents.recurrent_ppo import RecurrentPPO
from statewise.agents.recurrent_sac import RecurrentSAC
from statewise.data.step import moved
from statewise.training.playing import PlayingAgent
from statewise.training.schema import ConfigError

LOG_PROB, VECTOR = "log-probability of the chosen action", "action"

Answer = Callable[[Tensor, Tensor], Tensor]
"""From features (n, F) at rows (n,) of the episode to what is asked of their actions (n, A)."""


class Played(NamedTuple):
    """The rows of what was played, with the mode of the policy; on the device of the agent."""

    obs: dict[str, Tensor]
    """(T, ...) per key."""
    action: Tensor
    """(T, ...) as the agent chose them."""
    is_first: Tensor
    """(T,) bool."""
    reset: Tensor
    """(T,) bool."""
    valid: Tensor
    """(T,) bool."""
    norms: dict[str, Tensor]
    """By layer, (T,): the norm of its state after each row."""
    vectors: Tensor | None
    """(T, A) what an agent that imagines reads as the action before each row."""
    generator: Tensor
    """State of the agent's generator before the first row."""


def last_set(flags: Tensor) -> Tensor:
    """Return the last row at or before each row of (T,) whose flag is set, 0 where there is none.

    Of resets that is where the memory that a row has began.
    """
    rows = torch.arange(len(flags), device=flags.device)
    return torch.where(flags, rows, 0).cummax(0).values


class Reading(NamedTuple):
    """Sequences that are read in parallel, one for each of n actions."""

    inputs: Tensor
    """(n, L, D) without gradient; L is a multiple of S."""
    steps: Tensor
    """(n, S) int64: the row of the episode of each step, -1 for padding."""
    respond: Callable[[Tensor], Tensor]
    """From inputs to what is asked of the actions (n, A)."""


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """A memory that runs through the whole episode."""

    memory: nn.Module  # holds the sequence layers
    quantity: str  # what is asked of the actions
    begins: Tensor  # (T,), rows where the memory that each row has began
    inputs: Tensor  # (1, L, D)
    run: Callable[[Tensor], Tensor]  # (n, L, D) to features (n, L, F)
    answer: Answer
    per_step: int = 1  # inputs of a step
    read_at: int = 0  # at which of them the action is chosen
    context: int | None = None  # no bound on the steps that an action depends on

    def read(self, at: Tensor) -> Reading:
        """Return what is read before the actions at rows (n,): the same for all."""
        n, rows = len(at), torch.arange(len(at), device=at.device)
        num_steps = self.inputs.shape[1] // self.per_step

        def respond(x: Tensor) -> Tensor:
            return self.answer(self.run(x)[rows, at * self.per_step + self.read_at], at)

        steps = torch.arange(num_steps, device=at.device).expand(n, -1)
        return Reading(self.inputs.expand(n, -1, -1), steps, respond)


@dataclass(frozen=True, kw_only=True)
class Windowed:
    """A memory that begins anew with the last `context` steps before every action."""

    memory: nn.Module
    quantity: str
    policy: SequencePolicy
    begins: Tensor  # (T,), as above
    rows: PolicyRows  # (T, ...)
    answer: Answer
    context: int

    def read(self, at: Tensor) -> Reading:
        """Return what is read before the actions at rows (n,), as `WindowActing` has it."""
        first = torch.maximum(at - self.context + 1, self.begins[at])
        steps = first[:, None] + torch.arange(self.context, device=at.device)
        known = steps <= at[:, None]
        index = steps.clamp(max=len(self.begins) - 1)
        windows = PolicyRows(*(cleared(x[index], known) for x in self.rows))
        chosen = steps < at[:, None]  # the present action is not known yet
        windows = windows._replace(
            action=cleared(windows.action, chosen),
            previous=torch.zeros_like(windows.previous),
            reset=torch.zeros_like(known),
        )
        tokens = self.policy.tokens
        inputs, reset = tokens(windows)
        place = (at - first) * tokens.per_step + tokens.read_at
        n = torch.arange(len(at), device=at.device)

        def respond(x: Tensor) -> Tensor:
            return self.answer(self.policy.core(x, None, reset)[0][n, place], at)

        return Reading(inputs, torch.where(known, steps, -1), respond)


Reader = Unrolled | Windowed


def _of_distribution(policy: Any, action: Tensor, is_choice: bool) -> Tensor:
    """Return what is asked of an action of a distribution, (n, A)."""
    return policy.log_prob(action)[:, None] if is_choice else policy.mean


def _is_choice(space: spaces.Space[Any]) -> bool:
    return not isinstance(space, spaces.Box)


def _sequence(memory: Any, reset: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: memory(x, None, reset[None].expand(len(x), -1))[0]


def _read_ppo(agent: RecurrentPPO, played: Played) -> Reader:
    network, is_choice = agent.network, _is_choice(agent.action_space)

    def answer(features: Tensor, at: Tensor) -> Tensor:
        return _of_distribution(network.policy(features), played.action[at], is_choice)

    return Unrolled(
        memory=network.sequence,
        quantity=LOG_PROB if is_choice else VECTOR,
        begins=last_set(played.reset),
        inputs=network.project(network.encoder(played.obs))[None],
        run=_sequence(network.sequence, played.reset),
        answer=answer,
    )


def _read_sac(agent: RecurrentSAC, played: Played) -> Reader:
    memory = agent.actor.memory
    return Unrolled(
        memory=memory.sequence,
        quantity=VECTOR,
        begins=last_set(played.reset),
        inputs=memory.project(memory.encoder(played.obs))[None],
        run=_sequence(memory.sequence, played.reset),
        answer=lambda features, at: agent.actor.policy(features).mode(),
    )


def policy_rows(agent: SequenceAgent, played: Played) -> PolicyRows:
    """Return what a policy that learned from data reads of T rows, as its `act` does."""
    policy = agent.policy.eval()
    arrived = agent.arrived(played.obs, played.is_first, played.reset)
    count = torch.arange(len(played.reset), device=played.reset.device)
    return PolicyRows(
        obs=arrived.obs,
        action=policy.code.encode(played.action).to(arrived.obs.dtype),
        previous=arrived.previous,
        rtg=arrived.rtg,
        timestep=count - last_set(arrived.is_new),
        reset=arrived.reset,
    )


def _read_offline(agent: SequenceAgent, played: Played) -> Reader:
    policy = agent.policy
    rows, code, tokens = policy_rows(agent, played), policy.code, policy.tokens
    memory: Any = policy.core
    begins = last_set(rows.reset)

    def answer(features: Tensor, at: Tensor) -> Tensor:
        predicted = policy.head(features)
        if not code.nvec:
            return predicted
        return -code.loss(predicted, rows.action[at])[:, None]

    quantity = LOG_PROB if code.nvec else VECTOR
    if isinstance(agent.acting, WindowActing):
        return Windowed(
            memory=memory,
            quantity=quantity,
            policy=policy,
            begins=begins,
            rows=rows,
            answer=answer,
            context=agent.acting.context,
        )
    inputs, reset = tokens(PolicyRows(*(x[None] for x in rows)))
    return Unrolled(
        memory=memory,
        quantity=quantity,
        begins=begins,
        inputs=inputs,
        run=_sequence(memory, reset[0]),
        answer=answer,
        per_step=tokens.per_step,
        read_at=tokens.read_at,
    )


def _read_imagining(agent: ImaginationAgent, played: Played) -> Reader:
    """Return the reader of an agent with a world model: inputs are what its encoder makes.

    The latents are those that were sampled; the gradient through them is the straight-through one.
    """
    world, behavior = agent.world, agent.behavior
    assert played.vectors is not None, "of an agent that imagines"
    generator = torch.Generator(agent.device)
    generator.set_state(played.generator.cpu())
    noise = torch.cat([world.noise(1, generator=generator) for _ in played.reset])
    trace = 0 if behavior.config.features == "output" else 1
    chosen = world.actions(played.action)
    vectors, is_choice = played.vectors, behavior.actor.is_discrete

    def run(embed: Tensor) -> Tensor:
        action, reset, own = (
            x[None].expand(len(embed), *x.shape) for x in (vectors, played.reset, noise)
        )
        seen = world.dynamics.observe(embed, action, None, reset, own, trace=trace)
        states = seen.states() if trace else {"stoch": seen.stoch, "deter": seen.deter}
        return behavior.features(states)

    def answer(features: Tensor, at: Tensor) -> Tensor:
        return _of_distribution(behavior.actor(features), chosen[at], is_choice)

    return Unrolled(
        memory=world.dynamics,  # type: ignore[arg-type]
        quantity=LOG_PROB if is_choice else VECTOR,
        begins=last_set(played.reset),
        inputs=world.encoder(played.obs)[None],
        run=run,
        answer=answer,
    )


_READERS: dict[type[Any], Callable[[Any, Played], Reader]] = {
    RecurrentPPO: _read_ppo,
    RecurrentSAC: _read_sac,
    SequenceAgent: _read_offline,
    ImaginationAgent: _read_imagining,
}


def check_memory(trained: PlayingAgent) -> None:
    """Check that there is a memory to look at.

    Raises:
        ConfigError: the agent acts on the present observation alone, or has no policy.
    """
    if not isinstance(trained.agent, tuple(_READERS)):
        raise ConfigError(
            "inspect: expected a run of a policy with a memory, such as ppo, sac, decision_s4 or "
            f"r2i, got one of {trained.config.system}, which has none"
        )
    agent: Any = trained.config.agent
    where = "agent.sequence"
    if isinstance(trained.agent, ImaginationAgent):
        agent, where = agent.world.parallel, "agent.world.parallel.sequence"
    if getattr(getattr(agent, "sequence", None), "memory", "") == "none":
        raise ConfigError(
            f"inspect: expected a policy with a memory, got one with {where}.memory none, which "
            "is cleared before every step"
        )


@torch.no_grad()
def read_played(agent: Any, played: Played) -> Reader:
    """Return how the memory of an agent read what was played."""
    [read] = [read for kind, read in _READERS.items() if isinstance(agent, kind)]
    return read(agent, moved(played, agent.device))
