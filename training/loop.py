"""What every training loop does around its iterations: log, checkpoint, stop and go on."""

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from statewise.agents.parallel import any_of, num_processes, rank
from statewise.training.checkpoint import save_checkpoint
from statewise.training.distributed import other_batches, other_states, resume_line
from statewise.training.log import MetricLogger
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory


class Stopped(KeyboardInterrupt):
    """Training was interrupted and has saved a checkpoint."""


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that it never hits a half-done update.

    Of several processes each one takes any number of them, and SIGTERM, for the event alone: they
    stop together, and torchrun ends those that do not.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    together = num_processes() > 1

    def ask(number: int, frame: object) -> None:
        if event.is_set() and not together:
            raise KeyboardInterrupt
        event.set()

    signals = (signal.SIGINT, signal.SIGTERM) if together else (signal.SIGINT,)
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def named_tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested named tuples and dictionaries, by dotted path."""
    if isinstance(tree, Tensor):
        yield prefix, tree
        return
    entries = tree if isinstance(tree, Mapping) else tree._asdict()
    for name, entry in entries.items():
        yield from named_tensors(entry, f"{prefix}.{name}".lstrip("."))


class Loop(ABC):
    """One training, in a run directory or (`run` None) only in memory.

    Of several processes the first one writes into the run directory.

    Args:
        run: where it is written down.
        config_text: the settings, for checkpoints.
        end: where training ends, at least 1, in the loop's unit.
        every: distance of two checkpoints, at least 1, in the same unit.
        keep: newest checkpoints kept, at least 1.
    """

    unit: str
    """What `steps` counts: "steps" of the environments or "updates"."""
    quantity: str
    """What the progress shows."""
    command = "train"
    """Of `statewise`, with --resume."""
    agent: Any
    """What learns."""

    def __init__(
        self, run: RunDirectory | None, *, config_text: str, end: int, every: int, keep: int
    ):
        self.run, self.end = run, end
        self.steps = 0
        self.logger: MetricLogger | None = None
        self._config_text, self._every, self._keep = config_text, every, keep

    @abstractmethod
    def iterate(self) -> dict[str, float]:
        """Do the smallest part of the training that can be saved; return its metrics."""

    @abstractmethod
    def shown(self, metrics: dict[str, float]) -> float | None:
        """Return what the progress shows of an iteration, None for what it showed before."""

    @abstractmethod
    def begin(self) -> None:
        """Do what a new training begins with."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that going on needs, beside `steps` and the log."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, except the agent, which comes restored."""

    def start(self) -> None:
        """Begin a new run, with a checkpoint so that it can be resumed at any moment."""
        if self.run is not None and rank() == 0:
            self.logger = MetricLogger(self.run)
        self.begin()
        self.save()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, with the agent that was restored from it."""
        assert self.run is not None
        self.steps = state["steps"]
        self.load_state_dict(state)
        if rank() == 0:
            self.logger = MetricLogger.resume(self.run, state["logger"])

    def save(self) -> None:
        """Write a checkpoint, of several processes with the states of all."""
        state: dict[str, Any] = {}
        if num_processes() > 1:
            state = other_states(self.state_dict(), self.agent)
        if self.run is None or self.logger is None:
            return
        state |= self.state_dict() | {"logger": self.logger.state_dict(), "steps": self.steps}
        folder = self.run.checkpoints_dir
        save_checkpoint(folder, self.steps, state, self._config_text, self._keep)

    def train(self, progress: Progress) -> None:
        """Run to the end.

        Raises:
            Stopped: Ctrl-C; a checkpoint was saved.
            NonFiniteLossError: the batch is in `bad_batch.safetensors` of the run.
        """
        is_asked = False
        with interruptible() as interrupted:
            while self.steps < self.end:
                is_asked = any_of(interrupted.is_set())
                if is_asked:
                    break
                before = self.steps
                metrics = self.iterate()
                progress.update(self.steps, self.shown(metrics))
                if self.steps // self._every > before // self._every and self.steps < self.end:
                    self.save()
            self.save()
            any_of(False)  # no process ends before the checkpoint is written
        if is_asked:
            raise Stopped(self._how_to_go_on())

    def is_due(self, every: int, before: int) -> bool:
        """Return whether the last iteration, from `before` steps on, passed a multiple or the end.

        Args:
            every: distance of the multiples; 0: never.
            before: `steps` when it began.
        """
        return every > 0 and (self.steps // every > before // every or self.steps >= self.end)

    def close(self) -> None:
        """Close the log; a second call does nothing."""
        if self.logger is not None:
            self.logger.close()

    def keep_batch(self, batch: Any) -> None:
        """Write a batch whose loss is not finite where it can be looked at.

        Of several processes each one's share has a file of its own.
        """
        arrays = {name: x.contiguous() for name, x in named_tensors(batch)}
        others = other_batches(arrays)
        if self.run is None or rank() > 0:
            return
        save_file(arrays, self.run.path / "bad_batch.safetensors")
        for number, other in enumerate(others, start=1):
            save_file(other, self.run.path / f"bad_batch_{number}.safetensors")

    def _how_to_go_on(self) -> str:
        where = "" if self.run is None else f", saved: {resume_line(self.run.path, self.command)}"
        return f"stopped at {self.steps} {self.unit}{where}"
