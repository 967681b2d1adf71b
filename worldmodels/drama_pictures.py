"""Pictures as Drama reads and draws them: kernels of 5 with a batch norm.

Paper: Wang et al. 2025, "Drama: Mamba-Enabled Model-Based Reinforcement Learning Is Sample and
Parameter Efficient"; layers as in its code.

    encoder   blocks convolution -> batch norm -> SiLU, the first of stride 1, the others of 2,
              channels depth (1, 2, 3, 4, 4), down to 4 x 4
    decoder   linear to 4 x 4, batch norm, SiLU; transposed convolutions of stride 2 with batch
              norm and SiLU, the channels backwards; one of stride 1; sigmoid

Batches make the norm while a model learns, its running means and variances when it is asked.
Smaller pictures have fewer blocks, larger ones more of the last width.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.nets.dreamer_layers import init_hidden
from statewise.worldmodels.entries import SMALLEST, Entry

WIDTHS = (1, 2, 3, 4, 4)  # multiples of the depth


def channels_of(entry: Entry, depth: int) -> list[int]:
    """Return the channels after the first block and after each halving of a picture."""
    widths = [*WIDTHS, *[WIDTHS[-1]] * entry.halvings][: entry.halvings + 1]
    return [depth * width for width in widths]


class DramaPictureEncoder(nn.Module):
    """Pictures of bytes (..., *shape) to features (..., d_out).

    Args:
        entry: the picture.
        depth: channels after the first block, >= 1.
    """

    def __init__(self, entry: Entry, depth: int) -> None:
        super().__init__()
        self.entry = entry
        channels = [entry.channels, *channels_of(entry, depth)]
        strides = [1, *[2] * entry.halvings]
        blocks: list[nn.Module] = []
        for (d_in, d_out), stride in zip(pairwise(channels), strides, strict=True):
            convolution = nn.Conv2d(d_in, d_out, kernel_size=5, stride=stride, padding=2)
            blocks += [init_hidden(convolution), nn.BatchNorm2d(d_out), nn.SiLU()]
        self.blocks = nn.Sequential(*blocks)
        self.d_out = SMALLEST**2 * channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return features (..., d_out)."""
        lead = self.entry.lead(x)
        dtype = next(self.blocks.parameters()).dtype
        pictures = self.entry.channels_first(x).to(dtype) / 255.0
        return self.blocks(pictures).reshape(*lead, self.d_out)


class DramaPictureDecoder(nn.Module):
    """Features (..., d_in) to pictures (..., *shape), bytes / 255 - 0.5.

    Args:
        d_in: width of the features.
        entry: the picture.
        depth: channels before the last convolution, >= 1.
    """

    def __init__(self, d_in: int, entry: Entry, depth: int) -> None:
        super().__init__()
        self.entry = entry
        channels = channels_of(entry, depth)[::-1]
        self.linear = init_hidden(nn.Linear(d_in, SMALLEST**2 * channels[0]))
        blocks: list[nn.Module] = [nn.BatchNorm2d(channels[0]), nn.SiLU()]
        for one, other in pairwise(channels):
            convolution = nn.ConvTranspose2d(
                one, other, kernel_size=5, stride=2, padding=2, output_padding=1
            )
            blocks += [init_hidden(convolution), nn.BatchNorm2d(other), nn.SiLU()]
        last = nn.ConvTranspose2d(channels[-1], entry.channels, kernel_size=5, padding=2)
        self.blocks = nn.Sequential(*blocks, init_hidden(last))

    def forward(self, features: Tensor) -> Tensor:
        """Return pictures (..., *shape)."""
        x = self.linear(features.to(self.linear.weight.dtype))
        x = x.reshape(-1, x.shape[-1] // SMALLEST**2, SMALLEST, SMALLEST)
        pictures = torch.sub(F.sigmoid(self.blocks(x)), 0.5)
        return self.entry.as_declared(pictures, tuple(features.shape[:-1]))
