"""Training recurrent SAC: what is stored, exact resume, what users call, settings."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

import statewise
from statewise.agents.sac_losses import following
from statewise.training.api import load, resume_training, run_training
from statewise.training.config import ConfigError, apply_overrides, load_preset
from statewise.training.replay_config import RecurrentSACRun
from statewise.training.trained_replay import TrainedReplayAgent

SMALL: dict[str, Any] = {
    "env.num_envs": 2,
    "env.kwargs": {"max_episode_steps": 9},
    "windows.batch_size": 2,
    "windows.length": 5,
    "windows.train_ratio": 5.0,
    "windows.prefill": 20,
    "replay.capacity": 200,
    "replay.burn_in": 2,
    "eval.episodes": 3,
    "eval.num_envs": 2,
    "log_every": 4,
    "total_steps": 60,
    "checkpoint.every_steps": 30,
}


def config(**changes: Any) -> RecurrentSACRun:
    made = apply_overrides(load_preset("sac/pendulum_position"), SMALL | changes)
    assert isinstance(made, RecurrentSACRun)
    return made


def test_rows_before_a_resume_do_not_lead_to_the_episodes_that_begin_with_it() -> None:
    """Environments whose state nobody can save begin new episodes."""
    pytest.importorskip("envpool")
    settings = config(**{"env.id": "envpool:Pendulum-v1", "env.kwargs": {}, "total_steps": 400})
    trained = TrainedReplayAgent(settings)
    loop = trained.loop(trained.make_vector_env(2), None)
    assert loop.env.resume == "episode"
    loop.begin()
    for _ in range(6):
        loop.collector.step()
    state, loop.steps = loop.state_dict(), 12
    other = trained.loop(trained.make_vector_env(2), None)
    other.load_state_dict(state)
    for _ in range(3):
        other.collector.step()
    step = other.replay.sample(8, 2, np.random.default_rng(0)).step
    value, rows = following(torch.arange(4.0).expand(8, 4), step)
    assert step.is_first[:, 1:].any()
    assert not (rows & step.is_first[:, 1:]).any()
    assert torch.equal(value, torch.arange(1.0, 4).expand(8, 3))


def test_windows_hold_the_memories_of_actor_and_critics_and_final_observations() -> None:
    trained = TrainedReplayAgent(config())
    loop = trained.loop(trained.make_vector_env(2), None)
    loop.start()
    for _ in range(25):
        loop.collector.step()
    batch = loop.replay.sample(16, 5, np.random.default_rng(0))
    assert batch.step.reward.shape == (16, 7)  # two rows of burn-in
    assert set(batch.state) == set(trained.agent.initial_state(1))
    assert {key.partition(".")[0] for key in batch.state} == {"actor", "critic"}
    assert torch.equal(batch.step.reset, batch.step.is_first)
    final = ~batch.step.valid
    assert final.any()
    assert (batch.step.truncated[:, :-1] == final[:, 1:]).all()
    assert (batch.step.obs["previous_action"][batch.step.is_first] == 0).all()


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    every = {"log_every": 1}  # else a run that ends writes a line that another does not
    straight = run_training(config(**every), tmp_path / "a", ["x"], quiet=True)
    cut = run_training(config(**every, total_steps=30), tmp_path / "b", ["x"], quiet=True)
    text = (straight / "config.yaml").read_text(encoding="utf-8")
    (cut / "config.yaml").write_text(text, encoding="utf-8")
    resume_training(cut, ["x"], quiet=True)
    states = [load(run).agent.state_dict() for run in (straight, cut)]
    assert states[0]["updates_done"] == states[1]["updates_done"] == 21
    for name, weights in states[0]["networks"].items():
        for key, x in weights.items():
            assert torch.equal(x, states[1]["networks"][name][key]), (name, key)
    lines = [
        json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (straight, cut)
    ]
    timeless = [{k: v for k, v in x.items() if not k.startswith(("time/", "wall"))} for x in lines]
    assert timeless[0] == timeless[1]
    assert {"train/critic_loss", "train/entropy", "train/ent_coef"} <= set(lines[0])


def test_three_lines_load_an_agent_and_act(tmp_path: Path) -> None:
    run = run_training(config(total_steps=24), tmp_path / "run", ["x"], quiet=True)
    agent = statewise.load(run)
    env = agent.make_env()
    obs, _ = env.reset(seed=0)
    action, state = agent.predict(obs, None, np.ones(1, bool), deterministic=True)
    assert env.action_space.contains(action)
    again, _ = agent.predict(obs, state, np.ones(1, bool), deterministic=True)
    assert np.allclose(action, again)
    mean, std = evaluate_policy(agent, agent.wrap(agent.make_env()), n_eval_episodes=2, warn=False)
    assert np.isfinite([mean, std]).all()
    saved = statewise.load(agent.save(tmp_path / "saved"))
    other, _ = saved.predict(obs, None, np.ones(1, bool), deterministic=True)
    assert np.array_equal(action, other)
    with pytest.raises(ConfigError, match="export: expected an agent of ppo"):
        agent.export(tmp_path / "policy.pt2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows.prefill": 500}, r"windows\.prefill: expected at most replay\.capacity"),
        (
            {
                "replay.capacity": 21,
                "windows.length": 10,
                "windows.prefill": 21,
            },  # 10 rows each; a full ring of 10 has no window of 10
            r"replay\.capacity: expected more than a window and its burn-in \(12\) rows of each of "
            r"2 environments, got 10: set 26 or more",
        ),
        ({"windows.context": 3}, r"windows\.context"),
        (
            {
                "env.trial": {"episodes": 2, "value_ends": "episode"},
                "env.autoreset": "same_step",
            },
            r"env\.autoreset: expected next_step with a replay, where values end with episodes",
        ),
        ({"replay.replay_state": "zero"}, r"burn_in: expected"),
        ({"agent.target_rate": 0.0}, r"agent\.target_rate: expected"),
        ({"agent.sequence.memory": "some"}, r"agent\.sequence\.memory: expected"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "trial", [{"value_ends": "trial"}, {"value_ends": "episode", "memory": "episode"}]
)
def test_trials_whose_memory_reads_what_acting_read_are_taken(trial: dict[str, str]) -> None:
    made = config(**{"env.trial": {"episodes": 2} | trial, "env.autoreset": "same_step"})
    assert made.env.trial.is_on


def test_actions_of_double_precision_are_stored_as_the_agent_draws_them() -> None:
    class Doubled(gymnasium.ActionWrapper):
        """A pendulum that declares its torque in float64."""

        def __init__(self) -> None:
            super().__init__(gymnasium.make("Pendulum-v1", max_episode_steps=9))
            self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float64)

        def action(self, action: np.ndarray) -> np.ndarray:
            assert action.dtype == np.float64
            return action.astype(np.float32)

    changes = SMALL | {"env.kwargs": {}, "env.keep": []}
    agent = statewise.make("sac/pendulum_position", env=Doubled, **changes)
    before = agent.step
    agent.learn(40)
    assert agent.step - before >= 40


def test_an_environment_with_choices_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="agent: action_space: expected a float Box") as caught:
        TrainedReplayAgent(config(**{"env.id": "CartPole-v1", "env.keep": []}))
    assert "\n" not in str(caught.value)
