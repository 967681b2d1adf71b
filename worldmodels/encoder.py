"""From observations to what the posterior reads: the encoder of DreamerV3.

Paper: Hafner, Pasukonis, Ba and Lillicrap 2023, "Mastering Diverse Domains through World
Models"; sizes and layers as in its code of 2023.

Deviations: each picture has its own convolutions (the code joins pictures along their channels);
indices are read one-hot and not through symlog.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.dreamer_layers import (
    FeatureNorm,
    Norm,
    check_norm,
    init_hidden,
    normed_mlp,
    widened,
)
from statewise.nets.symlog import symlog
from statewise.worldmodels.drama_pictures import DramaPictureEncoder
from statewise.worldmodels.entries import SMALLEST, Entry, get_entry, read_space

Numbers = Literal["symlog", "raw"]
PictureLayers = Literal["dreamer", "drama"]


@dataclass(frozen=True, kw_only=True)
class ObsEncoderConfig:
    """Sizes of an `ObsEncoder`.

    Raises:
        ValueError: a field is out of its range.
    """

    hidden: tuple[int, ...] = (512, 512)  # widths for numbers and indices, one or more, each >= 1
    depth: int = 32  # channels after the first convolution, >= 1
    norm: Norm = "layer"  # layer (2023) or rms (2024)
    numbers: Numbers = "symlog"  # how numbers enter: symlog, or raw as they are
    pictures: PictureLayers = "dreamer"  # layers for pictures; drama: see `drama_pictures`

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden: expected one or more widths >= 1, got {self.hidden}")
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1, got {self.depth}")
        check_norm(self.norm)
        for name, allowed in (("numbers", Numbers), ("pictures", PictureLayers)):
            if getattr(self, name) not in get_args(allowed):
                expected = ", ".join(get_args(allowed))
                raise ValueError(f"{name}: expected one of {expected}, got {getattr(self, name)!r}")


def stages(entry: Entry) -> list[int]:
    """Return multiples of the depth: channels after each halving of a picture."""
    return [2**stage for stage in range(entry.halvings)]


class _PictureEncoder(nn.Module):
    """Pictures of bytes (..., *shape) to features (..., d_out), 4 * 4 * 8 depth for 64 x 64.

    Convolutions of kernel 4 and stride 2 without bias, each followed by a norm over the channels
    and SiLU, down to 4 x 4: four for 64 x 64.
    """

    def __init__(self, entry: Entry, depth: int, norm: Norm) -> None:
        super().__init__()
        self.entry = entry
        channels = [entry.channels, *(depth * stage for stage in stages(entry))]
        self.convolutions = nn.ModuleList(
            init_hidden(nn.Conv2d(*pair, kernel_size=4, stride=2, padding=1, bias=False))
            for pair in pairwise(channels)
        )
        self.norms = nn.ModuleList(FeatureNorm(width, norm) for width in channels[1:])
        self.d_out = SMALLEST**2 * channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        lead = self.entry.lead(x)
        dtype = cast("nn.Conv2d", self.convolutions[0]).weight.dtype
        x = self.entry.channels_first(x).to(dtype) / 255.0 - 0.5
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x.to(dtype)).permute(0, 2, 3, 1))
            x = F.silu(x).permute(0, 3, 1, 2)
        return x.to(dtype).reshape(*lead, self.d_out)


def _picture_encoder(
    entry: Entry, config: ObsEncoderConfig
) -> _PictureEncoder | DramaPictureEncoder:
    if config.pictures == "drama":
        return DramaPictureEncoder(entry, config.depth)
    return _PictureEncoder(entry, config.depth, config.norm)


class ObsEncoder(nn.Module):
    """Map a dictionary of observations to features (..., d_out).

    Numbers and indices (by name) are joined and read by one network of hidden layers; each picture
    is read by its own convolutions. The features are that network's and those of the pictures (by
    name) side by side: hidden[-1] if there are numbers or indices, and those of each picture.

    Args:
        obs_space: of one environment; `worldmodels.entries` says how each entry is read.
        config: sizes.

    Raises:
        ValueError: an entry, or the space itself, cannot be read; names the entry.
    """

    def __init__(self, obs_space: spaces.Dict, config: ObsEncoderConfig) -> None:
        super().__init__()
        entries = read_space(obs_space)
        self.config = config
        self._pictures = [entry for entry in entries if entry.kind == "picture"]
        self._flat = [entry for entry in entries if entry.kind != "picture"]
        self.layers = (
            normed_mlp(sum(e.width for e in self._flat), config.hidden, norm=config.norm)
            if self._flat
            else None
        )
        pictures = [_picture_encoder(entry, config) for entry in self._pictures]
        self.pictures = nn.ModuleList(pictures)
        self.d_out = 0 if self.layers is None else self.layers.d_out
        self.d_out += sum(picture.d_out for picture in pictures)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Encode observations.

        Args:
            obs: (..., *shape) per entry, the leading axes alike in all; entries that the space
                does not have are ignored.

        Returns:
            Features (..., d_out) in the dtype of the parameters.

        Raises:
            ValueError: an entry is missing or does not end in its shape.
        """
        parts = []
        if self.layers is not None:
            flat = [self._read(entry, get_entry(obs, entry)) for entry in self._flat]
            parts.append(self.layers(flat[0] if len(flat) == 1 else torch.cat(flat, -1)))
        for entry, picture in zip(self._pictures, self.pictures, strict=True):
            parts.append(picture(get_entry(obs, entry)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _read(self, entry: Entry, x: Tensor) -> Tensor:
        """Return numbers or one-hot vectors (..., width)."""
        if entry.kind == "indices":
            return entry.one_hot(x, torch.float32)
        numbers = widened(entry.flat(x))
        return symlog(numbers) if self.config.numbers == "symlog" else numbers
