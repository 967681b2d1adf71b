"""From a flat dictionary of observations to one feature vector per step."""

import math
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


def _build_part(key: str, space: spaces.Space[Any], config: EncoderConfig) -> nn.Module:
    """Return the module for one entry; each part has `d_out`."""
    match space:
        case spaces.Discrete():
            return _OneHot((int(space.n),), num_axes=0)
        case spaces.MultiDiscrete() if space.nvec.size > 0:
            nvec = tuple(int(n) for n in space.nvec.flatten())
            return _OneHot(nvec, num_axes=len(space.shape))
        case spaces.Box() if is_image(space):
            return _Image(space.shape, config)
        case spaces.Box() | spaces.MultiBinary() if math.prod(space.shape) > 0:
            return _Vector(space.shape)
        case _:
            raise ValueError(
                f"obs_space[{key!r}]: expected a non-empty Box, Discrete, MultiDiscrete or "
                f"MultiBinary space, got {space}: flatten or wrap the environment"
            )


class _OneHot(nn.Module):
    """Indices 0..n-1 to float: the one-hot vectors of all components side by side."""

    offset: Tensor

    def __init__(self, nvec: tuple[int, ...], num_axes: int) -> None:
        super().__init__()
        self.num_axes = num_axes
        self.num_indices = len(nvec)
        self.d_out = sum(nvec)
        starts = torch.tensor([0, *nvec[:-1]]).cumsum(0)
        self.register_buffer("offset", starts, persistent=False)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        index = x.long()
        lead = x.shape[: x.ndim - self.num_axes]
        if self.num_axes != 1:
            index = index.reshape(*lead, self.num_indices)
        if self.num_indices > 1:
            index = index + self.offset
        return index.new_zeros((*lead, self.d_out), dtype=dtype).scatter_(-1, index, 1.0)


class _Vector(nn.Module):
    """Numbers of any dtype to one flat float vector, not scaled."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_axes = len(shape)
        self.d_out = math.prod(shape)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.num_axes != 1:
            x = x.reshape(*x.shape[: x.ndim - self.num_axes], self.d_out)
        return x.to(dtype)


class _Image(nn.Module):
    """Pictures of bytes to features: convolutions of stride 2, then one linear layer.

    Each convolution halves the sides (rounding up). Those that would read a map with a side
    under 8 pixels are left out, so small pictures use only the first of `channels`.
    """

    def __init__(self, shape: tuple[int, ...], config: EncoderConfig) -> None:
        super().__init__()
        self.channel_last = shape[0] >= shape[2]
        depth, height, width = _picture_shape(shape)
        layers: list[nn.Module] = []
        for channels in config.channels:
            if min(height, width) < MIN_SIDE:
                break
            convolution = nn.Conv2d(depth, channels, kernel_size=3, stride=2, padding=1)
            layers += [orthogonal(convolution, GAIN_HIDDEN), ACTIVATIONS[config.activation]()]
            depth, height, width = channels, (height + 1) // 2, (width + 1) // 2
        self.d_out = config.hidden[-1]
        linear = nn.Linear(depth * height * width, self.d_out)
        layers += [nn.Flatten(), orthogonal(linear, GAIN_HIDDEN)]
        layers += [ACTIVATIONS[config.activation]()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        lead = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:])
        if self.channel_last:
            x = x.permute(0, 3, 1, 2)
        features: Tensor = self.layers(x.to(dtype) / 255.0)
        return features.reshape(*lead, self.d_out)


class Encoder(nn.Module):
    """Map a dictionary of observations to features (..., d_out).

    | entry | read as |
    | --- | --- |
    | Discrete, MultiDiscrete | one-hot; values count from 0, whatever `start` says |
    | MultiBinary, Box | flattened floats, not scaled |
    | uint8 Box with three axes, both picture sides >= 8 | picture: / 255, convolutions |

    The channel axis of a picture is the shorter one of its first and last axis (the last if
    they are equal), so frame stacks of any depth below the picture's side work in both layouts.
    All entries are joined, in the order of their names, and read by a fully connected network
    with orthogonal weights of gain sqrt(2) and zero biases.

    Args:
        obs_space: of one environment; every entry is a leaf space.
        config: sizes.

    Raises:
        ValueError: an entry, or the space itself, cannot be read; names the entry.
    """

    def __init__(self, obs_space: spaces.Dict, config: EncoderConfig) -> None:
        super().__init__()
        if not isinstance(obs_space, spaces.Dict) or not obs_space.spaces:
            raise ValueError(f"obs_space: expected a Dict with entries, got {obs_space}")
        self.keys = sorted(obs_space.spaces)
        self.parts = nn.ModuleList(_build_part(key, obs_space[key], config) for key in self.keys)
        d_in = sum(int(part.d_out) for part in self.parts)
        self.d_out = config.hidden[-1]
        self.layers = mlp(
            d_in,
            config.hidden[:-1],
            self.d_out,
            activation=config.activation,
            gain_out=GAIN_HIDDEN,
        ).append(ACTIVATIONS[config.activation]())

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Encode observations.

        Args:
            obs: (..., *shape) per entry, the leading axes alike in all; entries that the space
                does not have are ignored.

        Returns:
            Features (..., d_out) in the dtype of the parameters.
        """
        dtype = self.layers[0].weight.dtype
        parts = [part(obs[key], dtype) for key, part in zip(self.keys, self.parts, strict=True)]
        features: Tensor = self.layers(parts[0] if len(parts) == 1 else torch.cat(parts, -1))
        return features
