"""The network of recurrent PPO: one memory for actor and critic, or one each, and two heads."""

from collections.abc import Callable
from typing import Any

from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.memory import Memory
from statewise.nets.distributions import Distribution
from statewise.nets.heads import PolicyHead, ValueHead
from statewise.ssm.build import SequenceConfig
from statewise.ssm.protocol import Cache, State
from statewise.ssm.state import prefixed, select

CRITIC = "critic."  # prefix of what a critic with a memory of its own remembers


class ActorCritic(nn.Module):
    """Encoder, projection to the sequence width where needed, sequence model, two heads.

    Args:
        encoder: maps a dict of (..., ) tensors to (..., d_out), with the attribute `d_out`.
        action_space: Discrete, MultiDiscrete or Box, of one environment.
        sequence: the core.
        critic_encoder: makes the encoder of a critic with a memory of its own, of the same core,
            after all other weights are drawn; None: the critic reads the actor's features.
        head_hidden: widths of the hidden layers of both heads.
        initial_std: > 0, standard deviation of actions from a Box before training.

    Raises:
        ValueError: an encoder has no `d_out`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        action_space: spaces.Space[Any],
        sequence: SequenceConfig,
        *,
        critic_encoder: Callable[[], nn.Module] | None = None,
        head_hidden: tuple[int, ...] = (64,),
        initial_std: float = 1.0,
    ):
        super().__init__()
        memory = Memory(encoder, sequence)
        self.encoder, self.project, self.sequence = encoder, memory.project, memory.sequence
        width = memory.d_out
        self.policy = PolicyHead(width, action_space, head_hidden, initial_std=initial_std)
        self.value = ValueHead(width, head_hidden)
        self.critic = None if critic_encoder is None else Memory(critic_encoder(), sequence)

    def encoders(self) -> list[nn.Module]:
        """Return the encoder of the actor, and the critic's if it has one."""
        return [self.encoder, *([] if self.critic is None else [self.critic.encoder])]

    def initial_state(self, batch_size: int) -> State:
        """Return the memories of environments that are about to start."""
        state = self.sequence.initial_state(batch_size)
        if self.critic is None:
            return state
        return state | prefixed(self.critic.sequence.initial_state(batch_size), CRITIC)

    def prepare_step(self) -> Cache:
        """Prepare many steps; see `SequenceModel`."""
        cache = self.sequence.prepare_step()
        if self.critic is None:
            return cache
        return cache | prefixed(self.critic.sequence.prepare_step(), CRITIC)

    def forward(
        self, obs: dict[str, Tensor], state: State, reset: Tensor
    ) -> tuple[Distribution, Tensor, State]:
        """Run windows (B, T); return the policy, values (B, T) and the last state."""
        x = self.project(self.encoder(obs))
        y, last = self.sequence(x, self._own(state), reset)
        if self.critic is None:
            return self.policy(y), self.value(y), last
        z, theirs = self.critic.run(obs, select(state, CRITIC), reset)
        return self.policy(y), self.value(z), last | prefixed(theirs, CRITIC)

    def step(
        self, obs: dict[str, Tensor], state: State, reset: Tensor, cache: Cache | None
    ) -> tuple[Distribution, Tensor, State]:
        """Run one step (B)."""
        y, last = self._actor_step(obs, state, reset, cache)
        if self.critic is None:
            return self.policy(y), self.value(y), last
        critic_cache = None if cache is None else select(cache, CRITIC)
        z, theirs = self.critic.step(obs, select(state, CRITIC), reset, critic_cache)
        return self.policy(y), self.value(z), last | prefixed(theirs, CRITIC)

    def act(
        self, obs: dict[str, Tensor], state: State, reset: Tensor
    ) -> tuple[Distribution, State]:
        """Run one step (B) of the actor alone; `state` needs no critic's memory."""
        y, last = self._actor_step(obs, state, reset, None)
        return self.policy(y), last

    def _actor_step(
        self, obs: dict[str, Tensor], state: State, reset: Tensor, cache: Cache | None
    ) -> tuple[Tensor, State]:
        own = None if cache is None else self._own(cache)
        x = self.project(self.encoder(obs))
        return self.sequence.step(x, self._own(state), reset, cache=own)

    def _own(self, state: State) -> State:
        """Return what of a state or a cache is the actor's: all of it without a second memory."""
        if self.critic is None:
            return state
        return {key: x for key, x in state.items() if not key.startswith(CRITIC)}
