"""The tables of the suites, what a score is, and what runs say together."""

import csv
import importlib
import itertools
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from statewise.bench import bsuite_rules, suite_statistics
from statewise.bench.suite import Plan, Result, planned
from statewise.bench.suite_cli import _budget
from statewise.bench.suite_figure import draw_suite
from statewise.bench.suite_run import load_online, mean_of_run, plan_run
from statewise.bench.suite_statistics import complete_tasks, summarize
from statewise.bench.suite_table import COLUMNS, summary_text, table_text
from statewise.bench.suites import ATARI, SUITES
from statewise.training.schema import ConfigError

TASKS = ("popgym-RepeatPreviousEasy-v0", "popgym-CountRecallEasy-v0")
PPO = "ppo/repeat_previous_easy"


def runs_of(
    presets: tuple[str, ...] = (PPO,), tasks: tuple[str, ...] = TASKS, suite: str = "popgym"
) -> list[Any]:
    return [
        plan_run(SUITES[suite], Path("r"), (preset, load_online(preset, ())), (), task, seed)
        for preset, task, seed in itertools.product(presets, tasks, (1, 2))
    ]


# --- tables


def test_the_suites_have_the_tasks_that_are_published() -> None:
    assert [len(SUITES["popgym"].groups[name]) for name in ("easy", "medium", "hard")] == [14] * 3
    assert len(SUITES["popgym"].tasks) == 48
    assert len(ATARI) == len(SUITES["atari100k"].chosen(())) == 26
    assert len(SUITES["dmc"].chosen(())) == 18
    assert [len(group) for group in SUITES["bsuite"].groups.values()] == [23, 17, 20, 23, 23]
    assert "envpool:BallInCupCatch-v1" in SUITES["dmc"].groups["envpool"]
    assert "envpool:CartpoleSwingupSparse-v1" in SUITES["dmc"].groups["envpool"]


def test_the_ids_of_popgym_are_those_that_it_registers() -> None:
    popgym = pytest.importorskip("popgym")
    names = {f"popgym-{cls.__name__}-v0" for cls in popgym.envs.ALL}
    ours = {task.replace("Cartpole", "CartPole") for task in SUITES["popgym"].chosen(())}
    assert ours == {task.replace("Cartpole", "CartPole") for task in names if "Laby" not in task}


def test_words_stand_for_groups_and_ids() -> None:
    suite = SUITES["popgym"]
    assert suite.chosen(("hard", suite.groups["hard"][3])) == suite.groups["hard"]
    assert len(suite.chosen(())) == 42
    with pytest.raises(ConfigError, match="did you mean popgym-RepeatFirstEasy-v0"):
        suite.chosen(("popgym-RepeatFrstEasy-v0",))


def test_scores_are_zero_for_a_random_player_and_one_for_a_human() -> None:
    score = SUITES["atari100k"].score
    assert score("ALE/Pong-v5", {"return": -20.7}) == 0
    assert score("envpool:Pong-v5", {"return": 14.6}) == 1
    assert score("ALE/Freeway-v5", {"return": 14.8}) == pytest.approx(0.5)
    assert SUITES["popgym"].score(TASKS[0], {"return": -0.5}) == 0.25
    assert SUITES["dmc"].score("dm_control/walker-walk", {"return": 940.0}) == 0.94


def test_environments_are_made_as_suite_and_preset_say() -> None:
    [own, *_] = runs_of(("ppo/memory_chain",), ("popgym-CountRecallEasy-v0",))
    assert own.config.env.kwargs == {}  # the length of a memory chain means nothing here
    game = ("ALE/Pong-v5",)
    [run, *_] = runs_of((PPO,), game, "atari100k")
    assert run.config.env.kwargs["repeat_action_probability"] == 0.0
    assert run.config.env.id == "ALE/Pong-v5"
    assert (run.config.seed, run.config.num_threads) == (1, 1)
    base = load_online(PPO, ("--env.id", "ALE/Pong-v5", "--env.kwargs", "{frame_skip: 2}"))
    kept = plan_run(SUITES["atari100k"], Path(), (PPO, base), (), *game, 1).config.env.kwargs
    assert kept["frame_skip"] == 2
    assert kept["grayscale_obs"] is False


def planned_env(preset: str, task: str, suite: str, *words: str) -> tuple[Any, Any]:
    """Return env.kwargs and eval.kwargs of a planned run."""
    run = plan_run(SUITES[suite], Path(), (preset, load_online(preset, words)), words, task, 1)
    return run.config.env.kwargs, run.config.eval.kwargs


def test_what_the_command_says_of_environments_is_kept_in_every_family() -> None:
    game, words = "ALE/Pong-v5", ("--env.kwargs.frame_skip", "2", "--eval.kwargs.frame_skip", "4")
    for preset in (PPO, "dreamer/cartpole"):
        env, evaluation = planned_env(preset, game, "atari100k", *words)
        assert env["frame_skip"] == 2
        assert env["repeat_action_probability"] == 0.0
        assert evaluation == {"frame_skip": 4}
    pole = ("ppo/dmc_position", "dm_control/walker-walk", "dmc")
    assert planned_env(*pole)[0] == {"action_repeat": 4}
    assert planned_env(*pole, "--env.kwargs.action_repeat", "2")[0] == {"action_repeat": 2}


def test_evaluation_in_another_family_gets_nothing_of_the_preset(tmp_path: Path) -> None:
    text = (
        "system: ppo\nenv: {id: ALE/Pong-v5, kwargs: {terminal_on_life_loss: true}}\n"
        "rollout_steps: 8\ntotal_steps: 64\nagent: {}\n"
        "eval: {kwargs: {terminal_on_life_loss: false}}\n"
    )
    (tmp_path / "mine.yaml").write_text(text)
    mine = str(tmp_path / "mine.yaml")
    assert planned_env(mine, TASKS[0], "popgym") == ({}, {})
    assert planned_env(mine, "ALE/Breakout-v5", "atari100k")[1] == {"terminal_on_life_loss": False}


def test_both_ids_of_the_control_suite_are_one_family(tmp_path: Path) -> None:
    base = load_online("ppo/dmc_position", ("--env.id", "dmc:cartpole-balance"))
    pole = ("dm_control/cartpole-balance", 1)
    run = plan_run(SUITES["dmc"], Path(), ("ppo/dmc_position", base), (), *pole)
    assert run.config.env.kwargs == {"action_repeat": 4}


@pytest.mark.parametrize("words", [("--seed", "3"), ("--num_threads=2",), ("--env.id", "x")])
def test_settings_that_a_suite_makes_itself_are_refused(words: tuple[str, ...]) -> None:
    plan = Plan(presets=(PPO,), tasks=TASKS, seeds=(1,), overrides=words, root=Path(), out=Path())
    with pytest.raises(ConfigError, match=f"expected no {words[0].partition('=')[0]}, "):
        planned(SUITES["popgym"], plan)


def test_the_budget_counts_repeats_of_actions() -> None:
    def said(steps: int) -> list[str]:
        return _budget(SUITES["dmc"], Result([{"control_steps": steps}], [], [], []))

    assert said(500_000) == said(504_000) == []
    assert "have 125,000 steps, repeats of actions counted; published" in said(125_000)[0]
    assert "have 2,000,000 steps" in said(2_000_000)[0]


def test_a_preset_that_learns_from_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="got bc/pendulum, which learns from data"):
        load_online("bc/pendulum", ())


# --- bsuite


def test_rules_of_bsuite_by_hand() -> None:
    # errors in 37 %, 38 % and none of the episodes
    assert bsuite_rules.memory_score([0.26, 0.24, 1.0]) == pytest.approx(2 / 3)
    assert bsuite_rules.umbrella_score([0.49, 0.51]) == 0.5
    assert bsuite_rules.discounting_score([1.1, 1.0]) == pytest.approx(0.5)
    assert bsuite_rules.discounting_score([0.9]) == 0
    assert bsuite_rules.discounting_score([1.2]) == 1


def test_rules_of_bsuite_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bsuite")
    pandas = pytest.importorskip("pandas")
    # What the rules are defined beside of; it takes seconds to import, and draws nothing here.
    monkeypatch.setitem(sys.modules, "plotnine", MagicMock())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = ("discounting_chain", "memory_len", "umbrella_length")
        discounting, memory, umbrella = (
            importlib.import_module(f"bsuite.experiments.{name}.analysis") for name in names
        )
    errors = np.array([0, 2000, 3740, 3760, 5000])
    frame = {"episode": 10_000, "memory_length": range(5), "total_perfect": 10_000 - errors}
    returns = (1 - 2 * errors / 10_000).tolist()
    assert memory.score(pandas.DataFrame(frame)) == bsuite_rules.memory_score(returns) == 0.6
    regrets = np.array([1000, 4990, 5010])
    frame = {"episode": 10_000, "chain_length": range(3), "total_regret": regrets}
    returns = (1 - regrets / 10_000).tolist()
    expected = umbrella.score(pandas.DataFrame(frame))
    assert expected == bsuite_rules.umbrella_score(returns) == pytest.approx(2 / 3)
    totals = np.array([1100.0, 1010.0, 1030.0])
    frame = {"episode": 1000, "total_return": totals}
    expected = discounting.score(pandas.DataFrame(frame))
    assert bsuite_rules.discounting_score((totals / 1000).tolist()) == pytest.approx(expected)
    assert bsuite_rules.EXPERIMENTS["umbrella_length"].settings == len(umbrella.sweep.SETTINGS)


def test_bsuite_scores_an_experiment_from_the_means_of_its_settings(tmp_path: Path) -> None:
    tasks = ("bsuite:memory_len/0", "bsuite:memory_len/1", "bsuite:discounting_chain/4")
    runs = runs_of(tasks=tasks, suite="bsuite")
    assert [run.episodes for run in runs] == [10_000] * 4 + [1_000] * 2
    # The first setting passes on average only, the second never; discounting is worth 0.5.
    returns = [0.1, 0.6, 0.2, 0.2, 1.1, 1.0]
    rows = {
        run.key: {"task": run.task, "run_return": value, "score": 1.0}
        for run, value in zip(runs, returns, strict=True)
    }
    found = summarize(SUITES["bsuite"], runs, rows)
    assert [(line.statistic, line.tasks, line.runs) for line in found] == [
        ("memory_len", 2, 4),
        ("discounting_chain", 1, 2),
    ]
    assert [line.value for line in found] == pytest.approx([0.5, 0.5])
    assert SUITES["bsuite"].score(tasks[0], {"run_return": None}) is None
    [_, bars] = draw_suite(SUITES["bsuite"], [], {}, found, tmp_path)
    assert bars.read_bytes().startswith(b"\x89PNG")


def test_the_mean_of_a_run_counts_every_episode_of_its_log() -> None:
    name, ended = "rollout/ep_rew_mean", "rollout/episodes"
    log = [
        {"step": 10.0, ended: 0.0},
        {"step": 20.0, ended: 3.0, name: 1.0},
        {"step": 30.0, ended: 1.0, name: -1.0},
    ]
    assert mean_of_run(log) == (0.5, 4)
    assert mean_of_run(log, at_most=3) == (1.0, 3)
    assert mean_of_run(log[:1]) == (None, 0)
    # Without the number of episodes: 20 steps of episodes of 10, then 10 of episodes of 5.
    length = "rollout/ep_len_mean"
    log = [{"step": 20.0, name: 1.0, length: 10.0}, {"step": 30.0, name: 0.0, length: 5.0}]
    assert mean_of_run(log) == (0.5, 4)


# --- what runs say together


def rows_of(runs: list[Any], scores: dict[tuple[str, str, int], float]) -> dict[Any, Any]:
    return {
        run.key: {
            "preset": run.name,
            "task": run.task,
            "seed": run.seed,
            "score": scores[run.key],
            "best_return": 2 * scores[run.key],
        }
        for run in runs
        if run.key in scores
    }


def test_a_task_that_lacks_a_run_enters_no_statistic_of_any_preset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite_statistics, "REPETITIONS", 50)
    runs = runs_of((PPO, "ppo/cartpole"))
    scores = {run.key: 0.5 if run.name == PPO else 0.25 for run in runs}
    scores[PPO, TASKS[0], 2] = 0.7
    scores[PPO, TASKS[1], 1] = 100.0
    scores.pop(("ppo/cartpole", TASKS[1], 2))
    rows = rows_of(runs, scores)
    assert complete_tasks(runs, rows) == [TASKS[0]]
    found = {line[:2]: line for line in summarize(SUITES["popgym"], runs, rows)}
    mean = found[PPO, "mean"]
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.6, 0.5, 0.7))
    assert (mean.tasks, mean.runs) == (1, 2)
    assert found["ppo/cartpole", "MMER"].value == 0.5
    better = found[f"{PPO} over ppo/cartpole", "probability of improvement"]
    assert (better.value, better.low, better.runs) == (1, 1, 4)

    table = list(csv.DictReader(table_text(runs, rows).splitlines()))
    assert tuple(table[0]) == COLUMNS
    missing = [row for row in table if row["score"] == "not run"]
    assert [(row["preset"], row["task"], row["seed"]) for row in missing] == [
        ("ppo/cartpole", TASKS[1], "2")
    ]
    assert missing[0]["return"] == missing[0]["steps"] == ""
    assert summary_text([mean]).splitlines()[1].startswith(f"{PPO},mean,0.6,0.5,0.7,1,2")


def test_one_seed_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_statistics, "REPETITIONS", 5)
    runs = [run for run in runs_of() if run.seed == 1]
    lines = summarize(SUITES["popgym"], runs, rows_of(runs, {run.key: 0.5 for run in runs}))
    assert {(line.low, line.high) for line in lines} == {(None, None)}
    assert summarize(SUITES["popgym"], runs, {}) == []
