"""Claims about world models: the file, numbers of the log, runs, tables and figures."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statewise.bench import arm, cli, resumable
from statewise.bench.arm import ClaimRun, find_row
from statewise.bench.claim_checks import Check
from statewise.bench.claim_metrics import OPEN_LOOP, Measure
from statewise.bench.claims import claim_names, load_claim
from statewise.training.config import S4WMRun, WorldTrainConfig, load_config, load_preset
from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError, read_json
from statewise.training.schema import ConfigError
from tests.bench.offline_claims import loaded, run_here, write
from tests.bench.world_claims import PARALLEL, RETURN, SIGN, claim_from_data, claim_of_agents

WORLDS = [name for name in claim_names() if name.startswith("delayed_offer")]
LOG = [
    {"step": 10, "wall_s": 60.0, "m/x": 0.5},
    {"step": 20, "wall_s": 90.0},
    {"step": 30, "wall_s": 120.0, "m/x": math.nan},
    {"step": 40, "wall_s": 150.0, "m/x": 0.9},
    {"step": 50, "wall_s": 180.0, "m/x": 0.7},
]


def words(place: Path, file: str, *more: str) -> list[str]:
    folders = {"out": "out", "run-root": "runs", "data-root": "sets"}
    own = [w for k, name in folders.items() for w in (f"--{k}", str(place / name))]
    return [file, "--workers", "1", *own, *more]


def table(place: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((place / "out/tiny.csv").read_text().splitlines()))


# --- numbers


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        (Measure("m/x"), 0.7),
        (Measure("m/x", last=2), 0.8),
        (Measure("m/x", last=4), None),
        (Measure("m/x", reaches=0.9), 40),
        (Measure("m/x", reaches=0.9, unit="minutes"), 2.5),
        (Measure("m/x", reaches=0.91), None),
        (Measure("m/y", reaches=0.0), None),
        (Measure("a.b"), 3.0),
        (Measure("a.c"), None),
        (Measure("a.b.c"), None),
    ],
)
def test_a_number_of_a_run_is_read_from_its_evaluation_or_its_log(
    measure: Measure, value: float | None
) -> None:
    assert measure.read({"a": {"b": 3, "c": None}}, LOG) == (
        None if value is None else pytest.approx(value)
    )


REACHED = Measure("m/x", reaches=0.9)
ROWS = {
    **{
        ("a", seed): {REACHED.column: 10.0 * seed, "steps": 100, "minutes": 2} for seed in (1, 2, 3)
    },
    **{("b", seed): {REACHED.column: None, "steps": 100, "minutes": 2} for seed in (1, 3)},
    ("b", 2): {REACHED.column: 45.0, "steps": 100, "minutes": 2},
}
SEEDS = (1, 2, 3)


@pytest.mark.parametrize(
    ("check", "line"),
    [
        (Check("a", "max", "at_most", 30, REACHED), "PASS  a, {}: max of 3 seeds 30.0000"),
        (Check("b", "min", "at_most", 45, REACHED), "PASS  b, {}: min of 3 seeds 45.0000"),
        (Check("b", "median", "at_most", 1e9, REACHED), "FAIL  b, {}: median of 3 seeds never"),
        # At least 100 / 20, as b needs more than its 100 steps in the median.
        (
            Check("b", "median", "at_least", 5, REACHED, ratio_to="a"),
            "PASS  b to a, {}: ratio of the median over 3 seeds 5.0000, claimed >= 5",
        ),
        # The other way it is not known how much more.
        (
            Check("b", "median", "at_most", 1e9, REACHED, ratio_to="a"),
            "FAIL  b to a, {}: ratio of the median over 3 seeds never",
        ),
        (
            Check("a", "median", "at_least", 0.01, REACHED, ratio_to="b"),
            "FAIL  a to b, {}: ratio of the median over 3 seeds 0.0000",
        ),
        (
            Check("a", "second_lowest", "at_least", 20, REACHED),
            "PASS  a, {}: second_lowest of 3 seeds 20.0000",
        ),
    ],
)
def test_what_is_never_reached_passes_no_upper_limit(check: Check, line: str) -> None:
    passed, said = check.judge(ROWS, SEEDS)
    assert said.startswith(line.format(REACHED.column)), said
    assert passed is line.startswith("PASS")


def test_a_number_that_was_not_logged_fails() -> None:
    check = Check("a", "min", "at_least", 0, Measure("m/y", last=3))
    assert check.judge({("a", 1): {"m/y, last 3": None}}, (1,)) == (
        False,
        "FAIL  a, m/y, last 3: no m/y, last 3: it was not logged often enough, or says nothing "
        "about these data",
    )
    assert Check("a", "second_lowest", "at_least", 1).verdict([1.0])[0]


@pytest.mark.parametrize(
    ("statistic", "value", "is_within"),
    [("interval_low", "-0.4841", False), ("interval_high", "4.4841", True)],
)
def test_an_end_of_the_interval_is_that_of_student(statistic, value, is_within) -> None:
    # mean 2, deviation 1, 4.3027 / sqrt(3) from three values
    passed, said = Check("a", statistic, "at_least", 0).verdict([1.0, 2.0, 3.0])
    assert passed is is_within
    assert f" {value}, claimed >= 0" in said


def test_one_seed_has_no_interval_and_fails() -> None:
    assert not Check("a", "interval_high", "at_least", -1e9).verdict([1.0])[0]


# --- the file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(actions="greedy"), "actions: expected none, as world models that"),
        (lambda c: c.update(reached=1), "reached: expected agents that learn from data, got 's4"),
        (lambda c: c["arms"][0].pop("data"), "arms.0.data: expected the name of what s4wm/delay"),
        (lambda c: c["arms"][0].update(held_out="x"), "arms.0.held_out: expected one of take, t"),
        (
            lambda c: c["data"]["take"].update(levels=["take", "random"]),
            "arms.0.held_out: expected a data set of one level, got take, random",
        ),
        (
            lambda c: c["arms"][1]["overrides"].update({"eval.data": "x"}),
            "arms.1.overrides: expected no eval.data, which the command sets",
        ),
        (
            lambda c: c["arms"][1]["overrides"].pop("agent.world.parallel"),
            "arms.1: override: agent.world.parallel: would be ignored with core 'rssm'",
        ),
        (lambda c: c["arms"][0].update(at=3), "arms.0: expected series and at, or none of them"),
        (
            lambda c: c["arms"][0].update(at=3, series="a"),
            "arms.1: expected series and at, as others have them, got none",
        ),
        (
            lambda c: [arm.update(at=3, series="a") for arm in c["arms"]],
            "the file: expected the field axis, which says what at counts, got none",
        ),
        (lambda c: c.update(axis="steps"), "axis: expected none, as no arm has series and at, got"),
        (lambda c: c["checks"][0].update(metric="score"), "checks.0.reaches: expected a metric of"),
        (lambda c: c["checks"][2].update(metric="score"), "checks.2.metric: expected one of recon"),
        (
            lambda c: c["checks"][2].update(metric="generation.entries.eye.mse"),
            "generation.entries.obs.mse, eval/reconstruction, eval/generation",
        ),
        (lambda c: c["checks"][0].update(metric=RETURN), "checks.0.metric: expected one of recons"),
        (lambda c: c["checks"][0].update(last=2), "checks.0: expected last or reaches, got both"),
        (lambda c: c["checks"][2].update(last=0), "checks.2.last: expected a metric of the log, "),
        (lambda c: c["checks"][2].update(unit="steps"), "checks.2.unit: expected reaches beside"),
        (lambda c: c["checks"][0].update(unit="hours"), "checks.0.unit: expected one of steps, mi"),
        (lambda c: c["checks"][1].update(over="s5"), "checks.1: expected over or ratio_to, got bo"),
        (
            lambda c: c["checks"][0].update(over="gru"),
            "checks.0.over: expected ratio_to, as a run may never get there, got 'gru'",
        ),
        (
            lambda c: c["arms"][1]["overrides"].update({"eval.every_updates": 0}),
            "checks.1.metric: expected at least 1 evaluations while it trains, which gru has",
        ),
    ],
)
def test_what_a_world_model_lacks_is_refused_in_one_line_before_anything_starts(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    value = json.loads(json.dumps(claim_from_data()))
    change(value)
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, value)
    assert str(error.value).startswith(f"{tmp_path / 'tiny.yaml'}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_agents_and_world_models_from_data_are_not_compared(tmp_path: Path) -> None:
    value = claim_of_agents()
    value["arms"] += [{"name": "x", "preset": "s4wm/delayed_offer", "data": "d"}]
    value["data"] = {"d": {"make": "delayed-offer"}}
    with pytest.raises(ConfigError, match=r"arms: expected arms of one kind, got agents that le"):
        loaded(tmp_path, value)
    value = claim_of_agents()
    value["checks"][0]["last"] = 4
    with pytest.raises(ConfigError, match=r"at least 4 evaluations while it trains, which r2i_2"):
        loaded(tmp_path, value)
    value.pop("actions")
    with pytest.raises(ConfigError, match=r"the file: expected the field actions, got none"):
        loaded(tmp_path, value | {"checks": value["checks"][2:]})


@pytest.mark.parametrize(
    ("make", "kwargs"),
    [("distracting-hallway", {"width": 7}), ("delayed-offer", {"delay": 7}),
     ("multi-doors-keys", {"length": 12})],
)  # fmt: skip
def test_an_environment_gets_the_length_of_its_data_by_its_own_name(
    tmp_path: Path, make: str, kwargs: dict[str, int]
) -> None:
    value = claim_from_data()
    value["data"] = {"d": {"make": make, "length": next(iter(kwargs.values()))}}
    value["arms"] = [
        {"name": "bc", "preset": "bc/pendulum", "data": "d", "overrides": {"env.id": ""}}
    ]
    value |= {"checks": [{"arm": "bc", "statistic": "min", "at_least": 0}], "actions": "greedy"}
    config = loaded(tmp_path, value).arm("bc").config(1)
    assert not isinstance(config, S4WMRun)
    assert config.env.kwargs == kwargs


AT_EQUAL_TIME = "delayed_offer_far"


@pytest.mark.parametrize("name", WORLDS)
def test_claims_of_the_package_give_all_arms_of_a_task_the_same(name: str) -> None:
    claim = load_claim(name)
    assert len(claim.seeds) >= 3
    assert 0 not in claim.seeds  # on which the presets were tuned
    tasks: dict[Any, list[Any]] = {}
    for one in claim.arms:
        config = one.config(1)
        if isinstance(config, WorldTrainConfig):
            key: Any = (config.env.kwargs["delay"], config.env.kwargs.get("mode"))
            task: Any = (config.env, config.total_steps, config.windows, config.replay, config.eval)
            own = config.agent.behavior
            task += (replace(own, features="output", hidden_norm="none"), config.agent.optimizer)
        else:
            assert isinstance(config, S4WMRun)
            updates = 0 if name == AT_EQUAL_TIME else config.total_updates
            key, task = one.data, (config.data, updates, config.eval)
            task += (replace(config.agent, world=type(config.agent.world)()),)
        world = config.agent.world
        task += (world.latents, world.encoder, world.decoder, world.heads, world.loss_scale)
        tasks.setdefault(key, []).append(task)
    for several in tasks.values():
        assert len(several) > 1
        assert all(task == several[0] for task in several)


def test_at_equal_time_the_slower_core_has_fewer_updates() -> None:
    """A loop over time takes the longer the more rows a line has, and the less the more lines."""
    claim, shares = load_claim(AT_EQUAL_TIME), {}
    for k, rows in ((100, 4096), (200, 4096), (400, 32768)):
        ours, theirs = (claim.arm(f"{core}_{k}").config(1) for core in ("s5", "gru"))
        assert isinstance(ours, S4WMRun)
        assert isinstance(theirs, S4WMRun)
        assert ours.agent.batch_size * ours.agent.length == rows
        shares[k] = theirs.total_updates / ours.total_updates
    assert 0.5 > shares[100] > shares[200] > 0.2
    assert shares[400] == 0.7


def test_the_word_for_nothing_puts_a_group_back_to_its_defaults() -> None:
    words = ["--agent.world.core", "rssm", "--agent.world.parallel", "{}"]
    config = load_preset("s4wm/delayed_offer", words)
    assert isinstance(config, S4WMRun)
    assert config.agent.world.core == "rssm"
    assert config.agent.world.latents.num == 4
    with pytest.raises(ConfigError, match=r"parallel: expected one of its fields, got the group"):
        load_preset("s4wm/delayed_offer", ["--agent.world.parallel", "none"])


# --- runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A claim from data that was reproduced: its folder, its file, and what was printed."""
    place = tmp_path_factory.mktemp("worlds")
    file = write(place, claim_from_data())
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch)
        patch.setattr("builtins.print", lambda *x, **_: printed.append(" ".join(map(str, x))))
        assert cli.reproduce(words(place, file)) == 1
    return place, file, "\n".join(printed)


def test_world_models_learn_from_one_set_and_are_judged_on_another(
    finished: tuple[Path, str, str],
) -> None:
    place, file, _ = finished
    claim = load_claim(file)
    train, take = claim.arms[0].sets
    for name in ("s5", "gru"):
        run = RunDirectory.open(place / f"runs/tiny/{name}-seed1")
        config = load_config(run.config_path)
        assert isinstance(config, S4WMRun)
        assert config.data.paths == train.files(place / "sets")
        assert (config.eval.data,) == take.files(place / "sets")
        assert config.agent.world.core == {"s5": "parallel", "gru": "rssm"}[name]
        assert read_json(run.eval_path)["episodes"] == 5
        command = read_json(run.manifest_path)["command"]
        assert command[command.index("--eval.data") + 1] == config.eval.data


def test_the_table_of_world_models_holds_what_they_say(finished: tuple[Path, str, str]) -> None:
    place, _, text = finished
    s5, gru = table(place)
    assert (s5["core"], gru["core"], s5["data"], s5["steps"]) == ("s5", "gru", "train", "4")
    evaluation = read_json(place / "runs/tiny/s5-seed1/eval.json")
    for name in OPEN_LOOP:
        group, kind = name.split(".")
        expected = evaluation[group][kind]
        assert s5[name] == ("" if expected is None else f"{expected:.6g}")
    assert s5[f"{SIGN} >= 0, steps"] == "1"
    assert s5[f"{SIGN} >= 1.5, steps"] == gru[f"{SIGN} >= 1.5, steps"] == "never"
    mse = evaluation["generation"]["entries"]["obs"]["mse"]
    assert float(s5["generation.entries.obs.mse"]) == pytest.approx(mse, rel=1e-5)
    assert f"PASS  s5, {SIGN} >= 0, steps: max of 1 seeds 1.0000, claimed <= 1" in text
    assert "FAIL  gru to s5" in text
    assert "FAIL  s5, generation.entries.obs.mse" in text
    page = (place / "out/tiny.md").read_text()
    assert "is first 0 or more." in page
    assert "| never " in page
    assert (place / "out/tiny.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_world_model_is_not_touched_and_another_count_is_evaluated_again(
    finished: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, file, _ = finished
    claim = load_claim(file)
    run = ClaimRun(claim, claim.arm("s5"), 1, place / "runs", place / "sets")
    assert find_row(run) is not None
    # More than the six that there are.
    assert find_row(replace(run, claim=replace(claim, episodes=9))) is None
    roots = {"root": str(place / "runs"), "data_root": str(place / "sets")}
    job = {"claim": file, "arm": "s5", "seed": 1, **roots}
    monkeypatch.setattr(resumable, "run_training", None)
    monkeypatch.setattr(resumable, "resume_training", None)
    with monkeypatch.context() as patch:
        patch.setattr(arm, "load_claim", lambda _: replace(claim, episodes=9))
        arm.run_job(job)
    assert read_json(run.path / "eval.json")["episodes"] == 6
    arm.run_job(job)
    assert read_json(run.path / "eval.json")["episodes"] == 5
    [held_out] = claim.arms[0].sets[1].files(place / "sets")
    content = Path(held_out).read_bytes()
    try:
        Path(held_out).write_bytes(content + b" ")
        with pytest.raises(RunError, match=r"was trained with another .*take-bright\.hdf5: put"):
            arm.run_job(job)
    finally:
        Path(held_out).write_bytes(content)


def test_agents_that_imagine_are_points_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, claim_of_agents())
    run_here(monkeypatch)
    assert cli.reproduce(words(tmp_path, file)) == 1
    text = capsys.readouterr().out
    log = read_metrics(RunDirectory.open(tmp_path / "runs/tiny/r2i_2-seed1"))
    evaluations = [row[RETURN] for row in log if RETURN in row]
    assert len(evaluations) == 3
    r2i, dreamer = table(tmp_path)
    assert float(r2i[f"{RETURN}, last 3"]) == pytest.approx(sum(evaluations) / 3)
    assert 0 <= float(r2i["score"]) <= 1  # the share of right decisions
    assert dreamer[f"{RETURN} >= 2, minutes"] == "never"
    assert f"PASS  r2i_2, {RETURN}, last 3: mean of 1 seeds" in text
    assert f"FAIL  dreamer_2, {RETURN} >= 2, minutes: min of 1 seeds never" in text
    assert "PASS  dreamer_2: max of 1 seeds" in text
    assert "| r2i_2 " in (tmp_path / "out/tiny.md").read_text()
    assert (tmp_path / "out/tiny.png").read_bytes().startswith(b"\x89PNG")


def test_arms_whose_data_are_not_there_are_named_and_not_run(
    finished: tuple[Path, str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, _, _ = finished
    value = claim_from_data()
    value["data"]["other"] = {"make": "delayed-offer", "length": 3, "if_missing": "skip"}
    other = {"name": "other", "preset": "s4wm/delayed_offer", "data": "other"}
    value["arms"].append(other | {"overrides": {"agent.world.parallel": PARALLEL}})
    file = write(tmp_path, value)
    begun = run_here(monkeypatch)
    folders = {"out": tmp_path, "run-root": place / "runs", "data-root": place / "sets"}
    own = [w for k, path in folders.items() for w in (f"--{k}", str(path))]
    assert cli.reproduce([file, "--workers", "1", *own]) == 1
    assert not begun  # the others are finished
    assert not (place / "sets/delayed-offer-3").exists()
    said = capsys.readouterr()
    assert "delayed-offer-3, which this claim does not make: not run: other" in said.err
    rows = list(csv.DictReader((tmp_path / "tiny.csv").read_text().splitlines()))
    assert [row["steps"] for row in rows] == ["4", "4", "not run: no data"]
    assert "| not run: no data" in said.out
