"""Observations and actions as the numbers that an offline policy reads and writes.

Observations are shifted and scaled by the moments of the data set, x -> (x - mean) / (std + 1e-6),
the same in training and in acting. Actions of a Box go from their bounds to [-1, 1]; those of
Discrete and MultiDiscrete become one-hot vectors, so that a target may also be a mixture.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline.protocol import ObsStatistics
from statewise.nets.distributions import MultiCategorical
from statewise.nets.encoder import Encoder, EncoderConfig, is_image

STD_FLOOR = 1e-6  # added to every deviation
Squash = Literal["tanh", "clip"]


def _kind(key: str, space: spaces.Space[Any]) -> Literal["image", "index", "vector"]:
    """Return how an entry is read.

    Raises:
        ValueError: it cannot be.
    """
    leaves = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, leaves) or math.prod(space.shape or ()) == 0:
        raise ValueError(
            f"obs_space[{key!r}]: expected a non-empty Box, Discrete, MultiDiscrete or "
            f"MultiBinary space, got {space}: flatten or wrap the environment"
        )
    if is_image(space):
        return "image"
    return "index" if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else "vector"


def _counts(space: spaces.Space[Any]) -> list[int]:
    """Return the number of categories of each index."""
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete), space
    return [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.flatten().tolist()


def _flat(x: Tensor, space: spaces.Space[Any]) -> Tensor:
    """Turn (..., *shape) into (..., width)."""
    shape = space.shape or ()
    return x.reshape(*x.shape[: x.dim() - len(shape)], math.prod(shape))


def _moments(
    vectors: dict[str, spaces.Space[Any]], statistics: ObsStatistics | None
) -> tuple[Tensor, Tensor]:
    """Return mean and scale (S,) of the vectors, one after the other; 0 and 1 without statistics.

    Raises:
        ValueError: an entry is not in the statistics, or has another shape there.
    """
    mean, scale = [np.zeros(0)], [np.ones(0)]
    for key, space in vectors.items():
        size = math.prod(space.shape or ())
        if statistics is None:
            mean.append(np.zeros(size))
            scale.append(np.ones(size))
            continue
        for moments in statistics:
            got = np.shape(moments[key]) if key in moments else "nothing"
            if got != (space.shape or ()):
                raise ValueError(
                    f"statistics[{key!r}]: expected shape {space.shape or ()}, got {got}: use "
                    "data of this environment"
                )
        mean.append(np.ravel(statistics.mean[key]))
        scale.append(np.ravel(statistics.std[key]) + STD_FLOOR)
    dtype = torch.get_default_dtype()
    return tuple(torch.as_tensor(np.concatenate(x)).to(dtype) for x in (mean, scale))  # type: ignore[return-value]


class ObsNormalizer(nn.Module):
    """Map a dictionary of observations to one vector per step.

    Entries are read in the order of their names: boxes and MultiBinary shifted and scaled, then
    one-hot vectors of Discrete and MultiDiscrete, then the features of all pictures, by
    `nets.Encoder`, which takes no statistics.

    Args:
        obs_space: of one environment, flat; every entry a leaf space.
        statistics: of the data set; None where they will be loaded with the weights.
        encoder: of the pictures; None means the defaults, and is all there is without pictures.

    Raises:
        ValueError: an entry cannot be read or has no statistics, or the encoder is not that of
            the defaults and nothing reads by it.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        obs_space: spaces.Dict,
        statistics: ObsStatistics | None,
        encoder: EncoderConfig | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(obs_space, spaces.Dict) or not obs_space.spaces:
            raise ValueError(f"obs_space: expected a Dict with entries, got {obs_space}")
        leaves = dict(sorted(obs_space.spaces.items()))
        kinds = {key: _kind(key, space) for key, space in leaves.items()}
        self.vectors = {key: space for key, space in leaves.items() if kinds[key] == "vector"}
        self.indices = {key: space for key, space in leaves.items() if kinds[key] == "index"}
        images = {key: space for key, space in leaves.items() if kinds[key] == "image"}
        if not images and encoder not in (None, EncoderConfig()):
            raise ValueError(
                f"encoder: expected the defaults, as there are no pictures in {sorted(leaves)}, "
                f"got {encoder}: leave it out"
            )
        mean, scale = _moments(self.vectors, statistics)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.images = (
            Encoder(spaces.Dict(images), EncoderConfig() if encoder is None else encoder)
            if images
            else None
        )
        self.d_out = len(mean) + sum(sum(_counts(space)) for space in self.indices.values())
        self.d_out += 0 if self.images is None else self.images.d_out

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Map (..., *shape) per entry to (..., d_out) in the dtype of the module."""
        parts = []
        if self.vectors:
            flat = [_flat(obs[key], space).to(self.mean.dtype) for key, space in
                    self.vectors.items()]  # fmt: skip
            parts.append((torch.cat(flat, -1) - self.mean) / self.scale)
        for key, space in self.indices.items():
            index = _flat(obs[key].long(), space)
            for column, count in enumerate(_counts(space)):
                parts.append(F.one_hot(index[..., column], count).to(self.mean.dtype))
        if self.images is not None:
            parts.append(self.images(obs))
        return torch.cat(parts, -1)


class ActionCode(nn.Module):
    """Actions as vectors (..., width), and what a policy's output means as an action.

    | action space | code | output of a policy | loss |
    | --- | --- | --- | --- |
    | float Box | bounded axes scaled to [-1, 1], others as they are | a code | squared error |
    | Discrete, MultiDiscrete | one-hot vectors side by side | logits | cross-entropy |

    Args:
        action_space: of one environment; values of Discrete and MultiDiscrete count from 0.

    Raises:
        ValueError: the space is none of the above.
    """

    center: Tensor
    half_width: Tensor
    is_bounded: Tensor

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__()
        self.nvec: tuple[int, ...] = ()
        self.is_scalar = isinstance(action_space, spaces.Discrete)
        match action_space:
            case spaces.Discrete():
                self.nvec = (int(action_space.n),)
            case spaces.MultiDiscrete() if len(action_space.shape) == 1:
                self.nvec = tuple(int(n) for n in action_space.nvec)
            case spaces.Box() if len(action_space.shape) == 1 and np.issubdtype(
                action_space.dtype, np.floating
            ):
                self._set_bounds(action_space)
            case _:
                raise ValueError(
                    "action_space: expected Discrete, or MultiDiscrete or a float Box with one "
                    f"axis, got {action_space}: wrap the environment"
                )
        self.width = sum(self.nvec) if self.nvec else len(self.center)

    def _set_bounds(self, space: spaces.Box) -> None:
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        dtype = torch.get_default_dtype()
        for name, value in (("center", (low + high) / 2), ("half_width", (high - low) / 2)):
            self.register_buffer(name, torch.as_tensor(value).to(dtype), persistent=False)
        self.register_buffer("is_bounded", torch.as_tensor(bounded), persistent=False)

    def encode(self, action: Tensor) -> Tensor:
        """Return the code (..., width) of actions of the space: (..., A), or (...) of Discrete."""
        if not self.nvec:
            return (action.to(self.center.dtype) - self.center) / self.half_width
        index = (action.unsqueeze(-1) if self.is_scalar else action).long()
        dtype = torch.get_default_dtype()
        one_hot = [F.one_hot(index[..., k], n) for k, n in enumerate(self.nvec)]
        return torch.cat(one_hot, -1).to(dtype)

    def from_previous(self, previous: Tensor) -> Tensor:
        """Return the code of `previous_action` (..., width), which has one-hot vectors already.

        Its zeros at first steps mean no action and have no code: clear those rows.
        """
        return previous if self.nvec else self.encode(previous)

    def squash(self, output: Tensor, squash: Squash) -> Tensor:
        """Return what a linear layer's output (..., width) predicts: a code, or logits as they are.

        "tanh" bends bounded axes into (-1, 1); "clip" leaves them, and `choose` clips the action.
        """
        if self.nvec or squash == "clip":
            return output
        return torch.where(self.is_bounded, output.tanh(), output)

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss (...) of predictions against codes, both (..., width).

        The mean squared error over the axes, or the cross-entropy in nats, summed over the
        components; a target may be a mixture of one-hot vectors.
        """
        if not self.nvec:
            return (predicted - target).square().mean(-1)
        log_p = [F.log_softmax(part, -1) for part in predicted.split(self.nvec, -1)]
        return -(target * torch.cat(log_p, -1)).sum(-1)

    def choose(self, predicted: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return actions of the space from predictions (..., width), without gradient.

        Args:
            predicted: codes or logits.
            generator: draws from the logits; None takes the most probable. Of a Box there is
                one action only, clipped to the bounds.
        """
        if not self.nvec:
            code = torch.where(self.is_bounded, predicted.clamp(-1.0, 1.0), predicted)
            return (self.center + self.half_width * code).detach()
        policy = MultiCategorical(predicted.detach(), self.nvec)
        action = policy.mode() if generator is None else policy.sample(generator)
        return action.squeeze(-1) if self.is_scalar else action
