import io
import itertools

import pytest
from rich.console import Console

from statewise.training import progress as progress_module
from statewise.training.progress import Progress, format_duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is one second after the last."""
    seconds = itertools.count()
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(seconds)))


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (123, "2:03"), (3723, "1:02:03")]
)
def test_durations_are_read_like_a_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_nothing_is_shown_without_a_console(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress(10, every_s=0) as progress:
        progress.update(5, 1.0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("clock")
def test_speed_and_time_left_come_from_the_clock(out: io.StringIO) -> None:
    with Progress(2000, console=Console(file=out, width=20), every_s=0) as progress:
        # The clock stood at 0 when the history began and stands at 2 here: 1000 / 2 per s.
        progress.update(1000, 0.25)
    assert out.getvalue() == "1,000 / 2,000 steps  return 0.25  500 steps/s  0:02 left\n"


@pytest.mark.usefixtures("clock")
def test_the_speed_of_a_resumed_run_counts_its_own_steps_only() -> None:
    progress = Progress(2000, start_step=900)
    progress.update(1000)
    assert "50 steps/s  0:20 left" in progress.describe()


def test_lines_are_few_and_the_last_step_is_always_told(out: io.StringIO) -> None:
    with Progress(100, console=Console(file=out), every_s=3600) as progress:
        for step in range(1, 101):
            progress.update(step)
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().startswith("100 / 100 steps")


def test_a_terminal_gets_a_bar(out: io.StringIO) -> None:
    console = Console(file=out, force_terminal=True, width=100, _environ={})
    with Progress(100, console=console) as progress:
        progress.update(50, 1.5)
    assert "50%" in out.getvalue()
    assert "50 / 100 steps  return 1.5" in out.getvalue()
