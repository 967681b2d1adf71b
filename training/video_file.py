"""Writing of videos: frames one by one into an MP4 or a GIF."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from statewise.envs.protocol import EnvError
from statewise.training.run import RunError
from statewise.training.schema import ConfigError

Frame = NDArray[np.uint8]

MIN_HEIGHT = 192  # pixels; smaller frames are enlarged by a whole factor
SHORTEST_MS = 20  # of a frame of a GIF: what is shorter is shown far too long


def check_ending(path: Path) -> None:
    """Check that a video can be written to a path.

    Raises:
        ConfigError: its ending is not among those of `WRITERS`.
    """
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(f"--video: expected a file ending in {' or '.join(WRITERS)}, got {path}")


def write_video(path: Path, frames: Iterable[Frame], fps: float) -> None:
    """Write frames; the file holds the whole old or the whole new video at any time.

    Args:
        path: its ending chooses the format; its folder is made.
        frames: at least one, all (Y, X, 3) of one size.
        fps: frames per second, > 0.

    Raises:
        ConfigError: another ending.
        EnvError: a frame is no picture, or of another size than the first.
        RunError: the file cannot be written.
    """
    check_ending(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix.lower()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            WRITERS[temporary.suffix](temporary, _same_size(frames), fps)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise RunError(f"the video {path} cannot be written: {reason}") from error


def _same_size(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield frames, large enough to be looked at, once they are known to be pictures."""
    first: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        picture = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
        if not picture or frame.shape[2] != 3:
            got = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
            raise EnvError(
                f"expected frames (Y, X, 3) of bytes from render(), got {np.shape(frame)} of {got}"
                f" in frame {number}: the environment is at fault"
            )
        first = first or frame.shape
        if frame.shape != first:
            raise EnvError(
                f"expected frames of one size, {first}, from render(), got {frame.shape} in frame "
                f"{number}: the environment is at fault"
            )
        factor = max(1, -(-MIN_HEIGHT // frame.shape[0]))
        yield frame.repeat(factor, 0).repeat(factor, 1) if factor > 1 else frame


def _write_mp4(path: Path, frames: Iterator[Frame], fps: float) -> None:
    first = next(frames)
    # H.264 takes even sizes alone: the last row or column is shown twice.
    edge = ((0, first.shape[0] % 2), (0, first.shape[1] % 2), (0, 0))
    height, width = (first.shape[axis] + edge[axis][1] for axis in (0, 1))
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, macro_block_size=1, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for frame in chain([first], frames):
            writer.send(np.ascontiguousarray(np.pad(frame, edge, mode="edge")))
    finally:
        writer.close()


def _write_gif(path: Path, frames: Iterator[Frame], fps: float) -> None:
    shown_ms = max(SHORTEST_MS, round(1000 / fps))
    how: dict[str, Any] = {"is_batch": False, "bits": 8, "duration": shown_ms, "loop": 0}
    with imageio.imopen(path, "w", plugin="pillow", extension=".gif") as file:
        for frame in frames:
            file.write(frame, **how)


WRITERS: dict[str, Callable[[Path, Iterator[Frame], float], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
}
"""By the ending of the file."""
