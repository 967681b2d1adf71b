"""On-policy collection: rows of `data.Step`, the memory they began with, the values they lead to.

Rows are what the environments gave, invalid ones included: under NEXT_STEP the row of a final
observation gives V(final observation) with the memory it had, at no cost. A SAME_STEP backend
hands final observations aside; one extra memory step values those of truncated episodes.
"""

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.agents.protocol import Agent
from statewise.data.step import Batch, Step
from statewise.envs.protocol import Arrived, Bools, Obs, VectorEnv
from statewise.ssm.protocol import State

WINDOW = 100  # episodes over which returns and lengths are averaged


class Rollout(NamedTuple):
    """One batch and what was counted while it was collected."""

    batch: Batch
    num_steps: int
    """Valid rows."""
    num_episodes: int
    """Episodes that ended in it."""


def to_tensors(obs: Obs, device: torch.device) -> dict[str, Tensor]:
    """Put an observation on the device."""
    return {key: torch.from_numpy(value).to(device) for key, value in obs.items()}


class Collector:
    """Steps the environments with an agent and keeps what goes on from rollout to rollout.

    Args:
        env: the environments.
        agent: chooses the actions; its extras must hold `value`.
        rollout_steps: rows per environment and rollout.
        device: where the agent lives.
    """

    def __init__(self, env: VectorEnv, agent: Agent, rollout_steps: int, device: str = "cpu"):
        self._env, self._agent = env, agent
        self._num_rows = rollout_steps
        self._device = torch.device(device)
        self._obs: Obs = {}
        self._is_first = self._reset = np.zeros(env.num_envs, bool)
        self._state: State = agent.initial_state(env.num_envs)
        self._return = np.zeros(env.num_envs)
        self._length = np.zeros(env.num_envs, np.int64)
        self._returns: deque[float] = deque(maxlen=WINDOW)
        self._lengths: deque[int] = deque(maxlen=WINDOW)

    def start(self, seed: int) -> None:
        """Begin episodes in all environments."""
        self._obs, self._is_first = self._env.reset(seed)
        self._reset = self._is_first

    @property
    def statistics(self) -> dict[str, float]:
        """Mean return and length of the last episodes; empty before the first one ended."""
        if not self._returns:
            return {}
        return {
            "rollout/ep_rew_mean": float(np.mean(self._returns)),
            "rollout/ep_len_mean": float(np.mean(self._lengths)),
        }

    def collect(self) -> Rollout:
        """Collect `rollout_steps` rows from every environment."""
        # Normal tensors: what `act` returns is for inference only.
        begin = {key: value.clone() for key, value in self._state.items()}
        rows: list[tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]] = []
        arrivals: list[Arrived] = []
        flags: list[tuple[Bools, Bools]] = []
        finals: list[tuple[int, Tensor, Tensor]] = []
        num_episodes = 0
        for t in range(self._num_rows):
            obs = to_tensors(self._obs, self._device)
            flags.append((self._is_first, self._reset))
            action, extras = self._act(obs)
            arrived = self._env.step(action.cpu().numpy())
            if arrived.final_obs is not None and arrived.truncated.any():
                value = self._value(arrived.final_obs, np.zeros_like(self._reset))
                finals.append((t, torch.from_numpy(arrived.truncated), value))
            rows.append((obs, action, extras))
            arrivals.append(arrived)
            num_episodes += self._count(arrived)
            self._obs, self._is_first, self._reset = arrived.obs, arrived.is_first, arrived.reset
        after = self._value(self._obs, self._reset)
        batch = self._stack(begin, rows, flags, arrivals, after, finals)
        return Rollout(batch, int(batch.step.valid.sum()), num_episodes)

    def _flag(self, flag: Bools) -> Tensor:
        return torch.from_numpy(flag).to(self._device)

    def _act(self, obs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        action, extras, self._state = self._agent.act(
            obs, self._state, self._flag(self._is_first), self._flag(self._reset), explore=True
        )
        return action, extras

    def _value(self, obs: Obs, reset: Bools) -> Tensor:
        """Value observations with the present memory, which stays as it is."""
        flag = self._flag(reset)
        _, extras, _ = self._agent.act(
            to_tensors(obs, self._device), self._state, flag, flag, explore=False
        )
        return extras["value"]

    def _count(self, arrived: Arrived) -> int:
        self._return += arrived.reward
        self._length += arrived.valid
        ended = (arrived.terminated | arrived.truncated).nonzero()[0]
        for i in ended:
            self._returns.append(float(self._return[i]))
            self._lengths.append(int(self._length[i]))
        self._return[ended] = 0
        self._length[ended] = 0
        return len(ended)

    def _stack(
        self,
        begin: State,
        rows: list[tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]],
        flags: list[tuple[Bools, Bools]],
        arrivals: list[Arrived],
        after: Tensor,
        finals: list[tuple[int, Tensor, Tensor]],
    ) -> Batch:
        def over_time(arrays: list[NDArray[Any]]) -> Tensor:
            return self._flag(np.stack(arrays, 1))

        step = Step(
            obs={key: torch.stack([o[key] for o, _, _ in rows], 1) for key in rows[0][0]},
            is_first=over_time([first for first, _ in flags]),
            reset=over_time([reset for _, reset in flags]),
            action=torch.stack([action for _, action, _ in rows], 1),
            reward=over_time([a.reward for a in arrivals]),
            terminated=over_time([a.terminated for a in arrivals]),
            truncated=over_time([a.truncated for a in arrivals]),
            valid=over_time([a.valid for a in arrivals]),
        )
        extras = {key: torch.stack([e[key] for _, _, e in rows], 1) for key in rows[0][2]}
        value_tp1 = torch.cat((extras["value"][:, 1:], after[:, None]), 1)
        for t, truncated, value in finals:
            value_tp1[:, t] = torch.where(truncated.to(self._device), value, value_tp1[:, t])
        return Batch(step, begin, extras, value_tp1)

    def state_dict(self) -> dict[str, Any]:
        """Return what collection needs to go on exactly where it is."""
        return {
            "env": self._env.state_dict(),
            "memory": dict(self._state),
            "reset": self._reset,
            "return": self._return,
            "length": self._length,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, or from new episodes (`env.resume`)."""
        self._obs, self._is_first = self._env.load_state_dict(state["env"])
        self._returns.extend(state["returns"])
        self._lengths.extend(state["lengths"])
        self._reset = self._is_first
        if self._env.resume == "exact":
            self._state = {key: x.to(self._device) for key, x in state["memory"].items()}
            self._reset = state["reset"]
            self._return, self._length = state["return"], state["length"]
