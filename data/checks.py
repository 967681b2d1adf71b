"""What arrays of a data set must satisfy: each function raises its own error, or warns.

`file` names the source in messages. `offset` is added to row numbers by callers that read in
pieces, so that a message counts rows of the whole file.
"""

import difflib
import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.data.episode import Array, ArraySpec
from statewise.data.errors import (
    ActionRange,
    DataConfigError,
    DatasetWarning,
    EmptyDataset,
    EnvMismatch,
    EpisodeTooLong,
    LengthMismatch,
    MemoryBudget,
    Misaligned,
    MissingBoundary,
    MissingKey,
    NonFinite,
    ShapeError,
    SpecMismatch,
)

File = Path | str | None

ALIASES = {
    "observations": ("observation", "obs", "states", "state"),
    "actions": ("action", "acts"),
    "rewards": ("reward", "rews"),
    "terminals": ("terminal", "terminations", "terminated", "dones", "done"),
}
ACTION_SLACK = 1e-3  # an excess over the bounds up to here is rounding
ALIGNMENT_ERROR = 1e-4  # largest difference between next_observations[i] and observations[i + 1]
ALIGNMENT_SHARE = 1e-3  # share of steps that may differ by more
_SHOWN = 10  # names or numbers in a message
MAZE_JUMP = 5.0  # length units in one step that no maze robot can make


def check_keys(present: Collection[str], required: Collection[str], file: File = None) -> None:
    """Raise MissingKey for the first required key that is absent, naming the near ones."""
    for key in required:
        if key in present:
            continue
        near = [name for name in ALIASES.get(key, ()) if name in present]
        near += difflib.get_close_matches(key, sorted(set(present) - set(near)), n=2)
        hint = f"rename {' or '.join(map(repr, near))}" if near else "write it"
        names = ", ".join(sorted(present)[:_SHOWN]) or "nothing"
        names += f" and {len(present) - _SHOWN} more" if len(present) > _SHOWN else ""
        raise MissingKey(f"expected this key, got {names}", file=file, key=key, hint=hint)


def check_equal_lengths(lengths: Mapping[str, int], file: File = None) -> None:
    """Raise LengthMismatch unless all arrays have as many rows as the first."""
    first, *others = lengths
    for key in others:
        if lengths[key] != lengths[first]:
            raise LengthMismatch(
                f"expected {lengths[first]} rows as in {first}, got {lengths[key]}",
                file=file,
                key=key,
                hint="write one row per step to every array",
            )


def check_numeric(key: str, dtype: np.dtype[Any], file: File = None) -> None:
    """Raise SpecMismatch for anything but booleans, integers and real numbers."""
    if dtype.kind not in "biuf":
        raise SpecMismatch(
            f"expected booleans, integers or real numbers, got dtype {dtype}",
            file=file,
            key=key,
            hint="convert the array",
        )


def check_vector(key: str, shape: tuple[int, ...], file: File = None) -> None:
    """Raise ShapeError unless the shape is (N,) or (N, 1)."""
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
        raise ShapeError(
            f"expected shape (N,) or (N, 1), got {shape}",
            file=file,
            key=key,
            hint="write one number per step",
        )


def read_flags(key: str, values: Array, file: File = None) -> NDArray[np.bool_]:
    """Return (N,) or (N, 1) values that are all 0 or 1 as booleans (N,).

    Raises:
        ShapeError: another shape or another value, with the first index.
        SpecMismatch: no numbers.
    """
    check_numeric(key, values.dtype, file)
    check_vector(key, values.shape, file)
    flags = values.reshape(-1)
    wrong = (flags != 0) & (flags != 1)
    if wrong.any():
        index = int(wrong.argmax())
        raise ShapeError(
            f"expected flags 0 or 1, got {flags[index]}",
            file=file,
            key=key,
            index=index,
            hint="write 1 where an episode ends and 0 elsewhere",
        )
    return flags.astype(np.bool_)


def flat_rows(values: Array) -> Array:
    """Return (N, M) for (N, ...), also where N is 0."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def broken_rows(values: Array) -> NDArray[np.bool_]:
    """Return (N,) whether each row of (N, ...) holds NaN or infinity."""
    if values.dtype.kind != "f":
        return np.zeros(len(values), np.bool_)
    return np.asarray(~np.isfinite(flat_rows(values)).all(1))


def check_finite(key: str, values: Array, file: File = None, offset: int = 0) -> None:
    """Raise NonFinite with the number of broken rows of (N, ...) and the first of them."""
    broken = broken_rows(values)
    if broken.any():
        raise_nonfinite(key, int(broken.sum()), offset + int(broken.argmax()), file)


def raise_nonfinite(key: str, count: int, index: int, file: File = None) -> None:
    """Raise NonFinite for `count` rows, the first of which is `index`."""
    raise NonFinite(
        f"expected finite numbers, got NaN or infinity in {count} rows",
        file=file,
        key=key,
        index=index,
        hint="repair or leave out the episodes that hold them",
    )


def check_spec(
    key: str, shape: tuple[int, ...], dtype: np.dtype[Any], spec: ArraySpec, file: File = None
) -> None:
    """Raise SpecMismatch unless rows have the declared shape and kind of numbers.

    All floating widths count as one kind, all integers but uint8 as another; uint8 is that of
    pictures and matches itself only.

    Args:
        key: what the array is called.
        shape: of one row.
        dtype: of the array.
        spec: what was declared.
        file: for the message.
    """
    expected = np.dtype(spec.dtype)
    if tuple(shape) != tuple(spec.shape) or _kind(dtype) != _kind(expected):
        raise SpecMismatch(
            f"expected rows of shape {tuple(spec.shape)} and dtype {spec.dtype},"
            f" got {tuple(shape)} and {dtype}",
            file=file,
            key=key,
            hint="use the data of this environment, or correct the declared space",
        )


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype == np.uint8:
        return "uint8"
    return "integer" if dtype.kind in "iu" else dtype.kind


def check_actions(
    actions: Array, spec: ArraySpec | None, file: File = None, offset: int = 0
) -> int:
    """Return how many rows of actions exceed their bounds by no more than rounding.

    Args:
        actions: (N, A) floats or (N,), (N, A) choices.
        spec: bounds or number of choices; None checks only that choices are not negative.
        file: for the message.
        offset: number of the first row.

    Raises:
        ActionRange: an action outside its bounds by more than 1e-3, or no valid choice.
    """
    choices = None if spec is None else spec.num_choices
    if choices is not None or actions.dtype.kind in "iu":
        _check_choices(actions, choices, file, offset)
        return 0
    if spec is None or (spec.low is None and spec.high is None):
        return 0
    excess = action_excess(actions, spec)
    wrong = excess > ACTION_SLACK
    if wrong.any():
        index = int(wrong.argmax())
        raise ActionRange(
            f"expected actions within their bounds, got an excess of {excess[index]:.6g}"
            f" ({int(wrong.sum())} rows)",
            file=file,
            key="actions",
            index=offset + index,
            hint="rescale them, or read with repair='clip_actions'",
        )
    return int((excess > 0).sum())


def action_excess(actions: Array, spec: ArraySpec) -> NDArray[np.float64]:
    """Return (N,) how far each row of (N, A) lies outside the bounds, 0 inside."""
    low = -np.inf if spec.low is None else spec.low
    high = np.inf if spec.high is None else spec.high
    over = np.maximum(low - actions.astype(np.float64), actions.astype(np.float64) - high)
    return np.maximum(flat_rows(over).max(1, initial=0.0), 0.0)


def _check_choices(
    actions: Array, choices: tuple[int, ...] | None, file: File, offset: int
) -> None:
    wrong = actions < 0
    if choices is not None:
        wrong = wrong | (actions >= np.asarray(choices).reshape(actions.shape[1:]))
    if actions.dtype.kind == "f":
        wrong = wrong | (actions != np.floor(actions))
    rows = flat_rows(wrong).any(1)
    if rows.any():
        index = int(rows.argmax())
        limit = "" if choices is None else f" below {', '.join(map(str, choices))}"
        raise ActionRange(
            f"expected whole numbers from 0{limit}, got {actions[index]}",
            file=file,
            key="actions",
            index=offset + index,
            hint="count choices from 0",
        )


def check_episode_lengths(
    lengths: NDArray[np.int64], max_episode_steps: int | None, file: File = None
) -> None:
    """Raise EpisodeTooLong for the first of the episodes (E,) that is over the limit."""
    if max_episode_steps is None:
        return
    wrong = lengths > max_episode_steps
    if wrong.any():
        index = int(wrong.argmax())
        raise EpisodeTooLong(
            f"expected at most {max_episode_steps} steps, got {lengths[index]}",
            file=file,
            key="episode",
            index=index,
            hint="an end is not marked, or max_episode_steps is too small",
        )


def check_some_episodes(num_episodes: int, file: File = None, hint: str = "") -> None:
    """Raise EmptyDataset unless there is an episode."""
    if num_episodes < 1:
        raise EmptyDataset("expected at least one episode, got none", file=file, hint=hint)


def check_window(longest: int, length: int, file: File = None) -> None:
    """Raise EmptyDataset if no episode fills a window of `length` rows."""
    if longest < length:
        raise EmptyDataset(
            f"expected an episode of at least {length} steps, got at most {longest}",
            file=file,
            hint="use a shorter window, or padding='right'",
        )


def check_alignment(wrong: int, compared: int, first: int, file: File = None) -> None:
    """Raise Misaligned if more than 0.1 % of the compared steps differ.

    Args:
        wrong: steps i whose next_observations[i] is not observations[i + 1].
        compared: steps that were compared.
        first: the first wrong one.
        file: for the message.
    """
    if wrong > ALIGNMENT_SHARE * compared:
        raise Misaligned(
            f"expected the observations of the next step, got {wrong} of {compared} that differ"
            f" by more than {ALIGNMENT_ERROR:g}",
            file=file,
            key="next_observations",
            index=first,
            hint="an end is not marked, or the rows were shuffled",
        )


def check_jumps(
    positions: Array, inside: NDArray[np.bool_], file: File = None, offset: int = 0
) -> None:
    """Raise MissingBoundary where a position jumps inside an episode.

    Args:
        positions: (N, 2) x and y.
        inside: (N - 1,) whether rows i and i + 1 belong to one episode.
        file: for the message.
        offset: number of the first row.
    """
    distance = np.linalg.norm(np.diff(positions.astype(np.float64), axis=0), axis=1)
    wrong = (distance > MAZE_JUMP) & inside
    if wrong.any():
        index = int(wrong.argmax())
        raise MissingBoundary(
            f"expected steps of at most {MAZE_JUMP:g} in a maze, got {distance[index]:.4g} inside"
            " an episode",
            file=file,
            key="observations",
            index=offset + index,
            hint="its end is not marked: use the v2 file, or correct timeouts",
        )


def warn_of_constants(std: Mapping[str, Array], file: File = None) -> None:
    """Warn of observation entries that never change; a normaliser divides by their std, 0."""
    for key, values in std.items():
        constant = np.flatnonzero(np.asarray(values) == 0)
        if len(constant):
            shown = ", ".join(map(str, constant[:_SHOWN]))
            shown += ", ..." if len(constant) > _SHOWN else ""
            warn(f"observations/{key}: {len(constant)} constant entries ({shown})", file)


def warn_of_repeats(signatures: list[bytes], file: File = None) -> None:
    """Warn of episodes whose first, middle and last rows equal those of an earlier one."""
    seen: set[bytes] = set()
    repeated = []
    for index, signature in enumerate(signatures):
        if signature in seen:
            repeated.append(index)
        seen.add(signature)
    if repeated:
        warn(
            f"episode[{repeated[0]}]: {len(repeated)} of {len(signatures)} episodes repeat an"
            " earlier one: the same steps may have been written twice",
            file,
        )


def warn(problem: str, file: File = None) -> None:
    """Issue a DatasetWarning of one line."""
    prefix = "" if file is None else f"{file}: "
    warnings.warn(DatasetWarning(prefix + problem), stacklevel=2)


def check_memory(
    required: int, budget: int, file: File = None, *, lazily: str = "read with mode='lazy'"
) -> None:
    """Raise MemoryBudget if `required` bytes are more than `budget`; `lazily` says how else."""
    if required > budget:
        raise MemoryBudget(
            f"expected at most {budget / 2**20:.3g} MiB, got {required / 2**20:.3g} MiB",
            file=file,
            hint=f"{lazily}, or raise memory_budget",
        )


def check_env(
    dataset_env: str | None, env_id: str, *, mismatch: str = "error", file: File = None
) -> None:
    """Raise EnvMismatch if the data are of another environment than `env_id`.

    Args:
        dataset_env: environment of the data; None is not known and passes.
        env_id: environment of the evaluation.
        mismatch: "error", or "warn" to go on with a warning.
        file: for the message.
    """
    if dataset_env is None or dataset_env == env_id:
        return
    if mismatch == "warn":
        warn(f"env_id: the data are of {dataset_env}, the evaluation of {env_id}", file)
        return
    raise EnvMismatch(
        f"expected data of {env_id}, got {dataset_env}",
        file=file,
        key="env_id",
        hint="evaluate on the environment of the data, or allow the mismatch",
    )


def check_return_settings(*, scale: float, targets: Collection[float], discount: float) -> None:
    """Raise DataConfigError for settings of return conditioning that cannot work.

    Args:
        scale: returns are divided by it, > 0.
        targets: initial returns to ask for, at least one, each finite.
        discount: in (0, 1].
    """
    if not (np.isfinite(scale) and scale > 0):
        raise DataConfigError(f"expected a finite number > 0, got {scale}", key="scale")
    if not targets or not all(np.isfinite(target) for target in targets):
        raise DataConfigError(
            f"expected one or more finite returns, got {list(targets)}", key="targets"
        )
    check_discount(discount)


def check_choice(key: str, value: str, allowed: Collection[str]) -> None:
    """Raise DataConfigError unless a setting is one of the allowed words."""
    if value not in allowed:
        raise DataConfigError(f"expected one of {', '.join(allowed)}, got {value!r}", key=key)


def check_discount(discount: float) -> None:
    """Raise DataConfigError unless the discount is in (0, 1]."""
    if not 0 < discount <= 1:
        raise DataConfigError(f"expected a number in (0, 1], got {discount}", key="discount")
