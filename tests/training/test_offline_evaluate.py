"""Evaluation of agents that learned from data, against one episode after the other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statewise
from statewise.__main__ import main
from statewise.data import EpisodeDataset, TrajectoryConfig, TrajectorySampler
from statewise.data.errors import DatasetError
from statewise.data.scores import REFERENCE_SCORES
from statewise.envs.build import EnvConfig, make_env
from statewise.training.api import TrainedOfflineAgent
from statewise.training.config import ConfigError
from statewise.training.evaluate import EvalOptions, evaluate_run
from statewise.training.offline_data import DataFacts, prepared
from statewise.training.offline_evaluate import (
    Reference,
    asking,
    evaluate_offline,
    find_reference,
)
from tests.training import offline_cases as cases
from tests.training.toys import CounterEnv


@pytest.fixture(scope="module", autouse=True)
def _ready(no_waiting_for_the_disk: None) -> None:
    cases.register()


def make(name: str = "dt/pendulum", **changes: Any) -> TrainedOfflineAgent:
    """Return an agent that acts by chance weights, as far from zero as to listen to its inputs."""
    tiny = {"dt/pendulum": cases.DT, "decision_s4/pendulum": cases.S4}[name]
    agent = statewise.make(name, data=cases.counter_data(), **tiny | changes)
    assert isinstance(agent, TrainedOfflineAgent)
    generator = torch.Generator().manual_seed(3)
    for parameter in agent.agent.policy.parameters():
        if parameter.dim() > 1:
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return agent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make().save(tmp_path_factory.mktemp("saved") / "agent")


def slow_episodes(
    agent: TrainedOfflineAgent, target: float, seeds: list[int], per_env: list[int]
) -> list[tuple[float, int, int, int]]:
    """Play one episode after the other by predict, and return (return, length, seed, index)."""
    found = []
    for seed, count in zip(seeds, per_env, strict=True):
        env = agent.make_env(target=target)
        for index in range(count):
            obs, _ = env.reset(seed=seed) if index == 0 else env.reset()
            state, start, total, length, over = None, np.array([True]), 0.0, 0, False
            while not over:
                action, state = agent.predict(obs, state, start, deterministic=True)
                obs, reward, terminated, truncated, _ = env.step(action)
                start, over = np.array([False]), terminated or truncated
                total, length = total + float(np.float32(reward)), length + 1
            found.append((total, length, seed, index))
    return found


@pytest.mark.parametrize(
    ("name", "reward"),
    [("dt/pendulum", "as_is"), ("decision_s4/pendulum", "as_is"), ("dt/pendulum", "delayed")],
)
def test_all_targets_at_once_equal_one_episode_after_the_other(name: str, reward: str) -> None:
    agent = make(name, data__reward=reward)
    targets = (25.0, 3.0, -400.0)
    results = agent.play_targets(EvalOptions(episodes=5, num_envs=2, seed=7, targets=targets))
    assert [one.target for one in results] == list(targets)
    for one in results:
        expected = slow_episodes(agent, one.target or 0.0, [7, 8], [2, 3])
        found = [tuple(row.values()) for row in one.result.episodes]
        assert found == expected
        assert one.result.return_mean == pytest.approx(np.mean([row[0] for row in expected]))
        low, high = one.result.return_ci95
        assert low <= one.result.return_mean <= high
    returns = [[row["return"] for row in one.result.episodes] for one in results]
    assert returns[0] != returns[2]  # else nothing would be seen of a target that is not told


@pytest.mark.parametrize("reward", ["as_is", "delayed"])
def test_acting_is_told_what_training_has_shown(reward: str) -> None:
    agent = make(data__reward=reward)
    episodes = cases.play(CounterEnv(), 3, seed=0)
    data = prepared(EpisodeDataset.from_episodes(episodes), agent.config.data)
    settings = TrajectoryConfig(batch_size=20)
    batch = TrajectorySampler(data, settings, np.random.default_rng(0)).sample()
    for index, episode in enumerate(episodes):
        total = float(episode.rewards.sum())
        env = agent.wrap(CounterEnv(), target=total)
        told = [env.reset(seed=index)[0]["return_to_go"].item()]
        told += [env.step(action)[0]["return_to_go"].item() for action in episode.actions]
        row = int((batch.episode == index).nonzero()[0])
        shown = batch.rtg[row, : len(episode.actions)].tolist()
        assert told == pytest.approx([*shown, 0.0], abs=1e-5)
        assert (shown == [total] * len(shown)) == (reward == "delayed")


def test_every_target_plays_the_same_starts() -> None:
    agent = make()
    results = agent.play_targets(EvalOptions(episodes=6, num_envs=3, targets=(9.0, 1.0)))
    starts = [
        [(row["seed"], row["index"], row["length"]) for row in one.result.episodes]
        for one in results
    ]
    assert starts[0] == starts[1]  # lengths are drawn by the environment at its start
    assert {seed - agent.eval_seed for seed, *_ in starts[0]} == {0, 1, 2}


class Chooser:
    """Chooses the highest count, whatever it is told; an agent without a return to go."""

    def initial_state(self, batch_size: int) -> dict[str, torch.Tensor]:
        return {}

    def act(self, obs: dict[str, torch.Tensor], *_: Any, explore: bool) -> Any:
        assert list(obs) == ["obs"]
        return torch.full((len(obs["obs"]),), 2), {}, {}


def test_an_agent_that_is_not_told_a_return_is_evaluated_once() -> None:
    config = EnvConfig(id="toy", num_envs=2, vectorization="sync")
    env = make_env(config, CounterEnv)
    [one] = evaluate_offline(
        Chooser(),  # type: ignore[arg-type]
        asking([env], [None], "as_is"),
        targets=[None],
        episodes=6,
        seed=1,
        explore=False,
        reference=Reference("data", 10.0, 30.0),
    )
    env.close()
    assert one.target is None
    for row in one.result.episodes:
        length = row["length"]
        assert row["return"] == length * (length + 1) / 2 + length / 4
    assert one.score == pytest.approx(100 * (one.result.return_mean - 10) / 20)


# --- references


def facts(**changes: Any) -> DataFacts:
    known: dict[str, Any] = {
        "paths": (),
        "sha256": (),
        "env_id": None,
        "obs_keys": ("obs",),
        "num_episodes": 1,
        "num_steps": 1,
        "return_mean": 0.0,
        "ref_min": 1.0,
        "ref_max": 3.0,
    }
    return DataFacts(**known | changes)


def test_reference_returns_are_those_of_the_data_or_of_d4rl() -> None:
    assert find_reference("data", facts()) == ("data", 1.0, 3.0)
    assert find_reference("data", facts(ref_max=None)) is None
    hopper = find_reference("hopper-medium-v2", facts())
    assert hopper == ("hopper-medium-v2", *REFERENCE_SCORES["hopper-medium-v2"])


def test_reference_returns_without_a_range_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"^eval\.reference: .*, got 10.0 and 10.0: name a data"):
        statewise.make("dt/pendulum", data=cases.counter_data(ref_max=10.0), **cases.DT)


# --- eval.json


def report_of(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((path / "eval.json").read_text())
    return report


def test_the_report_holds_every_target_and_the_first_as_headline(saved: Path) -> None:
    result = evaluate_run(saved)
    report = report_of(saved)
    assert report["env"] == cases.COUNTER
    assert report["preset"] == "dt/pendulum"
    assert (report["step"], report["actions"]) == (0, "greedy")
    assert report["reference"] == {"name": "data", "min": cases.REF_MIN, "max": cases.REF_MAX}
    assert [one["target"] for one in report["targets"]] == list(cases.TARGETS)
    first = report["targets"][0]
    assert {key: report[key] for key in first} == first
    assert report["return_mean"] == result.return_mean
    assert report["return_ci95"] == list(result.return_ci95)
    for one in report["targets"]:
        assert len(one["episodes"]) == 5
        assert set(one["episodes"][0]) == {"return", "length", "seed", "index"}
        share = (one["return_mean"] - cases.REF_MIN) / (cases.REF_MAX - cases.REF_MIN)
        assert one["score"] == pytest.approx(100 * share)
    assert [one.target for one in result.targets] == list(cases.TARGETS)


def test_options_of_an_evaluation_replace_the_settings_of_the_run(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--targets 30 -2.5 4 --episodes 3 --num-envs 3 --seed 5 --actions sample"
    assert main(["eval", str(saved), *words.split()]) == 0
    report = report_of(saved)
    assert [one["target"] for one in report["targets"]] == [30, -2.5, 4]
    assert [row["seed"] for row in report["episodes"]] == [5, 6, 7]
    assert report["actions"] == "sample"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["target 30", "target -2.5", "target 4"]
    mean, score = report["targets"][1]["return_mean"], report["targets"][1]["score"]
    assert lines[1] == f"target -2.5: return {mean:.4g}, score {score:.1f}"
    assert "3 episodes" in lines[3]


@pytest.mark.parametrize("targets", [(), (float("nan"),), (1.0, 1.0)])
def test_targets_that_cannot_be_asked_for_are_refused(
    saved: Path, targets: tuple[float, ...]
) -> None:
    with pytest.raises(DatasetError, match=r"^targets: expected"):
        evaluate_run(saved, targets=targets)


def test_targets_for_an_agent_of_the_environment_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = statewise.make("ppo/cartpole", env__num_envs=4)
    path = agent.save(tmp_path / "agent")
    assert main(["eval", str(path), "--targets", "3"]) == 2
    assert capsys.readouterr().err == (
        "error: eval: expected no targets for ppo, which is not told a return, got [3.0]\n"
    )


def test_without_reference_returns_scores_are_null(tmp_path: Path) -> None:
    data = cases.counter_data(ref_min=None, ref_max=None)
    path = statewise.make("dt/pendulum", data=data, **cases.DT).save(tmp_path / "agent")
    evaluate_run(path, episodes=1)
    report = report_of(path)
    assert report["reference"] is None
    assert report["score"] is None
    assert [one["score"] for one in report["targets"]] == [None, None]
    assert report["return_ci95"] == [None, None]  # one episode has no interval


def test_a_named_reference_is_used_and_reported(tmp_path: Path) -> None:
    changes = {"eval__reference": "walker2d-medium-v2"}
    agent = statewise.make("dt/pendulum", data=cases.counter_data(), **cases.DT | changes)
    path = agent.save(tmp_path / "agent")
    evaluate_run(path, episodes=2)
    report = report_of(path)
    low, high = REFERENCE_SCORES["walker2d-medium-v2"]
    assert report["reference"] == {"name": "walker2d-medium-v2", "min": low, "max": high}
    assert report["score"] == pytest.approx(100 * (report["return_mean"] - low) / (high - low))


def test_a_run_whose_environment_lost_an_observation_is_refused(
    saved: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(saved, tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    manifest["data"]["obs_keys"] = ["velocity"]
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"^env\.id: expected observations with 'velocity'"):
        statewise.load(tmp_path / "copy")
