"""What the entries of an observation are to a world model: pictures, numbers or indices.

| entry | is | the model sees |
| --- | --- | --- |
| uint8 Box with three axes, both picture sides >= 8 | a picture | bytes / 255 - 0.5 |
| any other Box | numbers | symlog, flattened |
| Discrete, MultiDiscrete, MultiBinary | indices | one-hot, `start` subtracted |

A bit is an index with two classes. The channel axis of a picture is the shorter one of its first
and last axis. Pictures are square; their side is one of `SIDES`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor

from statewise.nets.encoder import is_image

SMALLEST = 4  # pixels, side of a picture after the last convolution of stride 2
SIDES = (8, 16, 32, 64, 128)  # pixels, of pictures that can be read


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of an observation."""

    key: str
    kind: Literal["picture", "numbers", "indices"]
    shape: tuple[int, ...]  # of one observation
    nvec: tuple[int, ...] = ()  # classes of each index, flattened; empty for other kinds
    start: tuple[int, ...] = ()  # smallest value of each index, as many as in nvec

    @property
    def width(self) -> int:
        """Numbers of one flattened observation; one-hot vectors for indices."""
        return sum(self.nvec) if self.kind == "indices" else math.prod(self.shape)

    @property
    def is_channel_last(self) -> bool:
        """Whether a picture has its channels on the last axis."""
        return self.shape[0] >= self.shape[-1]

    @property
    def channels(self) -> int:
        """Channels of a picture."""
        return self.shape[-1] if self.is_channel_last else self.shape[0]

    @property
    def halvings(self) -> int:
        """How often a picture is halved until its side is `SMALLEST`."""
        return (self.shape[1] // SMALLEST).bit_length() - 1

    def lead(self, x: Tensor) -> tuple[int, ...]:
        """Return the leading axes of observations x (..., *shape).

        Raises:
            ValueError: x does not end in the axes of the space.
        """
        num_axes = x.ndim - len(self.shape)
        if num_axes < 0 or x.shape[num_axes:] != self.shape:
            raise ValueError(
                f"obs[{self.key!r}]: expected (..., {', '.join(map(str, self.shape))}) as in the "
                f"observation space, got {tuple(x.shape)}"
            )
        return tuple(x.shape[:num_axes])

    def flat(self, x: Tensor) -> Tensor:
        """Turn numbers (..., *shape) into (..., width)."""
        return x.reshape(*self.lead(x), self.width)

    def index(self, x: Tensor) -> Tensor:
        """Turn values (..., *shape) into int64 indices (..., len(nvec)) that count from 0."""
        index = x.reshape(*self.lead(x), len(self.nvec)).long()
        return index - index.new_tensor(self.start) if any(self.start) else index

    def one_hot(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Turn values (..., *shape) into joined one-hot vectors (..., width)."""
        index = self.index(x)
        if len(self.nvec) > 1:
            ends = index.new_tensor(self.nvec).cumsum(0)
            index = index + (ends - ends.new_tensor(self.nvec))
        zeros = index.new_zeros((*index.shape[:-1], self.width), dtype=dtype)
        return zeros.scatter_(-1, index, 1.0)

    def channels_first(self, x: Tensor) -> Tensor:
        """Turn pictures (..., *shape) into (n, C, Y, X), the leading axes joined."""
        self.lead(x)
        x = x.reshape(-1, *self.shape)
        return x.permute(0, 3, 1, 2) if self.is_channel_last else x

    def as_declared(self, x: Tensor, lead: tuple[int, ...]) -> Tensor:
        """Turn pictures (n, C, Y, X) into (*lead, *shape), the inverse of `channels_first`."""
        x = x.permute(0, 2, 3, 1) if self.is_channel_last else x
        return x.reshape(*lead, *self.shape)


def get_entry(obs: dict[str, Tensor], entry: Entry) -> Tensor:
    """Return an entry of observations.

    Raises:
        ValueError: it is missing.
    """
    if entry.key not in obs:
        raise ValueError(f"obs: expected an entry {entry.key!r}, got {', '.join(obs) or 'none'}")
    return obs[entry.key]


def _indices(key: str, space: spaces.Space[Any], nvec: list[int], start: list[int]) -> Entry:
    shape = space.shape or ()
    return Entry(key=key, kind="indices", shape=shape, nvec=tuple(nvec), start=tuple(start))


def _box(key: str, space: spaces.Box) -> Entry:
    if not is_image(space):
        return Entry(key=key, kind="numbers", shape=space.shape)
    entry = Entry(key=key, kind="picture", shape=space.shape)
    height, width = space.shape[:2] if entry.is_channel_last else space.shape[1:]
    if height != width or height not in SIDES:
        raise ValueError(
            f"obs_space[{key!r}]: expected a square picture with a side of one of {SIDES} pixels, "
            f"got {height} x {width}: set env.picture_size 64, or resize the pictures of the data"
        )
    return entry


def _entry(key: str, space: spaces.Space[Any]) -> Entry:
    if math.prod(space.shape or ()) == 0:
        raise ValueError(
            f"obs_space[{key!r}]: expected a space with something in it, got {space}: drop it"
        )
    match space:
        case spaces.Box():
            return _box(key, space)
        case spaces.Discrete():
            return _indices(key, space, [int(space.n)], [int(space.start)])
        case spaces.MultiDiscrete():
            start = space.start.flatten().tolist()
            return _indices(key, space, space.nvec.flatten().tolist(), start)
        case spaces.MultiBinary():
            bits = math.prod(space.shape)
            return _indices(key, space, [2] * bits, [0] * bits)
    raise ValueError(
        f"obs_space[{key!r}]: expected a Box, Discrete, MultiDiscrete or MultiBinary space, got "
        f"{space}: flatten or wrap the environment"
    )


def read_space(obs_space: spaces.Space[Any]) -> list[Entry]:
    """Return the entries of an observation space, by name.

    Args:
        obs_space: Dict of one environment; every entry is a leaf space.

    Raises:
        ValueError: the space or an entry cannot be modelled; names the entry.
    """
    if not isinstance(obs_space, spaces.Dict) or not obs_space.spaces:
        raise ValueError(f"obs_space: expected a Dict with entries, got {obs_space}")
    return [_entry(key, space) for key, space in sorted(obs_space.spaces.items())]
