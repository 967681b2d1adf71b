"""Two ways in which a return-conditioned policy acts: over a window, and step by step.

A window encodes the last K steps again at every action, as Decision Transformer does; recurrent
acting feeds the new tokens to the memory of the core, at a cost that does not grow. The two are
different policies once an episode is longer than K: the second also remembers what came before.

State keys of both: "timestep" (B,), the step last acted at, -1 before the first. A window adds,
with the oldest step first and zeros behind the last, "obs" (B, K, S), "action" (B, K, A), "rtg"
(B, K), "time" (B, K) and "count" (B,), the steps held; recurrent acting adds "core.*".
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import PolicyRows, cleared
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.state import prefixed, select

CORE = "core."


class Arrived(NamedTuple):
    """What comes with one step of B environments."""

    obs: Tensor
    """(B, S), from the policy's `inputs`."""
    previous: Tensor
    """(B, A) code of the last action; 0 where `is_new`."""
    rtg: Tensor
    """(B,) return still to be got, in the units of the rewards."""
    is_new: Tensor
    """(B,) bool: no action is known to have led here: a first step, or a cleared memory."""
    reset: Tensor
    """(B,) bool."""


class Acting(Protocol):
    """A way to act; it holds the policy and what is derived from its weights."""

    def initial_state(self, batch_size: int) -> State:
        """Return the state of environments that are about to start."""
        ...

    def act(self, arrived: Arrived, state: State) -> tuple[Tensor, State]:
        """Return predictions (B, A) and the next state, without changing `state`."""
        ...

    def forget_weights(self) -> None:
        """Drop what was derived from the weights, because they changed."""
        ...


def _timestep(arrived: Arrived, state: State) -> Tensor:
    """Return the number of the present step in its episode, (B,) in the dtype of the state."""
    return torch.where(arrived.is_new, 0, state["timestep"] + 1)


def _kept(state: State, arrived: Arrived) -> tuple[State, Tensor]:
    """Return the window after resets, with the previous action in its place, and its counts.

    A full window has lost its oldest step, so that there is room for one more.
    """
    count = cleared(state["count"], ~arrived.reset).long()
    window = {key: cleared(state[key], ~arrived.reset) for key in ("obs", "action", "rtg", "time")}
    size = window["rtg"].shape[1]
    place = torch.arange(size, device=count.device)
    last = place == count[:, None] - 1  # whose action is not known, where `previous` is 0
    window["action"] = torch.where(last[..., None], arrived.previous[:, None], window["action"])
    full = count == size
    for key, value in window.items():
        moved = torch.cat((value[:, 1:], torch.zeros_like(value[:, :1])), 1)
        window[key] = torch.where(full.view(-1, *(1,) * (value.dim() - 1)), moved, value)
    return window, count.clamp(max=size - 1)


class WindowActing:
    """Acts on the last `context` steps, which the core sees as a sequence of their own.

    Args:
        policy: of a layout whose steps hold their own action.
        context: K >= 1.

    Raises:
        ValueError: the layout has one token per step, which holds the action before it.
    """

    def __init__(self, policy: SequencePolicy, context: int) -> None:
        if policy.tokens.per_step == 1:
            raise ValueError(
                "inference: expected a layout with a token for each action for 'window', got "
                f"{type(policy.tokens).__name__}: use 'recurrent'"
            )
        self.policy = policy
        self.context = context

    def initial_state(self, batch_size: int) -> State:
        """Return an empty window."""
        zeros, K = self.policy.head.linear.weight.new_zeros, self.context
        return {
            "timestep": zeros(batch_size) - 1,
            "obs": zeros((batch_size, K, self.policy.inputs.d_out)),
            "action": zeros((batch_size, K, self.policy.code.width)),
            "rtg": zeros((batch_size, K)),
            "time": zeros((batch_size, K)),
            "count": zeros(batch_size),
        }

    def act(self, arrived: Arrived, state: State) -> tuple[Tensor, State]:
        """Append the step and encode the window; see `Acting`."""
        window, place = _kept(state, arrived)
        time = _timestep(arrived, state)
        rows = torch.arange(len(place), device=place.device)
        for key, value in (("obs", arrived.obs), ("rtg", arrived.rtg), ("time", time)):
            window[key] = window[key].index_put((rows, place), value)
        # The steps behind the last are padding, which a causal core does not see.
        predicted = self.policy(
            PolicyRows(
                obs=window["obs"],
                action=window["action"],
                previous=torch.zeros_like(window["action"]),
                rtg=window["rtg"],
                timestep=window["time"].long(),
                reset=torch.zeros_like(window["rtg"], dtype=torch.bool),
            )
        )
        after = window | {"timestep": time, "count": (place + 1).to(time.dtype)}
        return predicted[rows, place], after

    def forget_weights(self) -> None:
        """Do nothing: a window is encoded with the weights as they are."""


class RecurrentActing:
    """Acts step by step with the memory of the core.

    Args:
        policy: with a core that has a step mode.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, policy: SequencePolicy) -> None:
        if not isinstance(policy.core, SequenceModel):
            raise ValueError(
                "inference: expected a core with a step mode for 'recurrent', got "
                f"{type(policy.core).__name__}: use 'window'"
            )
        self.policy = policy
        self.core: SequenceModel = policy.core
        self._cache: Cache | None = None

    def initial_state(self, batch_size: int) -> State:
        """Return the state of the core before its first token."""
        before = self.policy.head.linear.weight.new_zeros(batch_size) - 1
        return {"timestep": before} | prefixed(self.core.initial_state(batch_size), CORE)

    def _close(self, arrived: Arrived, before: Tensor, state: State) -> State:
        """Feed the token of the previous action where one is known."""
        token = self.policy.tokens.leaving(arrived.previous, before.clamp(min=0).long())
        if token is None:
            return state
        _, fed = self.core.step(token, state, cache=self._cache)
        known = ~arrived.is_new
        return {
            key: torch.where(known.view(-1, *(1,) * (value.dim() - 1)), value, state[key])
            for key, value in fed.items()
        }

    def act(self, arrived: Arrived, state: State) -> tuple[Tensor, State]:
        """Feed the new tokens; see `Acting`."""
        if self._cache is None:
            self._cache = self.core.prepare_step()
        time = _timestep(arrived, state)
        memory = self._close(arrived, state["timestep"], select(state, CORE))
        rows = PolicyRows(
            obs=arrived.obs,
            action=torch.zeros_like(arrived.previous),
            previous=arrived.previous,
            rtg=arrived.rtg,
            timestep=time.long(),
            reset=arrived.reset,
        )
        reset: Tensor | None = arrived.reset
        y = arrived.obs
        for token in self.policy.tokens.arriving(rows).unbind(1):
            y, memory = self.core.step(token, memory, reset, cache=self._cache)
            reset = None  # the memory is cleared before the first token alone
        return self.policy.head(y), {"timestep": time} | prefixed(memory, CORE)

    def forget_weights(self) -> None:
        """Drop the cache of the step mode."""
        self._cache = None


def conforms(acting: WindowActing | RecurrentActing) -> Acting:
    """Let the type checker compare both ways with the protocol."""
    return acting
