"""Small data sets with known answers, made at once from closed forms.

    rtg_dial            return conditioning: the return asked for is the sum of the actions
    delayed_cue         memory: the first observation decides the last action
    double_integrator   control: the expert is the linear quadratic regulator

Each belongs to an environment `statewise/<Name>-v0` on which a policy can be evaluated. The
constants here are those of the environments with their default arguments.
"""

import numpy as np
from numpy.typing import NDArray

from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import Array, ArraySpec, DatasetInfo, Episode
from statewise.data.errors import DataConfigError

Matrix = NDArray[np.float64]

DIAL_LOW, DIAL_HIGH, DIAL_NOISE = -1.0, 2.0, 0.1
WAIT, LEFT, RIGHT = range(3)
STEPS, DT, FORCE, START = 50, 0.1, 3.0, 1.0
A = np.array([[1.0, DT], [0.0, 1.0]])
B = np.array([[DT**2 / 2], [DT]])
Q, R = np.diag([1.0, 0.1]), np.array([[1.0]])

_ITERATIONS = 10_000
_CONVERGED = 1e-13  # relative change of P
_DIVERGED = 1e100  # entry of P


def rtg_dial(num_episodes: int = 1000, *, length: int = 20, seed: int = 0) -> EpisodeDataset:
    """Return episodes of RtgDial, each played at a level u that is uniform in [0, 1].

    The actions are u + 0.1 N(0, 1), the reward is the action clipped to [0, 1], and the
    observation (t / length, 1).

    Args:
        num_episodes: >= 1.
        length: steps of an episode, >= 1.
        seed: of numpy's generator, >= 0.

    Raises:
        DataConfigError: a number is out of its range.
    """
    _check_counts(num_episodes=num_episodes, length=length)
    generator = np.random.default_rng(seed)
    level = generator.uniform(size=(num_episodes, 1, 1))
    noise = DIAL_NOISE * generator.standard_normal((num_episodes, length, 1))
    actions = np.clip(level + noise, DIAL_LOW, DIAL_HIGH).astype(np.float32)
    obs = np.ones((num_episodes, length + 1, 2), np.float32)
    obs[..., 0] = np.arange(length + 1) / length
    rewards = np.clip(actions[..., 0], 0, 1)
    info = DatasetInfo(
        env_id="statewise/RtgDial-v0",
        obs_specs={"obs": _box([0, 0], [1, 1])},
        action_spec=_box([DIAL_LOW], [DIAL_HIGH]),
        max_episode_steps=length,
        ref_min=length * _uniform_clip_mean(DIAL_LOW, DIAL_HIGH),
        ref_max=float(length),
        generator={"made_by": "rtg_dial", "length": length, "seed": seed},
    )
    return _dataset(obs, actions, rewards, info, ends="terminated")


def delayed_cue(num_episodes: int = 2000, *, length: int = 30, seed: int = 0) -> EpisodeDataset:
    """Return expert episodes of DelayedCue: wait `length` times, then answer.

    The cue, -1 or 1, is in the first observation only. No action before the answer depends on
    it, so that previous actions do not carry it.

    Args:
        num_episodes: >= 1.
        length: steps between cue and answer, >= 1.
        seed: of numpy's generator, >= 0.

    Raises:
        DataConfigError: a number is out of its range.
    """
    _check_counts(num_episodes=num_episodes, length=length)
    cue = 2 * np.random.default_rng(seed).integers(2, size=num_episodes) - 1
    obs = np.zeros((num_episodes, length + 2, 2), np.float32)
    obs[:, 0, 0], obs[:, length, 1] = cue, 1
    actions = np.full((num_episodes, length + 1), WAIT, np.int64)
    actions[:, length] = np.where(cue > 0, RIGHT, LEFT)
    rewards = np.zeros((num_episodes, length + 1), np.float32)
    rewards[:, length] = 1
    info = DatasetInfo(
        env_id="statewise/DelayedCue-v0",
        obs_specs={"obs": _box([-1, 0], [1, 1])},
        action_spec=ArraySpec(shape=(), dtype="int64", num_choices=(3,)),
        max_episode_steps=length + 1,
        ref_min=1 / 3,
        ref_max=1.0,
        generator={"made_by": "delayed_cue", "length": length, "seed": seed},
    )
    return _dataset(obs, actions, rewards, info, ends="terminated")


def double_integrator(
    num_episodes: int = 500, *, random_share: float = 0.0, seed: int = 0
) -> EpisodeDataset:
    """Return episodes of DoubleIntegrator, played by the linear quadratic regulator u = -K x.

    Args:
        num_episodes: >= 1.
        random_share: in [0, 1], probability that an action is a uniform random one instead; 1
            is the random policy.
        seed: of numpy's generator, >= 0.

    Raises:
        DataConfigError: a number is out of its range.
    """
    _check_counts(num_episodes=num_episodes)
    if not 0 <= random_share <= 1:
        problem = f"expected a number in [0, 1], got {random_share}"
        raise DataConfigError(problem, key="random_share")
    generator = np.random.default_rng(seed)
    first = generator.uniform(-START, START, (num_episodes, 2)).astype(np.float32)
    other = generator.uniform(-FORCE, FORCE, (num_episodes, STEPS, 1))
    replaced = generator.uniform(size=(num_episodes, STEPS, 1)) < random_share
    gain = riccati(A, B, Q, R)[1]
    obs, actions, rewards = _simulate(first, other, replaced, gain)
    ref_min, ref_max = integrator_references()
    speed = START + STEPS * DT * FORCE
    bound = [START + STEPS * DT * speed, speed]
    info = DatasetInfo(
        env_id="statewise/DoubleIntegrator-v0",
        obs_specs={"obs": _box([-x for x in bound], bound)},
        action_spec=_box([-FORCE], [FORCE]),
        max_episode_steps=STEPS,
        ref_min=ref_min,
        ref_max=ref_max,
        generator={"made_by": "double_integrator", "random_share": random_share, "seed": seed},
    )
    return _dataset(obs, actions, rewards, info, ends="truncated")


def riccati(A: Matrix, B: Matrix, Q: Matrix, R: Matrix) -> tuple[Matrix, Matrix]:
    """Solve the discrete algebraic Riccati equation by iteration.

        P = Q + A'P A - A'P B K        K = (R + B'P B)^-1 B'P A

    u = -K x then costs x'P x from x on, the least that is possible.

    Args:
        A: (n, n) dynamics x' = A x + B u, which some K must stabilise.
        B: (n, m).
        Q: (n, n) cost of a state, symmetric and positive definite.
        R: (m, m) cost of an action, symmetric and positive definite.

    Returns:
        P (n, n) and K (m, n).

    Raises:
        DataConfigError: the iteration does not converge.
    """
    P = Q.copy()
    for _ in range(_ITERATIONS):
        K = np.asarray(np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A), np.float64)
        new = Q + A.T @ P @ (A - B @ K)
        change, P = np.abs(new - P).max(), (new + new.T) / 2
        if change <= _CONVERGED * np.abs(P).max():
            return P, K
        if np.abs(P).max() > _DIVERGED:
            break
    hint = "check that (A, B) can be stabilised"
    raise DataConfigError("expected a solution, got no convergence", key="riccati", hint=hint)


def integrator_references() -> tuple[float, float]:
    """Return the expected returns of DoubleIntegrator: of random actions, and of the expert.

    Both follow from the second moments of the state, S' = F S F' + B s B', with F = A and
    s = FORCE^2 / 3 for random actions and F = A - B K and s = 0 for the expert.
    """
    K = riccati(A, B, Q, R)[1]
    start = np.eye(2) * START**2 / 3
    variance = FORCE**2 / 3
    random = _expected_cost(A, Q, start, variance) + STEPS * float(R[0, 0]) * variance
    expert = _expected_cost(A - B @ K, Q + K.T @ R @ K, start, 0.0)
    return -random, -expert


def _expected_cost(F: Matrix, cost: Matrix, moments: Matrix, variance: float) -> float:
    """Return the sum over an episode of E[x'cost x] for x' = F x + B w, E[w^2] = variance."""
    total = 0.0
    for _ in range(STEPS):
        total += float(np.trace(cost @ moments))
        moments = F @ moments @ F.T + variance * (B @ B.T)
    return total


def _simulate(
    first: Array, other: Matrix, replaced: NDArray[np.bool_], gain: Matrix
) -> tuple[Array, Array, Array]:
    """Return observations (E, T + 1, 2), actions (E, T, 1) and rewards (E, T), float32.

    Written out in the order of the environment, so that replaying the actions there gives the
    same numbers.
    """
    state = first.astype(np.float64)
    shape = other.shape[:2]
    obs = np.empty((shape[0], shape[1] + 1, 2), np.float32)
    actions, rewards = np.empty((*shape, 1), np.float32), np.empty(shape, np.float32)
    for t in range(shape[1]):
        obs[:, t] = state
        wanted = np.where(replaced[:, t], other[:, t], -(obs[:, t] @ gain.T))
        actions[:, t] = np.clip(wanted, -FORCE, FORCE)
        u, p, v = actions[:, t, 0].astype(np.float64), state[:, 0], state[:, 1]
        rewards[:, t] = -(Q[0, 0] * p**2 + Q[1, 1] * v**2 + R[0, 0] * u**2)
        state = np.stack([p + DT * v + DT**2 / 2 * u, v + DT * u], 1)
    obs[:, -1] = state
    return obs, actions, rewards


def _dataset(
    obs: Array, actions: Array, rewards: Array, info: DatasetInfo, *, ends: str
) -> EpisodeDataset:
    """Return episodes of equal lengths from arrays (E, T + 1, ...) and (E, T, ...)."""
    episodes = [
        Episode(
            observations={"obs": obs[index]},
            actions=actions[index],
            rewards=rewards[index],
            terminated=ends == "terminated",
            truncated=ends == "truncated",
            index=index,
        )
        for index in range(len(rewards))
    ]
    return EpisodeDataset.from_episodes(episodes, info)


def _box(low: list[float], high: list[float]) -> ArraySpec:
    bounds = np.array([low, high], np.float32)
    return ArraySpec(shape=(len(low),), dtype="float32", low=bounds[0], high=bounds[1])


def _uniform_clip_mean(low: float, high: float) -> float:
    """Return E[clip(a, 0, 1)] for a uniform in [low, high], low <= 0 and high >= 1."""
    return (0.5 + (high - 1)) / (high - low)


def _check_counts(**counts: int) -> None:
    for key, value in counts.items():
        if value < 1:
            raise DataConfigError(f"expected at least 1, got {value}", key=key)
