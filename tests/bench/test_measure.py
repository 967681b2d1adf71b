import time
from collections.abc import Callable

import pytest
import torch

from statewise.bench import measure
from statewise.bench.measure import Timing, time_calls


def test_fast_calls_are_warmed_up_and_then_timed_until_enough() -> None:
    calls: list[int] = []
    timing = time_calls(lambda: calls.append(1), reps=7, seconds=0.0)
    assert len(timing.wall) == 1  # no time left: one call all the same
    assert len(calls) == measure.WARM_UP + 1


def test_calls_are_repeated_until_reps_when_there_is_time() -> None:
    timing = time_calls(lambda: None, reps=7, seconds=60.0, least_seconds=0.0)
    assert len(timing.wall) == len(timing.cpu) == 7


def test_short_calls_are_spread_over_the_least_time() -> None:
    timing = time_calls(lambda: time.sleep(0.01), reps=2, seconds=60.0, least_seconds=0.1)
    assert 2 < len(timing.wall) <= 10
    assert sum(timing.wall) >= 0.099


def test_a_slow_call_is_its_own_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SLOW", -1.0)
    calls: list[int] = []
    assert len(time_calls(lambda: calls.append(1), reps=5, seconds=60.0).wall) == 1
    assert len(calls) == 1


def test_cores_is_cpu_seconds_per_second() -> None:
    assert Timing([2.0, 1.0, 2.0], [4.0, 4.0, 1.0]).cores == 2.0


def test_a_call_lasts_until_its_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []

    def waiter(device: torch.device) -> Callable[[], None]:
        waited.append(device)
        return lambda: time.sleep(0.02)

    monkeypatch.setattr(measure, "waiter", waiter)
    gpu = torch.device("cuda")
    timing = time_calls(lambda: None, reps=2, seconds=60.0, least_seconds=0.0, device=gpu)
    assert waited == [gpu]
    assert min(timing.wall) >= 0.02


def test_the_call_that_compiles_for_a_gpu_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "waiter", lambda device: lambda: None)
    monkeypatch.setattr(measure, "SLOW", 0.05)
    durations = iter([0.06, *[0.0] * 1000])

    def call() -> None:
        time.sleep(next(durations))

    gpu = torch.device("cuda")
    assert max(time_calls(call, reps=2, seconds=0.0, device=gpu).wall) < 0.05
