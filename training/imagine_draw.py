"""Drawing of imagined episodes: moving pictures as a GIF, everything else as curves.

In a GIF every row of a picture's episode is a frame:

    truth | what the model says | difference, grey where there is none

The frame of the middle panel and the bar below are blue while observations are seen and orange
where they are imagined.
"""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from statewise.training.imagine import Floats, Scene, pictures
from statewise.training.plot import COLORS
from statewise.training.run import RunError
from statewise.training.schema import ConfigError
from statewise.worldmodels.entries import Entry

Bytes = NDArray[np.uint8]

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)
GREY, WHITE = (230, 230, 230), (255, 255, 255)
SIDE = 192  # pixels, at least, of a picture that is shown
EDGE, LABEL, GAP = 6, 22, 8  # pixels: of a frame, the words above, between panels
FRAME_MS = 120
MOST_LINES = 8  # numbers that are drawn as lines; more become a map
MAPS = {"truth": "truth", "said": "model", "error": "|error|"}
STYLES: dict[str, dict[str, Any]] = {
    "truth": {"linewidth": 3.5, "alpha": 0.3},
    "reconstruction": {"linewidth": 1.0, "linestyle": "--"},
    "imagination": {"linewidth": 1.8},
}


def draw(
    scenes: Sequence[Scene], entries: Sequence[Entry], *, out: Path | None, folder: Path
) -> Path:
    """Draw episodes and return the path of the figure.

    Args:
        scenes: at least one.
        entries: of the observations.
        out: ends in .gif or .png; None is `imagine.gif` in the folder where there are pictures,
            else `imagine.png`.
        folder: made if it is missing.

    Raises:
        ConfigError: another ending, or a GIF without pictures.
        RunError: the file cannot be written.
    """
    moving = pictures(entries)
    path = out or folder / ("imagine.gif" if moving else "imagine.png")
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".png"):
        raise ConfigError(f"imagine: expected --out ending in .gif or .png, got {path}")
    if suffix == ".gif" and not moving:
        keys = ", ".join(entry.key for entry in entries)
        raise ConfigError(
            f"imagine: expected pictures for {path.name}, got numbers alone ({keys}): pass --out"
            " NAME.png for curves"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".gif":
            frames = make_frames(scenes, moving)
            imageio.imwrite(path, frames, extension=".gif", duration=FRAME_MS, loop=0)
        else:
            make_curves(scenes, entries).savefig(path)
    except OSError as error:
        raise RunError(f"the figure {path} cannot be written: {error.strerror or error}") from error
    return path


def make_frames(scenes: Sequence[Scene], moving: Sequence[Entry]) -> Bytes:
    """Return frames (n, Y, X, 3), episodes below each other; what is over keeps its last frame."""
    strips = [
        scene_frames(scene, number, entry)
        for number, scene in enumerate(scenes)
        for entry in moving
    ]
    num = max(len(strip) for strip in strips)
    width = max(strip.shape[2] for strip in strips)
    padded = []
    for strip in strips:
        rows = np.minimum(np.arange(num), len(strip) - 1)
        pad = ((0, 0), (0, 0), (0, width - strip.shape[2]), (0, 0))
        padded.append(np.pad(strip[rows], pad, constant_values=255))
    return np.concatenate(padded, 1)


def scene_frames(scene: Scene, number: int, entry: Entry) -> Bytes:
    """Return frames (n, Y, X, 3) of a picture of an episode."""
    key, C = entry.key, scene.context
    truth = scene.truth.obs[key]
    said = scene.said(key)
    difference: Floats = (said - truth + np.float32(1)) / np.float32(2)
    panels = [_colours(entry, x) for x in (truth, said, difference)]
    frames = []
    for t, row in enumerate(zip(*panels, strict=True)):
        color = BLUE if t < C else ORANGE
        words = "seen: reconstruction" if t < C else "imagined"
        edges = (GREY, color, GREY)
        labels = (f"episode {number}, row {t}: truth", words, "difference")
        columns = [
            _panel(x, edge, label) for x, edge, label in zip(row, edges, labels, strict=True)
        ]
        gap = np.full((columns[0].shape[0], GAP, 3), 255, np.uint8)
        wide = np.concatenate([columns[0], gap, columns[1], gap, columns[2]], 1)
        frames.append(np.concatenate((wide, _timeline(wide.shape[1], t, C, len(truth)))))
    return np.stack(frames)


def _colours(entry: Entry, x: Floats) -> Bytes:
    """Turn pictures (n, *shape) in [0, 1] into (n, Y, X, 3), large enough to be looked at.

    Of channels other than 1 or 3 the last one is shown: the newest of a stack.
    """
    x = x if entry.is_channel_last else np.moveaxis(x, 1, -1)
    x = x if entry.channels == 3 else np.repeat(x[..., -1:], 3, -1)
    factor = max(1, -(-SIDE // x.shape[1]))
    x = x.repeat(factor, 1).repeat(factor, 2)
    return np.asarray(np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def _panel(x: Bytes, edge: tuple[int, int, int], label: str) -> Bytes:
    """Return a picture (Y, X, 3) in a frame, with words above."""
    framed = np.empty((x.shape[0] + 2 * EDGE, x.shape[1] + 2 * EDGE, 3), np.uint8)
    framed[:] = edge
    framed[EDGE:-EDGE, EDGE:-EDGE] = x
    return np.concatenate((_words(label, framed.shape[1]), framed))


@cache
def _words(text: str, width: int) -> Bytes:
    """Return black words on white, (LABEL, width, 3)."""
    figure = Figure(figsize=(width / 100, LABEL / 100), dpi=100)
    FigureCanvasAgg(figure)
    figure.text(0.02, 0.25, text, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="rgba")
    drawn = np.frombuffer(file.getvalue(), np.uint8).reshape(LABEL, -1, 4)
    return drawn[:, :width, :3]


def _timeline(width: int, t: int, context: int, num: int) -> Bytes:
    """Return a bar (2 EDGE + GAP, width, 3): what is seen, what is imagined, and where t is."""
    bar = np.full((2 * EDGE + GAP, width, 3), 255, np.uint8)
    at = np.arange(width) * num // width
    bar[EDGE:-GAP] = np.where(at[:, None] < context, BLUE, ORANGE)
    bar[: EDGE * 2, at == t] = 0
    return bar


def make_curves(scenes: Sequence[Scene], entries: Sequence[Entry]) -> Figure:
    """Return a figure with a column per episode: observations, errors, reward and continue."""
    panels: list[tuple[str, Entry | None]] = []
    for each in entries:
        if each.kind != "picture":
            parts = ("lines",) if each.width <= MOST_LINES else tuple(MAPS)
            panels += [(part, each) for part in parts]
    panels += [("errors", None), ("reward", None), ("cont", None)]
    size = (5.5 * len(scenes) + 1, 2.1 * len(panels) + 1)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), len(scenes), squeeze=False)
    for column, scene in enumerate(scenes):
        for axes, (kind, entry) in zip(grid[:, column], panels, strict=True):
            _draw_panel(axes, scene, kind, entry, [each.key for each in entries])
            ink = "white" if kind in MAPS else "black"
            axes.axvline(scene.context - 0.5, color=ink, linestyle=":", linewidth=1.5)
            axes.set_xlim(-0.5, len(scene.truth.reward) - 0.5)
        words = f"episode {column}: {scene.context} rows seen, then imagined"
        grid[0, column].set_title(words, fontsize="medium")
        grid[-1, column].set_xlabel("row of the episode")
    handles = [Line2D([], [], color="black", label=name, **style) for name, style in STYLES.items()]
    handles.append(Line2D([], [], color="black", linestyle=":", label="imagination begins"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_panel(axes: Axes, scene: Scene, kind: str, entry: Entry | None, keys: list[str]) -> None:
    """Draw errors of all entries, reward, continue, or an entry as lines or a map."""
    if kind in MAPS:
        assert entry is not None
        _draw_map(axes, scene, entry, kind)
    elif kind == "errors":
        for number, key in enumerate(keys):
            seen, imagined = scene.errors(key)
            _draw_lines(axes, scene, (None, seen, imagined), COLORS[number % len(COLORS)])
            axes.plot([], [], color=COLORS[number % len(COLORS)], label=key)
        if len(keys) > 1:
            axes.legend(fontsize="x-small", edgecolor="none")
        axes.set_ylabel("mean square")
        axes.set_ylim(bottom=0)
    elif entry is None:
        values = [getattr(told, kind) for told in (scene.truth, scene.seen, scene.imagined)]
        _draw_lines(axes, scene, values, COLORS[0])
        axes.set_ylabel({"reward": "reward", "cont": "continues"}[kind])
    else:
        parts = [
            told.obs[entry.key].reshape(len(told.reward), -1)
            for told in (scene.truth, scene.seen, scene.imagined)
        ]
        for i in range(parts[0].shape[1]):
            _draw_lines(axes, scene, [part[:, i] for part in parts], COLORS[i % len(COLORS)])
        axes.set_ylabel(entry.key)


def _draw_lines(axes: Axes, scene: Scene, values: Sequence[Floats | None], color: str) -> None:
    """Draw truth, reconstruction and imagination of one number; None is left out."""
    for line, style, begin in zip(values, STYLES.values(), (0, 0, scene.context), strict=True):
        if line is not None:
            axes.plot(np.arange(begin, begin + len(line)), line, color=color, **style)


def _draw_map(axes: Axes, scene: Scene, entry: Entry, kind: str) -> None:
    """Draw many numbers as a picture: rows of the episode to the right, numbers down."""
    truth = scene.truth.obs[entry.key].reshape(len(scene.truth.reward), -1)
    said = scene.said(entry.key).reshape(truth.shape)
    values = {"truth": truth, "said": said, "error": np.abs(said - truth)}[kind]
    low, high = (0.0, None) if kind == "error" else (float(truth.min()), float(truth.max()))
    axes.imshow(
        values.T, aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high
    )
    axes.set_ylabel(f"{entry.key}\n{MAPS[kind]}")
