"""Starts the tests of `triton/` in two processes that have Triton's interpreter on.

A process takes seconds to start, so the files that this run selects share two of them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests" / "kernels" / "triton").glob("test_*.py"))
GROUPS = [FILES[::2], FILES[1::2]]
NAME = "test_the_kernels_are_right_in_the_interpreter"
_reports: dict[Path, str] = {}


def _report(file: Path, request: pytest.FixtureRequest) -> str:
    """Return what pytest said of a file, run together with the others of its group."""
    if file not in _reports:
        wanted = {item.name for item in request.session.items}
        group = next(group for group in GROUPS if file in group)
        files = [str(other) for other in group if f"{NAME}[{other.stem}]" in wanted]
        command = [sys.executable, "-m", "pytest", "-rA", "--tb=short", "-p", "no:cacheprovider"]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(
            [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        _reports.update(dict.fromkeys(map(Path, files), done.stdout))
    return _reports[file]


def _grouped(number: int, file: Path):
    mark = pytest.mark.xdist_group(f"interpreter-{number}")
    return pytest.param(file, id=file.stem, marks=mark)


@pytest.mark.parametrize(
    "file", [_grouped(number, file) for number, files in enumerate(GROUPS) for file in files]
)
def test_the_kernels_are_right_in_the_interpreter(file, request):
    pytest.importorskip("triton")
    report = _report(file, request)
    name = re.escape(str(file.relative_to(ROOT)))
    assert not re.search(rf"^(FAILED|ERROR) {name}", report, re.M), report
    assert re.search(rf"^PASSED {name}::", report, re.M), report


def test_every_op_with_triton_kernels_has_a_file_there():
    ops = {path.parent.name for path in (ROOT / "kernels").glob("*/triton.py")}
    assert ops <= {file.stem.removeprefix("test_") for file in FILES}
