"""The report of what the Triton kernels take of a GPU, and that they still take no more.

docs/results/triton_compile.csv holds every kernel, both dtypes and both architectures. Compiling
all of that takes minutes, so here every kernel is compiled once, for sm_90; the rest is made
again by `python scripts/triton_compile.py`.
"""

import csv
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "results" / "triton_compile.csv"
OPS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/triton.py"))
DTYPES = ("float32", "bfloat16")
NO_BFLOAT16 = ("discounted_scan",)  # the op takes float32 and float64
ARCHS = ("sm_80", "sm_90")
NEVER = ("stack", "local", "spill_loads", "spill_stores")
MOST_REGISTERS = 255
MOST_REGISTERS_OF_A_LOOP = 128
MOST_SHARED_BYTES = 100 * 1024
SLACK = 1.2
KEY = ("op", "kernel", "case", "dtype", "arch")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _kernels(op: str) -> set[str]:
    """Return the functions of the op's own files that are launched."""
    files = (ROOT / "kernels" / op).glob("triton*.py")
    return {name for file in files for name in re.findall(r"def (\w+_kernel)\(", file.read_text())}


def _assert_within_limits(row: dict[str, str]) -> None:
    wide = int(row["matrix"]) > 0 or "adjoint" in row["kernel"]
    assert {name: row[name] for name in NEVER} == dict.fromkeys(NEVER, "0"), row
    assert int(row["registers"]) <= (MOST_REGISTERS if wide else MOST_REGISTERS_OF_A_LOOP), row
    assert int(row["shared_bytes"]) <= MOST_SHARED_BYTES, row


@pytest.mark.parametrize("op", OPS)
def test_the_report_lists_every_kernel_for_every_dtype_and_architecture(op):
    listed = {
        (row["kernel"], row["dtype"], row["arch"]) for row in _rows(REPORT) if row["op"] == op
    }
    dtypes = DTYPES[:1] if op in NO_BFLOAT16 else DTYPES
    wanted = set(itertools.product(_kernels(op), dtypes, ARCHS))
    assert wanted, op
    assert wanted <= listed, f"run python scripts/triton_compile.py: {sorted(wanted - listed)}"


def test_the_report_names_each_case_once_and_no_op_that_is_gone():
    rows = _rows(REPORT)
    assert len({tuple(row[name] for name in KEY) for row in rows}) == len(rows)
    assert {row["op"] for row in rows} <= set(OPS)


def test_no_kernel_of_the_report_spills_or_takes_too_much():
    for row in _rows(REPORT):
        _assert_within_limits(row)


def test_the_matrix_kernels_use_tensor_cores():
    kernels = {row["kernel"] for row in _rows(REPORT) if int(row["matrix"]) > 0}
    assert {"output_kernel", "state_kernel", "input_kernel", "mixing_kernel"} <= kernels


def test_many_lanes_are_read_16_bytes_at_a_time():
    """In real float32, with lanes to spare, the linear scan loads vectors."""
    rows = [
        row
        for row in _rows(REPORT)
        if row["op"] == "linear_scan" and row["case"] == "real-varying-float32-plain"
    ]
    assert {row["kernel"] for row in rows} == {"scan_kernel", "adjoint_kernel"}
    assert all(int(row["ldg128"]) >= 16 for row in rows)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compile every kernel once, all in one process; return the rows of the report."""
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("compiled") / "report.csv"
    command = [sys.executable, str(ROOT / "scripts" / "triton_compile.py")]
    command += ["--arch", "90", "--quick", "--out", str(out)]
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return _rows(out)


@pytest.mark.xdist_group("compiled")
@pytest.mark.parametrize("op", OPS)
def test_every_kernel_compiles_and_takes_no_more_than_reported(op, compiled):
    rows = [row for row in compiled if row["op"] == op]
    reported = {tuple(row[name] for name in KEY): row for row in _rows(REPORT)}
    assert {row["kernel"] for row in rows} >= _kernels(op)
    for row in rows:
        _assert_within_limits(row)
        before = reported[tuple(row[name] for name in KEY)]
        assert int(row["registers"]) <= SLACK * int(before["registers"]), (row, before)
