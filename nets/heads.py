"""Fully connected networks and the heads that read the features: policy and value.

Initialisation follows the recurrent PPO of Lu, Schroecker, Gu, Parisotto, Foerster, Singh and
Behbahani, "Structured State Space Models for In-Context Reinforcement Learning" (2023):
orthogonal weights, zero biases, a policy output of gain 0.01 (close to uniform at the start)
and a value output of gain 1.

Deviations: hidden layers have gain sqrt(2) where the paper's code has 2.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)

M = TypeVar("M", nn.Linear, nn.Conv2d)
Activation = Literal["leaky_relu", "tanh", "silu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "tanh": torch.tanh,
    "silu": F.silu,
}
GAIN_HIDDEN = math.sqrt(2.0)


def orthogonal(layer: M, gain: float) -> M:
    """Give a layer orthogonal weights of this gain and a zero bias; return it."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(
    d_in: int,
    hidden: Sequence[int],
    d_out: int,
    *,
    activation: Activation = "leaky_relu",
    gain_hidden: float = GAIN_HIDDEN,
    gain_out: float = 1.0,
) -> "MLP":
    """Build a fully connected network that ends in a linear layer.

    Weights are orthogonal and biases zero, drawn from torch's default generator.

    Args:
        d_in: width of the input.
        hidden: widths of the hidden layers, each followed by the activation; may be empty.
        d_out: width of the output.
        activation: a key of `ACTIVATIONS`.
        gain_hidden: gain of the hidden weights, > 0.
        gain_out: gain of the output weights, > 0.

    Returns:
        A module that maps (..., d_in) to (..., d_out).
    """
    widths = [d_in, *hidden]
    linears = [
        orthogonal(nn.Linear(width_in, width_out), gain_hidden)
        for width_in, width_out in pairwise(widths)
    ]
    return MLP([*linears, orthogonal(nn.Linear(widths[-1], d_out), gain_out)], activation)


class MLP(nn.Module):
    """Linear layers with an activation between them.

    One module call instead of one per layer: in acting, with a few dozen environments, the
    calls cost as much as the arithmetic.

    Args:
        linears: one or more layers that fit each other.
        activation: between the layers, a key of `ACTIVATIONS`.
    """

    def __init__(self, linears: Sequence[nn.Linear], activation: Activation) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) of any floating dtype to (..., d_out) in that of the parameters."""
        layers = cast("Iterator[nn.Linear]", iter(self.linears))
        first = next(layers)
        weight = first.weight
        x = F.linear(x.to(weight.dtype), weight, first.bias)
        for linear in layers:
            x = F.linear(self.activation(x), linear.weight, linear.bias)
        return x.to(weight.dtype)  # also under autocast: losses and log-probabilities are float32


class PolicyHead(nn.Module):
    """A distribution over the actions of a space, from features.

    | action space | distribution | action |
    | --- | --- | --- |
    | Discrete, any start | `Categorical` | int64 (...), 0..n-1: the start is not added |
    | MultiDiscrete, one axis | `MultiCategorical` | int64 (..., K), from 0 |
    | Box of floats, one axis or more | `DiagonalGaussian` | float (..., A), flattened |

    The log standard deviation of a Gaussian is a parameter (A,), the same in every state. Its
    actions are not clipped: the environment adapter does that.

    Args:
        d_in: width of the features.
        action_space: of one environment.
        hidden: widths of the hidden layers; may be empty.
        initial_std: standard deviation of a Gaussian before training, > 0.

    Raises:
        ValueError: the action space is none of the above, or has no deviation to set.
    """

    def __init__(
        self,
        d_in: int,
        action_space: spaces.Space[Any],
        hidden: Sequence[int],
        *,
        initial_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.nvec: tuple[int, ...] = ()
        self.log_std: nn.Parameter | None = None
        match action_space:
            case spaces.Discrete():
                width = int(action_space.n)
            case spaces.MultiDiscrete() if len(action_space.shape) == 1:
                self.nvec = tuple(int(n) for n in action_space.nvec)
                width = sum(self.nvec)
            case spaces.Box() if action_space.shape and np.issubdtype(
                action_space.dtype, np.floating
            ):
                width = math.prod(action_space.shape)
                self.log_std = nn.Parameter(torch.full((width,), math.log(initial_std)))
            case _:
                raise ValueError(
                    "action_space: expected Discrete, MultiDiscrete with one axis or a float "
                    f"Box with at least one axis, got {action_space}: wrap the environment"
                )
        if self.log_std is None and initial_std != 1.0:
            raise ValueError(
                f"initial_std: is of actions from a Box, got {initial_std} with {action_space}: "
                "leave it out"
            )
        self.layers = mlp(d_in, hidden, width, gain_out=0.01)

    def forward(self, features: Tensor) -> Distribution:
        """Return the distribution at features (..., d_in)."""
        out = self.layers(features)
        if self.log_std is not None:
            return DiagonalGaussian(out, self.log_std)
        if self.nvec:
            return MultiCategorical(out, self.nvec)
        return Categorical(out)


class ValueHead(nn.Module):
    """A scalar per feature vector.

    Args:
        d_in: width of the features.
        hidden: widths of the hidden layers; may be empty.
    """

    def __init__(self, d_in: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = mlp(d_in, hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., d_in) to values (...)."""
        value: Tensor = self.layers(features)
        return value.squeeze(-1)
