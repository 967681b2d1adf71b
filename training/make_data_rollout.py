"""Episodes for a data set: played by a policy, or cut out of a replay buffer."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from numpy.typing import NDArray

from statewise.data import ArraySpec, DatasetInfo, Episode
from statewise.data.errors import Misaligned
from statewise.envs.build import EnvConfig, make_single
from statewise.envs.protocol import EnvError

Rows = NDArray[np.float32]
Policy = Callable[[Rows], Rows]
"""Observations (B, O) to actions (B, A) within their bounds."""
Environment = gymnasium.Env[Any, Any]

_WIDTH = 32  # environments that are stepped together


def make_environment(env_id: str) -> Environment:
    """Make an environment whose observation is one float32 vector.

    Raises:
        EnvError: no such environment, a package is missing, or its spaces or its missing time
            limit do not suit a data set of this kind.
    """
    env = make_single(EnvConfig(id=env_id))
    observed, action = env.observation_space, env.action_space
    assert isinstance(observed, spaces.Dict)
    parts = observed.spaces
    if list(parts) != ["obs"] or _vector(parts["obs"]) is None:
        raise EnvError(
            f"expected observations that are one vector of floats, got {observed} in {env_id}"
        )
    box = _vector(action)
    if box is None or not box.is_bounded():
        raise EnvError(f"expected a bounded vector of floats as action, got {action} in {env_id}")
    if env.spec is None or env.spec.max_episode_steps is None:
        raise EnvError(
            f"expected a time limit, got none in {env_id}: register it with max_episode_steps"
        )
    assert isinstance(env, gymnasium.Wrapper)
    if isinstance(env.env.observation_space, spaces.Box):  # spares every step the flat dict
        return TransformObservation(env.env, lambda obs: np.array(obs, np.float32), parts["obs"])
    return TransformObservation(env, lambda obs: obs["obs"], parts["obs"])


def _vector(space: spaces.Space[Any]) -> spaces.Box | None:
    """Return a space of float vectors, None for any other."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        return None
    return space if np.issubdtype(space.dtype, np.floating) else None


def environment_info(env: Environment) -> DatasetInfo:
    """Return id, specs and time limit of an environment with one box or choice each way."""
    assert env.spec is not None
    return DatasetInfo(
        env_id=env.spec.id,
        obs_specs={"obs": _spec(env.observation_space)},
        action_spec=_spec(env.action_space),
        max_episode_steps=env.spec.max_episode_steps,
    )


def _spec(space: spaces.Space[Any]) -> ArraySpec:
    if isinstance(space, spaces.Discrete):
        return ArraySpec(shape=(), dtype="int64", num_choices=(int(space.n),))
    assert isinstance(space, spaces.Box)
    dtype = np.float32 if np.issubdtype(space.dtype, np.floating) else space.dtype
    low, high = space.low.astype(dtype), space.high.astype(dtype)
    return ArraySpec(shape=space.shape, dtype=np.dtype(dtype).name, low=low, high=high)


def random_policy(env: Environment, seed: int) -> Policy:
    """Return uniform random actions."""
    space, generator = env.action_space, np.random.default_rng(seed)
    assert isinstance(space, spaces.Box)

    def act(obs: Rows) -> Rows:
        drawn = generator.uniform(space.low, space.high, (len(obs), *space.shape))
        return drawn.astype(np.float32)

    return act


class Recorder:
    """One episode while it is played.

    Args:
        env: is reset with `seed`.
        seed: of the episode.
        index: its number.
    """

    def __init__(self, env: Environment, seed: int, index: int) -> None:
        self.env, self.index = env, index
        self.observations: list[NDArray[Any]] = [env.reset(seed=seed)[0]]
        self.actions: list[NDArray[Any] | int] = []
        self.rewards: list[float] = []
        self.terminated = self.truncated = False

    def step(self, action: NDArray[Any] | int) -> bool:
        """Act, and return whether the episode is over."""
        obs, reward, self.terminated, self.truncated, _ = self.env.step(action)
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.observations.append(obs)
        return self.terminated or self.truncated

    def episode(self) -> Episode:
        """Return what was played; an end by both rule and time limit is one by the rule."""
        return Episode(
            observations={"obs": np.stack(self.observations)},
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float32),
            terminated=self.terminated,
            truncated=self.truncated and not self.terminated,
            index=self.index,
        )


def roll_out(
    make: Callable[[], Environment], policy: Policy, *, episodes: int, seed: int
) -> list[Episode]:
    """Play whole episodes, several at a time through one call of the policy.

    Every episode that begins is played to its end, so that short ones are not preferred.

    Args:
        make: makes one environment.
        policy: chooses the actions of all environments.
        episodes: >= 1; episode k starts with the seed `seed` + k.
        seed: of the first episode.
    """
    envs = [make() for _ in range(min(_WIDTH, episodes))]
    playing = [Recorder(env, seed + index, index) for index, env in enumerate(envs)]
    begun = len(playing)
    played: list[Episode] = []
    while playing:
        actions = policy(np.stack([one.observations[-1] for one in playing]))
        still: list[Recorder] = []
        for one, action in zip(playing, actions, strict=True):
            if not one.step(action):
                still.append(one)
                continue
            played.append(one.episode())
            if begun < episodes:
                still.append(Recorder(one.env, seed + begun, begun))
                begun += 1
        playing = still
    for env in envs:
        env.close()
    return sorted(played, key=lambda episode: episode.index)


def returns_of(episodes: list[Episode]) -> NDArray[np.float64]:
    """Return (E,) sums of rewards."""
    return np.array([episode.rewards.sum(dtype=np.float64) for episode in episodes])


def replay_episodes(rows: dict[str, NDArray[Any]]) -> list[Episode]:
    """Cut the rows of a replay buffer into episodes, without the unfinished last one.

    Args:
        rows: observations and next_observations (N, O), actions (N, A) as the environment took
            them, rewards, dones (an episode ended) and timeouts (it did so by its time limit)
            (N,), in the order in which they were played.

    Raises:
        Misaligned: a next observation is not the observation of the next row.
    """
    over = rows["dones"] > 0
    ends = np.flatnonzero(over) + 1
    wrong = (rows["next_observations"][:-1] != rows["observations"][1:]).any(1) & ~over[:-1]
    if wrong.any():
        raise Misaligned(
            f"expected the observation of the next row, got {int(wrong.sum())} others",
            key="next_observations",
            index=int(wrong.argmax()),
            hint="the buffer was not filled by one environment",
        )
    episodes = []
    for index, (begin, end) in enumerate(pairwise([0, *ends])):
        final = rows["next_observations"][end - 1 : end]
        is_timeout = bool(rows["timeouts"][end - 1] > 0)
        episodes.append(
            Episode(
                observations={"obs": np.concatenate([rows["observations"][begin:end], final])},
                actions=rows["actions"][begin:end],
                rewards=rows["rewards"][begin:end],
                terminated=not is_timeout,
                truncated=is_timeout,
                index=index,
            )
        )
    return episodes
