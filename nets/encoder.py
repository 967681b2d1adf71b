"""From a flat dictionary of observations to one feature vector per step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.heads import ACTIVATIONS, GAIN_HIDDEN, Activation, mlp, orthogonal

MIN_SIDE = 8  # pixels; smaller grids are flattened, and no convolution reads a smaller map


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of an `Encoder`.

    Raises:
        ValueError: a field is out of its range.
    """

    hidden: tuple[int, ...] = (64, 64)  # widths, at least one, each >= 1; the last is d_out
    channels: tuple[int, ...] = (16, 32, 32)  # of the convolutions, at least one, each >= 1
    activation: Activation = "leaky_relu"  # after every layer, the last one included

    def __post_init__(self) -> None:
        for name in ("hidden", "channels"):
            sizes = getattr(self, name)
            if not sizes or min(sizes) < 1:
                raise ValueError(f"{name}: expected one or more sizes >= 1, got {sizes}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )


def is_image(space: spaces.Space[Any]) -> bool:
    """Return whether a space is read by convolutions.

    That is a uint8 Box with three axes whose two picture axes have 8 pixels or more.
    """
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and min(_picture_shape(space.shape)[1:]) >= MIN_SIDE
    )


def _picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width) of a channel-first or channel-last shape."""
    first, middle, last = shape
    return (first, middle, last) if first < last else (last, first, middle)


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Return the shape of a leaf space, () for Discrete."""
    return space.shape or ()


def _check(key: str, space: spaces.Space[Any]) -> None:
    """Raise ValueError unless the entry is a leaf space with something in it."""
    leaves = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, leaves) or math.prod(_shape(space)) == 0:
        raise ValueError(
            f"obs_space[{key!r}]: expected a non-empty Box, Discrete, MultiDiscrete or "
            f"MultiBinary space, got {space}: flatten or wrap the environment"
        )


def _refuse_channels(config: EncoderConfig, keys: Iterable[str]) -> None:
    """Raise ValueError if there are convolutions to be sized, where no entry is a picture."""
    usual = EncoderConfig.channels
    if config.channels != usual:
        raise ValueError(
            f"encoder.channels: would be ignored without pictures among the observations "
            f"({', '.join(keys)}), got {config.channels}: leave it at {usual}"
        )


def _counts(space: spaces.Space[Any]) -> list[int]:
    """Return the number of categories of each index in a space; empty if it holds numbers."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.flatten()]
    return []


def _entries(leaves: dict[str, spaces.Space[Any]]) -> list[tuple[str, int, int]]:
    """Return name, number of axes and number of elements of each entry."""
    return [(key, len(_shape(s)), math.prod(_shape(s))) for key, s in leaves.items()]


def _flatten(x: Tensor, num_axes: int, width: int) -> Tensor:
    """Turn the last `num_axes` axes into one of this width."""
    if num_axes == 1:
        return x
    return x.reshape(*x.shape[: x.ndim - num_axes], width)


class _Image(nn.Module):
    """Pictures of bytes to features: convolutions of stride 2, then one linear layer.

    Each convolution halves the sides (rounding up). Those that would read a map with a side
    under 8 pixels are left out, so small pictures use only the first of `channels`.
    """

    def __init__(self, shape: tuple[int, ...], config: EncoderConfig) -> None:
        super().__init__()
        self.is_channel_last = shape[0] >= shape[2]
        self.activation = ACTIVATIONS[config.activation]
        depth, height, width = _picture_shape(shape)
        self.convolutions = nn.ModuleList()
        for channels in config.channels:
            if min(height, width) < MIN_SIDE:
                break
            convolution = nn.Conv2d(depth, channels, kernel_size=3, stride=2, padding=1)
            self.convolutions.append(orthogonal(convolution, GAIN_HIDDEN))
            depth, height, width = channels, (height + 1) // 2, (width + 1) // 2
        self.d_out = config.hidden[-1]
        self.linear = orthogonal(nn.Linear(depth * height * width, self.d_out), GAIN_HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:])
        if self.is_channel_last:
            x = x.permute(0, 3, 1, 2)
        x = x.to(self.linear.weight.dtype) / 255.0
        for convolution in self.convolutions:
            x = self.activation(convolution(x))
        return self.activation(self.linear(x.flatten(1))).reshape(*lead, self.d_out)


class Encoder(nn.Module):
    """Map a dictionary of observations to features (..., d_out).

    | entry | read as |
    | --- | --- |
    | Discrete, MultiDiscrete | one-hot; values count from 0, whatever `start` says |
    | MultiBinary, Box | flattened floats, not scaled |
    | uint8 Box with three axes, both picture sides >= 8 | picture: / 255, convolutions |

    The channel axis of a picture is the shorter one of its first and last axis (the last if
    they are equal), so frame stacks of any depth below the picture's side work in both layouts.
    All entries are joined (vectors, one-hot vectors, pictures; by name within each) and read
    by a fully connected network with orthogonal weights of gain sqrt(2) and zero biases.

    Args:
        obs_space: of one environment; every entry is a leaf space.
        config: sizes.

    Raises:
        ValueError: an entry, or the space itself, cannot be read; names the entry. Or `channels`
            are not the defaults and there are no pictures.
    """

    _starts: Tensor

    def __init__(self, obs_space: spaces.Dict, config: EncoderConfig) -> None:
        super().__init__()
        if not isinstance(obs_space, spaces.Dict) or not obs_space.spaces:
            raise ValueError(f"obs_space: expected a Dict with entries, got {obs_space}")
        leaves = dict(sorted(obs_space.spaces.items()))
        for key, space in leaves.items():
            _check(key, space)
        counts = [n for space in leaves.values() for n in _counts(space)]
        images = {key: s for key, s in leaves.items() if is_image(s)}
        if not images:
            _refuse_channels(config, leaves)
        self._vectors = _entries(
            {key: s for key, s in leaves.items() if key not in images and not _counts(s)}
        )
        self._indices = _entries({key: s for key, s in leaves.items() if _counts(s)})
        self._num_categories = sum(counts)
        # All one-hot vectors lie side by side; each index is moved to the start of its own.
        starts = torch.tensor([0, *counts]).cumsum(0)[:-1].clone()  # no view: exports save storages
        self.register_buffer("_starts", starts, persistent=False)
        self._image_keys = list(images)
        self.images = nn.ModuleList(_Image(_shape(s), config) for s in images.values())

        self.d_out = config.hidden[-1]
        d_in = sum(width for _, _, width in self._vectors)
        d_in += self._num_categories + self.d_out * len(images)
        self.activation = ACTIVATIONS[config.activation]
        self.layers = mlp(
            d_in,
            config.hidden[:-1],
            self.d_out,
            activation=config.activation,
            gain_out=GAIN_HIDDEN,
        )

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Encode observations.

        Args:
            obs: (..., *shape) per entry, the leading axes alike in all; entries that the space
                does not have are ignored.

        Returns:
            Features (..., d_out) in the dtype of the parameters.
        """
        parts = []
        for key, num_axes, width in self._vectors:
            x = _flatten(obs[key], num_axes, width)
            parts.append(x if x.is_floating_point() else x.float())
        if self._indices:
            parts.append(self._one_hot(obs))
        parts += [image(obs[key]) for key, image in zip(self._image_keys, self.images, strict=True)]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return self.activation(self.layers(joined))

    def _one_hot(self, obs: dict[str, Tensor]) -> Tensor:
        """Return the one-hot vectors of all indices, (..., number of categories)."""
        indices = [_flatten(obs[key], axes, width).long() for key, axes, width in self._indices]
        index = indices[0] if len(indices) == 1 else torch.cat(indices, -1)
        if index.shape[-1] > 1:
            index = index + self._starts
        zeros = index.new_zeros((*index.shape[:-1], self._num_categories), dtype=torch.float32)
        return zeros.scatter_(-1, index, 1.0)
