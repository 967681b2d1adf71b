import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statewise.bench import cli, process, scan, scan_systems, worker
from statewise.bench.scan import ScanOptions, run_scan
from statewise.bench.scan_systems import SYSTEMS, Inputs, Prepared, make_inputs, refusal

SHAPE = (2, 32, 16)
QUICK = ScanOptions(shapes=(SHAPE,), backends=("torch",), rounds=2, reps=2, seconds=0.01)
NATIVE = ("torch.addcmul(out=)", "torch.nn.GRU", "torch.nn.LSTM")


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jax: its thread pool and this one's are not to meet."""
    monkeypatch.setattr(scan, "launch", lambda job, **env: worker.run_job(job))
    monkeypatch.setattr(scan, "PEERS", NATIVE)


def wrong(name: str) -> Prepared:
    """Return our scan with one of its results off by a little, or NaN."""
    right = SYSTEMS["statewise torch"](make_inputs(SHAPE))
    assert right.arrays is not None
    arrays = dict(zip(("h", "da", "db"), right.arrays(), strict=True))
    arrays[name] = arrays[name].copy()
    arrays[name][1, 20, 3] += np.nan if name == "h" else 1e-3 * np.abs(arrays[name]).max()
    return dataclasses.replace(right, arrays=lambda: (arrays["h"], arrays["da"], arrays["db"]))


@pytest.mark.parametrize("system", ["statewise torch", "statewise reference"])
def test_a_right_scan_is_not_refused(system: str) -> None:
    inputs = make_inputs(SHAPE)
    assert inputs.reset.any()
    assert refusal(SYSTEMS[system](inputs), inputs) == ""


@pytest.mark.parametrize("name", ["h", "da", "db"])
def test_a_wrong_result_or_gradient_is_refused(name: str) -> None:
    assert refusal(wrong(name), make_inputs(SHAPE)).startswith(f"{name} is off by")


def test_a_scan_that_ignores_resets_is_refused() -> None:
    inputs = make_inputs(SHAPE)
    blind = Inputs(inputs.a, inputs.b, torch.zeros_like(inputs.reset), inputs.grad)
    assert refusal(SYSTEMS["statewise torch"](blind), inputs)


@pytest.mark.usefixtures("_in_this_process")
def test_every_system_has_its_rows_ours_first() -> None:
    outcome = run_scan(QUICK, lambda line: None)
    names = [f.system for f in outcome.figures if f.metric == "forward+backward median"]
    assert names == ["statewise torch", "torch.nn.GRU", "torch.nn.LSTM"]  # addcmul has none
    names = [f.system for f in outcome.figures if f.metric == "forward best"]
    assert names == ["statewise torch", *NATIVE]
    assert all(f.value > 0 and f.case == "2,32,16 threads 1" for f in outcome.figures)
    assert not outcome.refused


@pytest.mark.usefixtures("_in_this_process")
def test_a_refused_row_is_reported_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SYSTEMS, "torch.nn.GRU", lambda inputs: wrong("da"))
    out = tmp_path / "rows.json"
    words = ["scan", "--quick", "--backend", "torch", "--json", str(out)]
    assert cli.bench(words) == 1
    assert "refused, the result is wrong: torch.nn.GRU at 2,32,16: da" in capsys.readouterr().err
    systems = {row["system"] for row in json.loads(out.read_text())}
    assert systems == {"statewise torch", "torch.addcmul(out=)", "torch.nn.LSTM"}


def test_a_peer_that_is_not_installed_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    job: dict[str, Any] = {"kind": "scan", "system": "jax.lax.scan", "check": True}
    job |= {"cases": [[SHAPE, ["forward"]]], "reps": 1, "seconds": 0.01}
    assert "pip install 'statewise[bench]'" in worker.run_job(job)["missing"]


def test_a_missing_peer_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scan, "launch", lambda job, **env: worker.run_job(job))
    monkeypatch.setattr(scan, "PEERS", ("jax.lax.scan",))
    monkeypatch.setitem(sys.modules, "jax", None)
    assert cli.bench(["scan", "--quick", "--backend", "torch"]) == 0
    assert "not measured: jax.lax.scan: " in capsys.readouterr().err


def jax_job(system: str, **more: Any) -> process.Job:
    pytest.importorskip("jax")
    job = {"kind": "scan", "system": system, "check": True, "threads": 1}
    return job | more | {"cases": [[SHAPE, list(scan.MODES)]], "reps": 2, "seconds": 0.01}


def test_a_jax_scan_is_right_and_timed_in_a_process_of_its_own() -> None:
    job = jax_job("jax.lax.associative_scan", pin=True)
    (case,) = process.launch(job, JAX_PLATFORMS="cpu")["cases"]
    assert case["refused"] == ""
    assert set(case["timings"]) == set(scan.MODES)


def test_the_other_jax_scan_is_right() -> None:
    (case,) = worker.run_job(jax_job("jax.lax.scan"))["cases"]
    assert case["refused"] == ""


def test_a_very_slow_case_gets_no_second_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def launch(job: process.Job, **env: str) -> process.Answer:
        asked.append((job["system"], job["cases"]))
        timings = {"forward": [[0.5], [0.5]], "forward+backward": [[9.0], [9.0]]}
        return {"cases": [{"shape": SHAPE, "refused": "", "timings": timings}]}

    monkeypatch.setattr(scan, "launch", launch)
    monkeypatch.setattr(scan, "PEERS", ())
    run_scan(QUICK, lambda line: None)
    both = [(SHAPE, ["forward", "forward+backward"])]
    assert asked == [("statewise torch", both), ("statewise torch", [(SHAPE, ["forward"])])]


def test_every_peer_has_a_system() -> None:
    assert {*scan.PEERS, *(f"statewise {b}" for b in scan.BACKENDS)} <= set(scan_systems.SYSTEMS)
