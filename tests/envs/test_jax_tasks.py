"""The tasks in JAX against their numpy versions, their trials, draws and resume."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from statewise.envs.build import EnvConfig, make_env, make_single
from statewise.envs.jax_tasks import vector
from statewise.envs.jax_tasks.vector import JaxTasks
from statewise.envs.protocol import Arrived, EnvError
from statewise.envs.single import FirstOf
from statewise.envs.tasks.dark_room import choose_goals
from statewise.envs.trials import TrialConfig
from tests.envs.test_resumable import check_resume, made
from tests.envs.test_trials import plain, walk
from tests.envs.toys import NativeCounting
from tests.tolerance import assert_close

pytestmark = pytest.mark.xdist_group("jax")  # imported and compiled once
jax = pytest.importorskip("jax")

NUM_ENVS = 3
# What is compiled, which takes longer than anything else here: task, arguments, trials.
Case = tuple[str, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "room": ("DarkRoom", {}, {}),
    "room of episodes": ("DarkRoom", {"size": 3, "steps": 4, "goals": "held_out"}, {"episodes": 2}),
    "room of steps": ("DarkRoom", {"size": 4, "steps": 3, "goals": "train"}, {"steps": 7}),
    "room of coordinates": ("DarkRoom", {"size": 3, "shown": "coordinates"}, {}),
    "bandit": ("Bandit", {"arms": 3, "steps": 4}, {}),
    "bandit of episodes": ("Bandit", {}, {"episodes": 2}),
    "bandit of steps": ("Bandit", {"arms": 3, "steps": 4}, {"steps": 10}),
    "pole": ("ProjectedCartPole", {"maps": "fixed", "steps": 14}, {}),
    "pole of episodes": ("ProjectedCartPole", {}, {"episodes": 3}),
    "pole of steps": ("ProjectedCartPole", {"maps": "signs", "steps": 14}, {"steps": 36}),
}
ROWS = {"bandit of episodes": 410, "pole of episodes": 200, "pole of steps": 100}


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation() -> Iterator[None]:
    """Compile without optimising: these batches are small, and compiling is most of the time."""
    vector.compiled.cache_clear()
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    vector.compiled.cache_clear()


def config_of(case: str, prefix: str = "jax:", suffix: str = "") -> EnvConfig:
    name, kwargs, trial = CASES[case]
    ends = {"value_ends": "episode"} if trial else {}
    return EnvConfig(
        id=prefix + name + suffix,
        num_envs=NUM_ENVS,
        trial=TrialConfig(**trial, **ends),
        kwargs=kwargs,
    )


def inner(env: Any) -> Any:
    """Return the vector environment that the adapters wrap."""
    while not hasattr(env, "single_observation_space"):
        env = env._vec if hasattr(env, "_vec") else env._env
    return env


def vec_of(case: str, num_envs: int = NUM_ENVS) -> JaxTasks:
    name, kwargs, trial = CASES[case]
    vec = JaxTasks(f"jax:{name}", num_envs, **kwargs)
    if trial:
        vec.set_trials(TrialConfig(**trial))
    return vec


def parts(vec: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of task and state by name, (N, ...) each."""
    now = vec._carry.state
    return {k: np.array(x) for part in (now.task, now.state) for k, x in part._asdict().items()}


def drawn(vec: Any) -> dict[str, NDArray[Any]]:
    """Return what the trials are about by name, (N, ...) each."""
    return {k: np.array(x) for k, x in vec._carry.state.task._asdict().items()}


def put(vec: Any, arrays: dict[str, Any], which: NDArray[Any], *names: str) -> None:
    """Write the arrays of these names, or of all, into ours; numpy's become float32, too."""
    now = vec._carry.state

    def replaced(part: Any) -> Any:
        new = {}
        for name in set(part._fields) & set(names or part._fields):
            if arrays[name].dtype == np.float64:
                arrays[name][which] = arrays[name][which].astype(np.float32)
            value = np.array(getattr(part, name))
            value[which] = arrays[name][which]
            new[name] = vec._on_cpu(value)
        return part._replace(**new)

    now = now._replace(task=replaced(now.task), state=replaced(now.state))
    vec._carry = vec._carry._replace(state=now)


def many(case: str, resets: int) -> dict[str, NDArray[Any]]:
    """Return what many resets draw, (N resets, ...) by name."""
    vec = vec_of(case)
    vec.reset(seed=0)
    rows = []
    for _ in range(resets):
        vec.reset()
        rows.append(parts(vec))
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def is_even(values: Any, low: float, high: float) -> bool:
    """Compare the distribution of many values with the even one: Kolmogorov, p = 0.001."""
    x = np.sort((np.ravel(values) - low) / (high - low))
    gap = np.abs(x - (np.arange(len(x)) + 0.5) / len(x)).max()
    return bool(gap < 1.95 / np.sqrt(len(x)))


def check_row(here: Arrived, there: Arrived, same: NDArray[Any], t: int) -> None:
    """Compare the rows that both versions gave in step t, observations where `same`."""
    for flag in ("is_first", "reset", "terminated", "truncated", "valid", "trial"):
        assert plain(getattr(here, flag)) == plain(getattr(there, flag)), flag
    shown = [torch.tensor(row.obs["obs"][same]) for row in (here, there)]
    assert_close(*shown, torch.float32, t)
    assert_close(torch.tensor(here.reward), torch.tensor(there.reward), torch.float32, 1)
    assert here.obs["obs"].dtype == here.reward.dtype == np.float32


@pytest.mark.parametrize("case", CASES)
def test_rows_equal_those_of_numpy_and_tasks_change_with_trials_alone(case: str) -> None:
    ours, theirs = make_env(config_of(case)), make_env(config_of(case, "statewise/", "-v0"))
    assert (ours.obs_space, ours.action_space) == (theirs.obs_space, theirs.action_space)
    assert ours.resume == theirs.resume == "exact"
    vec, arrays = inner(ours), inner(theirs).arrays
    rng, starts, changes = np.random.default_rng(0), 0, 0
    for env in (ours, theirs):
        env.reset(1)
    put(vec, arrays, np.ones(NUM_ENVS, bool))
    for t in range(1, ROWS.get(case, 40) + 1):
        before = drawn(vec)
        action = rng.integers(ours.action_space.n, size=NUM_ENVS)
        here, there = ours.step(action), theirs.step(action)
        shown = ~there.reset if "map" in arrays else np.ones(NUM_ENVS, bool)
        check_row(here, there, shown, t)
        changed = np.zeros(NUM_ENVS, bool)
        for name, values in drawn(vec).items():
            changed |= (values != before[name]).reshape(NUM_ENVS, -1).any(1)
        assert not changed[~there.reset].any()
        put(vec, arrays, there.reset)
        if "luck" in arrays:  # drawn anew for every episode
            put(vec, arrays, there.is_first, "luck")
        starts, changes = starts + there.is_first.sum(), changes + changed.sum()
    assert changes > (1 if case == "room of episodes" else 2)
    assert starts > changes or not CASES[case][2]


@pytest.mark.parametrize("case", ["room", "room of episodes", "room of steps"])
def test_goals_are_even_over_their_cells(case: str) -> None:
    _, kwargs, _ = CASES[case]
    size = kwargs.get("size", 5)
    cells, found = choose_goals(size**2, kwargs.get("goals", "all")), many(case, 1000)
    counts = np.bincount(found["goal_x"] * size + found["goal_y"], minlength=size**2)
    num, share = counts.sum(), 1 / len(cells)
    assert set(np.flatnonzero(counts)) == set(cells.tolist())
    assert np.abs(counts[cells] / num - share).max() < 4 * np.sqrt(share * (1 - share) / num)
    assert set(found["x"]) == set(found["y"]) == {size // 2}


def test_chances_and_luck_are_even_and_have_nothing_to_do_with_each_other() -> None:
    found = many("bandit", 1000)
    both = np.concatenate((found["chance"], found["luck"]), 1)
    assert is_even(found["chance"], 0, 1)
    assert is_even(found["luck"], 0, 1)
    assert np.abs(np.corrcoef(both.T) - np.eye(7)).max() < 4 / np.sqrt(len(both))


@pytest.mark.parametrize("case", ["pole", "pole of episodes", "pole of steps"])
def test_maps_and_origins_are_what_they_are_called(case: str) -> None:
    found = many(case, 700)
    num, maps = len(found["map"]), found["map"]
    assert np.abs(found["origin"]).max() <= np.float32(0.05)
    assert is_even(found["origin"], -0.05, 0.05)
    assert np.array_equal(found["state"], found["origin"])
    if case == "pole of episodes":
        square = torch.tensor(maps.transpose(0, 2, 1) @ maps)
        assert_close(square, 2 * torch.eye(2).expand_as(square), torch.float32, 1)
        for column in maps.transpose(2, 0, 1):  # even on a sphere of radius sqrt 2
            assert np.abs(column.mean(0)).max() < 4 * np.sqrt(0.5 / num)
            assert np.abs(column.T @ column / num - 0.5 * np.eye(4)).max() < 4 * 0.5 / np.sqrt(num)
        return
    signs = [(1, 1)] if case == "pole" else [(a, b) for a in (-1, 1) for b in (-1, 1)]
    counts = [int((maps == np.diag(one)).all((1, 2)).sum()) for one in signs]
    assert sum(counts) == num
    assert min(counts) > num / len(signs) - 4 * np.sqrt(num / len(signs))


@pytest.mark.parametrize("case", ["bandit", "bandit of steps", "room of episodes"])
def test_resume_is_exact_around_ends_of_episodes_and_trials(case: str) -> None:
    config = config_of(case)
    make = made(config.id, kwargs=config.kwargs, trial=config.trial)
    check_resume(make, range(3, 14))


def test_environment_i_draws_from_seed_plus_i_whatever_the_others_do() -> None:
    together, alone = vec_of("pole"), vec_of("pole", 1)
    first, _ = together.reset(seed=5)
    second, _ = alone.reset(seed=6)
    assert_close(torch.tensor(first[1]), torch.tensor(second[0]), torch.float32, 1)
    rng, apart = np.random.default_rng(0), 0
    for _ in range(60):
        action = rng.integers(2, size=NUM_ENVS)
        row, single = together.step(action)[:4], alone.step(action[1:2])[:4]
        assert_close(torch.tensor(row[0][1]), torch.tensor(single[0][0]), torch.float32, 14)
        assert [x[1] for x in row[1:]] == [x[0] for x in single[1:]]
        apart += len(set(row[2].tolist())) > 1
    assert apart > 2  # they do not restart all at once
    origins = [torch.tensor(drawn(vec)["origin"]) for vec in (together, alone)]
    assert_close(origins[0][1], origins[1][0], torch.float32, 1)
    again, other = together.reset(seed=5)[0], together.reset()[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(again, other)


def test_the_row_that_restarts_has_no_reward_and_no_end() -> None:
    vec = vec_of("pole")
    vec.reset(seed=0)
    over, rng, restarts = np.zeros(NUM_ENVS, bool), np.random.default_rng(0), 0
    for _ in range(40):
        _, reward, terminated, truncated, info = vec.step(rng.integers(2, size=NUM_ENVS))
        assert reward.tolist() == np.where(over, 0, np.float32(1 / 14)).tolist()
        assert not (over & (terminated | truncated)).any()
        assert info == {}
        over = terminated | truncated
        restarts += over.sum()
    assert restarts > 3


def test_a_step_is_compiled_once_and_shared() -> None:
    vec, other = vec_of("room of episodes"), vec_of("room of episodes")
    vec.reset(seed=0)
    for _ in range(9):
        vec.step(np.zeros(NUM_ENVS, np.int64))
    other.load_state_dict(vec.state_dict())
    other.step(np.zeros(NUM_ENVS, np.int64))
    other.reset()
    other.step(np.zeros(NUM_ENVS, np.int64))
    assert vec._go_on is other._go_on
    assert vec._go_on._cache_size() == 1
    assert vec._begin._cache_size() == 1
    other.set_trials(TrialConfig(episodes=3))
    assert vec._go_on is not other._go_on


@pytest.mark.parametrize("case", ["bandit of steps", "room of episodes"])
def test_a_single_environment_keeps_its_task_over_a_trial(case: str) -> None:
    config = config_of(case)
    rows, single = walk(make_env(config), 50, seed=6), make_single(config)
    seen, _ = single.reset(seed=6)
    tasks = [plain(drawn(inner(single.unwrapped)))]
    for obs, _, action, arrived in rows:
        assert plain(seen) == {key: x[0].tolist() for key, x in obs.items()}
        assert plain(drawn(inner(single.unwrapped))) == tasks[-1]
        if not arrived.valid[0] and arrived.reset[0]:  # the row between two trials
            seen, _ = single.reset()
            tasks.append(plain(drawn(inner(single.unwrapped))))
            continue
        seen, reward, terminated, truncated, _ = single.step(action[0])
        assert reward == arrived.reward[0]
        assert (terminated or truncated) == arrived.trial.over[0]
    assert len(tasks) > 3
    assert len({str(task) for task in tasks}) > 1


def test_without_trials_a_single_environment_draws_a_task_per_episode() -> None:
    single = make_single(config_of("bandit"))
    vec = inner(single.unwrapped)
    single.reset(seed=0)
    before = drawn(vec)["chance"]
    single.reset()
    assert not (drawn(vec)["chance"] == before).any()


def test_only_a_backend_that_draws_tasks_has_the_flag_of_trials() -> None:
    alone, other = FirstOf(vec_of("bandit", 1)), FirstOf(NativeCounting(1))
    assert alone.new_trial
    assert not hasattr(other, "new_trial")


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("DarkRoom", {"size": 1}),
        ("DarkRoom", {"goals": "some"}),
        ("DarkRoom", {"shown": "polar"}),
        ("Bandit", {"arms": 1}),
        ("ProjectedCartPole", {"steps": 0}),
        ("ProjectedCartPole", {"maps": "random"}),
    ],
)
def test_arguments_out_of_range_are_refused_as_by_numpy(name: str, kwargs: dict[str, Any]) -> None:
    lines = []
    for env_id in (f"jax:{name}", f"statewise/{name}-v0"):
        with pytest.raises(EnvError) as error:
            make_env(EnvConfig(id=env_id, kwargs=kwargs))
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "jax:DarkRom"}, "got 'jax:DarkRom': did you mean jax:DarkRoom"),
        ({"kwargs": {"wings": 2}}, r"jax:DarkRoom cannot be made with \{'wings': 2\}"),
        ({"kwargs": {"goals": []}}, r"jax:DarkRoom cannot be made with \{'goals': \[\]\}"),
        ({"vectorization": "sync"}, "auto or vector_entry_point, got 'sync'"),
        ({"autoreset": "same_step"}, "got an environment with NEXT_STEP"),
    ],
    ids=str,
)
def test_what_they_cannot_do_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message) as error:
        make_env(EnvConfig(**{"id": "jax:DarkRoom"} | settings))
    assert "\n" not in str(error.value)


def test_reset_options_are_refused() -> None:
    with pytest.raises(EnvError, match="no reset options"):
        JaxTasks("jax:DarkRoom", 2).reset(options={"x": 1})


def test_gymnax_is_not_needed_and_without_jax_its_line_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    gone = ["gymnax"]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in gone else find(name)
    )
    assert vector.missing() == ""
    gone.append("jax")
    with pytest.raises(EnvError, match=r"^jax needs: pip install 'statewise\[jax\]'"):
        make_env(EnvConfig(id="jax:Bandit"))
