import pytest

from statewise.bench import measure
from statewise.bench.measure import Timing, time_calls


def test_fast_calls_are_warmed_up_and_then_timed_until_enough() -> None:
    calls: list[int] = []
    timing = time_calls(lambda: calls.append(1), reps=7, seconds=0.0)
    assert len(timing.wall) == 1  # no time left: one call all the same
    assert len(calls) == measure.WARM_UP + 1


def test_calls_are_repeated_until_reps_when_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    timing = time_calls(lambda: None, reps=7, seconds=60.0)
    assert len(timing.wall) == len(timing.cpu) == 7


def test_a_slow_call_is_its_own_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SLOW", -1.0)
    calls: list[int] = []
    assert len(time_calls(lambda: calls.append(1), reps=5, seconds=60.0).wall) == 1
    assert len(calls) == 1


def test_cores_is_cpu_seconds_per_second() -> None:
    assert Timing([2.0, 1.0, 2.0], [4.0, 4.0, 1.0]).cores == 2.0
