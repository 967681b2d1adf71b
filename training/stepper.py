"""Environments and the agent that steps them: what goes on from one step to the next."""

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.agents.protocol import ActingAgent
from statewise.envs.protocol import Arrived, Bools, Obs, VectorEnv
from statewise.ssm.protocol import State

WINDOW = 100  # episodes over which returns and lengths are averaged
MAX_PLACES = 16  # episodes of a trial whose returns are logged each for itself


def to_tensors(obs: Obs, device: torch.device) -> dict[str, Tensor]:
    """Put an observation on the device."""
    return {key: torch.from_numpy(value).to(device) for key, value in obs.items()}


class Stepper:
    """The observation at which environments stand, the memory before it, and their episodes so far.

    Args:
        env: the environments.
        agent: chooses the actions.
        device: where the agent lives.
    """

    def __init__(self, env: VectorEnv, agent: ActingAgent, device: torch.device | str):
        self.env, self._agent = env, agent
        self.device = torch.device(device)
        self.obs: Obs = {}
        self.is_first: Bools = np.zeros(env.num_envs, bool)
        self.reset: Bools = self.is_first
        self.state: State = agent.initial_state(env.num_envs)
        self._return = np.zeros(env.num_envs)
        self._length = np.zeros(env.num_envs, np.int64)
        self._returns: deque[float] = deque(maxlen=WINDOW)
        self._lengths: deque[int] = deque(maxlen=WINDOW)
        self._by_place: dict[int, deque[float]] = {}

    def start(self, seed: int) -> None:
        """Begin episodes in all environments."""
        self.obs, self.is_first = self.env.reset(seed)
        self.reset = self.is_first

    def on_device(self, array: NDArray[Any]) -> Tensor:
        """Return an array as a tensor where the agent lives."""
        return torch.from_numpy(array).to(self.device)

    def act(self, obs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], State]:
        """Choose actions to explore with; return them, the extras and the memory after.

        Args:
            obs: the present observation on the device, `to_tensors(stepper.obs, ...)`.
        """
        flags = self.on_device(self.is_first), self.on_device(self.reset)
        return self._agent.act(obs, self.state, *flags, explore=True)

    def arrive(self, arrived: Arrived, state: State) -> int:
        """Go on to where actions led, with the memory after them; return episodes that ended."""
        self.obs, self.is_first, self.reset = arrived.obs, arrived.is_first, arrived.reset
        self.state = state
        self._return += arrived.reward
        self._length += arrived.valid
        ended = arrived.episode_ended.nonzero()[0]
        self._returns.extend(self._return[ended].tolist())
        self._lengths.extend(self._length[ended].tolist())
        over = ended
        if arrived.trial is not None:
            self._keep_by_place(ended, arrived.trial.place[ended])
            over = (arrived.trial.ended | arrived.trial.over).nonzero()[0]
        self._return[over] = 0
        self._length[over] = 0
        return len(ended)

    def _keep_by_place(self, ended: NDArray[np.intp], place: NDArray[np.int64]) -> None:
        """Keep the returns of episodes that ended, by their number within the trial."""
        for index, number in zip(ended, place.tolist(), strict=True):
            if number < MAX_PLACES:
                recent = self._by_place.setdefault(number, deque(maxlen=WINDOW))
                recent.append(float(self._return[index]))

    @property
    def windows(self) -> dict[str, list[float]]:
        """Returns and lengths of the last episodes; empty before the first one ended.

        In trials also the returns of their first, second, ... episode.
        """
        if not self._returns:
            return {}
        by_place = {
            f"rollout/return_episode_{number + 1}": list(recent)
            for number, recent in sorted(self._by_place.items())
        }
        return {
            "rollout/ep_rew_mean": list(self._returns),
            "rollout/ep_len_mean": [float(length) for length in self._lengths],
        } | by_place

    @property
    def statistics(self) -> dict[str, float]:
        """The means of `windows`."""
        return {name: float(np.mean(recent)) for name, recent in self.windows.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on exactly from here."""
        return {
            "env": self.env.state_dict(),
            "memory": dict(self.state),
            "reset": self.reset,
            "return": self._return,
            "length": self._length,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "by_place": {str(number): list(kept) for number, kept in self._by_place.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, or from new episodes (`env.resume`)."""
        self.obs, self.is_first = self.env.load_state_dict(state["env"])
        self._returns.extend(state["returns"])
        self._lengths.extend(state["lengths"])
        for number, kept in state.get("by_place", {}).items():  # older runs have none
            self._by_place[int(number)] = deque(kept, maxlen=WINDOW)
        self.reset = self.is_first
        if self.env.resume == "exact":
            self.state = {key: x.to(self.device) for key, x in state["memory"].items()}
            self.reset = state["reset"]
            self._return, self._length = state["return"], state["length"]
