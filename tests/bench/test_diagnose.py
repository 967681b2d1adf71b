import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from statewise import __main__ as program
from statewise.bench import diagnose, diagnose_train, worker
from statewise.bench.diagnose import DiagnoseOptions, run_diagnose
from statewise.bench.diagnose_runs import COLUMNS, Run, read_runs, write_runs
from statewise.bench.diagnose_table import (
    EXPECTED,
    Cell,
    build_table,
    cell_text,
    summarize,
    verdicts,
)
from statewise.bench.diagnose_tasks import TASKS
from statewise.bench.diagnose_train import Tagger, accuracy, cores
from statewise.ssm.build import SEQUENCES
from statewise.training.run import RunError
from statewise.training.schema import ConfigError

CORES = ["mamba, signed", "gru"]
WORDS = ["bench", "diagnose", "--quick", "--core", *CORES, "--task", "copy"]


class Here:
    """Stands for a process of its own, which would take seconds to start."""

    def __init__(self, job: dict[str, Any]):
        self.job = json.loads(json.dumps(job))
        self.killed = False

    def poll(self) -> int:
        return 0

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> None:
        assert self.killed


@pytest.fixture(autouse=True)
def _few_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose_train, "TEST_ROWS", 8)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run jobs in this process; the list of those that were started."""
    jobs: list[dict[str, Any]] = []

    def start(job: dict[str, Any]) -> Here:
        jobs.append(job)
        return Here(job)

    monkeypatch.setattr(diagnose, "start", start)
    monkeypatch.setattr(diagnose, "finish", lambda process, name: worker.run_job(process.job))
    return jobs


def run(core: str = "gru", task: str = "parity", seed: int = 1, **values: Any) -> Run:
    budget = values.pop("budget", TASKS[task].updates)
    settings = values.pop("settings", DiagnoseOptions().settings(core) if core in cores() else "")
    made = {"updates": 7, "reached": None, "accuracy": 1.0, "accuracy_long": 1.0}
    made |= {"parameters": 10, "minutes": 0.5}
    return Run(core=core, task=task, seed=seed, budget=budget, settings=settings, **made | values)


def three(core: str, task: str, short: tuple[float, ...], long: tuple[float, ...]) -> list[Run]:
    return [
        run(core, task, seed, accuracy=a, accuracy_long=b)
        for seed, (a, b) in enumerate(zip(short, long, strict=True), 1)
    ]


# --- the command


def test_cores_are_trained_kept_tabulated_and_drawn(
    tmp_path: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.json"
    assert program.main([*WORDS, "--out", str(out), "--json", str(rows)]) == 0
    text, progress = capsys.readouterr()
    assert [line.split(" 0.")[0].strip() for line in text.splitlines()[5:7]] == CORES
    assert "2 of 2: gru, copy, seed 1: accuracy 0." in progress
    kept = list(csv.DictReader((out / "diagnose.csv").read_text().splitlines()))
    assert tuple(kept[0]) == COLUMNS
    assert [(row["core"], row["task"], row["seed"]) for row in kept] == [
        ("mamba, signed", "copy", "1"),
        ("gru", "copy", "1"),
    ]
    assert kept[0]["settings"].endswith("eigenvalues=signed")
    assert all(float(row["minutes"]) > 0 and int(row["updates"]) == 2 for row in kept)
    assert (out / "diagnose.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads(rows.read_text())
    assert [(row["case"], row["system"], row["metric"]) for row in written[:2]] == [
        ("copy", "mamba, signed", "accuracy"),
        ("copy", "mamba, signed", "accuracy_long"),
    ]
    assert written[0]["value"] == pytest.approx(float(kept[0]["accuracy"]), rel=1e-5)
    assert all(row["bench"] == "diagnose" and row["speedup"] is None for row in written)

    # A second call trains nothing; one more seed trains that seed alone.
    started.clear()
    assert program.main([*WORDS, "--out", str(out)]) == 0
    assert not started
    assert "2 of 2 runs are in" in capsys.readouterr().err
    assert program.main([*WORDS, "--out", str(out), "--seeds", "1", "2"]) == 0
    assert [(job["core"], job["seed"]) for job in started] == [(core, 2) for core in CORES]


def test_a_quick_run_without_a_folder_leaves_nothing(
    tmp_path: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert program.main(WORDS) == 0
    assert len(started) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--core", "mamba", "gur"], "error: --core: expected one of 's5', .*, got 'gur': did you"),
        (["--task", "partiy"], "error: --task: expected one of .*: did you mean parity"),
        (["--updates", "0"], "expected an integer of at least 1"),
        (["--seeds", "-1"], "--seeds"),
    ],
)
def test_wrong_words_end_with_2_and_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    started: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert program.main(["bench", "diagnose", "--out", str(tmp_path), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not started


# --- what is kept


def test_rows_of_other_settings_are_neither_lost_nor_mixed(
    tmp_path: Path, started: list[dict[str, Any]]
) -> None:
    options = DiagnoseOptions(cores=("gru",), tasks=("copy",), seeds=(1,), updates=1, width=8)
    others = [
        run("gru", "copy", 1, budget=1, settings=options.settings("gru") + " more"),
        run("gru", "copy", 1, budget=2, settings=options.settings("gru")),
        run("gru", "copy", 9, budget=1, settings=options.settings("gru")),
        run("an older core", "copy", 1, budget=1),
    ]
    path = tmp_path / diagnose.FILE
    write_runs(path, others)
    found = run_diagnose(options, tmp_path, lambda line: None)
    assert [(r.seed, r.budget, r.settings) for r in found] == [(1, 1, options.settings("gru"))]
    assert len(started) == 1
    kept = read_runs(path)
    assert len(kept) == len(others) + 1
    assert all(r in kept for r in [*others, *found])


def test_what_other_commands_have_trained_is_shown_too(
    tmp_path: Path, started: list[dict[str, Any]]
) -> None:
    options = DiagnoseOptions(cores=("gru",), tasks=("copy",), seeds=(1,), updates=1, width=8)
    before = run("mamba2", "echo", 1, budget=1, settings=options.settings("mamba2"))
    write_runs(tmp_path / diagnose.FILE, [before])
    found = run_diagnose(options, tmp_path, lambda line: None)
    assert [r.core for r in found] == ["mamba2", "gru"]
    assert [job["core"] for job in started] == ["gru"]


def test_a_failed_run_loses_none_that_has_ended(
    tmp_path: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(process: Here, name: str) -> dict[str, Any]:
        if process.job["core"] == "lstm":
            raise RunError(f"{name}: killed")
        return worker.run_job(process.job)

    monkeypatch.setattr(diagnose, "finish", finish)
    options = DiagnoseOptions(
        cores=("gru", "lstm", "mamba"), tasks=("copy",), seeds=(1,), updates=1, width=8
    )
    with pytest.raises(RunError, match="lstm, copy, seed 1: killed"):
        run_diagnose(options, tmp_path, lambda line: None)
    assert [r.core for r in read_runs(tmp_path / diagnose.FILE)] == ["gru"]


def test_what_still_runs_when_a_run_fails_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[Here] = []

    def start(job: dict[str, Any]) -> Here:
        processes.append(Here(job))
        if job["core"] == "mamba":
            monkeypatch.setattr(processes[-1], "poll", lambda: None)
        return processes[-1]

    def finish(process: Here, name: str) -> dict[str, Any]:
        raise RunError(name)

    monkeypatch.setattr(diagnose, "start", start)
    monkeypatch.setattr(diagnose, "finish", finish)
    options = DiagnoseOptions(
        cores=("mamba", "gru", "lstm"), tasks=("copy",), seeds=(1,), workers=2
    )
    with pytest.raises(RunError, match="gru"):
        run_diagnose(options, tmp_path, lambda line: None)
    assert [(process.job["core"], process.killed) for process in processes] == [
        ("mamba", True),
        ("gru", False),
    ]


def test_runs_survive_the_file(tmp_path: Path) -> None:
    runs = [run(reached=None), run("mamba, signed", reached=12, accuracy=0.123456)]
    write_runs(tmp_path / "f.csv", runs)
    assert read_runs(tmp_path / "f.csv") == runs
    assert read_runs(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset,score\nx,1\n", "expected the columns core, .*got preset, score: move"),
        ("", "got none: move the file away"),
        (",".join(COLUMNS) + "\ngru,parity,1\n", "line 2: expected a run"),
        (",".join(COLUMNS) + "\ngru,parity,1,2,s,x,,1,1,1,1\n", "line 2: .*x.*: remove the line"),
    ],
)
def test_a_file_of_something_else_is_named_and_left_alone(
    text: str, message: str, tmp_path: Path, started: list[dict[str, Any]]
) -> None:
    path = tmp_path / diagnose.FILE
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        run_diagnose(DiagnoseOptions(), tmp_path, lambda line: None)
    assert path.read_text() == text
    assert not started


# --- what the runs say


def test_expectations_name_cores_and_tasks_that_exist() -> None:
    assert {core for core, _ in EXPECTED} <= set(cores())
    assert {task for _, task in EXPECTED} <= set(TASKS)


@pytest.mark.parametrize(
    ("core", "short", "long", "passed"),
    [
        ("gru", (1.0, 0.95, 0.99), (0.2, 0.2, 0.2), True),
        ("gru", (1.0, 0.94, 0.99), (1.0, 1.0, 1.0), False),
        ("mamba", (1.0, 1.0, 1.0), (0.6, 0.94, 0.6), True),
        ("mamba", (0.6, 0.6, 0.6), (0.6, 0.95, 0.6), False),
    ],
)
def test_solving_is_judged_at_the_length_of_training_and_failing_at_twice_that(
    core: str, short: tuple[float, ...], long: tuple[float, ...], passed: bool
) -> None:
    ok, (line,) = verdicts(summarize(three(core, "parity", short, long), (1, 2, 3)))
    assert ok is passed
    assert line.startswith("PASS" if passed else "FAIL")
    assert core in line
    assert "of 3 seeds" in line


def test_nothing_is_said_from_fewer_than_three_seeds_or_where_nothing_is_expected() -> None:
    runs = [
        *three("mamba", "parity", (1.0, 1.0), (1.0, 1.0)),
        *three("s5", "parity", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ]
    assert verdicts(summarize(runs, (1, 2, 3))) == (True, [])


def test_a_failed_expectation_ends_the_command_with_1(
    tmp_path: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "diagnose", "--core", "mamba", "--task", "parity", "--out", str(tmp_path)]
    write_runs(tmp_path / diagnose.FILE, three("mamba", "parity", (1.0, 1.0, 1.0), (1, 1, 1)))
    assert program.main(words) == 1
    assert "FAIL  mamba fails parity: best of 3 seeds 1.000" in capsys.readouterr().out
    write_runs(tmp_path / diagnose.FILE, three("mamba", "parity", (0.9, 0.8, 1.0), (0.5, 0.6, 0.5)))
    assert program.main(words) == 0
    assert "PASS  mamba fails parity: best of 3 seeds 0.600" in capsys.readouterr().out
    assert not started


def test_a_cell_is_solved_when_every_seed_that_was_asked_for_solved_it() -> None:
    runs = three("gru", "copy", (1.0, 0.95), (0.5, 0.75))
    cell = summarize(runs, (1, 2))["gru", "copy"]
    assert cell == Cell(0.975, 0.625, 0.95, 0.75, 2, True)
    assert cell_text(cell) == "0.97* 0.62"
    assert not summarize(runs, (1, 2, 3))["gru", "copy"].solved
    assert not summarize(three("gru", "copy", (1.0, 0.949), (1, 1)), (1, 2))["gru", "copy"].solved
    assert summarize(runs, (1,))["gru", "copy"].accuracy == 1.0


def test_the_table_has_a_dash_for_what_was_not_run() -> None:
    cells = summarize([run("mamba", "echo"), run("gru", "parity")], (1,))
    table = build_table(cells)
    assert [[str(text) for text in column.cells] for column in table.columns] == [
        ["mamba", "gru"],
        ["-", "1.00* 1.00"],
        ["1.00* 1.00", "-"],
    ]


# --- what is trained


def test_every_layer_is_a_core_and_every_core_tags_every_step() -> None:
    assert set(SEQUENCES) <= set(cores())
    task = TASKS["recall"]
    batch = task.make(torch.Generator().manual_seed(11), 2, 1)
    for name, core in cores().items():
        model = Tagger(core, task, 16, 1)
        assert model(batch.x, batch.reset).shape == (*batch.target.shape, task.classes), name
        layer = model.sequence.get_submodule("blocks.0.layer")
        for option, value in core.options.items():
            assert getattr(layer.config, option) == value, name


def test_what_came_before_a_reset_does_not_reach_the_answers() -> None:
    task = TASKS["copy"]
    batch = task.make(torch.Generator().manual_seed(11), 2, 1)
    model = Tagger(cores()["mamba, signed"], task, 16, 2)
    second = batch.x.shape[1] // 2
    other = batch.x.clone()
    other[:, :second] = other[:, :second].flip(0)
    first, again = model(batch.x, batch.reset), model(other, batch.reset)
    assert not torch.equal(first[:, :second], again[:, :second])
    assert torch.equal(first[:, second:], again[:, second:])


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    options = DiagnoseOptions(updates=3, width=8, batch=4)

    def answer(seed: int) -> dict[str, Any]:
        made = worker.run_job(diagnose._job(options, "gru", "parity", seed))
        del made["minutes"]
        return made

    assert answer(11) == answer(11)
    assert answer(11) != answer(12)


def test_training_stops_when_nothing_is_left_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose_train, "DONE", 0.2)
    monkeypatch.setattr(diagnose_train, "REACHED", 0.1)
    options = DiagnoseOptions(updates=50, width=8, batch=4)
    made = worker.run_job(diagnose._job(options, "gru", "parity", 11))
    assert made["updates"] == made["reached"] == diagnose_train.WINDOW


def test_accuracy_counts_what_is_asked_alone() -> None:
    batch = TASKS["copy"].make(torch.Generator().manual_seed(11), 3, 1)
    right = torch.nn.functional.one_hot(batch.target, 8).float()
    assert accuracy(right, batch) == 1.0
    assert accuracy(torch.where(batch.asked[..., None], right, -right), batch) == 1.0
    wrong = right.clone()
    wrong[0] = -wrong[0]
    assert accuracy(wrong, batch) == pytest.approx(2 / 3)
