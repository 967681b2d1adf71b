"""What the GPU check computes on any machine: workloads, bytes, rows; and what it says without one.

The device is the CPU and the timer is made of fixed seconds; the GPU's own is in `tests/gpu`.
"""

import csv
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from statewise.bench import gpu
from statewise.bench.gpu_cases import (
    OPS,
    SHAPES,
    Workload,
    differentiable,
    run,
    workloads,
)
from tests.gpu.gpu_only import marks

CPU = torch.device("cpu")
SMALL = (2, 5, 64)
ROOT = Path(__file__).resolve().parent.parent


def _small(op: str, dtype: torch.dtype = torch.float32) -> Workload:
    return Workload(op=op, shape=SMALL, dtype=dtype)


def _script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_op_with_triton_kernels_is_measured():
    ops = {path.parent.name for path in (ROOT / "kernels").glob("*/triton.py")}
    assert ops == {name.split()[0] for name in OPS}


def test_every_op_meets_every_shape_in_every_dtype_it_takes():
    cases = workloads()
    assert len(set(cases)) == len(cases) == len(SHAPES) * sum(len(op.dtypes) for op in OPS.values())
    assert {case.shape for case in cases if case.op == "ssd_scan"} == set(SHAPES)
    assert {case.op for case in workloads(("ssd_scan",))} == {"ssd_scan"}


@pytest.mark.parametrize(
    ("op", "dtype", "forward", "backward"),
    [
        ("linear_scan", torch.float32, 12, 20),
        ("linear_scan", torch.bfloat16, 8, 14),  # the decay stays float32
        ("linear_scan complex constant", torch.float32, 16, 24),
        ("ssm_scan_lti", torch.float32, 8, 12),
        ("causal_conv1d", torch.bfloat16, 8, 12),  # two channels per channel of the model
        ("discounted_scan", torch.float32, 12 / 64, 20 / 64),  # one number per row and step
    ],
)
def test_an_op_moves_the_bytes_of_its_arrays(op, dtype, forward, backward):
    elements = SMALL[0] * SMALL[1] * SMALL[2]
    assert OPS[op].traffic(_small(op, dtype)) == (forward * elements, backward * elements)


@pytest.mark.parametrize("op", ["selective_scan", "ssd_scan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bytes_of_selective_scans_are_those_of_the_arrays_that_vary_in_time(op, dtype):
    workload = _small(op, dtype)
    arguments = OPS[op].make(workload)
    streamed = [x for x in arguments.values() if x.shape[:2] == SMALL[:2] and x.dtype != torch.bool]
    y = run(workload, arguments, "torch")[0]
    forward, backward = OPS[op].traffic(workload)
    inputs = sum(x.numel() * x.itemsize for x in streamed)
    assert forward == inputs + y.numel() * y.itemsize
    assert backward == 2 * inputs + y.numel() * y.itemsize  # the gradient of y is read


@pytest.mark.parametrize(("op", "dtype"), [(op, d) for op in OPS for d in OPS[op].dtypes], ids=str)
def test_every_workload_runs_forwards_and_backwards(op, dtype):
    workload = _small(op, dtype)
    y = gpu.prepare(workload, CPU, "torch", "forward")()[0]
    gradients = gpu.prepare(workload, CPU, "torch", "forward+backward")()
    assert y.dtype == (torch.complex64 if "complex" in op else dtype)
    assert not y.requires_grad
    leaves = differentiable(OPS[op].make(workload))
    assert [g.shape for g in gradients] == [x.shape for x in leaves.values()]
    assert all(g.isfinite().all() and (g != 0).any() for g in gradients)


def test_rows_tell_bandwidth_share_and_speedup():
    workload = Workload(op="linear_scan", shape=(16, 1024, 256), dtype=torch.float32)
    seconds = {"triton": 20e-6, "torch": 100e-6}
    rows = gpu.build_rows(workload, "forward", seconds, copy=3e12)
    assert [row.backend for row in rows] == ["triton", "torch"]
    assert rows[0].gigabytes == pytest.approx(12 * 2**22 / 1e9)
    assert rows[0].gb_per_s == pytest.approx(12 * 2**22 / 20e-6 / 1e9)
    assert rows[0].percent_of_copy == pytest.approx(83.886, abs=1e-3)
    assert [row.speedup for row in rows] == [1.0, 5.0]
    assert (rows[1].shape, rows[1].ms) == ("16,1024,256", pytest.approx(0.1))
    both = gpu.build_rows(workload, "forward+backward", seconds, copy=3e12)
    assert both[0].gigabytes == pytest.approx(32 * 2**22 / 1e9)


def test_a_copy_counts_what_is_read_and_what_is_written():
    assert gpu.copy_bandwidth(lambda call: 0.5, CPU, size=1000) == 4000


def test_what_does_not_fit_into_memory_gets_no_time_and_the_rest_goes_on(monkeypatch):
    def timer(call: Callable[[], object]) -> float:
        call()
        return 1e-3

    def prepare(workload: Workload, device: object, backend: str, mode: str) -> Callable[[], None]:
        def call() -> None:
            if backend == "torch" and mode == "forward":
                raise torch.cuda.OutOfMemoryError

        return call

    said: list[str] = []
    monkeypatch.setattr(gpu, "prepare", prepare)
    rows = gpu.measure([_small("linear_scan")], timer, CPU, 1e12, said.append)
    times = {(row.mode, row.backend): (row.ms, row.speedup) for row in rows}
    assert times["forward", "torch"] == (None, None)
    assert times["forward", "triton"] == (1.0, 1.0)
    assert times["forward+backward", "torch"] == (1.0, 1.0)
    assert len(said) == 4


def test_the_report_is_a_table_and_the_same_rows_with_what_they_depend_on(tmp_path):
    rows = gpu.build_rows(_small("linear_scan"), "forward", {"triton": 1e-3, "torch": None}, 1e12)
    paths = gpu.write(tmp_path / "new" / "gpu.csv", {"device": "a device"}, 1e12, rows)
    with paths[0].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["backend"] for line in table] == ["triton", "torch"]
    assert (table[0]["ms"], table[1]["ms"]) == ("1", "")
    report = json.loads(paths[1].read_text())
    assert (report["device"], report["copy_gb_per_s"]) == ("a device", 1000)
    assert report["rows"][1]["ms"] is None
    assert report["rows"][0]["op"] == "linear_scan"


def test_without_a_gpu_it_says_so_in_one_line_and_ends_with_2(monkeypatch, capsys, tmp_path):
    script = _script()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main(["--out", str(tmp_path / "gpu.csv")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "expected a CUDA device" in err
    assert not list(tmp_path.iterdir())


def test_nothing_is_measured_where_a_test_fails(monkeypatch, capsys, tmp_path):
    script = _script()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "run_tests", lambda: 1)
    monkeypatch.setattr(script, "run_benchmark", lambda *_: pytest.fail("measured"))
    assert script.main(["--out", str(tmp_path / "gpu.csv")]) == 1
    assert "a test failed" in capsys.readouterr().err


def test_the_tests_it_runs_are_those_marked_gpu(monkeypatch):
    script, commands = _script(), []

    def fake(command: list[str], **_: object) -> types.SimpleNamespace:
        commands.append(command)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(script.subprocess, "run", fake)
    assert script.run_tests() == 0
    assert commands[0] == [sys.executable, "-m", "pytest", "-m", "gpu", str(ROOT / "tests")]
    files = set((ROOT / "tests").rglob("test_*.py")) - {Path(__file__)}
    marked = {path for path in files if "pytestmark = marks" in path.read_text()}
    assert marks[0].name == "gpu"
    assert marked == set((ROOT / "tests" / "gpu").glob("test_*.py"))
