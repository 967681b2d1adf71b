"""From features back to observations: the decoder of DreamerV3 and its reconstruction losses.

Paper: Hafner, Pasukonis, Ba and Lillicrap 2023, "Mastering Diverse Domains through World
Models"; sizes and layers as in its code of 2023.

    picture   sum over pixels of (output + 0.5 - bytes / 255)^2
    numbers   sum of (output - symlog(y))^2, squares under 1e-8 counted as 0
    indices   sum over the indices of -log softmax(output) at their values

All are negative log-likelihoods in nats up to constants and a factor, with the coefficient 1.

Deviations: each picture has its own convolutions; indices have a categorical loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast, get_args

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.distributions import MultiCategorical
from statewise.nets.dreamer_layers import (
    FeatureNorm,
    Norm,
    check_norm,
    init_hidden,
    init_output,
    normed_mlp,
    output_linear,
    widened,
)
from statewise.nets.symlog import symexp, symlog
from statewise.worldmodels.drama_pictures import DramaPictureDecoder
from statewise.worldmodels.encoder import PictureLayers, stages
from statewise.worldmodels.entries import SMALLEST, Entry, get_entry, read_space

SMALL_SQUARE = 1e-8  # squared errors below it count as 0


@dataclass(frozen=True, kw_only=True)
class ObsDecoderConfig:
    """Sizes of an `ObsDecoder`.

    Raises:
        ValueError: a field is out of its range.
    """

    hidden: tuple[int, ...] = (512, 512)  # widths for numbers and indices, each >= 1; may be empty
    depth: int = 32  # channels before the last convolution, >= 1
    norm: Norm = "layer"  # layer (2023) or rms (2024)
    pictures: PictureLayers = "dreamer"  # layers for pictures; drama: see `drama_pictures`

    def __post_init__(self) -> None:
        if self.pictures not in get_args(PictureLayers):
            expected = ", ".join(get_args(PictureLayers))
            raise ValueError(f"pictures: expected one of {expected}, got {self.pictures!r}")
        if self.hidden and min(self.hidden) < 1:
            raise ValueError(f"hidden: expected widths >= 1, got {self.hidden}")
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1, got {self.depth}")
        check_norm(self.norm)


def symlog_squares(output: Tensor, y: Tensor) -> Tensor:
    """Return sum of (output - symlog(y))^2 over the last axis, small squares counted as 0."""
    squares = (output - symlog(y)).square()
    return torch.where(squares < SMALL_SQUARE, 0, squares).sum(-1)


def class_probabilities(logits: Tensor, nvec: Sequence[int]) -> Tensor:
    """Return the probabilities of each index's classes, joined: (..., sum(nvec)) as the logits."""
    return torch.cat([F.softmax(part, -1) for part in logits.split(list(nvec), -1)], -1)


class _PictureDecoder(nn.Module):
    """Features (..., d_in) to pictures (..., *shape), bytes / 255 - 0.5.

    A linear layer to 4 x 4 pixels, then transposed convolutions of kernel 4 and stride 2; between
    them a norm over the channels and SiLU. The first and the last layer have a bias.
    """

    def __init__(self, d_in: int, entry: Entry, depth: int, norm: Norm) -> None:
        super().__init__()
        self.entry = entry
        channels = [*(depth * stage for stage in reversed(stages(entry))), entry.channels]
        self.linear = init_hidden(nn.Linear(d_in, SMALLEST**2 * channels[0]))
        self.convolutions = nn.ModuleList(
            init_hidden(nn.ConvTranspose2d(*pair, kernel_size=4, stride=2, padding=1, bias=False))
            for pair in pairwise(channels[:-1])
        )
        self.norms = nn.ModuleList(FeatureNorm(width, norm) for width in channels[1:-1])
        self.last = init_output(
            nn.ConvTranspose2d(channels[-2], channels[-1], kernel_size=4, stride=2, padding=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        dtype = self.linear.weight.dtype
        x = self.linear(features.to(dtype))
        x = x.reshape(-1, x.shape[-1] // SMALLEST**2, SMALLEST, SMALLEST)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x.to(dtype)).permute(0, 2, 3, 1))
            x = F.silu(x).permute(0, 3, 1, 2)
        return self.entry.as_declared(self.last(x.to(dtype)), tuple(features.shape[:-1]))


def _loss(entry: Entry, output: Tensor, y: Tensor) -> Tensor:
    """Return the loss (...) of an entry's raw outputs against observations (..., *shape)."""
    output = widened(output)
    match entry.kind:
        case "picture":
            return (output + 0.5 - y.to(output.dtype) / 255.0).square().sum((-3, -2, -1))
        case "numbers":
            return symlog_squares(output, entry.flat(y).to(output.dtype))
        case "indices":
            return -MultiCategorical(output, entry.nvec).log_prob(entry.index(y))


def _prediction(entry: Entry, output: Tensor) -> Tensor:
    """Turn raw outputs into the units of the observation."""
    output = widened(output)
    match entry.kind:
        case "picture":
            return (output + 0.5).clamp(0.0, 1.0)
        case "numbers":
            return symexp(output).reshape(*output.shape[:-1], *entry.shape)
        case "indices":
            return class_probabilities(output, entry.nvec)


def _picture_decoder(d_in: int, entry: Entry, config: ObsDecoderConfig) -> nn.Module:
    if config.pictures == "drama":
        return DramaPictureDecoder(d_in, entry, config.depth)
    return _PictureDecoder(d_in, entry, config.depth, config.norm)


class ObsDecoder(nn.Module):
    """Map features to every entry of an observation.

    Numbers and indices share hidden layers and have a linear layer each; each picture has its own
    convolutions, which read the features themselves.

    Args:
        d_in: width of the features.
        obs_space: of one environment; `worldmodels.entries` says what each entry is.
        config: sizes.

    Raises:
        ValueError: an entry, or the space itself, cannot be modelled; names the entry.
    """

    def __init__(self, d_in: int, obs_space: spaces.Dict, config: ObsDecoderConfig) -> None:
        super().__init__()
        entries = read_space(obs_space)
        self.entries = {entry.key: entry for entry in entries}
        self._pictures = [entry.key for entry in entries if entry.kind == "picture"]
        self._flat = [entry.key for entry in entries if entry.kind != "picture"]
        self.layers = normed_mlp(d_in, config.hidden, norm=config.norm) if self._flat else None
        d_hidden = d_in if self.layers is None else self.layers.d_out
        self.outputs = nn.ModuleList(
            output_linear(d_hidden, self.entries[key].width) for key in self._flat
        )
        self.pictures = nn.ModuleList(
            _picture_decoder(d_in, self.entries[key], config) for key in self._pictures
        )

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Decode features (..., d_in) of any floating dtype.

        Returns:
            Raw outputs per entry: numbers (..., width) as symlog, flattened; indices (..., sum of
            classes) as logits, joined; pictures (..., *shape) as bytes / 255 - 0.5.
        """
        raw: dict[str, Tensor] = {}
        if self.layers is not None:
            hidden = self.layers(features)
            for key, module in zip(self._flat, self.outputs, strict=True):
                output = cast("nn.Linear", module)
                raw[key] = output(hidden.to(output.weight.dtype))
        for key, picture in zip(self._pictures, self.pictures, strict=True):
            raw[key] = picture(features)
        return raw

    def loss(self, features: Tensor, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the reconstruction losses per entry.

        Args:
            features: (..., d_in).
            obs: (..., *shape) per entry, with the leading axes of the features.

        Returns:
            Losses (...) by entry, float32 or float64, differentiable in the features.

        Raises:
            ValueError: an entry is missing or does not fit.
        """
        losses = {}
        for key, output in self(features).items():
            entry = self.entries[key]
            y = get_entry(obs, entry)
            if entry.lead(y) != features.shape[:-1]:
                raise ValueError(
                    f"obs[{key!r}]: expected the leading axes {tuple(features.shape[:-1])} of the "
                    f"features, got {entry.lead(y)}"
                )
            losses[key] = _loss(entry, output, y)
        return losses

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        """Decode features (..., d_in) into the units of the observation.

        Returns:
            Per entry: numbers (..., *shape); pictures (..., *shape) in [0, 1]; indices as the
            probabilities of their classes, joined (..., sum of classes).
        """
        return {key: _prediction(self.entries[key], raw) for key, raw in self(features).items()}
