"""DistractingHallway and MultiDoorsKeys: exact rows, oracles, and that memory is asked for."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.envs.tasks.distracting_hallway import DOWN, UP, WALK, DistractingHallwayVector
from statewise.envs.tasks.multi_doors_keys import (
    DOOR,
    LEFT,
    RIGHT,
    TAKE,
    TRY,
    MultiDoorsKeysVector,
)
from tests.envs.world_model_cases import chance_information, information, most_information, play

SIGNS = {(0, 0, 0): ".", (1, 0, 0): "A", (0, 1, 0): "B", (0, 0, 1): "d"}


def drawn(obs: Any) -> list[str]:
    """Return the five rows of a view as text."""
    cells = obs.reshape(5, 5, 3).astype(int).tolist()
    return ["".join(SIGNS[tuple(cell)] for cell in row) for row in cells]


def test_the_hallway_is_the_one_that_was_drawn() -> None:
    # two columns before the first, the room, two columns of hallway, the end, two behind it
    world = ["..BBB..A..", "..BBBd.A..", "..BBB.....", "..BBB.dB..", "..BBB..B.."]
    env = DistractingHallwayVector(1, width=2)
    env.reset(seed=0)
    env.arrays["kind"][:] = 1
    env.arrays["sides"][:] = [[0, 1]]
    obs = env.observe()
    for x in range(6):
        assert drawn(obs[0]) == [row[x : x + 5] for row in world]
        obs, reward, terminated, *_ = env.step(np.array([WALK if x < 5 else DOWN]))
        assert terminated.tolist() == [x == 5]
        assert reward.tolist() == [float(x == 5)]
    assert not obs.any()


def test_sides_in_the_hallway_are_walls_and_who_comes_late_gets_nothing() -> None:
    env = DistractingHallwayVector(4, width=2)
    env.reset(seed=0)
    env.arrays["kind"][:] = 0, 1, 0, 1
    env.arrays["sides"][:] = 0
    first = env.observe()
    for action in (UP, DOWN):
        assert np.array_equal(env.step(np.full(4, action))[0], first)
    # two of six steps are lost, so that the end is not reached; they choose where they are
    late = np.full(4, WALK)
    found = play(env, first, lambda _, t: np.array([UP, DOWN, UP, DOWN]) if t == 3 else late)
    assert found.ends.tolist() == [4] * 4
    assert not found.reward.any()
    assert not found.success.any()


def test_of_all_action_sequences_one_is_paid() -> None:
    # so random actions return 3^-(w + 4)
    actions = np.array(list(product(range(3), repeat=6))).T
    for kind, side in ((0, UP), (1, DOWN)):
        env = DistractingHallwayVector(3**6, width=2)
        env.reset(seed=0)
        env.arrays["kind"][:] = kind
        found = play(env, env.observe(), lambda _, t: actions[t])
        paid = np.flatnonzero(found.reward.sum(0))
        assert actions[:, paid].T.tolist() == [[WALK] * 5 + [side]]
        assert np.array_equal(np.flatnonzero(found.success), paid)


def test_who_is_early_waits_and_only_the_last_step_is_the_choice() -> None:
    env = DistractingHallwayVector(1, width=5, low=2)
    env.reset(seed=0)
    env.arrays["kind"][:], env.arrays["width"][:], env.arrays["time"][:] = 1, 2, 4
    found = play(
        env, env.observe(), lambda _, t: np.array([WALK if t in (0, 1, 2, 3, 4) else DOWN])
    )
    assert found.ends.tolist() == [8]
    assert drawn(found.obs[5, 0])[0] == "..A.."
    for t in (6, 7):
        assert np.array_equal(found.obs[t], found.obs[5])
    assert found.reward[:, 0].tolist() == [0] * 7 + [1]
    assert found.success.all()


def test_random_walkers_with_one_step_to_spare_are_paid_thirteen_times_of_3_to_the_7() -> None:
    # 5 of the 6 steps before the choice have to walk, or all: 6 * 2 + 1
    actions = np.array(list(product(range(3), repeat=7))).T
    env = DistractingHallwayVector(3**7, width=3, low=2)
    env.reset(seed=0)
    env.arrays["kind"][:], env.arrays["width"][:], env.arrays["time"][:] = 0, 2, 3
    found = play(env, env.observe(), lambda _, t: actions[t])
    assert found.reward.sum() == 13


def walk_and(sides: Any, env: DistractingHallwayVector) -> Any:
    """Return a policy that walks to the end it sees, then takes a side (N,)."""

    def policy(obs: Any, _: int) -> Any:
        here = obs.reshape(-1, 5, 5, 3)[:, 0, 2, 0] * obs.reshape(-1, 5, 5, 3)[:, 4, 2, 1]
        return np.where(here > 0, sides, WALK)

    assert env.num_envs == len(sides)
    return policy


@pytest.mark.parametrize("low", [None, 2])
def test_who_remembers_the_kind_is_always_right_and_a_fixed_side_half(low: int | None) -> None:
    env = DistractingHallwayVector(400, width=12, low=low)
    first, _ = env.reset(seed=0)
    kind = first.reshape(-1, 5, 5, 3)[:, 0, 2, 1].astype(np.int64)
    width, time = env.arrays["width"].copy(), env.arrays["time"].copy()
    found = play(env, first, walk_and(UP + kind, env))
    assert found.success.all()
    assert (found.reward.sum(0) == 1).all()
    assert np.array_equal(found.ends, time + 4)
    again, _ = env.reset(seed=0)
    fixed = play(env, again, walk_and(np.full(400, UP), env))
    assert np.array_equal(fixed.success, kind == 0)
    assert fixed.reward.sum(0).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(400))
    if low is None:
        assert (width == 12).all()
        assert (time == 12).all()
        return
    counts = np.zeros((13, 13))
    np.add.at(counts, (time, width), 1)
    n, w = np.indices((13, 13))
    expected = np.where((w >= 2) & (w <= n), 400 / 11 / np.maximum(n - 1, 1), 0)
    assert not counts[expected == 0].any()
    chi = ((counts - expected) ** 2)[expected > 0] / expected[expected > 0]
    assert chi.sum() < 114  # 65 degrees: P < 1e-4


@pytest.mark.parametrize("low", [None, 2])
def test_nothing_after_the_fifth_row_tells_the_kind(low: int | None) -> None:
    count, width = 1500, 6
    env = DistractingHallwayVector(count, width=width, low=low)
    first, _ = env.reset(seed=0)
    kind = env.arrays["kind"].copy()
    found = play(env, first, walk_and(np.full(count, UP), env))
    rows = found.obs.copy()
    for n, end in enumerate(found.ends):
        rows[end + 1 :, n] = 0  # a new episode
    for t in range(5):
        assert most_information(kind, rows[t : t + 1]) > 0.99
    assert most_information(kind, rows[5:]) < chance_information(count, rows[5:, 0].size)
    assert information(kind, found.ends) < chance_information(count, 5)


def test_exchanging_the_kind_changes_five_rows_and_the_reward_alone() -> None:
    pair = []
    for flip in (0, 1):
        env = DistractingHallwayVector(20, width=4)
        env.reset(seed=5)
        env.arrays["kind"] ^= flip
        pair.append(play(env, env.observe(), walk_and(np.full(20, DOWN), env)))
    differs = (pair[0].obs != pair[1].obs).any(2)
    assert differs[:5].all()
    assert not differs[5:].any()
    assert (pair[0].reward[-1] + pair[1].reward[-1] == 1).all()


def follow(keys: list[int], actions: list[int]) -> tuple[list[list[float]], list[float]]:
    """Return the observations and rewards of MultiDoorsKeys, by a loop over sets."""
    n, room, door = len(keys), 0, 0
    hand: set[int] = set()
    opened: set[int] = set()
    rows, rewards = [], []
    for action in [*actions, None]:
        hook = [float(colour == keys[room] and colour not in hand) for colour in range(n)]
        rows.append([float(door), *(float(r == room) for r in range(n)), *hook])
        door, reward = 0, 0.0
        if action == LEFT and room > 0:
            room -= 1
        elif action == RIGHT and room < n - 1:
            room += 1
        elif action == TAKE:
            hand.add(keys[room])
        elif action == TRY:
            door = 1 if room in hand else -1
            reward = -1.0 if door < 0 else float(room not in opened)
            if door > 0:
                hand.remove(room)
                opened.add(room)
        rewards.append(reward / n)
    return rows, rewards[:-1]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**31))
def test_doors_and_keys_do_what_a_loop_over_sets_does(num_keys: int, seed: int) -> None:
    length = 40
    env = MultiDoorsKeysVector(2, num_keys=num_keys, length=length)
    first, _ = env.reset(seed=seed)
    keys = env.arrays["keys"].copy()
    actions = np.random.default_rng(seed).integers(4, size=(length, 2))
    found = play(env, first, lambda _, t: actions[t])
    assert found.ends.tolist() == [length] * 2
    for n in range(2):
        rows, rewards = follow(keys[n].tolist(), actions[:, n].tolist())
        assert found.obs[:, n].tolist() == rows
        assert np.allclose(found.reward[:, n], rewards)
        doors = {r.index(1.0, 1) for r in rows[1:] if r[DOOR] > 0}
        assert found.success[n] == (len(doors) == num_keys)


def test_a_walk_through_two_rooms_worked_by_hand() -> None:
    env = MultiDoorsKeysVector(1, num_keys=2, length=9)
    env.reset(seed=0)
    env.arrays["keys"][:] = [[1, 0]]  # the key of either room is in the other one
    walk = [TRY, TAKE, TAKE, RIGHT, TRY, TRY, RIGHT, LEFT, TRY]
    found = play(env, env.observe(), lambda _, t: np.array([walk[t]]))
    assert found.obs[:, 0].tolist() == [
        [0, 1, 0, 0, 1],
        [-1, 1, 0, 0, 1],  # its key is not in the hand
        [0, 1, 0, 0, 0],  # the key of room 1 is
        [0, 1, 0, 0, 0],  # and stays there
        [0, 0, 1, 1, 0],
        [1, 0, 1, 1, 0],  # the door of room 1 opens
        [-1, 0, 1, 1, 0],  # and not again: the key was used
        [0, 0, 1, 1, 0],  # a wall
        [0, 1, 0, 0, 1],  # and hangs on its hook
        [-1, 1, 0, 0, 1],
    ]
    assert found.reward[:, 0].tolist() == [-0.5, 0, 0, 0, 0.5, -0.5, 0, 0, -0.5]
    assert not found.success.any()


@pytest.mark.parametrize("num_keys", [2, 3, 5, 7])
def test_all_keys_on_the_way_there_and_all_doors_on_the_way_back_return_one(num_keys: int) -> None:
    walk = [TAKE, RIGHT] * (num_keys - 1) + [TAKE, TRY] + [LEFT, TRY] * (num_keys - 1)
    length = 4 * num_keys - 2
    assert len(walk) == length
    env = MultiDoorsKeysVector(20, num_keys=num_keys, length=length)
    first, _ = env.reset(seed=0)
    found = play(env, first, lambda _, t: np.full(20, walk[t]))
    assert found.success.all()
    assert found.reward.sum(0) == pytest.approx(np.ones(20), abs=1e-6)
    assert found.ends.tolist() == [length] * 20


def test_the_time_limit_of_the_doors_truncates() -> None:
    env = MultiDoorsKeysVector(2, length=10)
    env.reset(seed=0)
    flags = [env.step(np.zeros(2, np.int64))[2:4] for _ in range(10)]
    assert not np.any([terminated for terminated, _ in flags])
    assert [bool(truncated.all()) for _, truncated in flags] == [False] * 9 + [True]
    _, reward, terminated, truncated, info = env.step(np.zeros(2, np.int64))
    assert (reward.any(), terminated.any(), truncated.any(), info) == (False, False, False, {})


def test_keys_are_dealt_in_every_order_alike() -> None:
    env = MultiDoorsKeysVector(1200)
    env.reset(seed=0)
    counts = np.unique(env.arrays["keys"], axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 200) ** 2 / 200).sum() < 26  # chi^2, 5 degrees: P < 1e-4
