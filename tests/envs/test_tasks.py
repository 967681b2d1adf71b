"""The diagnostic tasks: exact rows, best returns, returns without memory, vector and single."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from statewise.envs import tasks
from statewise.envs.protocol import EnvError
from statewise.envs.tasks.memory_chain import MemoryChain, MemoryChainVector
from statewise.envs.tasks.repeat_previous import RepeatPrevious, RepeatPreviousVector
from statewise.envs.tasks.t_maze import DOWN, LEFT, RIGHT, UP, TMaze, TMazeVector

PAIRS: list[Any] = [
    pytest.param(MemoryChain, MemoryChainVector, {"length": 1}, id="chain-1"),
    pytest.param(MemoryChain, MemoryChainVector, {"length": 5, "num_bits": 3}, id="chain-bits"),
    pytest.param(TMaze, TMazeVector, {"length": 1}, id="maze-1"),
    pytest.param(TMaze, TMazeVector, {"length": 4}, id="maze-4"),
    pytest.param(RepeatPrevious, RepeatPreviousVector, {"k": 4}, id="repeat"),
    pytest.param(RepeatPrevious, RepeatPreviousVector, {"decks": 2, "k": 32}, id="repeat-32"),
    pytest.param(RepeatPrevious, RepeatPreviousVector, {"k": 51}, id="repeat-51"),
]


def play(env: Any, policy: Any, seed: int) -> tuple[list[Any], list[float]]:
    """Play one episode of a single environment; return observations and rewards."""
    obs, _ = env.reset(seed=seed)
    history, rewards, over = [obs], [], False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy(history))
        history.append(obs)
        rewards.append(reward)
        over = terminated or truncated
    return history, rewards


@pytest.mark.parametrize(("single", "vector", "kwargs"), PAIRS)
def test_the_vector_equals_single_environments_with_their_seeds(
    single: Any, vector: Any, kwargs: dict[str, int]
) -> None:
    several = vector(3, **kwargs)
    alone = [single(**kwargs) for _ in range(3)]
    batched, _ = several.reset(seed=20)
    rows = [env.reset(seed=20 + i)[0] for i, env in enumerate(alone)]
    over, ends = [False] * 3, 0
    rng = np.random.default_rng(0)
    for _ in range(120):
        assert np.array_equal(batched, np.stack(rows))
        assert batched.dtype == several.single_observation_space.dtype
        action = rng.integers(several.single_action_space.n, size=3)
        batched, reward, terminated, truncated, _ = several.step(action)
        assert not truncated.any()
        for i, env in enumerate(alone):
            expected: tuple[float, bool] = (0.0, False)
            if over[i]:
                rows[i], _ = env.reset()
            else:
                rows[i], *expected_parts = env.step(action[i])
                expected = (expected_parts[0], expected_parts[1])
            assert (reward[i], terminated[i]) == expected
            over[i] = expected[1]
            ends += over[i]
    assert ends > 1


@pytest.mark.parametrize(("single", "vector", "kwargs"), PAIRS)
def test_observations_lie_in_the_declared_space(
    single: Any, vector: Any, kwargs: dict[str, int]
) -> None:
    env = single(**kwargs)
    history, _ = play(env, lambda _: env.action_space.sample(), seed=1)
    assert all(env.observation_space.contains(obs) for obs in history)


# advice about the range of actions; some tasks have units
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space:UserWarning")
@pytest.mark.parametrize("name", tasks.TASKS)
def test_gymnasium_accepts_the_registered_environments(name: str) -> None:
    tasks.register()
    tasks.register()
    check_env(gymnasium.make(name).unwrapped, skip_render_check=True)
    vec = gymnasium.make_vec(name, 2, vectorization_mode="vector_entry_point")
    obs, _ = vec.reset(seed=0)
    assert vec.observation_space.contains(obs)


def test_memory_chain_rows_worked_by_hand() -> None:
    # length 4: the clock shown is 0 0 1 2 3 4; bits where it is 0, the question where it is 3
    env = MemoryChain(length=4, num_bits=3)
    for seed in range(8):
        history, rewards = play(env, lambda _: 1, seed)
        bits, query = history[0][2:], history[4][1]
        assert set(bits) <= {-1, 1}
        shown = np.array(history)
        assert shown[:, 0].tolist() == [1, 1, 0.75, 0.5, 0.25, 0]
        assert shown[:2, 2:].tolist() == [bits.tolist()] * 2
        assert not shown[2:, 2:].any()
        assert np.flatnonzero(shown[:, 1]).tolist() == ([4] if query else [])
        assert rewards == [0, 0, 0, 0, bits[int(query)]]


def test_memory_chain_asks_for_every_bit_and_value() -> None:
    env = MemoryChain(length=1, num_bits=3)
    asked = {tuple(play(env, lambda _: 0, seed)[0][1][1:].tolist()) for seed in range(300)}
    assert len(asked) == 3 * 8


@pytest.mark.parametrize("length", [1, 2, 10, 100])
def test_memory_chain_memory_returns_one_and_a_constant_returns_chance(length: int) -> None:
    env = MemoryChain(length=length)
    recalled = [sum(play(env, lambda h: int(h[0][2] > 0), seed)[1]) for seed in range(5)]
    assert recalled == [1.0] * 5
    constant = [play(env, lambda _: 1, seed)[1][-1] for seed in range(200)]
    assert set(constant) == {-1.0, 1.0}
    assert abs(np.mean(constant)) < 4 / np.sqrt(200)  # four standard errors around 0


def test_t_maze_shows_the_goal_once_and_the_place_at_the_end() -> None:
    env = TMaze(length=2)
    first, _ = env.reset(seed=0)
    goal = first[1]
    walk = [LEFT, RIGHT, RIGHT]
    seen = [env.step(action)[0].tolist() for action in walk]
    assert first.tolist() == [0, goal]
    assert seen == [[0, 0], [0, 0], [1, 0]]  # left ran into the wall, at the start again
    assert goal in (-1, 1)


def test_t_maze_walls_and_penalties_worked_by_hand() -> None:
    env = TMazeVector(2, length=5)
    env.reset(seed=0)
    env.arrays["goal"][:] = 1, -1
    # the second one goes up in the corridor, which is a wall
    walks = [[RIGHT] * 5 + [UP], [RIGHT, UP, RIGHT, LEFT, RIGHT, DOWN]]
    rewards = np.array([env.step(np.array(pair))[1] for pair in zip(*walks, strict=True)]).T
    assert rewards[0].tolist() == [0, 0, 0, 0, 0, 1]
    assert np.allclose(rewards[1], [0, -0.2, 0, -0.2, 0, 0])


def test_t_maze_arms_are_dead_ends() -> None:
    env = TMaze(length=4)
    env.reset(seed=0)
    for _ in range(4):
        obs, *_ = env.step(RIGHT)
    assert obs.tolist() == [1, 0]
    env = TMazeVector(1, length=9)
    env.reset(seed=0)
    env.arrays["x"][:] = 9
    ys = [env.step(np.array([a]))[0][0].tolist() for a in (UP, UP, LEFT, RIGHT, DOWN, DOWN, LEFT)]
    assert ys == [[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [1, -1], [1, -1]]


@pytest.mark.parametrize("length", [1, 3, 50])
def test_t_maze_memory_returns_one_and_a_fixed_arm_half(length: int) -> None:
    env = TMaze(length=length)

    def best(history: list[Any]) -> int:
        return RIGHT if history[-1][0] == 0 else (UP if history[0][1] > 0 else DOWN)

    def fixed(history: list[Any]) -> int:
        return RIGHT if history[-1][0] == 0 else UP

    assert [sum(play(env, best, seed)[1]) for seed in range(6)] == [1.0] * 6
    returns = [sum(play(env, fixed, seed)[1]) for seed in range(200)]
    assert set(returns) == {0.0, 1.0}
    assert abs(np.mean(returns) - 0.5) < 2 / np.sqrt(200)
    assert sum(play(env, lambda _: RIGHT, 0)[1]) == 0.0
    assert len(play(env, best, 0)[1]) == length + 1


@pytest.mark.parametrize(("decks", "k"), [(1, 1), (1, 4), (2, 32), (1, 51)])
def test_repeat_previous_memory_returns_one_and_its_contrary_minus_one(decks: int, k: int) -> None:
    env = RepeatPrevious(decks=decks, k=k)

    def recall(history: list[Any]) -> int:
        return int(history[max(len(history) - k, 0)])

    history, rewards = play(env, recall, seed=3)
    assert len(rewards) == 52 * decks - 1
    assert np.bincount(history).tolist() == [13 * decks] * 4
    assert sum(rewards) == pytest.approx(1.0, abs=1e-5)  # a sum of float32 shares
    assert not any(rewards[: k - 1])
    _, wrong = play(env, lambda h: (recall(h) + 1) % 4, seed=3)
    assert sum(wrong) == pytest.approx(-1.0, abs=1e-5)


def test_repeat_previous_guessing_returns_minus_a_half() -> None:
    env = RepeatPrevious()
    rng = np.random.default_rng(0)
    returns = [sum(play(env, lambda _: rng.integers(4), seed)[1]) for seed in range(100)]
    # one return: 48 shares of +-1/48, right with chance 1/4: deviation sqrt(3/4 / 48) = 0.125
    assert np.mean(returns) == pytest.approx(-0.5, abs=4 * 0.125 / 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MemoryChain(length=0),
        lambda: MemoryChain(num_bits=0),
        lambda: TMaze(length=0),
        lambda: RepeatPrevious(decks=0),
        lambda: RepeatPrevious(k=0),
        lambda: RepeatPrevious(k=52),
    ],
)
def test_sizes_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(EnvError, match="expected"):
        make()


def test_reset_options_are_refused() -> None:
    with pytest.raises(EnvError, match="no reset options"):
        TMazeVector(2).reset(options={"reset_mask": np.array([True, False])})
