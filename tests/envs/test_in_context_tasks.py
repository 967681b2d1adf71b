"""The tasks of trials: rows worked by hand, best returns, draws, and other people's dynamics."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import EnvError, VectorEnv
from statewise.envs.tasks.bandit import BanditVector
from statewise.envs.tasks.dark_key_to_door import DarkKeyToDoorVector
from statewise.envs.tasks.dark_room import DOWN, LEFT, RIGHT, STAY, UP, DarkRoomVector, choose_goals
from statewise.envs.tasks.projected_cart_pole import ProjectedCartPoleVector, draw_map
from statewise.envs.trials import TrialConfig
from tests.envs.test_trials import plain, walk

TASKS: list[Any] = [
    pytest.param("DarkRoom", {"size": 3, "steps": 4, "goals": "train"}, id="room"),
    pytest.param("DarkRoom", {"size": 3, "steps": 4, "novelty": 0.5}, id="new places"),
    pytest.param("DarkKeyToDoor", {"size": 2, "steps": 6}, id="door"),
    pytest.param("Bandit", {"arms": 3, "steps": 5}, id="bandit"),
    pytest.param("ProjectedCartPole", {"steps": 14}, id="pole"),
]


def make(name: str, kwargs: dict[str, Any], how: str, mode: str, **trial: Any) -> VectorEnv:
    return make_env(
        EnvConfig(
            id=f"statewise/{name}-v0",
            num_envs=3,
            vectorization=how,
            autoreset=mode,
            trial=TrialConfig(**trial),
            kwargs=kwargs,
        )
    )


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
@pytest.mark.parametrize("trial", [{}, {"episodes": 3}])
@pytest.mark.parametrize(("name", "kwargs"), TASKS)
def test_the_vector_equals_single_environments(
    name: str, kwargs: dict[str, Any], trial: dict[str, int], mode: str
) -> None:
    several, alone = (
        walk(make(name, kwargs, how, mode, **trial), 50, seed=3)
        for how in ("vector_entry_point", "sync")
    )
    assert plain(several) == plain(alone)


@pytest.mark.parametrize(("size", "steps", "best"), [(5, 10, 8.56), (9, 20, 16.54)])
def test_who_knows_the_goal_gets_the_best_return_of_the_dark_room(
    size: int, steps: int, best: float
) -> None:
    env = DarkRoomVector(size * size, size=size, steps=steps)
    env.reset(seed=0)
    goal = np.divmod(np.arange(size * size), size)
    env.arrays["goal_x"][:], env.arrays["goal_y"][:] = goal
    total, over = np.zeros(size * size), False
    for _ in range(steps):
        assert not over
        x, y = env.arrays["x"], env.arrays["y"]
        horizontal = np.where(x < goal[0], RIGHT, np.where(x > goal[0], LEFT, STAY))
        vertical = np.where(y < goal[1], UP, np.where(y > goal[1], DOWN, STAY))
        _, reward, terminated, _, _ = env.step(np.where(horizontal > STAY, horizontal, vertical))
        total, over = total + reward, bool(terminated.all())
    assert over
    distance = np.abs(goal[0] - size // 2) + np.abs(goal[1] - size // 2)
    assert total.tolist() == np.minimum(steps + 1 - distance, steps).tolist()
    assert total.mean() == pytest.approx(best, abs=0.005)


def test_walls_of_the_dark_room_stop_a_move_and_the_place_is_shown() -> None:
    env = DarkRoomVector(1, size=3, steps=9)
    env.reset(seed=0)
    shown = [env.step(np.array([a]))[0][0].tolist() for a in (LEFT, LEFT, UP, UP, RIGHT, DOWN)]
    at = [(obs.index(1), obs[3:].index(1)) for obs in shown]
    assert at == [(0, 1), (0, 1), (0, 2), (0, 2), (1, 2), (1, 1)]
    assert all(sum(obs) == 2 for obs in shown)


def test_the_dark_room_shows_places_as_coordinates_where_they_are_asked_for() -> None:
    env = DarkRoomVector(1, size=5, steps=9, shown="coordinates")
    shown = [env.reset(seed=0)[0]]
    shown += [env.step(np.array([a]))[0] for a in (LEFT, UP, UP, UP)]
    at = [(0, 0), (-0.5, 0), (-0.5, 0.5), (-0.5, 1), (-0.5, 1)]
    assert [tuple(obs[0].tolist()) for obs in shown] == at
    assert all(env.single_observation_space.contains(obs[0]) for obs in shown)
    with pytest.raises(EnvError, match=r"expected shown to be one of .* got 'polar'"):
        DarkRoomVector(shown="polar")


def test_a_cell_that_is_new_in_the_trial_pays_a_bonus_once() -> None:
    config = EnvConfig(
        id="statewise/DarkRoom-v0",
        num_envs=1,
        autoreset="same_step",
        trial=TrialConfig(episodes=2),
        kwargs={"size": 3, "steps": 4, "novelty": 0.25, "goals": "held_out"},
    )
    env = make_env(config)
    env.reset(seed=0)
    trials = ((LEFT, STAY, RIGHT, DOWN), (LEFT, UP, RIGHT, RIGHT)), ((LEFT, STAY, STAY, STAY),)
    extra = [
        [[float(env.step(np.array([a])).reward[0]) % 1 for a in episode] for episode in trial]
        for trial in trials
    ]
    # The middle is never new; (0, 1) and (1, 0) are, in the second episode (0, 2) is.
    assert extra[0] == [[0.25, 0, 0, 0.25], [0, 0.25, 0.25, 0.25]]
    assert extra[1] == [[0.25, 0, 0, 0]]  # (0, 1) again, in another trial
    with pytest.raises(EnvError, match="finite novelty >= 0, got 3, 4 and -1"):
        DarkRoomVector(size=3, steps=4, novelty=-1)


def test_held_out_goals_are_a_fifth_and_never_drawn_in_training() -> None:
    parts = [set(choose_goals(25, part).tolist()) for part in ("train", "held_out", "all")]
    assert [len(part) for part in parts] == [20, 5, 25]
    assert parts[0] | parts[1] == parts[2]
    for goals, part in (("train", parts[0]), ("held_out", parts[1])):
        env = DarkRoomVector(200, size=5, goals=goals)
        env.reset(seed=1)
        assert set((env.arrays["goal_x"] * 5 + env.arrays["goal_y"]).tolist()) == part
    with pytest.raises(EnvError, match="expected goals to be one of"):
        DarkRoomVector(goals="some")


def test_the_door_opens_with_the_key_alone_and_ends_the_episode() -> None:
    env = DarkKeyToDoorVector(1, size=3, steps=9)
    env.reset(seed=0)
    env.arrays["key"][:], env.arrays["door"][:] = 2 * 3 + 1, 0 * 3 + 1
    moves = (LEFT, RIGHT, RIGHT, STAY, LEFT, LEFT)  # door, centre, key, key, centre, door
    rows = [env.step(np.array([a])) for a in moves]
    assert [float(row[1][0]) for row in rows] == [0, 0, 1, 0, 0, 1]
    assert [bool(row[2][0]) for row in rows] == [False] * 5 + [True]


def test_key_and_door_are_all_pairs_of_two_cells() -> None:
    env = DarkKeyToDoorVector(400, size=2)
    env.reset(seed=0)
    pairs = set(zip(env.arrays["key"].tolist(), env.arrays["door"].tolist(), strict=True))
    assert pairs == {(a, b) for a in range(4) for b in range(4) if a != b}


def test_a_bandit_shows_the_last_payoff_of_its_trial() -> None:
    for mode in ("next_step", "same_step"):
        rows = walk(make("Bandit", {"steps": 4}, "vector_entry_point", mode, episodes=2), 30, 0)
        for obs, _, _, arrived in rows:
            shown = arrived.obs["obs"][:, 0]
            paid = np.where(arrived.valid, 4 * arrived.reward, obs["obs"][:, 0])
            assert shown.tolist() == np.where(arrived.reset, 0, paid).tolist()


def test_thompson_sampling_gets_its_known_return() -> None:
    num, arms = 400, 10
    env = BanditVector(num, arms=arms, steps=200)
    env.reset(seed=0)
    rng, rows = np.random.default_rng(0), np.arange(num)
    won, lost, total = np.ones((num, arms)), np.ones((num, arms)), []
    for _ in range(200):
        arm = rng.beta(won, lost).argmax(1)
        obs, reward, terminated, _, _ = env.step(arm)
        won[rows, arm] += obs[:, 0] > 0
        lost[rows, arm] += obs[:, 0] < 0
        total.append(reward)
    assert terminated.all()
    halves = [2 * np.sum(part, axis=0) for part in (total[:100], total[100:])]
    for half, known in zip(halves, (0.544, 0.740), strict=True):
        assert abs(half.mean() - known) < 4 * half.std() / np.sqrt(num)


def test_the_pole_moves_as_that_of_gymnasium() -> None:
    ours, theirs = ProjectedCartPoleVector(1, maps="fixed"), gymnasium.make("CartPole-v1")
    ours.reset(seed=2)
    theirs.reset(seed=0)
    theirs.unwrapped.state = tuple(ours.arrays["state"][0])  # type: ignore[attr-defined]
    fell = False
    for t in range(60):
        action = int(t % 7 < 4)
        obs, reward, terminated, _, _ = ours.step(np.array([action]))
        expected, _, fell, _, _ = theirs.step(action)
        assert np.allclose(obs[0], 10 * expected[[0, 2]], rtol=1e-5, atol=1e-6)
        assert (terminated[0], reward[0]) == (fell, np.float32(1 / 200))
        if fell:
            break
    assert fell


def test_all_episodes_of_a_trial_start_alike_under_one_map() -> None:
    env = make("ProjectedCartPole", {"steps": 9}, "vector_entry_point", "same_step", episodes=3)
    rows = walk(env, 90, seed=0)
    first = [rows[0][0]["obs"][0].tolist()]
    first += [row[3].obs["obs"][0].tolist() for row in rows if row[3].is_first[0]]
    trials = [first[i : i + 3] for i in range(0, len(first) - 2, 3)]
    assert all(trial == [trial[0]] * 3 for trial in trials)
    assert len({str(trial[0]) for trial in trials}) == len(trials) > 2


def test_maps_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    signs = {tuple(np.diag(draw_map("signs", rng))) for _ in range(60)}
    assert signs == {(a, b) for a in (-1, 1) for b in (-1, 1)}
    drawn = np.stack([draw_map("orthogonal", rng) for _ in range(400)])
    assert np.allclose(np.einsum("nij,nik->njk", drawn, drawn), 2 * np.eye(2))
    assert np.abs(drawn.mean(0)).max() < 4 * np.sqrt(0.5 / 400)  # no direction is preferred
    assert draw_map("fixed", rng).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("task", "kwargs"),
    [
        (DarkRoomVector, {"size": 1}),
        (DarkKeyToDoorVector, {"steps": 0}),
        (BanditVector, {"arms": 1}),
        (ProjectedCartPoleVector, {"maps": "random"}),
    ],
)
def test_numbers_out_of_range_are_refused(task: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(EnvError, match=r"expected .* got .* in "):
        task(**kwargs)
