"""Run everything that needs a GPU: the tests marked `gpu`, then the benchmark of every op.

    python scripts/gpu_check.py                         # docs/results/gpu.csv and gpu.json
    python scripts/gpu_check.py --op ssd_scan --out gpu.csv

Exit status 2 where torch finds no CUDA device, 1 where a test fails (nothing is measured then).
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from statewise.bench import gpu
from statewise.bench.gpu_cases import OPS, workloads

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "results" / "gpu.csv"
NO_GPU = 2
WRONG = 1


def missing() -> str:
    """Return "" if torch finds a CUDA device, else one line that says what to do."""
    if torch.cuda.is_available():
        return ""
    built = torch.version.cuda
    reason = "finds no device or driver" if built else "is built without CUDA"
    return f"gpu_check: expected a CUDA device, but torch {torch.__version__} {reason}: nothing ran"


def run_tests() -> int:
    """Run the tests marked `gpu`; return the exit status of pytest."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(ROOT / "tests")]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def run_benchmark(ops: tuple[str, ...], out: Path) -> None:
    """Measure the ops and write the report."""
    device = torch.device("cuda")
    timer = gpu.event_timer(device)
    copy = gpu.copy_bandwidth(timer, device)
    print(f"a copy moves {copy / 1e9:.0f} GB/s", flush=True)
    about = gpu.describe(device)
    rows: list[gpu.Row] = []
    paths: list[Path] = []
    for op in ops:  # written after each, so that an interrupted run keeps what it has
        cases = workloads((op,))
        rows += gpu.measure(cases, timer, device, copy, lambda line: print(line, flush=True))
        paths = gpu.write(out, about, copy, rows)
    print(*paths, sep="\n")


def main(words: list[str] | None = None) -> int:
    """Run what was asked for; return an exit status."""
    parser = argparse.ArgumentParser(description="Test and measure the kernels on a GPU.")
    parser.add_argument("--op", choices=OPS, action="append", help="to measure; by default all")
    parser.add_argument("--out", type=Path, default=REPORT, help=f"by default {REPORT}")
    options = parser.parse_args(words)
    if reason := missing():
        print(reason, file=sys.stderr)
        return NO_GPU
    if run_tests() != 0:
        print("gpu_check: a test failed, so nothing is measured", file=sys.stderr)
        return WRONG
    run_benchmark(tuple(options.op or OPS), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
