"""Small data sets with known answers, made at once from closed forms.

    rtg_dial              return conditioning: the return asked for is the sum of the actions
    delayed_cue           memory: the first observation decides the last action
    double_integrator     control: the expert is the linear quadratic regulator
    distracting_hallway   world models: the last reward depends on what was seen at the start
    multi_doors_keys      world models: what a door does depends on the keys picked up and used

Each belongs to an environment `statewise/<Name>-v0` on which a policy can be evaluated. The
constants here are those of the environments with their default arguments.
"""

from math import comb

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
WALK, UP, DOWN = range(3)
SIGHT, ROOM, NARROWEST = 2, 3, 2
PREVIOUS, NEXT, TAKE, TRY = range(4)  # of MultiDoorsKeys

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
    check_counts(num_episodes=num_episodes, length=length)
    generator = np.random.default_rng(seed)
    level = generator.uniform(size=(num_episodes, 1, 1))
    noise = DIAL_NOISE * generator.standard_normal((num_episodes, length, 1))
    actions = np.clip(level + noise, DIAL_LOW, DIAL_HIGH).astype(np.float32)
    obs = np.ones((num_episodes, length + 1, 2), np.float32)
    obs[..., 0] = np.arange(length + 1) / length
    rewards = np.clip(actions[..., 0], 0, 1)
    info = DatasetInfo(
        env_id="statewise/RtgDial-v0",
        obs_specs={"obs": box([0, 0], [1, 1])},
        action_spec=box([DIAL_LOW], [DIAL_HIGH]),
        max_episode_steps=length,
        ref_min=length * _uniform_clip_mean(DIAL_LOW, DIAL_HIGH),
        ref_max=float(length),
        generator={"made_by": "rtg_dial", "length": length, "seed": seed},
    )
    return dataset_of(obs, actions, rewards, info, ends="terminated")


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
    check_counts(num_episodes=num_episodes, length=length)
    cue = 2 * np.random.default_rng(seed).integers(2, size=num_episodes) - 1
    obs = np.zeros((num_episodes, length + 2, 2), np.float32)
    obs[:, 0, 0], obs[:, length, 1] = cue, 1
    actions = np.full((num_episodes, length + 1), WAIT, np.int64)
    actions[:, length] = np.where(cue > 0, RIGHT, LEFT)
    rewards = np.zeros((num_episodes, length + 1), np.float32)
    rewards[:, length] = 1
    info = DatasetInfo(
        env_id="statewise/DelayedCue-v0",
        obs_specs={"obs": box([-1, 0], [1, 1])},
        action_spec=ArraySpec(shape=(), dtype="int64", num_choices=(3,)),
        max_episode_steps=length + 1,
        ref_min=1 / 3,
        ref_max=1.0,
        generator={"made_by": "delayed_cue", "length": length, "seed": seed},
    )
    return dataset_of(obs, actions, rewards, info, ends="terminated")


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
    check_counts(num_episodes=num_episodes)
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
        obs_specs={"obs": box([-x for x in bound], bound)},
        action_spec=box([-FORCE], [FORCE]),
        max_episode_steps=STEPS,
        ref_min=ref_min,
        ref_max=ref_max,
        generator={"made_by": "double_integrator", "random_share": random_share, "seed": seed},
    )
    return dataset_of(obs, actions, rewards, info, ends="truncated")


def distracting_hallway(
    num_episodes: int = 2000, *, length: int = 100, low: int | None = None, seed: int = 0
) -> EpisodeDataset:
    """Return episodes of DistractingHallway: walk to the end, wait, take a side at random.

    No action depends on the kind, and the last reward, 1 or 0, only on kind and side.

    Args:
        num_episodes: >= 1.
        length: width of the hallway in columns, >= 2; an episode has 4 steps more.
        low: None: all are `length` wide, and nobody waits; else an episode has n + 4 steps, n
            uniform in low .. length, and widths are uniform in low .. n, low >= 2.
        seed: of numpy's generator, >= 0.

    Raises:
        DataConfigError: a number is out of its range.
    """
    check_counts(num_episodes=num_episodes)
    narrowest = length if low is None else low
    if not NARROWEST <= narrowest <= length:
        problem = f"expected {NARROWEST} <= low <= length, got {low} and {length}"
        raise DataConfigError(problem, key="low" if low is not None else "length")
    generator = np.random.default_rng(seed)
    kind = generator.integers(2, size=num_episodes)
    time = generator.integers(narrowest, length + 1, size=num_episodes)
    width = generator.integers(narrowest, time + 1)
    sides = generator.integers(2, size=(num_episodes, length))
    choice = generator.integers(UP, DOWN + 1, size=num_episodes)
    obs, last = _hallway_views(kind, width, time, sides), ROOM + time
    actions = np.full((num_episodes, ROOM + length + 1), WALK)
    rewards = np.zeros(actions.shape, np.float32)
    every = np.arange(num_episodes)
    actions[every, last], rewards[every, last] = choice, choice == UP + kind
    info = DatasetInfo(
        env_id="statewise/DistractingHallway-v0",
        obs_specs={"obs": box([0] * obs.shape[2], [1] * obs.shape[2])},
        action_spec=ArraySpec(shape=(), dtype="int64", num_choices=(3,)),
        max_episode_steps=ROOM + length + 1,
        ref_min=random_hallway(narrowest, length),
        ref_max=1.0,
        generator={
            "made_by": "distracting_hallway",
            "width": length,
            "low": narrowest,
            "seed": seed,
        },
    )
    return dataset_of(obs, actions, rewards, info, ends="terminated", steps=last + 1)


def random_hallway(low: int, length: int) -> float:
    """Return the expected return of random actions in DistractingHallway.

    At least w + 3 of the n + 3 actions before the choice have to walk, one of three is right:
    the mean of P(Binomial(n + 3, 1/3) >= w + 3) / 3 over n and w.
    """
    total = 0.0
    for time in range(low, length + 1):
        trials = ROOM + time
        chances = [comb(trials, k) * 2 ** (trials - k) / 3**trials for k in range(trials + 1)]
        arrived = [sum(chances[ROOM + width :]) for width in range(low, time + 1)]
        total += sum(arrived) / len(arrived) / 3
    return total / (length + 1 - low)


def multi_doors_keys(
    num_episodes: int = 2000, *, num_keys: int = 3, length: int = 100, seed: int = 0
) -> EpisodeDataset:
    """Return episodes of MultiDoorsKeys: see all rooms, then go to take keys and try doors.

    The walker goes to the last room first. From there on it goes to a room drawn at random, to
    take its key or to try its door with equal chances, and so on. Nothing it does depends on
    the keys. About half of the doors that are tried open.

    Args:
        num_episodes: >= 1.
        num_keys: rooms, doors and keys, >= 2.
        length: steps of an episode, >= 4 num_keys - 2.
        seed: of numpy's generator, >= 0.

    Raises:
        DataConfigError: a number is out of its range.
    """
    check_counts(num_episodes=num_episodes)
    if num_keys < 2:
        raise DataConfigError(f"expected at least 2, got {num_keys}", key="num_keys")
    if length < 4 * num_keys - 2:
        problem = f"expected at least {4 * num_keys - 2} with {num_keys} keys, got {length}"
        raise DataConfigError(problem, key="length")
    generator = np.random.default_rng(seed)
    rooms = np.broadcast_to(np.arange(num_keys), (num_episodes, num_keys))
    keys = generator.permuted(rooms, axis=1)
    goals = generator.integers(num_keys, size=(num_episodes, length))
    goals[:, 0] = num_keys - 1
    deeds = generator.integers(TAKE, TRY + 1, size=(num_episodes, length))
    obs, actions, rewards = _play_keys(keys, goals, deeds)
    info = DatasetInfo(
        env_id="statewise/MultiDoorsKeys-v0",
        obs_specs={"obs": box([-1.0] + [0.0] * 2 * num_keys, [1.0] * (2 * num_keys + 1))},
        action_spec=ArraySpec(shape=(), dtype="int64", num_choices=(4,)),
        max_episode_steps=length,
        ref_min=random_doors(num_keys, length),
        ref_max=1.0,
        generator={
            "made_by": "multi_doors_keys",
            "num_keys": num_keys,
            "length": length,
            "seed": seed,
        },
    )
    return dataset_of(obs, actions, rewards, info, ends="truncated")


def random_doors(num_keys: int, length: int) -> float:
    """Return the expected return of random actions in MultiDoorsKeys.

    That is, for one door and all places of door and key, the chance that it opens within the
    episode minus the expected number of tries in vain. They follow from a Markov chain over h,
    which is 0 and 1 while the key is on its hook and in the hand for the first time, 2 and 3
    for all later times, and the room x:

        p'(h, x) = (p(h, left of x) + p(h, right of x)) / 4 + p(h, x) / 2      walk; take, try
        at the key a take leads from 0 to 1 and from 2 to 3, at the door a try from 1 and 3 to 2
    """
    n = num_keys
    walk = np.eye(n, k=1) + np.eye(n, k=-1)
    walk[0, 0] = walk[-1, -1] = 1  # into the wall
    pairs = np.arange(n * n)
    key, door = np.divmod(pairs, n)
    p = np.zeros((n * n, 4, n))
    p[:, 0, 0] = 1
    total = 0.0
    for _ in range(length):
        new = p @ walk / 4 + p / 2
        for at, before, after in ((key, 0, 1), (key, 2, 3), (door, 1, 2), (door, 3, 2)):
            moved = p[pairs, before, at] / 4
            new[pairs, before, at] -= moved
            new[pairs, after, at] += moved
        opened = p[pairs, 1, door].mean() / 4
        total += float(opened - (p[pairs, 0, door] + p[pairs, 2, door]).mean() / 4)
        p = new
    return total


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


def _hallway_views(
    kind: NDArray[np.int64],
    width: NDArray[np.int64],
    time: NDArray[np.int64],
    sides: NDArray[np.int64],
) -> Array:
    """Return what a walker sees, (E, longest + 5, 75) float32, zeros once it has chosen.

    Args:
        kind: (E,) 0 or 1, channel of the kind.
        width: (E,) columns of the hallway.
        time: (E,) at least as many; the choice is the action after 3 + time others.
        sides: (E, longest) 0 or 1: where the distractor of a column lies, up or down.
    """
    count, longest = sides.shape
    end = ROOM + width
    # All columns of the world, from SIGHT before the first to SIGHT behind the last possible one.
    world = np.zeros((count, SIGHT + ROOM + longest + 1 + SIGHT, 5, 3), np.float32)
    every = np.arange(count)
    world[every, SIGHT : SIGHT + ROOM, :, kind] = 1
    e, column = np.nonzero(np.arange(longest) < width[:, None])
    world[e, SIGHT + ROOM + column, 1 + 2 * sides[e, column], 2] = 1
    world[every, SIGHT + end, :2, 0] = 1
    world[every, SIGHT + end, 3:, 1] = 1
    seen = np.lib.stride_tricks.sliding_window_view(world, 2 * SIGHT + 1, axis=1)
    views = seen.transpose(0, 1, 2, 4, 3)  # (E, x, row, column, channel)
    rows = np.arange(ROOM + longest + 2)
    obs = views[every[:, None], np.minimum(rows, end[:, None])]
    obs[rows > ROOM + time[:, None]] = 0
    return obs.reshape(count, len(rows), -1)


def _play_keys(
    keys: NDArray[np.int64], goals: NDArray[np.int64], deeds: NDArray[np.int64]
) -> tuple[Array, Array, Array]:
    """Return observations (E, T + 1, 2 n + 1), actions (E, T) and rewards (E, T).

    Args:
        keys: (E, n) colour of the key of each room.
        goals: (E, T) rooms to go to, one after the other.
        deeds: (E, T) what is done there, TAKE or TRY.
    """
    (count, n), length = keys.shape, goals.shape[1]
    every, one_hot = np.arange(count), np.eye(n, dtype=np.float32)
    room, errand, door = np.zeros((3, count), np.int64)
    held, opened = np.zeros((2, count, n), bool)
    obs = np.empty((count, length + 1, 2 * n + 1), np.float32)
    actions, rewards = np.empty((count, length), np.int64), np.empty((count, length), np.float32)
    for t in range(length + 1):
        key = keys[every, room]
        obs[:, t, 0], obs[:, t, 1 : n + 1] = door, one_hot[room]
        obs[:, t, n + 1 :] = one_hot[key] * ~held[every, key][:, None]
        if t == length:
            break
        goal = goals[every, errand]
        action = np.where(goal > room, NEXT, np.where(goal < room, PREVIOUS, deeds[every, errand]))
        opens = (action == TRY) & held[every, room]
        actions[:, t] = action
        paid = (opens & ~opened[every, room]).astype(np.int64) - ((action == TRY) & ~opens)
        rewards[:, t] = paid / n
        opened[every, room] |= opens
        held[every, room] &= ~opens
        held[every, key] |= action == TAKE
        door = (action == TRY) * np.where(opens, 1, -1)
        errand += goal == room
        room = room + np.sign(goal - room)
    return obs, actions, rewards


def dataset_of(
    obs: Array,
    actions: Array,
    rewards: Array,
    info: DatasetInfo,
    *,
    ends: str,
    steps: NDArray[np.int64] | None = None,
) -> EpisodeDataset:
    """Return episodes from arrays (E, T + 1, ...) and (E, T, ...); of (E,) steps, or T all."""
    counts = np.full(len(rewards), rewards.shape[1]) if steps is None else steps
    episodes = [
        Episode(
            observations={"obs": obs[index, : count + 1]},
            actions=actions[index, :count],
            rewards=rewards[index, :count],
            terminated=ends == "terminated",
            truncated=ends == "truncated",
            index=index,
        )
        for index, count in enumerate(counts.tolist())
    ]
    return EpisodeDataset.from_episodes(episodes, info)


def box(low: list[float], high: list[float]) -> ArraySpec:
    """Return a float32 vector between bounds."""
    bounds = np.array([low, high], np.float32)
    return ArraySpec(shape=(len(low),), dtype="float32", low=bounds[0], high=bounds[1])


def _uniform_clip_mean(low: float, high: float) -> float:
    """Return E[clip(a, 0, 1)] for a uniform in [low, high], low <= 0 and high >= 1."""
    return (0.5 + (high - 1)) / (high - low)


def check_counts(**counts: int) -> None:
    """Raise DataConfigError unless all numbers are at least 1."""
    for key, value in counts.items():
        if value < 1:
            raise DataConfigError(f"expected at least 1, got {value}", key=key)
