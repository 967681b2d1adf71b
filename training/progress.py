"""What a run shows while it trains: a bar on a terminal, now and then a line elsewhere."""

import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

_WINDOW = 50  # updates over which the speed is measured
_FAST = 10.0  # per second, shown without decimals


def format_duration(seconds: float) -> str:
    """Return hours, minutes and seconds, for example 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Steps, return, steps per second and time left of a run, as a context manager.

    Args:
        total_steps: where the run ends, at least 1.
        unit: what is counted, "steps" of the environments or "updates".
        quantity: what is shown beside, "return" or "loss".
        start_step: where this process begins, for a resumed run.
        console: where to show it; None shows nothing. On a terminal a bar, else one plain
            line at most every `every_s` seconds and one at the end.
        every_s: seconds between two plain lines, at least 0.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        unit: str = "steps",
        quantity: str = "return",
        start_step: int = 0,
        console: Console | None = None,
        every_s: float = 30.0,
    ) -> None:
        self._total, self._step = total_steps, start_step
        self._unit, self._quantity = unit, quantity
        self._every_s = every_s
        self._value: float | None = None
        # (time, step) of the latest updates: the speed of now, not that of the first compile.
        self._history = deque([(time.monotonic(), start_step)], maxlen=_WINDOW)
        self._shown_s = time.monotonic()
        self._shown_step = start_step
        self._lines = console if console is not None and not console.is_terminal else None
        self._bar = _build_bar(console) if console is not None and console.is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, text="")

    def update(self, step: int, value: float | None = None) -> None:
        """Show that the run is at `step`.

        Args:
            step: steps or updates so far.
            value: mean return of the latest episodes, or the loss; None keeps the one shown.
        """
        now = time.monotonic()
        self._step = step
        self._history.append((now, step))
        if value is not None:
            self._value = value
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self.describe())
        elif now - self._shown_s >= self._every_s:
            self._print_line()

    def describe(self) -> str:
        """Return the step, the value, the speed and the time left in one line."""
        (first_s, first_step), (last_s, last_step) = self._history[0], self._history[-1]
        speed = (last_step - first_step) / (last_s - first_s) if last_s > first_s else 0.0
        parts = [f"{self._step:,} / {self._total:,} {self._unit}"]
        if self._value is not None:
            parts.append(f"{self._quantity} {self._value:.3g}")
        if speed > 0:
            left_s = max(0, self._total - self._step) / speed
            shown = f"{speed:,.0f}" if speed >= _FAST else f"{speed:.2g}"
            parts += [f"{shown} {self._unit}/s", f"{format_duration(left_s)} left"]
        return "  ".join(parts)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._step != self._shown_step:
            self._print_line()

    def _print_line(self) -> None:
        self._shown_s, self._shown_step = time.monotonic(), self._step
        if self._lines is not None:
            self._lines.print(self.describe(), highlight=False, soft_wrap=True)


def _build_bar(console: Console) -> Bar:
    return Bar(
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[text]}"),
        console=console,
        expand=True,
    )
