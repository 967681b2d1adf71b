"""What the memory holds where a training window starts, so that a model learns to go on from any.

Papers: Buitrago Ruiz & Gu 2025, "Understanding and Improving Length Generalization in Recurrent
Models"; Wang 2024, "LongSSM: On the Length Extension of State-space Models in Language Modelling".
A model that has only ever started from its initial state fails past the length it was trained on.

    zero     the initial state of the model, what a reset restores
    noise    the initial state plus a normal of deviation `std`
    fitted   a normal with the mean and deviation that each entry had in final states seen so far
    pass     the final state of another row of the previous batch
    stored   the row's own state, as it was stored with the window or left by the window before

In a loop over windows:

    seen, final = StateStatistics(), None                  seen: for "fitted" alone
    for x, reset in windows:
        start = starting_state(
            config, model, len(x), generator=generator, statistics=seen, previous=final
        )
        y, final = model(x, start, reset)
        seen.update(final)

`previous` is what the last call returned ("pass"), or what the buffer holds ("stored"). Nothing of
it or of the statistics carries a gradient. A reset at step 0 clears the start, as it clears any
state: what is chosen here is seen by windows that go on.

Numbers are drawn on the device of the generator, and are the same on every device.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from statewise.ssm.protocol import SequenceModel, State
from statewise.ssm.state import detach, take, where

FLAGS = ("valid", "begun")  # entries that say whether something is there: 0 or 1, not a memory
COUNT, MEAN, SQUARE = "count", "mean.", "square."


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where the memory of training windows starts."""

    kind: Literal["zero", "noise", "fitted", "pass", "stored"] = "zero"
    std: float | None = None  # > 0, deviation of the noise; only with noise, which needs it
    probability: float = 1.0  # (0, 1], of a row not to start from the initial state

    def __post_init__(self) -> None:
        if (self.std is not None) != (self.kind == "noise"):
            raise ValueError(
                f"std: expected a number with kind noise and None otherwise, got {self.std} with "
                f"{self.kind}"
            )
        if self.std is not None and not self.std > 0:
            raise ValueError(f"std: expected a positive number, got {self.std}")
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability: expected (0, 1], got {self.probability}")
        if self.kind == "zero" and self.probability != 1:
            raise ValueError(
                f"probability: would be ignored with kind zero, got {self.probability}: remove it, "
                "or choose another kind"
            )


class StateStatistics:
    """Mean and deviation of every entry of the states seen so far, each row counted once."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: State = {}
        self._square: State = {}  # sums of squared distances from the mean

    def update(self, state: State) -> None:
        """Count the rows of a state, (B, ...) per entry.

        Raises:
            ValueError: an entry holds a number that is not finite.
        """
        rows = len(next(iter(state.values()), ()))
        total = self.count + rows
        if rows == 0:
            return
        for key, value in state.items():
            wide = value.detach().double()
            if not wide.isfinite().all():
                raise ValueError(
                    f"start: expected finite states for the statistics, entry {key!r} holds NaN or "
                    "infinity: leave such rows out"
                )
            mean = wide.mean(0)
            square = (wide - mean).square().sum(0)
            if self.count:
                old_mean, old_square = self._mean[key].to(mean), self._square[key].to(mean)
                apart = mean - old_mean
                square = square + old_square + apart.square() * (self.count * rows / total)
                mean = old_mean + apart * (rows / total)
            self._mean[key], self._square[key] = mean, square
        self.count = total

    def mean(self) -> State:
        """Return the mean of each entry, without the batch, float64; nothing before an update."""
        return dict(self._mean)

    def deviation(self) -> State:
        """Return the deviation of each entry, without the batch, float64; at least two rows."""
        return {key: (value / (self.count - 1)).sqrt() for key, value in self._square.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {
            COUNT: torch.tensor(self.count),
            **{MEAN + key: value.clone() for key, value in self._mean.items()},
            **{SQUARE + key: value.clone() for key, value in self._square.items()},
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        self.count = int(tensors[COUNT])
        self._mean, self._square = (
            {k.removeprefix(part): v.clone() for k, v in tensors.items() if k.startswith(part)}
            for part in (MEAN, SQUARE)
        )


def starting_state(
    config: StartConfig,
    model: SequenceModel,
    batch_size: int,
    *,
    generator: torch.Generator,
    statistics: StateStatistics | None = None,
    previous: State | None = None,
) -> State:
    """Return the state before the first step of `batch_size` windows.

    Args:
        config: what to start from.
        model: gives the initial state; a layer, a block or a stack.
        batch_size: B, rows.
        generator: of all draws, on any device.
        statistics: for kind "fitted"; until it has seen two rows, windows start from the initial
            state.
        previous: for kinds "pass", at least B rows and 2, and "stored", B rows; None, as before
            the first batch, means the initial state.

    Returns:
        A state like `model.initial_state(B)`. A row that is not chosen (`probability`) is the
        initial state's, with its gradient where it is learned.

    Raises:
        ValueError: the model's state cannot start that way, or `statistics` or `previous` are
            missing or have too few rows.
    """
    initial = model.initial_state(batch_size)
    check_kind(config, initial)
    chosen: State | None = None
    match config.kind:
        case "noise":
            std = config.std
            assert std is not None
            drawn = _normal(initial, generator)
            chosen = {key: value + std * drawn[key] for key, value in initial.items()}
        case "fitted":
            chosen = _fitted(statistics, initial, generator)
        case "pass":
            chosen = None if previous is None else _passed(previous, batch_size, generator)
        case "stored":
            chosen = None if previous is None else detach(previous)
    if chosen is None:
        return initial
    picked = torch.rand(batch_size, generator=generator, device=generator.device)
    return _rows(picked < config.probability, chosen, initial)


def check_kind(config: StartConfig, initial: State) -> None:
    """Check that a state can start the way that `config` asks for; `initial` is any state.

    Raises:
        ValueError: there is no state, or numbers are to be drawn for an entry that is a flag.
    """
    if config.kind != "zero" and not initial:
        raise ValueError(f"start: kind {config.kind!r} needs a model with a state: use kind 'zero'")
    flags = [key for key in initial if key.rpartition(".")[2] in FLAGS]
    if config.kind in ("noise", "fitted") and flags:
        raise ValueError(
            f"start: kind {config.kind!r} draws every entry of a state, but {flags[0]!r} says what "
            "is there and is 0 or 1: use kind 'pass' or 'stored'"
        )


def _normal(like: State, generator: torch.Generator) -> State:
    draws = {}
    for key, value in like.items():
        shape, device = value.shape, generator.device
        draw = torch.randn(shape, generator=generator, device=device, dtype=value.dtype)
        draws[key] = draw.to(value.device)
    return draws


def _fitted(
    statistics: StateStatistics | None, initial: State, generator: torch.Generator
) -> State | None:
    if statistics is None:
        raise ValueError("start: kind 'fitted' needs the statistics of final states, got None")
    if statistics.count < 2:
        return None
    mean, deviation, drawn = statistics.mean(), statistics.deviation(), _normal(initial, generator)
    return {
        key: mean[key].to(value) + deviation[key].to(value) * drawn[key]
        for key, value in initial.items()
    }


def _passed(previous: State, batch_size: int, generator: torch.Generator) -> State:
    """Give each row another row's state: along one random cycle, on which no row follows itself."""
    rows = len(next(iter(previous.values())))
    if rows < max(2, batch_size):
        raise ValueError(
            f"start: kind 'pass' needs final states of at least {max(2, batch_size)} rows, got "
            f"{rows}: use larger batches, or kind 'stored'"
        )
    order = torch.randperm(rows, generator=generator, device=generator.device)
    source = torch.empty_like(order)
    source[order] = order.roll(1)
    device = next(iter(previous.values())).device
    return take(detach(previous), source[:batch_size].to(device))


def _rows(chosen: Tensor, state: State, initial: State) -> State:
    """Take the rows of `state` where `chosen` (B,) is True, else those of `initial`."""
    for key, value in initial.items():
        if key not in state or state[key].shape != value.shape:
            got = tuple(state[key].shape) if key in state else "nothing"
            raise ValueError(
                f"start: expected {tuple(value.shape)} for entry {key!r} of the state, got {got}"
            )
    device = next(iter(initial.values())).device
    return where(chosen.to(device), {key: state[key] for key in initial}, initial)
