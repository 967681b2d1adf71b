"""DQN replay (Atari): frames, actions, rewards and ends of games as a replay buffer wrote them.

Paper: Agarwal et al. 2020, "An Optimistic Perspective on Offline Reinforcement Learning".

    <Game>/<run>/replay_logs/$store$_observation_ckpt.K.gz   (N, 84, 84) uint8, one frame a step
                             $store$_action_ckpt.K.gz        (N,)
                             $store$_reward_ckpt.K.gz        (N,)
                             $store$_terminal_ckpt.K.gz      (N,)    the game was over

Each is a gzip'ed array of numpy; K = 0, 1, ... in the order of training. An observation is the
last frames, oldest first, with zeros before the first one of its episode.

A checkpoint has 1,000,000 steps, 7 GB unpacked, and gzip can only be read from the front. So the
first steps of each are unpacked, and no more than asked for.

Deviations:
    An episode that began in the checkpoint before, or had not ended where reading stops, is
    dropped unless asked for. A damaged file is noticed as far as it is read.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from statewise.data import checks
from statewise.data.episode import Array, ArraySpec, DatasetInfo
from statewise.data.errors import (
    DataConfigError,
    DatasetCorrupt,
    DatasetError,
    DatasetNotFound,
    EmptyDataset,
    LengthMismatch,
    MemoryBudget,
    PickleRefused,
    SpecMismatch,
)
from statewise.data.files import one_line
from statewise.data.memory import Index

Fragments = Literal["drop", "keep"]

_FIELDS = ("observation", "action", "reward", "terminal")
_FORMS = {
    "observation": (3, "u"),
    "action": (1, "iu"),
    "reward": (1, "biuf"),
    "terminal": (1, "biu"),
}
_NAME = re.compile(r"\$store\$_observation_ckpt\.(\d+)\.gz")
_BLOCK = 2**20  # bytes that are unpacked at a time


class DqnReplaySource:
    """An `EpisodeSource` of single frames in memory, stacked when they are read.

    Args:
        frames: (N, height, width) uint8 of all steps.
        actions: (N,).
        rewards: (N,).
        spans: the episodes.
        stack: frames of an observation, >= 1.
        info: what is known beside the steps.
    """

    def __init__(
        self,
        *,
        frames: Array,
        actions: Array,
        rewards: Array,
        spans: Sequence["_Span"],
        stack: int,
        info: DatasetInfo,
    ) -> None:
        self.info = info
        self.names: tuple[str, ...] = ("observations/obs", "actions", "rewards")
        self._begins: Index = np.array([span.begin for span in spans], np.int64)
        self.lengths: Index = np.array([span.end for span in spans], np.int64) - self._begins
        self.terminated: NDArray[np.bool_] = np.array([span.terminated for span in spans], np.bool_)
        self.truncated: NDArray[np.bool_] = ~self.terminated
        self.has_final: NDArray[np.bool_] = np.zeros(len(spans), np.bool_)
        self._frames, self._stack = frames, stack
        self._rows = {"actions": actions, "rewards": rewards}

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows begin .. end - 1 of an array of episode `index`, a copy.

        Observations are (n, stack, height, width).
        """
        first = int(self._begins[index])
        end = max(begin, min(end, int(self.lengths[index])))
        if name != "observations/obs":
            return self._rows[name][first + begin : first + end].copy()
        steps = np.arange(begin, end)[:, None] + np.arange(1 - self._stack, 1)
        stacked = self._frames[first + np.maximum(steps, 0)]
        stacked[steps < 0] = 0
        return stacked


def read_dqn_replay(
    folder: Path | str,
    *,
    checkpoints: Sequence[int] | None = None,
    max_steps: int = 100_000,
    stack: int = 4,
    memory_limit: int = 2**30,
    num_actions: int | None = None,
    fragments: Fragments = "drop",
) -> DqnReplaySource:
    """Read the first steps of some checkpoints; nothing more of them is unpacked.

    Args:
        folder: with the files, or with replay_logs.
        checkpoints: which, >= 0; None means all that are there.
        max_steps: steps in all, >= 1; each checkpoint gives an equal share.
        stack: frames of an observation, >= 1.
        memory_limit: bytes that the steps may need.
        num_actions: choices of the game, which the files do not say.
        fragments: "keep" also gives games whose beginning is not there, and those whose end is
            not there, as truncated.

    Returns:
        An `EpisodeSource`. No final observation is known.

    Raises:
        DatasetNotFound, DatasetCorrupt, PickleRefused: a file that cannot be read.
        LengthMismatch, SpecMismatch, ShapeError, ActionRange, NonFinite: arrays that are not
            what they should be.
        MemoryBudget: more than `memory_limit` bytes were asked for.
        EmptyDataset: no whole episode.
        DataConfigError: a setting that cannot be used.
    """
    checks.check_choice("fragments", fragments, get_args(Fragments))
    for key, value in {
        "max_steps": max_steps,
        "stack": stack,
        "memory_limit": memory_limit,
    }.items():
        if value < 1:
            raise DataConfigError(f"expected at least 1, got {value}", key=key)
    folder = _find(Path(folder))
    wanted = _checkpoints(folder, checkpoints)
    share = max_steps // len(wanted)
    if share < 1:
        problem = f"expected a step of each of {len(wanted)} checkpoints, got {max_steps}"
        raise DataConfigError(problem, key="max_steps")
    headers = [_headers(folder, number) for number in wanted]
    counts = [min(share, each["observation"].shape[0]) for each in headers]
    _check_memory(headers, counts, memory_limit, folder)
    info = DatasetInfo(
        obs_specs={"obs": _observation_spec(headers, stack)},
        action_spec=ArraySpec(
            (), "int64", num_choices=None if num_actions is None else (num_actions,)
        ),
        source=str(folder),
        generator={"checkpoints": wanted, "steps": counts},
    )
    total = sum(counts)
    frames = np.empty((total, *headers[0]["observation"].shape[1:]), np.uint8)
    actions, rewards = np.empty(total, np.int64), np.empty(total, np.float32)
    spans: list[_Span] = []
    begin = 0
    for number, header, count in zip(wanted, headers, counts, strict=True):
        here = slice(begin, begin + count)
        terminal = _fill(header, frames[here], actions[here], rewards[here], info)
        spans += _spans(terminal, begin, is_continued=number > 0, fragments=fragments)
        begin += count
    if not spans:
        hint = "raise max_steps, or read with fragments='keep'"
        raise EmptyDataset(f"expected an episode in {total} steps", file=folder, hint=hint)
    return DqnReplaySource(
        frames=frames, actions=actions, rewards=rewards, spans=spans, stack=stack, info=info
    )


def _find(folder: Path) -> Path:
    for candidate in (folder, folder / "replay_logs"):
        if candidate.is_dir() and any(_NAME.fullmatch(file.name) for file in candidate.iterdir()):
            return candidate
    raise DatasetNotFound("expected $store$_observation_ckpt.K.gz, got none", file=folder)


def _checkpoints(folder: Path, asked: Sequence[int] | None) -> list[int]:
    matches = (_NAME.fullmatch(file.name) for file in folder.iterdir())
    present = sorted(int(match[1]) for match in matches if match)
    wanted = present if asked is None else list(asked)
    if not wanted or len(set(wanted)) < len(wanted):
        problem = f"expected one or more different numbers, got {wanted}"
        raise DataConfigError(problem, key="checkpoints")
    for number in wanted:
        if number not in present:
            problem = f"expected checkpoint {number}, got {', '.join(map(str, present))}"
            raise DatasetNotFound(problem, file=folder, hint="choose one of these")
    return wanted


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What the beginning of a file says about its array."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Steps begin .. end - 1 of an episode."""

    begin: int
    end: int
    terminated: bool


def _headers(folder: Path, number: int) -> dict[str, _Header]:
    """Return the headers of a checkpoint's arrays, which must fit together."""
    found = {}
    for field in _FIELDS:
        file = folder / f"$store$_{field}_ckpt.{number}.gz"
        if not file.is_file():
            problem = "expected a file for each of observation, action, reward and terminal"
            raise DatasetNotFound(f"{problem}, got nothing", file=file)
        with _reading(file) as stream:
            found[field] = _header(stream, file)
    for field, header in found.items():
        axes, kinds = _FORMS[field]
        if len(header.shape) != axes or header.dtype.kind not in kinds:
            what = "(N, height, width) uint8" if axes == 3 else f"(N,) of kind {' or '.join(kinds)}"
            raise SpecMismatch(
                f"expected {what}, got {header.shape} {header.dtype}", file=header.file, key=field
            )
    steps = found["observation"].shape[0]
    for field, header in found.items():
        if header.shape[0] != steps:
            problem = f"expected {steps} rows as in observation, got {header.shape[0]}"
            hint = "get the files of this checkpoint again"
            raise LengthMismatch(problem, file=header.file, key=field, hint=hint)
    if found["observation"].dtype != np.uint8:
        raise SpecMismatch(
            f"expected uint8, got {found['observation'].dtype}",
            file=found["observation"].file,
            key="observation",
        )
    return found


@contextmanager
def _reading(file: Path) -> Iterator[BinaryIO]:
    """Open a gzip file for reading, with errors that name it."""
    try:
        with gzip.open(file, "rb") as stream:
            yield cast(BinaryIO, stream)
    except DatasetError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DatasetCorrupt(
            f"expected a whole gzip'ed array of numpy, got: {one_line(error)}",
            file=file,
            hint="get it again",
        ) from error


def _header(stream: BinaryIO, file: Path) -> _Header:
    """Read up to the first number of the array."""
    hint = "it could run any code: write the arrays with numpy.save(..., allow_pickle=False)"
    magic = stream.read(1)
    if magic == b"\x80":
        raise PickleRefused("expected an array of numpy, got a pickle", file=file, hint=hint)
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise PickleRefused("expected numbers, got Python objects", file=file, hint=hint)
    if is_fortran and len(shape) > 1:
        raise SpecMismatch("expected rows one after the other, got Fortran order", file=file)
    return _Header(file=file, shape=shape, dtype=dtype)


def _check_memory(
    headers: list[dict[str, _Header]], counts: list[int], limit: int, folder: Path
) -> None:
    """Check what all steps need: a frame, an action and a reward each."""
    shape = headers[0]["observation"].shape[1:]
    for each in headers:
        if each["observation"].shape[1:] != shape:
            problem = f"expected frames {shape}, got {each['observation'].shape[1:]}"
            raise SpecMismatch(problem, file=each["observation"].file, key="observation")
    per_step = int(np.prod(shape)) + 8 + 4
    if sum(counts) * per_step > limit:
        raise MemoryBudget(
            f"expected at most {limit / 2**20:.1f} MiB, got {sum(counts) * per_step / 2**20:.1f}",
            file=folder,
            hint=f"ask for max_steps={limit // per_step}, or raise memory_limit",
        )


def _observation_spec(headers: list[dict[str, _Header]], stack: int) -> ArraySpec:
    shape = (stack, *headers[0]["observation"].shape[1:])
    low, high = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
    return ArraySpec(shape, "uint8", low=low, high=high)


def _fill(
    header: dict[str, _Header],
    frames: Array,
    actions: Array,
    rewards: Array,
    info: DatasetInfo,
) -> NDArray[np.bool_]:
    """Unpack as many steps as there is room for, check them, and return which ended a game."""
    _unpack(header["observation"], frames)
    rows = {field: np.empty(len(frames), header[field].dtype) for field in _FIELDS[1:]}
    for field, values in rows.items():
        _unpack(header[field], values)
    rewards[:] = rows["reward"]
    checks.check_finite("reward", rewards, header["reward"].file)
    checks.check_actions(rows["action"], info.action_spec, header["action"].file)
    actions[:] = rows["action"]
    return checks.read_flags("terminal", rows["terminal"], header["terminal"].file)


def _unpack(header: _Header, out: Array) -> None:
    """Fill `out` with the first rows of an array, block by block."""
    if not len(out):
        raise EmptyDataset("expected steps, got none", file=header.file)
    target = out.reshape(-1).view(np.uint8)
    with _reading(header.file) as stream:
        _header(stream, header.file)
        position = 0
        while position < len(target):
            block = stream.read(min(_BLOCK, len(target) - position))
            if not block:
                problem = f"expected {len(target)} bytes of numbers, got {position}"
                raise DatasetCorrupt(problem, file=header.file, hint="get it again")
            target[position : position + len(block)] = np.frombuffer(block, np.uint8)
            position += len(block)
        # The checksum is compared where the stream ends.
        if len(out) == header.shape[0] and stream.read(1):
            raise DatasetCorrupt(f"expected {header.shape[0]} rows, got more", file=header.file)


def _spans(
    terminal: NDArray[np.bool_], offset: int, *, is_continued: bool, fragments: Fragments
) -> list[_Span]:
    """Cut (N,) steps after each end of a game.

    Args:
        terminal: whether the game was over.
        offset: number of the first step.
        is_continued: the first step may belong to a game that began before.
        fragments: what becomes of games whose beginning or end is not there.
    """
    ends = (np.flatnonzero(terminal) + 1).tolist()
    begins = [0, *ends]
    spans = [
        _Span(begin=offset + begin, end=offset + end, terminated=True)
        for begin, end in zip(begins, ends, strict=False)
    ]
    if fragments == "drop":
        return spans[1:] if is_continued else spans
    if begins[-1] < len(terminal):
        last = _Span(begin=offset + begins[-1], end=offset + len(terminal), terminated=False)
        spans.append(last)
    return spans
