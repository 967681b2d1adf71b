"""Layers as DreamerV3 has them: initial weights, a norm in float32, SiLU.

Paper: Hafner, Pasukonis, Ba and Lillicrap 2023, "Mastering Diverse Domains through World
Models"; initial weights, epsilon and order as in its code of 2023.

    hidden layer   y = silu(norm(W x)),  W ~ normal cut at two deviations, variance 2 / (in + out)
    output layer   y = W x + b,          W ~ uniform, variance 2 outscale / (in + out),  b = 0

`in` and `out` are the fans; those of a convolution count the area of its kernel. The norm "rms" is
that of the code of 2024; it divides by the root mean square and has no bias.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeVar, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import DenseLayer, dense_layers, dense_layers_run, norm_silu

Norm = Literal["layer", "rms"]
M = TypeVar("M", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)

EPS = 1e-3  # of both norms, added to the variance or the mean square
CUT_DEVIATION = 0.87962566103423978  # of a standard normal cut at two deviations


def _mean_fan(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    """Return the mean of the numbers of inputs and outputs, times the area of a kernel."""
    one, other, *kernel = layer.weight.shape
    return 0.5 * (one + other) * math.prod(kernel)


def _zero_bias(layer: M) -> M:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def init_hidden(layer: M) -> M:
    """Give a layer the weights of a hidden layer and a zero bias; return it.

    They are drawn from torch's default generator.
    """
    deviation = math.sqrt(1.0 / _mean_fan(layer)) / CUT_DEVIATION
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2.0 * deviation, b=2.0 * deviation)
    return _zero_bias(layer)


def init_output(layer: M, outscale: float = 1.0) -> M:
    """Give a layer the weights of an output layer and a zero bias; return it.

    They are drawn from torch's default generator.

    Args:
        layer: changed in place.
        outscale: factor of the variance, >= 0; 0 makes all weights 0.

    Raises:
        ValueError: `outscale` is out of its range.
    """
    if not 0.0 <= outscale < math.inf:
        raise ValueError(f"outscale: expected a number >= 0, got {outscale}")
    bound = math.sqrt(3.0 * outscale / _mean_fan(layer))
    nn.init.uniform_(layer.weight, -bound, bound)
    return _zero_bias(layer)


def output_linear(d_in: int, d_out: int, outscale: float = 1.0) -> nn.Linear:
    """Build the linear layer at the end of a head, see `init_output`."""
    return init_output(nn.Linear(d_in, d_out), outscale)


def check_norm(norm: str) -> None:
    """Raise ValueError unless there is a norm of this name."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm: expected one of {', '.join(get_args(Norm))}, got {norm!r}")


def widened(x: Tensor) -> Tensor:
    """Return x as float32, or as it is if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normed_mlp(d_in: int, hidden: Sequence[int], *, norm: Norm = "layer") -> "NormedMLP":
    """Build the hidden layers of a network; each is linear without bias, norm, SiLU.

    Weights are drawn from torch's default generator.

    Args:
        d_in: width of the input, >= 1.
        hidden: widths, each >= 1; with none the module returns its input.
        norm: "layer" or "rms".

    Returns:
        A module that maps (..., d_in) to (..., d_out), with `d_out` the last of the widths.

    Raises:
        ValueError: a width or the norm is out of its range.
    """
    widths = [d_in, *hidden]
    if min(widths) < 1:
        raise ValueError(f"normed_mlp: expected widths >= 1, got d_in {d_in}, hidden {hidden}")
    linears = [init_hidden(nn.Linear(*pair, bias=False)) for pair in pairwise(widths)]
    return NormedMLP(d_in, linears, [FeatureNorm(width, norm) for width in hidden])


class FeatureNorm(nn.Module):
    """A norm over the last axis, computed and returned in float32 (float64 if x is).

    Args:
        width: of the last axis.
        norm: "layer" (with scale and bias) or "rms" (with scale).

    Raises:
        ValueError: there is no such norm.
    """

    def __init__(self, width: int, norm: Norm = "layer") -> None:
        super().__init__()
        check_norm(norm)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if norm == "layer" else None
        self._norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., width)."""
        x = widened(x)
        weight = self.weight.to(x.dtype)
        if self.bias is None:
            return F.rms_norm(x, weight.shape, weight, EPS)
        return F.layer_norm(x, weight.shape, weight, self.bias.to(x.dtype), EPS)

    def silu(self, x: Tensor) -> Tensor:
        """Return silu of the norm of x (..., width)."""
        x = widened(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return norm_silu(x, self._norm, self.weight.to(x.dtype), bias, EPS)

    def dense(self, linear: nn.Linear) -> DenseLayer:
        """Return a linear layer with the norm and SiLU behind it, for `dense_layers`."""
        return DenseLayer(linear.weight, linear.bias, self._norm, self.weight, self.bias, True)


class LinearSiLU(nn.Sequential):
    """y = silu(W x + b), with the weights of `output_linear`."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(output_linear(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        linear = cast("nn.Linear", self[0])
        if dense_layers_run(x, [linear.weight]):
            return dense_layers(x, self.dense(), EPS)
        return norm_silu(linear(x), "none")

    def dense(self) -> list[DenseLayer]:
        """Return the layer for `dense_layers`."""
        return [plain_dense(cast("nn.Linear", self[0]), silu=True)]


def plain_dense(linear: nn.Linear, *, silu: bool = False) -> DenseLayer:
    """Return a linear layer without a norm, for `dense_layers`."""
    return DenseLayer(linear.weight, linear.bias, "none", None, None, silu)


class NormedMLP(nn.Module):
    """Hidden layers; `normed_mlp` builds it.

    One module call for all layers, as in `nets.heads.MLP`.

    Args:
        d_in: width of the input.
        linears: layers that fit each other; may be empty.
        norms: one for each, of its width.
    """

    def __init__(
        self, d_in: int, linears: Sequence[nn.Linear], norms: Sequence[FeatureNorm]
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)
        self.norms = nn.ModuleList(norms)
        self.d_out = linears[-1].out_features if linears else d_in

    def forward(self, x: Tensor, out: nn.Linear | None = None) -> Tensor:
        """Map (..., d_in) of any floating dtype to (..., d_out) in that of the parameters.

        Args:
            x: (..., d_in).
            out: a linear layer behind the hidden ones.
        """
        linears = [cast("nn.Linear", linear) for linear in self.linears]
        every = linears if out is None else [*linears, out]
        if every and dense_layers_run(x, [linear.weight for linear in every]):
            return dense_layers(x, self.dense(out), EPS)
        for linear, norm in zip(linears, self.norms, strict=True):
            weight = linear.weight
            x = cast("FeatureNorm", norm).silu(F.linear(x.to(weight.dtype), weight))
            x = x.to(weight.dtype)
        return x if out is None else out(x)

    def dense(self, out: nn.Linear | None = None) -> list[DenseLayer]:
        """Return all layers, and `out` behind them, for `dense_layers`."""
        layers = [
            cast("FeatureNorm", norm).dense(cast("nn.Linear", linear))
            for norm, linear in zip(self.norms, self.linears, strict=True)
        ]
        return layers if out is None else [*layers, plain_dense(out)]
