"""Timing inside one process: wall and CPU seconds of repeated calls."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch

WARM_UP = 3  # calls
WARM_UP_SECONDS = 1.0  # stops a slow warm-up
SLOW = 2.0  # seconds; a call that takes longer is its own warm-up
SHORTEST = 0.1  # seconds; very fast calls are repeated until then
CPU = torch.device("cpu")


class Timing(NamedTuple):
    """Seconds of each call, on the clock and of the process (all its threads)."""

    wall: list[float]
    cpu: list[float]

    @property
    def cores(self) -> float:
        """CPU seconds per second: about the number of threads on an idle machine."""
        return median(self.cpu) / max(median(self.wall), 1e-9)


def waiter(device: torch.device) -> Callable[[], None]:
    """Return what waits until a device has done all it was given: calls to a GPU return before."""
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return lambda: None


def _timed(call: Callable[[], object], wait: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wait()
    return time.perf_counter() - wall, time.process_time() - cpu


def time_calls(
    call: Callable[[], object],
    *,
    reps: int,
    seconds: float,
    least_seconds: float = SHORTEST,
    device: torch.device = CPU,
) -> Timing:
    """Warm up, then time `reps` calls, or as many as start within `seconds`.

    Args:
        call: does its whole work before it returns, or gives it to `device`.
        reps: at least 1; more where so many last under `least_seconds`.
        seconds: after which no further call is started; at least one is made.
        least_seconds: over which calls are spread, up to `seconds`.
        device: a call lasts until it has done all it was given.
    """
    wait = waiter(device)
    if device.type == "cuda":
        _timed(call, wait)  # compiles kernels for its shapes, which takes seconds
    spent = 0.0
    for _ in range(WARM_UP):
        wall, cpu = _timed(call, wait)
        if wall > SLOW:
            return Timing([wall], [cpu])
        spent += wall
        if spent > WARM_UP_SECONDS:
            break
    timing = Timing([], [])
    begin = time.perf_counter()
    while True:
        wall, cpu = _timed(call, wait)
        timing.wall.append(wall)
        timing.cpu.append(cpu)
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds or (len(timing.wall) >= reps and elapsed >= least_seconds):
            return timing
