"""Exact resume of a single environment: remember how its episode came about and play it again.

An environment whose randomness comes from `np_random` is in a state that follows from the
generator at the start of its episode and the actions since. `ResumableEnv` keeps both. In trials
it keeps them from the start of the trial, with the places where further episodes began.
"""

from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np

from statewise.envs.protocol import EnvError
from statewise.envs.trial_env import TrialEnv


class ResumableEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records the current episode's start and actions, and replays them after a resume.

    It belongs outermost around every single environment of a Sync or AsyncVectorEnv. Reset
    options are passed on and not recorded.
    """

    pending_snapshot: dict[str, Any] | None = None
    """Set to a snapshot, the next `reset` continues that episode."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        # SyncVectorEnv writes its autoreset mode here; the class of the environment shares
        # its own dict among all instances.
        self.metadata = dict(env.metadata)
        self._start: dict[str, Any] | None = None
        self._actions: list[Any] = []
        self._restarts: list[int] = []
        self._ended = False
        self._resets_itself = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, or continue the one of `pending_snapshot`."""
        if self.pending_snapshot is not None:
            snapshot, self.pending_snapshot = self.pending_snapshot, None
            return self._replay(snapshot)
        goes_on = isinstance(self.env, TrialEnv) and not self.env.starts_trial
        if seed is None and goes_on:
            self._restarts.append(len(self._actions))
            self._ended = self._resets_itself = False
            return self.env.reset(options=options)
        if seed is None:
            self._start = {"generator": self.env.unwrapped.np_random.bit_generator.state}
        else:
            self._start = {"seed": int(seed)}
        self._actions, self._restarts = [], []
        self._ended = self._resets_itself = False
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; the first step after replaying a finished episode resets instead."""
        if self._resets_itself:
            obs, reset_info = self.reset()
            return obs, 0.0, False, False, reset_info
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._actions.append(action.copy() if isinstance(action, np.ndarray) else action)
        self._ended = bool(terminated or truncated)
        if self._ended:
            obs = deepcopy(obs)  # a reset in the same step may write into the same arrays
        return obs, reward, terminated, truncated, info

    def snapshot(self) -> dict[str, Any]:
        """Return the start of the episode, its actions (L, ...), and whether it has ended.

        In a trial, its start, and also before which of the actions an episode began.

        Raises:
            EnvError: there was no reset yet.
        """
        if self._start is None:
            raise EnvError("expected a reset before a snapshot, got none: call reset first")
        space = self.env.action_space
        shape = (len(self._actions), *(space.shape or ()))
        actions = np.array(self._actions, dtype=space.dtype).reshape(shape)
        snapshot = {"start": self._start, "actions": actions, "ended": self._ended}
        return snapshot | {"restarts": list(self._restarts)} if self._restarts else snapshot

    def _replay(self, snapshot: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Play the episode of the snapshot up to where it was taken."""
        start = snapshot["start"]
        if "generator" in start:
            self.env.unwrapped.np_random.bit_generator.state = start["generator"]
        obs, info = self.env.reset(seed=start.get("seed"))
        self._start, self._actions = start, list(snapshot["actions"])
        self._restarts = list(snapshot.get("restarts", ()))
        for t in range(len(self._actions) + 1):
            if t in self._restarts:
                obs, info = self.env.reset()
            if t < len(self._actions):
                obs, _, _, _, info = self.env.step(self._actions[t])
        # The vector environment knows nothing of the ended episode and will call step.
        self._ended = self._resets_itself = bool(snapshot["ended"])
        return obs, info
