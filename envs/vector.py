"""The adapter from any gymnasium vector environment to the project's `VectorEnv`.

NEXT_STEP and SAME_STEP auto-reset are brought to one time convention: what the action caused
is separated from the row it leads to, and rows whose action was ignored are marked.
"""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVector
from numpy.typing import NDArray

from statewise.envs.protocol import CUT, Arrived, Bools, EnvError, Obs
from statewise.envs.spaces import (
    flatten_action_space,
    flatten_list,
    flatten_obs,
    flatten_space,
    restore_action,
)


def autoreset_mode(vec: GymnasiumVector[Any, Any, Any]) -> AutoresetMode:
    """Return the auto-reset mode the environment declares.

    Raises:
        EnvError: it declares none, or DISABLED.
    """
    mode = vec.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        raise EnvError(
            f"expected metadata['autoreset_mode'] NEXT_STEP or SAME_STEP, got {mode} from "
            f"{type(vec).__name__}: make it with one of the two"
        )
    return AutoresetMode(mode)


def _final_obs(space: Any, info: dict[str, Any], ended: Bools) -> Obs:
    """Return the final observations (N, ...) of a SAME_STEP environment, 0 where not ended."""
    if "final_obs" not in info:
        raise EnvError(
            "expected info['final_obs'] from a SAME_STEP environment in a step that ended "
            "episodes, got none: use NEXT_STEP"
        )
    final = info["final_obs"]
    if not (isinstance(final, np.ndarray) and final.dtype == object):
        return flatten_obs(space, final)  # dense, as ale_py hands it over
    which = np.flatnonzero(ended)
    rows = flatten_list(space, [final[index] for index in which])
    dense = {k: np.zeros((len(ended), *v.shape[1:]), dtype=v.dtype) for k, v in rows.items()}
    for key, values in rows.items():
        dense[key][which] = values
    return dense


def _cut(info: dict[str, Any], ended: Bools) -> Bools:
    """Return what `CUT` says; gymnasium's SAME_STEP keeps it with the final observations."""
    said = info.get(CUT, info.get("final_info", {}).get(CUT))
    return np.zeros_like(ended) if said is None else np.array(said, dtype=bool)


def _refuse_non_finite(values: NDArray[Any], what: str, step: int) -> None:
    """Raise EnvError naming the first of N environments whose values are not finite."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    flat = values.reshape(len(values), -1)
    env = int(np.flatnonzero(~np.isfinite(flat).all(axis=1))[0])
    bad = flat[env][~np.isfinite(flat[env])][0]
    name = "NaN" if np.isnan(bad) else str(bad)
    kind = "rewards" if what == "reward" else "observations"
    raise EnvError(
        f"expected finite {kind}, got {name} in {what} of environment {env} at step {step}: "
        "the environment is at fault"
    )


class GymnasiumVectorEnv:
    """`VectorEnv` over a gymnasium vector environment: Sync, Async or a native one.

    `resume` is "exact" where every single environment is a ResumableEnv or the vector
    environment has `state_dict` and `load_state_dict` of its own, else "episode".

    Args:
        vec: declares NEXT_STEP or SAME_STEP in its metadata.
        resumable: every single environment of `vec` is wrapped in ResumableEnv.

    Raises:
        EnvError: another auto-reset mode.
        UnsupportedSpaceError: a space without an encoder or a policy head.
    """

    def __init__(self, vec: GymnasiumVector[Any, Any, Any], *, resumable: bool = False) -> None:
        self.same_step = autoreset_mode(vec) is AutoresetMode.SAME_STEP
        self.num_envs = int(vec.num_envs)
        self.obs_space = flatten_space(vec.single_observation_space)
        self.action_space = flatten_action_space(vec.single_action_space)
        self._vec: Any = vec  # gymnasium's base class has no call and set_attr
        self._native: Any = vec if hasattr(vec, "load_state_dict") else None
        self._resumable = resumable
        self.resume = "exact" if resumable or self._native is not None else "episode"
        self._action_shape = (self.num_envs, *(self.action_space.shape or ()))
        self._obs: Obs | None = None  # our own copy: callers may write into what they got
        self._is_first = np.ones(self.num_envs, dtype=bool)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._seed = 0
        self._step = 0

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Start N episodes and return their first observations and is_first, all True.

        Environment i is seeded with seed + i; a native vector environment that keeps one
        generator for all is seeded with `seed`.

        Raises:
            EnvError: an observation is not finite.
        """
        entropy = seed if seed is not None else np.random.SeedSequence().generate_state(1)[0]
        self._seed, self._step = int(entropy), 0
        batched, _ = self._vec.reset(seed=seed)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        return self._keep(flatten_obs(self._vec.single_observation_space, batched), ~self._ended)

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments.

        Args:
            action: (N, ...) actions of `action_space`, continuous ones of any size.

        Raises:
            EnvError: there was no reset, the shape of `action` is wrong, or an observation or
                reward is not finite.
        """
        if self._obs is None:
            raise EnvError("expected a reset before the first step, got none: call reset first")
        if np.shape(action) != self._action_shape:
            raise EnvError(
                f"expected actions of shape {self._action_shape}, got {np.shape(action)} in step"
            )
        space = self._vec.single_observation_space
        batched, reward, terminated, truncated, info = self._vec.step(
            restore_action(self._vec.single_action_space, action)
        )
        self._step += 1
        terminated, truncated = np.array(terminated, dtype=bool), np.array(truncated, dtype=bool)
        ended = terminated | truncated
        was_over, self._ended = self._ended, ended
        if self.same_step:
            valid, is_first = np.ones_like(ended), ended.copy()
        else:
            valid, is_first = ~was_over, was_over
        # Some backends repeat the last reward on the row that only resets.
        reward = np.where(valid, reward, 0).astype(np.float32)
        _refuse_non_finite(reward, "reward", self._step)
        obs, is_first = self._keep(flatten_obs(space, batched), is_first)
        final = _final_obs(space, info, ended) if self.same_step and ended.any() else None
        for key, values in (final or {}).items():
            _refuse_non_finite(values[ended], f"the final {key!r}", self._step)
        cut, reset = _cut(info, ended), is_first.copy()
        return Arrived(obs, is_first, reset, reward, terminated, truncated, valid, final, cut)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs.

        Raises:
            EnvError: there was no reset yet.
        """
        if self._obs is None:
            raise EnvError("expected a reset before state_dict, got none: call reset first")
        state: dict[str, Any] = {"resume": self.resume, "num_envs": self.num_envs}
        if self.resume == "episode":
            # another seed than the one of this run, else the same episodes would come again
            sequence = np.random.SeedSequence([self._seed, self._step])
            return {**state, "seed": int(sequence.generate_state(1)[0] >> 1)}
        state |= {"seed": self._seed, "step": self._step, "ended": self._ended.copy()}
        state |= {"is_first": self._is_first.copy()}
        state |= {"obs": {key: values.copy() for key, values in self._obs.items()}}
        if self._native is not None:
            return {**state, "native": self._native.state_dict()}
        snapshots = self._vec.call("snapshot")
        return {**state, "snapshots": {str(i): one for i, one in enumerate(snapshots)}}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken; with "episode", start new episodes.

        Raises:
            EnvError: the state is of another kind or number of environments, or an
                environment draws randomness from elsewhere than its `np_random`.
        """
        expected = {"resume": self.resume, "num_envs": self.num_envs}
        found = {key: state[key] for key in expected}
        if found != expected:
            raise EnvError(
                f"expected the state of environments with {expected}, got {found}: resume with "
                "the environment settings of the run"
            )
        if self.resume == "episode":
            return self.reset(seed=state["seed"])
        obs = {key: values.copy() for key, values in state["obs"].items()}
        if self._native is not None:
            self._native.load_state_dict(state["native"])
        else:
            self._replay(state["snapshots"], obs)
        self._seed, self._step = state["seed"], state["step"]
        self._ended = state["ended"].copy()
        return self._keep(obs, state["is_first"].copy())

    def close(self) -> None:
        """Close the environments; a second call does nothing."""
        self._vec.close()

    def _replay(self, snapshots: dict[str, Any], expected: Obs) -> None:
        """Replay the current episodes and compare where they lead."""
        self._vec.set_attr("pending_snapshot", [snapshots[str(i)] for i in range(self.num_envs)])
        batched, _ = self._vec.reset()
        for key, values in flatten_obs(self._vec.single_observation_space, batched).items():
            same = (values == expected[key]).reshape(self.num_envs, -1).all(axis=1)
            if not same.all():
                raise EnvError(
                    f"expected the stored {key!r} after replaying the episode, got another in "
                    f"environment {int(np.flatnonzero(~same)[0])}: it draws randomness from "
                    "elsewhere than self.np_random, so this run cannot be resumed"
                )

    def _keep(self, obs: Obs, is_first: Bools) -> tuple[Obs, Bools]:
        """Check and remember the current observations, and return them."""
        for key, values in obs.items():
            _refuse_non_finite(values, repr(key), self._step)
        self._obs = {key: values.copy() for key, values in obs.items()}
        self._is_first = is_first.copy()
        return obs, is_first
