"""Training and evaluation over trials: what is counted, what follows a step, and exact resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import statewise
from statewise.agents.recurrent_ppo import RecurrentPPO
from statewise.agents.returns import generalized_advantage
from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import EnvError, VectorEnv
from statewise.envs.trials import TrialConfig
from statewise.training.api import resume_training
from statewise.training.collector import Collector
from statewise.training.config import TrainConfig, apply_overrides, load_preset
from statewise.training.evaluate import evaluate_run
from statewise.training.evaluate_trials import evaluate_trials
from statewise.training.log import read_metrics
from statewise.training.online import OnlineTraining
from statewise.training.run import RunDirectory
from tests.training.test_collector import tiny_config

MODES = ("next_step", "same_step")
TINY: dict[str, Any] = {
    "env__num_envs": 2,
    "env__kwargs": {"size": 3, "steps": 3},
    "env__trial": {"episodes": 2},
    "rollout_steps": 10,  # does not divide a trial
    "total_steps": 80,
    "agent__num_epochs": 1,
    "agent__num_minibatches": 2,
    "agent__encoder__hidden": [8],
    "agent__sequence__num_layers": 1,
    "agent__sequence__d_model": 8,
    "agent__head_hidden": [8],
    "checkpoint": {"every_steps": 30, "keep": 9},
    "eval": {"episodes": 3, "num_envs": 2, "actions": "greedy"},
}
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


class ByPlace(gymnasium.Env[Any, Any]):
    """Pays in each of its two steps the number of its episode within the trial, from 1."""

    observation_space = spaces.Box(0.0, 9.0, (1,))
    action_space = spaces.Discrete(2)
    new_trial = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = 1 if self.new_trial else self._place + 1
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return np.zeros(1, np.float32), float(self._place), False, self._steps == 2, {}


def by_place(mode: str, **trial: Any) -> VectorEnv:
    config = EnvConfig(id="toy", num_envs=2, autoreset=mode, trial=TrialConfig(**trial))
    return make_env(config, ByPlace)


def agent_for(env: VectorEnv) -> RecurrentPPO:
    return RecurrentPPO(tiny_config(), env.obs_space, env.action_space, total_steps=100, seed=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ends", ["trial", "episode"])
def test_returns_are_logged_per_episode_and_by_its_place(mode: str, ends: str) -> None:
    env = by_place(mode, episodes=3, value_ends=ends)
    collector = Collector(env, agent_for(env), 21)
    collector.start(0)
    rollout = collector.collect()
    assert rollout.num_episodes == (14 if mode == "next_step" else 20)
    assert rollout.num_steps == (28 if mode == "next_step" else 42)
    found = collector.statistics
    assert found["rollout/ep_len_mean"] == 2
    assert [found[f"rollout/return_episode_{i}"] for i in (1, 2, 3)] == [2, 4, 6]
    step = rollout.batch.step
    shown = step.terminated | step.truncated
    assert int(shown.sum()) == rollout.num_episodes // (3 if ends == "trial" else 1)


def test_what_a_trial_cut_off_counts_as_no_episode() -> None:
    env = by_place("next_step", steps=5)
    collector = Collector(env, agent_for(env), 16)  # twice 5 steps and 3 rows without
    collector.start(0)
    assert collector.collect().num_episodes == 8
    found = collector.statistics
    assert (found["rollout/ep_len_mean"], found["rollout/ep_rew_mean"]) == (2, 3)
    assert "rollout/return_episode_3" not in found


def test_the_value_after_an_episode_is_that_of_the_next_one_in_its_trial() -> None:
    env = by_place("next_step", episodes=3)
    collector = Collector(env, agent_for(env), 16)
    collector.start(0)
    batch = collector.collect().batch
    value, step = batch.extras["value"], batch.step
    seen = 0
    for t in range(14):
        inner = not step.valid[0, t + 1] and not step.terminated[0, t]
        seen += inner
        assert batch.value_tp1[0, t] == value[0, t + 2 if inner else t + 1]
    assert seen == 4


@pytest.mark.parametrize("rows", range(6, 16))
def test_no_row_bootstraps_from_what_is_no_step(rows: int) -> None:
    """A rollout that ends between two episodes of a trial leaves its last row out."""
    env = by_place("next_step", episodes=3)
    collector = Collector(env, agent_for(env), rows)
    collector.start(0)
    rollout = collector.collect()
    batch = rollout.batch
    value, step = batch.extras["value"], batch.step
    ends = (rows - 1) % 9 in (1, 4)  # after two steps of the first or second of three episodes
    assert rollout.num_steps - int(step.valid.sum()) == (2 if ends else 0) == rollout.num_left_out
    assert step.valid[0, -1] == ((rows - 1) % 3 != 2 and not ends)
    if ends:
        assert batch.value_tp1[0, -2] == value[0, -1]
        target = generalized_advantage(
            step.reward, value, batch.value_tp1, step.terminated, step.truncated,
            discount=1.0, trace=0.5, valid=step.valid,
        )[1]  # fmt: skip
        assert target[0, -2].item() == pytest.approx(float(step.reward[0, -2] + value[0, -1]))


def test_rows_that_are_left_out_count_as_steps_of_the_run() -> None:
    env = by_place("next_step", episodes=3)
    agent = agent_for(env)
    config = apply_overrides(
        load_preset("ppo/dark_room"), {"rollout_steps": 2, "total_steps": 40, "eval.every_steps": 0}
    )
    assert isinstance(config, TrainConfig)
    training = OnlineTraining(config, agent, env, None, lambda: pytest.fail("none asked for"))
    training.begin()
    while training.steps < config.end:
        training.iterate()
        assert agent.steps_seen == training.steps
    rollouts = Collector(by_place("next_step", episodes=3), agent_for(env), 2)
    rollouts.start(0)
    assert sum(rollouts.collect().num_left_out for _ in range(9)) > 0  # there are such rows


class Recalling(RecurrentPPO):
    """Chooses 1 once its memory has been cleared less than 5 steps ago."""

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"age": torch.zeros(batch_size)}

    def act(self, obs: Any, state: Any, is_first: Tensor, reset: Tensor, *, explore: bool) -> Any:
        age = torch.where(reset, 0, state["age"]) + 1
        return (age < 5).long(), {"value": age}, {"age": age}


class Counted(ByPlace):
    """Pays the action."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(action), terminated, truncated, info


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ends", ["trial", "episode"])
def test_an_evaluation_plays_whole_trials_with_one_memory(mode: str, ends: str) -> None:
    trial = TrialConfig(episodes=4, value_ends=ends)
    env = make_env(EnvConfig(id="toy", num_envs=2, autoreset=mode, trial=trial), Counted)
    agent = Recalling(tiny_config(), env.obs_space, env.action_space, total_steps=100, seed=0)
    result = evaluate_trials(agent, env, trials=5, seed=7, explore=False)
    # Under NEXT_STEP the memory sees the final observations, too: its fifth step is that after.
    expected = [2, 1, 0, 0] if mode == "next_step" else [2, 2, 0, 0]
    assert [one.mean for one in result.by_episode] == expected
    assert (result.return_mean, result.gain.mean) == (sum(expected) / 4, -2)
    report = result.as_json()
    assert [report[name] for name in ("first_episode", "last_episode")] == [2, 0]
    assert report["later_episodes"] == sum(expected[1:]) / 3
    assert [(one["seed"], one["index"], one["length"]) for one in report["episodes"]] == [
        (7, 0, 8), (7, 1, 8), (8, 0, 8), (8, 1, 8), (8, 2, 8)
    ]  # fmt: skip
    assert all(one["returns"] == expected for one in report["episodes"])


def test_an_evaluation_needs_trials() -> None:
    env = make_env(EnvConfig(id="toy", num_envs=1), ByPlace)
    with pytest.raises(EnvError, match="expected environments of trials"):
        evaluate_trials(agent_for(env), env, trials=1, seed=0, explore=False)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_over_trials_resumes_exactly_and_is_evaluated(tmp_path: Path, mode: str) -> None:
    tiny = TINY | {"env__autoreset": mode}
    whole = statewise.train("ppo/dark_room", run=tmp_path / "whole", **tiny)
    half = shutil.copytree(tmp_path / "whole", tmp_path / "half")
    for later in sorted((half / "checkpoints").iterdir(), key=lambda path: int(path.name))[1:]:
        shutil.rmtree(later)
    resume_training(half, ["statewise"])
    again, expected = (
        [
            {k: v for k, v in row.items() if not k.startswith(("time/", "wall"))}
            for row in read_metrics(RunDirectory.open(path))
        ]
        for path in (half, tmp_path / "whole")
    )
    assert len(expected) > 3
    assert again == expected
    result = evaluate_run(tmp_path / "whole")
    report = json.loads((tmp_path / "whole" / "eval.json").read_text())
    assert len(report["return_by_episode"]) == 2
    assert report["return_mean"] == result.as_json()["return_mean"]  # type: ignore[attr-defined]
    assert (tmp_path / "whole" / "plots" / "return_by_episode.png").stat().st_size > 1000
    first = report["episodes"][0]
    env = whole.make_env()
    obs, _ = env.reset(seed=first["seed"])
    total, state, start, over = 0.0, None, np.ones(1, bool), False
    while not over:
        action, state = whole.predict(obs, state, start, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, start, over = total + float(reward), np.zeros(1, bool), terminated or truncated
    assert total == sum(first["returns"])
