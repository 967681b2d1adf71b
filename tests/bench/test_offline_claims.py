"""Claims about agents that learn from data: the file, its checks, metrics, table and summary."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statewise.bench.claim_checks import Check
from statewise.bench.claim_metrics import Measure, measurable
from statewise.bench.claim_table import OFFLINE_COLUMNS, table_text
from statewise.bench.claims import load_claim
from statewise.bench.offline_arm import acting_network, core_of, first_reaching, metrics_of
from statewise.bench.offline_claim_figure import draw_seeds
from statewise.bench.summary import document, summary_lines
from statewise.training import api
from statewise.training.config import OfflineTrainConfig
from statewise.training.schema import ConfigError
from tests.bench.offline_claims import loaded, plain_claim, write
from tests.training import offline_cases as cases

FROM_DATA = ("delayed_cue", "offline_mujoco", "offline_pendulum", "rtg_dial")


def target(asked: float | None, got: float, score: float | None = None) -> dict[str, Any]:
    return {"target": asked, "return_mean": got, "score": score}


def row(arm: str, seed: int, **values: Any) -> dict[str, Any]:
    """Return a row of the table with the values of a finished run."""
    numbers: dict[str, Any] = dict.fromkeys(OFFLINE_COLUMNS, 1.0)
    return numbers | {"arm": arm, "seed": seed, "preset": "p", "reached": seed} | values


# --- the file


def test_an_arm_reads_its_levels_in_order_from_the_folder_of_data_make(tmp_path: Path) -> None:
    value = plain_claim()
    value["data"] = {
        "mixture": {"make": "Pendulum-v1", "levels": ["random", "expert"]},
        "long": {"make": "delayed-cue", "length": 100},
        "same": {"make": "delayed-cue", "length": 30},
        "few": {"make": "delayed-cue", "episodes": 7},
        "dial": {"make": "rtg-dial"},
    }
    value["arms"][0] |= {"preset": "decision_s4/pendulum", "data": "mixture"}
    value["arms"][0]["overrides"] = {"eval.every_updates": 1}
    value["arms"] += [
        {"name": name, "preset": "dt/delayed_cue", "data": name} for name in ("long", "same", "few")
    ]
    claim = loaded(tmp_path, value)
    config = claim.arm("s4").config(7, Path("d"))
    assert isinstance(config, OfflineTrainConfig)
    assert config.data.paths == ("d/pendulum/random.hdf5", "d/pendulum/expert.hdf5")
    assert (config.seed, config.num_threads) == (7, 1)
    folders = {arm.name: arm.data.folder for arm in claim.arms if arm.data is not None}
    assert folders["long"] == "delayed-cue-100"
    assert folders["same"] == "delayed-cue"
    assert folders["few"].startswith("delayed-cue-")
    assert folders["few"] != "delayed-cue-7"  # as that would be the folder of a length
    lengths = {name: claim.arm(name).config(1).env.kwargs for name in ("long", "same")}
    assert lengths == {"long": {"length": 100}, "same": {}}


@pytest.mark.parametrize("name", FROM_DATA)
def test_claims_of_the_package_ask_for_returns_at_three_seeds(name: str) -> None:
    claim = load_claim(name)
    assert claim.kind == "policies"
    assert len(claim.seeds) >= 3
    assert 0 not in claim.seeds  # on which the presets were tuned
    for arm in claim.arms:
        config = arm.config(1)
        assert isinstance(config, OfflineTrainConfig)
        assert arm.data is not None
        assert config.env.id in ("", arm.data.env_id)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(data=[1]), "data: expected data sets by name, got [1]"),
        (lambda c: c["data"].update(x={}), "data.x: expected the field make, got none"),
        (lambda c: c["data"].update({"a/b": {}}), "data: expected letters, digits"),
        (lambda c: c["data"]["dial"].update(sed=1), "data.dial: expected only make, levels"),
        (lambda c: c["data"]["dial"].update(length=0), "data.dial.length: expected an integer"),
        (lambda c: c["data"]["dial"].update(steps=5), "data.dial: data make: expected no --steps"),
        (lambda c: c["data"]["dial"].update(levels=["best"]), "data.dial: data make: expected l"),
        (lambda c: c["data"].update(x={"make": "hoper"}), "data.x: data make: expected --steps"),
        (lambda c: c["data"].update(x={"make": "pendulum", "length": 3}), "expected no --length"),
        (
            lambda c: c["data"]["dial"].update(if_missing="wait"),
            "data.dial.if_missing: expected one",
        ),
        (lambda c: c["arms"][0].update(data="dail"), "arms.0.data: expected one of dial, got 'da"),
        (lambda c: c.pop("data"), "arms.0.data: expected one of (the file has no data), got"),
        (lambda c: c["arms"][1].pop("data"), "arms.1.data: expected the name of what bc/pend"),
        (
            lambda c: c["arms"][0].update(preset="ppo/cartpole", overrides={}),
            "arms.0.data: expected none, as ppo/cartpole learns in its environment, got 'dial'",
        ),
        (
            lambda c: c["arms"][1].update(overrides={}),
            "arms.1.data: expected data of Pendulum-v1, where bc/pendulum is evaluated, got 'st",
        ),
        (
            lambda c: c["arms"].append({"name": "x", "preset": "ppo/cartpole"}),
            "arms: expected arms of one kind, got agents that learn from data and agents that"
            " learn in their environment",
        ),
        (
            lambda c: c["arms"][0]["overrides"].update({"data.paths": ["x"]}),
            "arms.0.overrides: expected no data.paths, which the command sets",
        ),
        (lambda c: c["checks"][1].update(over="bc"), "checks.1.over: expected one of s4, got 'bc"),
        (lambda c: c["checks"][0].update(metric="mean"), "checks.0.metric: expected one of retur"),
        (
            lambda c: c["checks"][1].update(metric="spread"),
            "checks.1.metric: expected one of return, score, eval/return_mean, eval/score, which bc"
            " has, got 'spread'",
        ),
        (
            lambda c: c["arms"][0]["overrides"].update({"eval.targets": [4.0]}),
            "checks.2.metric: expected one of return, score, relative_error, eval/return_mean, ",
        ),
        (lambda c: c.update(reached="x"), "reached: expected a number, got 'x'"),
        (
            lambda c: c["arms"][1]["overrides"].update({"eval.every_updates": 0}),
            "arms.1: expected eval.every_updates above 0, as `reached` needs it, got 0",
        ),
    ],
)
def test_a_wrong_claim_is_one_line_that_names_the_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    value = plain_claim()
    change(value)
    with pytest.raises(ConfigError) as error:
        load_claim(write(tmp_path, value))
    assert str(error.value).startswith(f"{tmp_path / 'tiny.yaml'}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_agents_that_learn_in_their_environment_have_no_other_metric(tmp_path: Path) -> None:
    value = plain_claim()
    value["arms"] = [{"name": "s5", "preset": "ppo/cartpole"}]
    value["checks"] = [{"arm": "s5", "statistic": "min", "at_least": 0, "metric": "return"}]
    with pytest.raises(ConfigError, match=r"metric: expected one of score, rollout/ep_rew_mean"):
        loaded(tmp_path, value)
    value["checks"][0].pop("metric")
    with pytest.raises(ConfigError, match=r"reached: expected agents that learn from data"):
        loaded(tmp_path, value)
    value.pop("reached")
    assert loaded(tmp_path, value).arm("s5").data is None


def test_what_can_be_checked_depends_on_the_targets(tmp_path: Path) -> None:
    claim = loaded(tmp_path, plain_claim())
    config = claim.arm("s4").config(1)
    every = ("return", "score", "spread", "spearman", "relative_error")
    assert measurable(config).evaluated == every
    assert isinstance(config, OfflineTrainConfig)
    zero = replace(config, eval=replace(config.eval, targets=(3.0, 0.0)))  # type: ignore[call-arg]
    assert measurable(zero).evaluated == ("return", "score", "spread", "spearman")
    assert measurable(claim.arm("bc").config(1)).evaluated == ("return", "score")
    assert claim.measures() == (Measure("return"), Measure("spearman"))


# --- numbers


def test_metrics_compare_what_came_with_what_was_asked_for() -> None:
    asked = [target(-100, -120, 90.0), target(-200, -150, 60.0), target(-400, -400, 15.0)]
    assert metrics_of(asked) == {
        "return": -120,
        "score": 90.0,
        "spread": 75.0,
        "spearman": 1.0,
        "relative_error": pytest.approx((0.2 + 0.25 + 0) / 3),
    }
    swapped = [target(3, 1.0), target(2, 2.0), target(1, 3.0)]
    found = metrics_of(swapped)
    assert found["spearman"] == -1
    assert (found["score"], found["spread"]) == (None, None)
    alone = metrics_of([target(None, 4.0, 50.0)])
    assert alone == {"return": 4.0, "score": 50.0} | dict.fromkeys(
        ("spread", "spearman", "relative_error")
    )
    assert metrics_of([target(0, 4.0), target(1, 4.0)])["relative_error"] is None


def test_the_first_update_that_reaches_a_return_is_found() -> None:
    name = "eval/return_mean"
    rows = [{"step": 5}, {"step": 10, name: 0.4}, {"step": 20, name: 0.9}, {"step": 30, name: 0.9}]
    assert first_reaching(rows, 0.9) == 20
    assert first_reaching(rows, 0.91) is None
    assert first_reaching(rows, None) is None


def test_parameters_are_those_of_what_acts(tmp_path: Path) -> None:
    cases.register()
    data = cases.counter_data()
    for preset, settings in (("bc/pendulum", cases.BC), ("iql/pendulum", cases.BC)):
        trained = api.make(preset, data=data, **settings)
        width = trained.agent.code.width
        network = acting_network(trained.agent)
        layers = [p for p in network.parameters() if p.dim() == 2]
        assert [tuple(p.shape) for p in layers] == [(8, layers[0].shape[1]), (width, 8)]
    trained = api.make("dt/pendulum", data=data, **cases.DT)
    assert acting_network(trained.agent) is trained.agent.policy
    assert core_of(trained.config) == "attention"


ROWS = {("a", 1): {"score": 5.0, "spread": 2.0}, ("a", 2): {"score": 7.0, "spread": 1.0}} | {
    ("b", 1): {"score": 4.0, "spread": None},
    ("b", 2): {"score": 1.0, "spread": 1.0},
}


@pytest.mark.parametrize(
    ("check", "seeds", "line"),
    [
        (Check("a", "min", "at_least", 5), (1, 2), "PASS  a: min of 2 seeds 5.0000, claimed >= 5"),
        # Seed by seed 1 and 6: the difference of the means or of the minima would be another.
        (
            Check("a", "min", "at_least", 1.5, over="b"),
            (1, 2),
            "FAIL  a over b: min of 2 seeds 1.0000, claimed >= 1.5",
        ),
        (
            Check("a", "max", "below", 6.5, over="b"),
            (2, 1),
            "PASS  a over b: max of 2 seeds 6.0000, claimed < 6.5",
        ),
        (
            Check("a", "mean", "at_most", 2, Measure("spread")),
            (1, 2),
            "PASS  a, spread: mean of 2 seeds 1.5000, claimed <= 2",
        ),
        (
            Check("a", "min", "at_least", -9, over="b"),
            (1, 2, 3),
            "NOT RUN  a over b: 2 of 6 runs are missing",
        ),
        (
            Check("b", "min", "at_least", 0, Measure("spread")),
            (1, 2),
            "FAIL  b, spread: no spread: the data have no reference returns",
        ),
    ],
)
def test_a_check_is_judged_over_seeds_or_seed_by_seed(
    check: Check, seeds: tuple[int, ...], line: str
) -> None:
    assert check.judge(ROWS, seeds) == (line.startswith("PASS"), line)


# --- table, summary, figure


def test_the_table_has_a_line_per_run_and_says_which_were_not_made(tmp_path: Path) -> None:
    claim = loaded(tmp_path, plain_claim())
    rows = {("bc", 2): row("bc", 2, score=None, reached=None, spread=2.0)}
    rows[("s4", 1)] = row("s4", 1, score=3.0)
    text = table_text(claim, rows, (2, 1))
    assert text == table_text(claim, dict(reversed(rows.items())), (1, 2))
    lines = list(csv.DictReader(text.splitlines()))
    assert tuple(lines[0]) == OFFLINE_COLUMNS
    found = [(line["arm"], line["seed"], line["data"], line["score"]) for line in lines]
    assert found == [
        ("s4", "1", "dial", "3"),
        ("s4", "2", "dial", "not run"),
        ("bc", "1", "dial", "not run"),
        ("bc", "2", "dial", ""),
    ]
    assert (lines[1]["core"], lines[1]["task"]) == ("s4d", "statewise/RtgDial-v0")
    assert (lines[3]["reached"], lines[3]["spread"]) == ("", "2")
    plain = plain_claim()
    plain.pop("reached")
    assert "reached" not in table_text(loaded(tmp_path, plain), rows, (1,)).splitlines()[0]


def test_the_summary_has_means_with_their_interval_and_names_what_is_missing(
    tmp_path: Path,
) -> None:
    claim = loaded(tmp_path, plain_claim())
    got = {1: 10.0, 2: 20.0, 3: 30.0}
    rows = {
        ("s4", seed): row(
            "s4",
            seed,
            **{"return": value, "spearman": 0.5, "parameters": 81408, "ms_per_action": value / 10},
        )
        for seed, value in got.items()
    }
    head, _, s4, bc = summary_lines(claim, rows, (1, 2, 3))
    assert len({len(line) for line in (head, s4, bc)}) == 1
    cells = [cell.strip() for cell in s4.strip("|").split("|")]
    # t of 2 degrees of freedom is 4.303: 20 +- 4.303 * 10 / sqrt(3)
    assert cells[:5] == ["s4", "dial", "3 of 3", "20.00 [-4.841, 44.84]", "10.00..30.00"]
    assert cells[7:9] == ["1 2 3", "81,408"]
    assert cells[-1] == "2.000"
    assert [cell.strip() for cell in bc.strip("|").split("|")][2] == "not run"
    [*_, alone, _] = summary_lines(claim, {("s4", 1): rows["s4", 1]}, (1,))
    assert "| 10.00 " in alone
    assert "nan" not in alone
    page = document("own.yaml", claim, summary_lines(claim, rows, (1, 2, 3)), ["PASS  s4"])
    assert "`statewise reproduce own.yaml`" in page
    assert s4 in page
    assert "* PASS  s4" in page


def test_the_figure_is_drawn_with_and_without_runs_of_an_arm(tmp_path: Path) -> None:
    claim = loaded(tmp_path, plain_claim())
    rows = {("s4", seed): row("s4", seed, spearman=0.1 * seed) for seed in (1, 2)}
    draw_seeds(claim, rows, (1, 2), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
