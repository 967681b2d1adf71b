"""Trials against a plain count over episodes, in every vectorisation, and their exact resume."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from statewise.envs.build import EnvConfig, make_env, make_single
from statewise.envs.protocol import EnvError, VectorEnv
from statewise.envs.tasks.dark_room import DarkRoom
from statewise.envs.trial_env import TrialEnv
from statewise.envs.trials import TrialConfig, Trials
from statewise.envs.vector import GymnasiumVectorEnv
from tests.envs.toys import CountingEnv, NativeCounting, rollout, transitions

INPUTS = ("previous_action", "previous_reward", "first_step", "trial_start")
MODES = ("next_step", "same_step")
KINDS = tuple(f"{how} {mode}" for how in ("sync", "vector_entry_point") for mode in MODES)


def counting(mode: str, how: str = "sync", **trial: Any) -> VectorEnv:
    """Return three environments whose episodes have 2 to 5 steps."""
    config = EnvConfig(
        id="toy", num_envs=3, vectorization=how, autoreset=mode, trial=TrialConfig(**trial)
    )
    return make_env(config, CountingEnv)


def dark_room(kind: str, **trial: Any) -> VectorEnv:
    how, mode = kind.split()
    config = EnvConfig(
        id="statewise/DarkRoom-v0",
        num_envs=4,
        vectorization=how,
        autoreset=mode,
        inputs=INPUTS,
        trial=TrialConfig(**trial),
        kwargs={"size": 3, "steps": 3},
    )
    return make_env(config)


def walk(env: VectorEnv, steps: int, seed: int | None = None, start: Any = None) -> list[Any]:
    """Act at random, always alike; return what came."""
    obs, is_first = env.reset(seed) if start is None else start
    rng, rows = np.random.default_rng(3), []
    for _ in range(steps):
        action = rng.integers(env.action_space.n, size=env.num_envs)
        arrived = env.step(action)
        if arrived.final_obs is not None:  # other rows mean nothing
            final = {key: x[arrived.is_first] for key, x in arrived.final_obs.items()}
            arrived = arrived._replace(final_obs=final)
        rows.append((obs, is_first, action, arrived))
        obs, is_first = arrived.obs, arrived.is_first
    return rows


def plain(value: Any) -> Any:
    """Return arrays as lists, for comparison."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("mode", MODES)
def test_the_memory_is_cleared_at_every_second_episode_and_the_trial_ends_there(mode: str) -> None:
    rows = rollout(counting(mode, episodes=2), 40, seed=5)
    for i in range(3):
        ended, starts = 0, 0
        for _, _, _, arrived in rows:
            over = arrived.trial.ended[i] and ended % 2 == 1
            assert arrived.trial.place[i] == ended % 2 or not arrived.valid[i]
            ended += arrived.trial.ended[i]
            assert arrived.terminated[i] == arrived.trial.over[i] == over
            assert not arrived.truncated[i]
            starts += arrived.is_first[i]
            assert arrived.reset[i] == (arrived.is_first[i] and starts % 2 == 0)
        assert starts > 6


@pytest.mark.parametrize("mode", MODES)
def test_episodes_in_trials_are_those_without(mode: str) -> None:
    alone = rollout(counting(mode), 40, seed=5)
    for ends in ("trial", "episode"):
        rows = rollout(counting(mode, episodes=3, value_ends=ends), 40, seed=5)
        for i in range(3):
            expected, found = transitions(alone, i), transitions(rows, i)
            if ends == "trial":
                for row in (*expected, *found):
                    del row["terminated"], row["truncated"], row["next"]
            assert found == expected


@pytest.mark.parametrize("mode", MODES)
def test_the_task_stays_for_a_trial_and_is_drawn_anew_for_the_next(mode: str) -> None:
    found: list[set[int]] = [set()]
    for _, _, _, arrived in walk(dark_room(f"vector_entry_point {mode}", episodes=4), 500, seed=0):
        final = arrived.final_obs if arrived.trial.ended[0] else None
        obs = (arrived.obs if final is None else final)["obs"][0]
        if arrived.reward[0]:
            found[-1].add(int(np.argmax(obs[:3]) * 3 + np.argmax(obs[3:])))
        if arrived.trial.over[0]:
            found.append(set())
    assert max(len(goals) for goals in found) == 1
    assert len(set().union(*found)) > 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trial", [{"episodes": 3}, {"steps": 7}, {"steps": 6}])
def test_the_vector_task_equals_single_environments_that_count(
    mode: str, trial: dict[str, int]
) -> None:
    several, alone = (
        walk(dark_room(f"{how} {mode}", **trial), 60, seed=8)
        for how in ("vector_entry_point", "sync")
    )
    assert plain(several) == plain(alone)


@pytest.mark.parametrize("mode", MODES)
def test_a_trial_of_steps_cuts_its_last_episode_off(mode: str) -> None:
    for ends in ("trial", "episode"):
        rows = walk(dark_room(f"sync {mode}", steps=7, value_ends=ends), 50, seed=2)
        steps, cut = 0, 0
        for _, _, _, arrived in rows:
            steps += arrived.valid[0]
            over = arrived.valid[0] and steps % 7 == 0
            assert arrived.trial.over[0] == over
            assert arrived.trial.ended[0] == (arrived.valid[0] and steps % 7 in (3, 6))
            if ends == "episode":
                assert (arrived.truncated[0], arrived.terminated[0]) == (
                    over, arrived.trial.ended[0]
                )  # fmt: skip
            cut += over
        assert cut > 4


class Limited(gymnasium.Env[Any, Any]):
    """Episodes that are truncated after 3 steps by themselves."""

    observation_space = gymnasium.spaces.Box(0.0, 9.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**kwargs)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, False, self.steps == 3, {}


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [3, 6, 7])
def test_an_episode_that_its_own_limit_ends_with_the_trial_is_whole(
    how: str, mode: str, steps: int
) -> None:
    trial = TrialConfig(steps=steps, value_ends="episode")
    config = EnvConfig(id="toy", num_envs=2, vectorization=how, autoreset=mode, trial=trial)
    env = make_env(config, Limited)
    taken = 0
    try:
        for _, _, _, arrived in walk(env, 40, seed=1):
            taken += arrived.valid[0]
            of_trial = (taken - 1) % steps + 1
            assert arrived.trial.ended[0] == (arrived.valid[0] and of_trial % 3 == 0)
            assert arrived.trial.over[0] == (arrived.valid[0] and of_trial == steps)
            assert arrived.truncated[0] == (arrived.trial.ended[0] or arrived.trial.over[0])
    finally:
        env.close()


def test_a_limit_of_ones_own_says_how_long_a_trial_has_to_be() -> None:
    limited = {"max_episode_steps": 20}
    make_env(EnvConfig(id="CartPole-v1", trial=TrialConfig(steps=20), kwargs=limited)).close()
    with pytest.raises(EnvError, match="an episode, 20 steps of CartPole-v1, got"):
        make_env(EnvConfig(id="CartPole-v1", trial=TrialConfig(steps=19), kwargs=limited))


def test_a_trial_shorter_than_an_episode_is_refused() -> None:
    env = dark_room("vector_entry_point next_step", steps=2)
    with pytest.raises(EnvError, match=r"at least as long as an episode, got env.trial.steps 2"):
        walk(env, 9, seed=0)
    config = EnvConfig(id="CartPole-v1", trial=TrialConfig(steps=499))
    with pytest.raises(EnvError, match="an episode, 500 steps of CartPole-v1, got"):
        make_env(config)


def test_environments_that_go_on_are_no_trials_of_steps() -> None:
    env = Trials(GymnasiumVectorEnv(NativeCounting(2)), TrialConfig(steps=6))
    with pytest.raises(EnvError, match="end an episode with a trial of 6 steps"):
        rollout(env, 20, seed=0)


@pytest.mark.parametrize("mode", MODES)
def test_the_control_sees_at_a_cut_what_it_sees_at_the_start_of_a_trial(mode: str) -> None:
    def starts(memory: str) -> tuple[Any, list[Any]]:
        env = dark_room(f"vector_entry_point {mode}", episodes=3, memory=memory)
        rows = walk(env, 40, seed=1)
        inner = [
            ({key: x[0].tolist() for key, x in arrived.obs.items()}, arrived.reset[0])
            for _, _, _, arrived in rows
            if arrived.is_first[0]
        ]
        return {key: x[0].tolist() for key, x in rows[0][0].items()}, inner

    first, cuts = starts("episode")
    assert len(cuts) > 6
    assert all(cut == (first, True) for cut in cuts)
    first, others = starts("trial")
    assert [reset for _, reset in others] == [False, False, True] * (len(others) // 3) + [False] * (
        len(others) % 3
    )
    assert all((obs == first) == reset for obs, reset in others)
    assert all(obs["first_step"] == [1] for obs, _ in others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trial", [{"episodes": 3}, {"steps": 7}])
def test_a_resumed_run_goes_on_within_its_trial(kind: str, trial: dict[str, int]) -> None:
    for stop in (4, 9):
        env, other = dark_room(kind, **trial), dark_room(kind, **trial)
        walk(env, stop, seed=4)
        state = env.state_dict()
        obs, is_first = other.load_state_dict(state)
        again = other.state_dict()
        expected = walk(env, 20, start=(obs, is_first))
        assert plain(walk(other, 20, start=(obs, is_first))) == plain(expected)
        third = dark_room(kind, **trial)
        start = third.load_state_dict(again)
        assert plain(walk(third, 20, start=start)) == plain(expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_single_environment_plays_a_whole_trial_as_one_episode(mode: str) -> None:
    rows = walk(dark_room(f"vector_entry_point {mode}", episodes=3), 60, seed=6)
    config = EnvConfig(
        id="statewise/DarkRoom-v0",
        autoreset=mode,
        inputs=INPUTS,
        trial=TrialConfig(episodes=3),
        kwargs={"size": 3, "steps": 3},
    )
    single = make_single(config)
    seen, _ = single.reset(seed=6)
    for obs, _, action, arrived in rows:
        assert plain(seen) == {key: x[0].tolist() for key, x in obs.items()}
        if not arrived.valid[0] and arrived.reset[0]:  # the row between two trials
            seen, _ = single.reset()
            continue
        seen, reward, terminated, truncated, _ = single.step(action[0])
        assert reward == arrived.reward[0]
        assert (terminated or truncated) == arrived.trial.over[0]
        if arrived.trial.over[0] and mode == "same_step":
            seen, _ = single.reset()


def test_the_control_plays_one_episode_as_one() -> None:
    config = EnvConfig(
        id="statewise/DarkRoom-v0",
        trial=TrialConfig(episodes=3, memory="episode"),
        kwargs={"steps": 2},
    )
    single = make_single(config)
    single.reset(seed=0)
    assert [single.step(0)[2] for _ in range(2)] == [False, True]


def test_an_episode_that_is_broken_off_ends_its_trial() -> None:
    task = DarkRoom(steps=2)
    env = TrialEnv(task, TrialConfig(episodes=3))
    began = []
    for steps in (2, 1, 2, 2, 2, 0, 0):  # after each reset
        env.reset()
        began.append(task.new_trial)
        for _ in range(steps):
            env.step(0)
    assert began == [True, False, True, False, False, True, True]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"episodes": -1}, "episodes: expected 0"),
        ({"episodes": 2, "steps": 5}, "one of episodes and steps, got 2 and 5"),
        ({"value_ends": "episode"}, "value_ends: expected 'trial' without trials"),
        ({"memory": "episode"}, "memory: expected 'trial' without trials"),
        ({"episodes": 2, "memory": "none"}, "memory: expected one of"),
    ],
)
def test_wrong_trials_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrialConfig(**fields)
