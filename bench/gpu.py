"""The GPU benchmark: how long every op takes, and what share of the copy bandwidth that is.

A time is the median of calls between two events of the device, 10 to 100 of them, after some to
warm up. Before each, 256 MB are written, so that no input is left in the cache, and the device is
kept waiting while the call is enqueued: what Python needs for that is no part of the time, except
where a call enqueues more than the device's queue holds. The bandwidth achieved is the
bytes an op has to move (`gpu_cases.py`) by that time; it is compared with that of a copy, measured
in the same way. See `scripts/gpu_check.py`.
"""

import csv
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from statewise.bench.gpu_cases import OPS, Shape, Workload, differentiable, run
from statewise.kernels import Backend
from statewise.training.run import write_json

BACKENDS: tuple[Backend, ...] = ("triton", "torch")  # the first is ours in the speedups
MODES = ("forward", "forward+backward")
WARM_UP = 5  # calls
FEWEST, MOST = 10, 100  # calls that are timed
SECONDS = 0.5  # after which no more than FEWEST are timed
WAIT_CYCLES = 8_000_000  # of the device, about 4 ms
FLUSH_BYTES = 256 * 2**20
COPY_BYTES = 2**30
CLOCKS = ("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader")

Timer = Callable[[Callable[[], object]], float]
"""Takes a call that enqueues its work; returns its seconds on the device."""


@dataclass(frozen=True)
class Row:
    """One op, at one shape, in one mode, on one backend."""

    op: str
    dtype: str
    shape: str  # "B,T,D" of the model around it
    mode: str
    backend: str
    ms: float | None  # None where the device's memory did not suffice
    gigabytes: float  # that have to be moved
    gb_per_s: float | None
    percent_of_copy: float | None
    speedup: float | None  # how many times the first backend is faster; 1 for itself


def event_timer(device: torch.device) -> Timer:
    """Return the timer of a CUDA device."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def timer(call: Callable[[], object]) -> float:
        begun = perf_counter()
        for _ in range(WARM_UP):
            call()
        torch.cuda.synchronize(device)
        one = (perf_counter() - begun) / WARM_UP
        pairs = []
        for _ in range(min(MOST, max(FEWEST, int(SECONDS / one)))):
            flush.zero_()
            torch.cuda._sleep(WAIT_CYCLES)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize(device)
        return 1e-3 * median(begin.elapsed_time(end) for begin, end in pairs)

    return timer


def copy_bandwidth(timer: Timer, device: torch.device, size: int = COPY_BYTES) -> float:
    """Return the bytes per second of a copy of `size` bytes: read and written."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timer(lambda: target.copy_(source))


def moved_bytes(workload: Workload, mode: str) -> int:
    """Return the bytes an op has to move in a mode."""
    forward, backward = OPS[workload.op].traffic(workload)
    return forward if mode == "forward" else forward + backward


def prepare(
    workload: Workload, device: torch.device, backend: Backend, mode: str
) -> Callable[[], object]:
    """Return the call to time, its inputs already on the device."""
    torch.manual_seed(0)
    arguments = {k: v.to(device) for k, v in OPS[workload.op].make(workload).items()}
    if mode == "forward":

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return run(workload, arguments, backend)

        return forward
    leaves = differentiable(arguments)
    y = run(workload, arguments, backend)[0]
    grad = torch.randn_like(y)

    def both() -> tuple[Tensor, ...]:
        output = run(workload, arguments | leaves, backend)[0]
        return torch.autograd.grad(output, list(leaves.values()), grad)

    return both


def name_of(shape: Shape) -> str:
    """Return "16,1024,256"."""
    return ",".join(map(str, shape))


def build_rows(
    workload: Workload, mode: str, seconds: dict[str, float | None], copy: float
) -> list[Row]:
    """Return a row per backend.

    Args:
        workload: what ran.
        mode: of MODES.
        seconds: by backend, ours first; None where it ran out of memory.
        copy: bytes per second of a copy.
    """
    size = moved_bytes(workload, mode)
    ours = next(iter(seconds.values()))
    rows = []
    for backend, taken in seconds.items():
        rate = None if taken is None else size / taken
        rows.append(
            Row(
                op=workload.op,
                dtype=str(workload.dtype).removeprefix("torch."),
                shape=name_of(workload.shape),
                mode=mode,
                backend=backend,
                ms=None if taken is None else 1e3 * taken,
                gigabytes=size / 1e9,
                gb_per_s=None if rate is None else rate / 1e9,
                percent_of_copy=None if rate is None else 100 * rate / copy,
                speedup=None if taken is None or ours is None else taken / ours,
            )
        )
    return rows


def measure(
    cases: Iterable[Workload],
    timer: Timer,
    device: torch.device,
    copy: float,
    say: Callable[[str], None],
    backends: Sequence[Backend] = BACKENDS,
) -> list[Row]:
    """Time all workloads on all backends, in all modes; a case without memory gets no time."""
    rows = []
    for workload in cases:
        for mode in MODES:
            seconds: dict[str, float | None] = {}
            for backend in backends:
                say(f"{workload.op} {name_of(workload.shape)} {workload.dtype} {mode}: {backend}")
                try:
                    seconds[backend] = timer(prepare(workload, device, backend, mode))
                except torch.cuda.OutOfMemoryError:
                    seconds[backend] = None
                    torch.cuda.empty_cache()
            rows += build_rows(workload, mode, seconds, copy)
    return rows


def describe(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on: device, versions, clocks in MHz where they are told."""
    import triton

    try:
        done = subprocess.run(CLOCKS, capture_output=True, text=True, check=True, timeout=10)
        clocks = done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        clocks = ""
    return {
        "device": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "clocks": clocks,
    }


def write(path: Path, about: dict[str, Any], copy: float, rows: Sequence[Row]) -> list[Path]:
    """Write the rows as CSV, and with what they depend on as JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        for row in rows:
            writer.writerow([_short(value) for value in asdict(row).values()])
    beside = path.with_suffix(".json")
    report = {**about, "copy_gb_per_s": copy / 1e9, "rows": [asdict(row) for row in rows]}
    write_json(beside, report)
    return [path, beside]


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value
