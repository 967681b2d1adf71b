"""Starts the tests of `triton/`, each file in a process that has Triton's interpreter on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests" / "kernels" / "triton").glob("test_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kernels_are_right_in_the_interpreter(file):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout


def test_every_op_with_triton_kernels_has_a_file_there():
    ops = {path.parent.name for path in (ROOT / "kernels").glob("*/triton.py")}
    assert ops <= {file.stem.removeprefix("test_") for file in FILES}
