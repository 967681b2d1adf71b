"""Training with a world model: what is stored, when it learns, exact resume, what users call."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

import statewise
from statewise.data.errors import DatasetCorrupt
from statewise.data.shift import to_arrival
from statewise.training.api import load, resume_training, run_training
from statewise.training.checkpoint import to_bytes
from statewise.training.config import ConfigError, WorldTrainConfig, apply_overrides, load_preset
from statewise.training.replay import ReplayTraining
from statewise.training.trained_world import TrainedWorldAgent
from tests.training.toys import CounterEnv

SMALL: dict[str, Any] = {
    "env.num_envs": 3,
    "env.vectorization": "sync",
    "windows.batch_size": 2,
    "windows.length": 6,
    "windows.train_ratio": 4.0,
    "windows.prefill": 20,
    "replay.starts": "any",
    "agent.behavior.num_starts": 4,
    "agent.behavior.horizon": 2,
    "eval.every_steps": 0,
    "eval.episodes": 3,
    "eval.num_envs": 2,
    "log_every": 2,
    "total_steps": 60,
    "checkpoint.every_steps": 30,
}


def config(**changes: Any) -> WorldTrainConfig:
    made = apply_overrides(load_preset("r2i/delayed_offer"), SMALL | changes)
    assert isinstance(made, WorldTrainConfig)
    return made


def training(env: Any = None, **changes: Any) -> ReplayTraining:
    trained = TrainedWorldAgent(config(**changes), env=env)
    source = trained.make_vector_env(3)
    loop = trained.loop(source, None)
    loop.start()
    return loop


def test_rows_are_stored_as_the_environments_gave_them() -> None:
    loop = training(CounterEnv, **{"env.kwargs": {}})
    for _ in range(30):
        loop.collector.step()
    batch = loop.replay.sample(8, 12, np.random.default_rng(0))
    step, arrival = batch.step, to_arrival(batch.step, previous=batch.previous)
    count, length = step.obs["obs"][..., 0], step.obs["obs"][..., 1]
    assert torch.equal(step.is_first, count == 0)
    assert torch.equal(step.valid, count < length)
    ends = step.terminated | step.truncated
    assert torch.equal(ends, step.valid & (count + 1 == length))
    reward = torch.where(step.valid, count + 1 + step.action / 8, torch.zeros(()))
    torch.testing.assert_close(step.reward, reward)
    assert torch.equal(arrival.is_last, count == length)
    inside = arrival.counts & ~step.is_first
    torch.testing.assert_close(arrival.reward_in[inside], (count + arrival.action_in / 8)[inside])


def test_same_step_backends_give_the_same_rows() -> None:
    rows = []
    for autoreset in ("next_step", "same_step"):
        loop = training(CounterEnv, **{"env.kwargs": {}, "env.autoreset": autoreset})
        loop.agent.generator.manual_seed(0)
        for _ in range(40):
            loop.collector.step()
        finals = ~loop.replay.sample(8, 12, np.random.default_rng(0)).step.valid
        rows.append(float(finals.float().mean()))
    assert 0.05 < rows[0] < 0.4
    assert 0.05 < rows[1] < 0.4


def test_updates_begin_after_the_prefill_and_keep_to_the_ratio() -> None:
    loop = training()
    done = []
    while loop.steps < 60:
        loop.iterate()
        done.append((loop.steps, loop.agent.updates_done))
    # 4 replayed rows per step, 12 rows per update: an update every 3 steps
    assert all(updates == 0 for steps, updates in done if steps < 20)
    first = next(steps for steps, updates in done if updates)
    assert 20 <= first <= 26
    last_steps, updates = done[-1]
    assert updates == pytest.approx((last_steps - 20) / 3, abs=1.1)


@pytest.mark.parametrize("stored", ["zero", "stored"])
def test_the_memory_before_every_row_may_be_stored(stored: str) -> None:
    loop = training(**{"replay.replay_state": stored})
    for _ in range(20):
        loop.collector.step()
    batch = loop.replay.sample(4, 5, np.random.default_rng(0))
    if stored == "zero":
        assert batch.state == {}
        assert batch.step.reset[:, 0].all()
        return
    assert set(batch.state) == set(loop.agent.stored_state(loop.agent.initial_state(1)))
    assert torch.equal(batch.step.reset, batch.step.is_first)
    deter = batch.state["deter"]
    assert not torch.equal(deter[0], deter[1])
    loop.agent.update(batch)


@pytest.mark.parametrize("storage", ["memory", "memmap"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path, storage: str) -> None:
    changes = {"replay.storage": storage, "replay.capacity": 300}
    straight = run_training(config(**changes), tmp_path / "a", ["x"], quiet=True)
    half = config(**changes, total_steps=30)
    cut = run_training(half, tmp_path / "b", ["x"], quiet=True)
    text = (straight / "config.yaml").read_text(encoding="utf-8")
    (cut / "config.yaml").write_text(text, encoding="utf-8")
    resume_training(cut, ["x"], quiet=True)
    one, two = load(straight), load(cut)
    assert one.step == two.step >= 60
    states = [agent.agent.state_dict() for agent in (one, two)]
    for part in ("world", "behavior"):
        for name, x in states[0][part].items():
            assert torch.equal(x, states[1][part][name]), name
    assert torch.equal(states[0]["generator"], states[1]["generator"])
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (straight, cut)
    ]
    timeless = [
        {k: v for k, v in rows[-1].items() if not k.startswith(("time/", "wall"))} for rows in lines
    ]
    assert timeless[0] == timeless[1]


class KilledError(Exception):
    """Stands for a process that ends without a word."""


def killed_run(path: Path, steps: int, **changes: Any) -> Path:
    """Start a run and kill it once it has made so many steps."""
    real = ReplayTraining.iterate

    def until_killed(loop: ReplayTraining) -> dict[str, float]:
        if loop.steps >= steps:
            raise KilledError
        return real(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplayTraining, "iterate", until_killed)
        with pytest.raises(KilledError):
            run_training(config(**changes), path, ["x"], quiet=True)
    return path


def test_a_run_killed_between_checkpoints_goes_on_with_the_rows_of_a_full_replay(
    tmp_path: Path,
) -> None:
    """Of 10 rows of each stream none is left in the ring that the checkpoint counts."""
    changes = {"replay.storage": "memmap", "replay.capacity": 30, "total_steps": 100}
    changes |= {"checkpoint.every_steps": 50}
    straight = run_training(config(**changes), tmp_path / "a", ["x"], quiet=True)
    killed = killed_run(tmp_path / "b", 96, **changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume_training(killed, ["x"], quiet=True)
    words = [str(one.message) for one in caught]
    assert any("rows appended after the last flush were lost" in text for text in words)
    assert not any("overwritten" in text for text in words)
    one, two = load(straight), load(killed)
    assert one.step == two.step >= 100
    assert to_bytes(one.agent.state_dict()) == to_bytes(two.agent.state_dict())


@pytest.mark.parametrize(("every", "rows"), [(30, 2 * 12), (10**12, 2 * 22)])
def test_files_have_room_for_what_can_come_between_two_checkpoints(
    tmp_path: Path, every: int, rows: int
) -> None:
    changes = {"replay.storage": "memmap", "checkpoint.every_steps": every, "total_steps": 60}
    run = run_training(config(**changes), tmp_path / "run", ["x"], quiet=True)
    layout = json.loads((run / "replay" / "replay.json").read_text())["layout"]
    assert layout["slots"] - layout["rows_per_worker"] == rows


def test_a_run_whose_replay_is_gone_is_left_as_it_is(tmp_path: Path) -> None:
    run = killed_run(tmp_path / "run", 40, **{"replay.storage": "memmap"})
    shutil.rmtree(run / "replay")
    words = r"replay\.json: expected the replay of a run, got no file: restore it"
    with pytest.raises(DatasetCorrupt, match=words) as caught:
        resume_training(run, ["x"], quiet=True)
    assert "\n" not in str(caught.value)
    assert not (run / "replay").exists()
    assert load(run).step >= 30


def test_evaluations_with_sampled_actions_leave_the_training_as_it_is() -> None:
    states = []
    for every in (0, 15):
        trained = TrainedWorldAgent(config(**{"eval.every_steps": every, "eval.actions": "sample"}))
        loop = trained.loop(trained.make_vector_env(3), None)
        loop.start()
        while loop.steps < loop.end:
            loop.iterate()
        states.append(loop.agent.state_dict())
    assert to_bytes(states[0]) == to_bytes(states[1])


def test_three_lines_load_an_agent_and_act(tmp_path: Path) -> None:
    run = run_training(config(), tmp_path / "run", ["x"], quiet=True)
    agent = statewise.load(run)
    env = agent.make_env()
    obs, _ = env.reset(seed=0)
    action, state = agent.predict(obs, None, np.ones(1, bool), deterministic=True)
    assert env.action_space.contains(int(action))
    assert state["stoch"].shape[0] == 1
    mean, std = evaluate_policy(agent, agent.wrap(agent.make_env()), n_eval_episodes=2, warn=False)
    assert np.isfinite([mean, std]).all()
    saved = agent.save(tmp_path / "saved")
    again, _ = statewise.load(saved).predict(obs, None, np.ones(1, bool), deterministic=True)
    assert again.shape == action.shape


def test_evaluations_on_the_way_play_the_task_that_eval_kwargs_names() -> None:
    changes = {"env.kwargs": {"delay": 6, "mode": "mixed"}, "eval.kwargs": {"mode": "fixed"}}
    trained = TrainedWorldAgent(config(**changes))
    env = trained.make_eval_env(2)
    obs, lengths = env.reset(0)[0], []
    assert not np.array_equal(obs["obs"][0], obs["obs"][1])  # each on a seed of its own
    for _ in range(24):
        lengths.append(env.step(np.zeros(2, int)).is_first.tolist())
    assert [t for t, both in enumerate(lengths) if any(both)] == [7, 15, 23]  # the delay is fixed
    assert env.num_envs == 2
    env.close()
    loop = training(**changes, **{"eval.every_steps": 30})
    seen: list[float] = []
    while loop.steps < 60:
        seen += [v for k, v in loop.iterate().items() if k == "eval/return_mean"]
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows.prefill": 500, "replay.capacity": 300}, r"windows\.prefill: expected at most"),
        ({"windows.context": 3}, r"windows\.num_contexts: expected at least 1 with a context"),
        (
            {"windows.context": 3, "windows.num_contexts": 2},
            r"agent\.behavior\.num_starts: would be ignored",
        ),
        ({"windows.length": 1}, r"windows\.length: expected at least 2"),
        ({"windows.train_ratio": 0.0}, r"windows\.train_ratio"),
        ({"replay.burn_in": 3}, r"burn_in"),
        (
            {"windows.prefill": 20, "windows.length": 12},
            r"windows\.prefill: expected windows\.leng",
        ),
        (
            {"replay.capacity": 40, "windows.prefill": 30, "windows.length": 5}
            | {"replay.replay_state": "burn_in", "replay.burn_in": 15},
            r"replay\.capacity: expected more than a window and its burn-in \(20\)",
        ),
        (
            {"windows.context": 12, "windows.num_contexts": 2}
            | {"agent.behavior.num_starts": 0, "agent.behavior.near_end": 0},
            r"windows\.prefill: expected windows\.context \(12\) rows of each of 3",
        ),
        ({"env.trial.episodes": 2}, r"env\.trial: expected none with a world model"),
        (
            {"agent.world.parallel.sequence.kind": "mamba", "windows.length": 6}
            | {"agent.world.parallel.sequence.s5": {}, "agent.behavior.features": "output"}
            | {"agent.behavior.hidden_norm": "none"},
            r"windows\.length: expected at least 16, since rollouts start at every 16th row",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_pictures_of_another_size_are_refused_in_one_line_that_names_the_setting() -> None:
    game = {"env.id": "statewise/Catch-v0", "env.kwargs": {"size": 48}}
    with pytest.raises(ConfigError, match=r"got 48 x 48: set env\.picture_size 64") as caught:
        TrainedWorldAgent(config(**game))
    assert "\n" not in str(caught.value)
    small = {"agent.world.encoder.depth": 1, "agent.world.decoder.depth": 1}
    trained = TrainedWorldAgent(config(**game, **small, **{"env.picture_size": 16}))
    assert trained.obs_space["obs"].shape == (16, 16, 3)
    wrapped = trained.wrap(trained.make_env().unwrapped)
    assert wrapped.observation_space == trained.obs_space


def test_files_need_a_run() -> None:
    with pytest.raises(ConfigError, match="expected memory without a run directory"):
        training(**{"replay.storage": "memmap"})


def test_imagination_may_start_after_windows_of_its_own() -> None:
    changes = {"windows.context": 3, "windows.num_contexts": 5, "agent.behavior.num_starts": 0}
    loop = training(**changes, **{"agent.behavior.near_end": 0, "replay.weights": "dfs"})
    while not loop.agent.updates_done:
        loop.iterate()
    batch, context = loop.sample()
    assert batch.step.reward.shape == (2, 6)
    assert context.step.reward.shape == (5, 3)
    state, is_terminal = loop.agent._ends_of(context)
    assert state["stoch"].shape[0] == len(is_terminal) == 5


class Episodes:
    """The seed of the episodes that a training with this agent would begin with."""

    def __init__(self, trained: TrainedWorldAgent):
        source = trained.make_vector_env(3)
        loop = trained.loop(source, None)
        seeds: list[int] = []
        loop.collector.start = seeds.append  # type: ignore[method-assign]
        loop.begin()
        source.close()
        (self.seed,) = seeds


def test_learn_goes_on_in_memory_with_other_episodes() -> None:
    trained = TrainedWorldAgent(replace(config(), total_steps=30))
    trained.learn(30)
    assert trained.agent.updates_done > 0
    first = trained.step
    before = Episodes(trained)
    trained.learn(30)
    assert trained.step >= first + 30
    assert before.seed != Episodes(trained).seed
    with pytest.raises(ConfigError, match="export: expected an agent"):
        trained.export("policy.pt2")
