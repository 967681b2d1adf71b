"""Timing inside one process: wall and CPU seconds of repeated calls."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

WARM_UP = 3  # calls
WARM_UP_SECONDS = 1.0  # stops a slow warm-up
SLOW = 2.0  # seconds; a call that takes longer is its own warm-up
SHORTEST = 0.1  # seconds; very fast calls are repeated until then


class Timing(NamedTuple):
    """Seconds of each call, on the clock and of the process (all its threads)."""

    wall: list[float]
    cpu: list[float]

    @property
    def cores(self) -> float:
        """CPU seconds per second: about the number of threads on an idle machine."""
        return median(self.cpu) / max(median(self.wall), 1e-9)


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def time_calls(
    call: Callable[[], object], *, reps: int, seconds: float, least_seconds: float = SHORTEST
) -> Timing:
    """Warm up, then time `reps` calls, or as many as start within `seconds`.

    Args:
        call: does its whole work before it returns.
        reps: at least 1; more where so many last under `least_seconds`.
        seconds: after which no further call is started; at least one is made.
        least_seconds: over which calls are spread, up to `seconds`.
    """
    spent = 0.0
    for _ in range(WARM_UP):
        wall, cpu = _timed(call)
        if wall > SLOW:
            return Timing([wall], [cpu])
        spent += wall
        if spent > WARM_UP_SECONDS:
            break
    timing = Timing([], [])
    begin = time.perf_counter()
    while True:
        wall, cpu = _timed(call)
        timing.wall.append(wall)
        timing.cpu.append(cpu)
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds or (len(timing.wall) >= reps and elapsed >= least_seconds):
            return timing
