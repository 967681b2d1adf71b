"""The parts of making data: recipes, roll-outs, replay buffers, and trainers that are resumed."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from statewise.data.errors import Misaligned
from statewise.envs.protocol import EnvError
from statewise.envs.tasks.dark_room import DarkRoomVector
from statewise.envs.tasks.delayed_cue import DelayedCueVector
from statewise.envs.tasks.delayed_offer import DelayedOfferVector
from statewise.envs.tasks.distracting_hallway import DistractingHallwayVector
from statewise.envs.tasks.multi_doors_keys import MultiDoorsKeysVector
from statewise.envs.tasks.rtg_dial import RtgDialVector
from statewise.training import make_data_rollout as rollout
from statewise.training import make_data_sac as sac
from statewise.training.checkpoint import load_checkpoint, save_checkpoint
from statewise.training.make_data_recipes import (
    LEVELS,
    RECIPES,
    TOYS,
    MakeConfig,
    ToyConfig,
    check_levels,
    find_recipe,
    folder_name,
    level_names,
    settings_of,
    short_name,
)
from statewise.training.make_data_rollout import (
    environment_info,
    make_environment,
    random_policy,
    replay_episodes,
    returns_of,
    roll_out,
)
from statewise.training.make_data_train import choose_expert, medium_candidates
from statewise.training.schema import ConfigError
from tests.training.data_cases import HIDDEN, LATE, REACH, STEPS, register, tiny

register()


# --- recipes


def test_short_names_and_ids_lead_to_the_same_budget() -> None:
    config = find_recipe("pendulum")
    assert config == find_recipe("Pendulum-v1") == RECIPES["pendulum"]
    assert isinstance(config, MakeConfig)
    assert (config.steps, config.learning_starts, config.episodes) == (10_000, 1000, 100)
    changed = find_recipe("hopper", steps=200_000, algorithm="td3", episodes=3, seed=4)
    assert isinstance(changed, MakeConfig)
    assert (changed.env_id, changed.steps, changed.algorithm) == ("Hopper-v5", 200_000, "td3")
    assert (changed.episodes, changed.seed) == (3, 4)


def test_another_environment_needs_steps_and_gets_a_budget_from_them() -> None:
    config = find_recipe("Reacher-v5", steps=50_000)
    assert isinstance(config, MakeConfig)
    assert (config.learning_starts, config.eval_every) == (5000, 1250)
    with pytest.raises(ConfigError, match="expected --steps for Reacher-v5"):
        find_recipe("Reacher-v5")
    with pytest.raises(ConfigError, match=r"did you mean pendulum\?"):
        find_recipe("pendlum")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Pendulum-v1", "pendulum"),
        ("hopper", "hopper"),
        ("statewise/RtgDial-v0", "rtg-dial"),
        ("Reacher-v5", "reacher-v5"),
        ("my/Own-v0", "own-v0"),
        ("my_module:Own-v0", "own-v0"),
    ],
)
def test_a_folder_is_named_after_the_environment(name: str, short: str) -> None:
    assert short_name(name) == short


def test_nothing_is_trained_for_an_analytic_set() -> None:
    config = find_recipe("statewise/DoubleIntegrator-v0", episodes=3, seed=1)
    assert config == ToyConfig(toy="double-integrator", episodes=3, seed=1)
    assert level_names(config) == ("random", "medium", "expert")
    assert isinstance(config, ToyConfig)
    returns = [config.make(level).returns.mean() for level in level_names(config)]
    assert returns == sorted(returns)
    assert len(ToyConfig(toy="delayed-cue").make("expert")) == 2000
    options: list[dict[str, Any]] = [{"steps": 5}, {"algorithm": "sac"}]
    for option in options:
        with pytest.raises(ConfigError, match=r"expected no --\w+ for rtg-dial, got"):
            find_recipe("rtg-dial", **option)


def test_an_unknown_level_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'medium-replya': did you mean medium-replay"):
        check_levels(tiny(), ("random", "medium-replya"))
    check_levels(tiny(), LEVELS)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": 25}, "steps: expected more than the 25"),
        ({"learning_starts": 0}, "learning_starts: expected at least 1, got 0"),
        ({"eval_every": 0}, "eval_every: expected at least 1"),
        ({"episodes": 0}, "episodes: expected"),
        ({"eval_episodes": 0}, "eval_episodes: expected"),
        ({"reference_episodes": 0}, "reference_episodes: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"algorithm": "ppo"}, "algorithm: expected sac or td3, got 'ppo'"),
        ({"seed": -1}, "expected seed >= 0"),
        ({"hidden": (8, 0)}, "hidden >= 1"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny(**changes)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([-40, 10, 30, 60, 90], [30, 40, 50]),
        ([50, 90], [10, 20]),
        ([0, 20, 90, 30], [20, 30, 40]),
        ([0, 10, 40], [20, 30]),
        ([5, 20, 10], [10, 20, 30]),  # none reaches a third: around the best
        ([70], [10]),
    ],
)
def test_the_medium_policy_is_sought_where_the_score_passes_a_third(
    scores: list[float], expected: list[int]
) -> None:
    curve = [(10 * (i + 1), 200 + 5.0 * score) for i, score in enumerate(scores)]
    assert medium_candidates(curve, 200.0, 700.0) == expected


def test_the_expert_is_the_first_of_the_best_evaluations() -> None:
    assert choose_expert([(10, -3.0), (20, 4.0), (30, 4.0), (40, 1.0)]) == 20


# --- episodes that are played


def alone(policy: Any, seed: int) -> list[tuple[Any, float, bool, bool]]:
    """Play one episode by itself."""
    env = make_environment(REACH)
    obs, _ = env.reset(seed=seed)
    rows = [(obs, 0.0, False, False)]
    while not (rows[-1][2] or rows[-1][3]):
        obs, reward, terminated, truncated, _ = env.step(policy(rows[-1][0][None])[0])
        rows.append((obs, float(reward), bool(terminated), bool(truncated)))
    return rows


@pytest.mark.parametrize("width", [1, 3, 20])
def test_episodes_played_together_equal_those_played_alone(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "_WIDTH", width)

    def policy(obs: Any) -> Any:
        return np.tanh(obs[:, :1] * 2)

    episodes = roll_out(lambda: make_environment(REACH), policy, episodes=11, seed=7)
    assert len({len(episode) for episode in episodes}) > 1
    for number, episode in enumerate(episodes):
        rows = alone(policy, 7 + number)
        assert episode.index == number
        assert_array_equal(episode.observations["obs"], np.stack([row[0] for row in rows]))
        assert_array_equal(episode.actions, policy(episode.observations["obs"][:-1]))
        assert_array_equal(episode.rewards, np.array([row[1] for row in rows[1:]], np.float32))
        assert episode.terminated == rows[-1][2]
        assert episode.truncated == (rows[-1][3] and not rows[-1][2])
    assert returns_of(episodes)[3] == pytest.approx(episodes[3].rewards.sum())
    assert any(episode.truncated for episode in episodes)
    assert any(episode.terminated for episode in episodes)


def test_an_end_by_rule_and_time_limit_at_once_is_one_by_the_rule() -> None:
    make = partial(make_environment, LATE)
    (episode,) = roll_out(make, random_policy(make(), 0), episodes=1, seed=0)
    assert len(episode) == STEPS
    assert (episode.terminated, episode.truncated) == (True, False)


def test_random_actions_are_uniform_between_the_bounds() -> None:
    actions = random_policy(make_environment(REACH), 3)(np.zeros((4000, 2), np.float32))
    assert actions.dtype == np.float32
    assert np.abs(np.histogram(actions, 8, (-2, 2))[0] - 500).max() < 4 * np.sqrt(500)


def test_what_is_known_about_an_environment_is_noted() -> None:
    info = environment_info(make_environment("Pendulum-v1"))
    assert (info.env_id, info.max_episode_steps) == ("Pendulum-v1", 200)
    assert info.action_spec is not None
    assert info.action_spec.low is not None
    assert info.action_spec.low.tolist() == [-2]
    high = info.obs_specs["obs"].high
    assert high is not None
    assert high.tolist() == [1, 1, 8]


@pytest.mark.parametrize(
    ("env_id", "text"),
    [
        ("CartPole-v1", "expected a bounded vector of floats as action, got Discrete"),
        ("FrozenLake-v1", "expected observations that are one vector of floats"),
        ("statewise/DoubleIntegrator-v0", "expected a time limit, got none"),
        ("Pendulm-v1", "did you mean Pendulum-v1"),
    ],
)
def test_environments_that_do_not_suit_are_refused(env_id: str, text: str) -> None:
    with pytest.raises(EnvError, match=text):
        make_environment(env_id)


# --- episodes of a replay buffer


def buffer_rows(ends: list[int]) -> dict[str, Any]:
    """Return rows as a buffer keeps them; `ends` has 0 inside, 1 terminated, 2 timed out."""
    over = np.array(ends) > 0
    obs = np.arange(2.0 * len(ends), dtype=np.float32).reshape(-1, 2)
    following = np.concatenate([obs[1:], [[-1, -1]]]).astype(np.float32)
    following[over] += 0.5  # the true last observation, not the first of the next episode
    return {
        "observations": obs,
        "next_observations": following,
        "actions": obs[:, :1] / 100,
        "rewards": np.arange(len(ends), dtype=np.float32),
        "dones": over.astype(np.float32),
        "timeouts": (np.array(ends) == 2).astype(np.float32),
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 2]), min_size=1, max_size=30))
def test_a_buffer_is_cut_as_a_slow_loop_cuts_it(ends: list[int]) -> None:
    rows, expected, begin = buffer_rows(ends), [], 0
    for t, end in enumerate(ends):
        if end:
            expected.append((begin, t + 1, end))
            begin = t + 1
    episodes = replay_episodes(rows)
    assert len(episodes) == len(expected)
    for episode, (begin, stop, end) in zip(episodes, expected, strict=True):
        obs = episode.observations["obs"]
        assert obs[:-1].tolist() == rows["observations"][begin:stop].tolist()
        assert obs[-1].tolist() == rows["next_observations"][stop - 1].tolist()
        assert episode.rewards.tolist() == list(range(begin, stop))
        assert len(episode.actions) == stop - begin
        assert (episode.terminated, episode.truncated) == (end == 1, end == 2)


def test_a_buffer_whose_rows_do_not_follow_each_other_is_refused() -> None:
    rows = buffer_rows([0, 0, 1, 0, 0])
    rows["next_observations"][3] += 1
    with pytest.raises(Misaligned, match=r"next_observations\[3\]: expected .* got 1 others"):
        replay_episodes(rows)


# --- trainers


@pytest.fixture
def _needs_sb3() -> None:
    pytest.importorskip("stable_baselines3")


def new_trainer(config: MakeConfig) -> sac.Trainer:
    return sac.Trainer(config, make_environment(config.env_id))


def final(trainer: sac.Trainer) -> dict[str, Any]:
    rows = trainer.replay(trainer.step)
    flat = torch.cat([value.reshape(-1) for value in trainer.model.policy.state_dict().values()])
    return {**rows, "weights": flat.numpy()}


@pytest.mark.usefixtures("_needs_sb3")
@pytest.mark.parametrize("algorithm", ["sac", "td3"])
@pytest.mark.parametrize("stop", [12, 33, 60])  # before learning, between, with a full buffer
def test_a_trainer_goes_on_from_a_file_as_if_it_had_not_stopped(
    algorithm: str, stop: int, tmp_path: Any
) -> None:
    config = tiny(algorithm=algorithm, steps=60, learning_starts=20)
    seen: list[int] = []
    with sac.global_streams_kept():
        whole = new_trainer(config)
        whole.train_to(60, seen.append)
        expected = final(whole)
        first = new_trainer(config)
        first.train_to(stop, lambda _: None)
        path = save_checkpoint(tmp_path, stop, first.state_dict(), "", keep=1)
        np.random.seed(5)  # noqa: NPY002 - what another process would bring
        torch.manual_seed(5)
        second = new_trainer(config)
        second.load_state_dict(load_checkpoint(path))
        assert second.step == stop
        if stop < 60:
            second.train_to(60, lambda _: None)
    assert seen == list(range(1, 61))
    for name, values in final(second).items():
        assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.usefixtures("_needs_sb3")
def test_an_episode_that_cannot_be_played_again_is_cut_with_a_warning() -> None:
    config = tiny(env_id=HIDDEN, steps=60, learning_starts=20)
    with sac.global_streams_kept():
        first = new_trainer(config)
        first.train_to(33, lambda _: None)
        state, second = first.state_dict(), new_trainer(config)
        with pytest.warns(sac.ResumeWarning, match="a new one begins"):
            second.load_state_dict(state)
        second.train_to(60, lambda _: None)
    rows = second.replay(60)
    assert (rows["dones"][32], rows["timeouts"][32]) == (1, 1)
    episodes = replay_episodes(rows)
    assert 33 in np.cumsum([len(episode) for episode in episodes])


@pytest.mark.usefixtures("_needs_sb3")
@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_an_explorer_scatters_around_the_greedy_policy_and_repeats_with_its_seed(
    algorithm: str,
) -> None:
    with sac.global_streams_kept():
        trainer = new_trainer(tiny(algorithm=algorithm))
        weights, obs = trainer.weights(), np.zeros((3000, 2), np.float32)
        greedy = trainer.greedy(weights)(obs)
        drawn = [trainer.explorer(weights, seed)(obs) for seed in (0, 0, 1)]
    assert np.ptp(greedy) == 0
    assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert np.abs(drawn[0]).max() <= 2
    if algorithm == "td3":  # 0.1 of half the range, 2
        assert (drawn[0] - greedy).std() == pytest.approx(0.2, rel=0.06)
    else:
        assert drawn[0].std() > 0.3


@pytest.mark.usefixtures("_needs_sb3")
def test_weights_that_were_taken_do_not_change_with_training() -> None:
    with sac.global_streams_kept():
        trainer = new_trainer(tiny(steps=60, learning_starts=20))
        taken = trainer.weights()
        before = {key: value.clone() for key, value in taken.items()}
        trainer.train_to(40, lambda _: None)
    assert all(torch.equal(taken[key], before[key]) for key in taken)
    assert any(not torch.equal(value, taken[key]) for key, value in trainer.weights().items())


def test_a_missing_package_is_named_with_the_line_that_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'statewise\[sb3\]'"):
        sac.check_installed()


def test_the_length_of_an_analytic_set_is_that_of_its_environment() -> None:
    config = find_recipe("statewise/DelayedCue-v0", length=4, episodes=2)
    assert config == ToyConfig(toy="delayed-cue", length=4, episodes=2)
    assert isinstance(config, ToyConfig)
    assert config.make("expert").lengths.tolist() == [5, 5]
    assert folder_name("statewise/DelayedCue-v0", config) == "delayed-cue-4"
    own = find_recipe("rtg-dial", length=20)  # what it has by itself is the set without a length
    assert own == find_recipe("rtg-dial")
    assert folder_name("rtg-dial", own) == "rtg-dial"
    assert "length" not in settings_of(own)  # so that folders from before keep their hash
    assert settings_of(config)["length"] == 4


def test_the_default_length_of_a_set_is_that_of_its_environment() -> None:
    lengths = {
        "rtg-dial": RtgDialVector().length,
        "delayed-cue": DelayedCueVector().length,
        "delayed-offer": DelayedOfferVector().delay,
        "distracting-hallway": DistractingHallwayVector().width,
        "multi-doors-keys": MultiDoorsKeysVector().length,
        "dark-room-histories": DarkRoomVector().num_steps,
    }
    assert {name: toy.length for name, toy in TOYS.items() if toy.length} == lengths
    for name, length in lengths.items():
        level, *_ = TOYS[name].levels
        steps = [ToyConfig(toy=name, episodes=1, length=n).make(level).num_steps
                 for n in (None, length, length + 1)]  # fmt: skip
        assert steps == [steps[0], steps[0], steps[0] + 1]
        with pytest.raises(ConfigError, match="length: expected at least 1, got 0"):
            ToyConfig(toy=name, length=0)


@pytest.mark.parametrize("name", ["double-integrator", "pendulum", "Reacher-v5"])
def test_a_length_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match=f"expected no --length for {name.lower()}, got 5: rtg-"):
        find_recipe(name, length=5)
