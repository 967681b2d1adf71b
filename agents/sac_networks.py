"""The networks of recurrent soft actor-critic: a memory each for actor and critics, and heads."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.memory import Memory
from statewise.nets.heads import mlp
from statewise.nets.squashed import SquashedGaussian, bounded_log_std


class GaussianActor(nn.Module):
    """A squashed Gaussian policy with a memory.

    Args:
        memory: its own.
        num_actions: axes A of the action.
        hidden: widths of the head's hidden layers; may be empty.
    """

    def __init__(self, memory: Memory, num_actions: int, hidden: tuple[int, ...]):
        super().__init__()
        self.memory = memory
        self.head = mlp(memory.d_out, hidden, 2 * num_actions, gain_out=0.01)

    def policy(self, features: Tensor) -> SquashedGaussian:
        """Return the policy at features (..., d_out)."""
        mean, spread = self.head(features).chunk(2, -1)
        return SquashedGaussian(mean, bounded_log_std(spread))


class TwinHeads(nn.Module):
    """Two values of features and an action.

    Args:
        width: of the features.
        num_actions: axes A of the action.
        hidden: widths of the hidden layers of each; may be empty.
    """

    def __init__(self, width: int, num_actions: int, hidden: tuple[int, ...]):
        super().__init__()
        self.one = mlp(width + num_actions, hidden, 1)
        self.two = mlp(width + num_actions, hidden, 1)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Return Q (2, ...) of features (..., d_out) and action codes (..., A)."""
        x = torch.cat((features, action), -1)
        return torch.stack((self.one(x), self.two(x))).squeeze(-1)


class MemoryCritics(nn.Module):
    """Twin critics on one memory of their own.

    Args:
        memory: theirs.
        num_actions: axes A of the action.
        hidden: widths of the hidden layers of each head; may be empty.
    """

    def __init__(self, memory: Memory, num_actions: int, hidden: tuple[int, ...]):
        super().__init__()
        self.memory = memory
        self.heads = TwinHeads(memory.d_out, num_actions, hidden)

    def judged(self, features: Tensor, action: Tensor) -> Tensor:
        """Return Q (2, ...) with a gradient to the action alone."""
        weights = {name: p.detach() for name, p in self.heads.named_parameters()}
        q: Tensor = torch.func.functional_call(self.heads, weights, (features.detach(), action))
        return q


class Temperature(nn.Module):
    """The weight alpha > 0 of the entropy, learned as its logarithm.

    Args:
        start: alpha at the start, > 0.
    """

    def __init__(self, start: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(start).log())

    @property
    def value(self) -> Tensor:
        """Alpha, a scalar without gradient."""
        return self.log.detach().exp()


class BoxScale(nn.Module):
    """Actions of a bounded Box as codes in [-1, 1] and back.

    Args:
        space: of one environment.

    Raises:
        ValueError: it is no float Box with one axis, or an axis has no finite bounds.
    """

    center: Tensor
    half_width: Tensor

    def __init__(self, space: spaces.Space[Any]):
        super().__init__()
        is_box = isinstance(space, spaces.Box) and len(space.shape) == 1
        if not (
            is_box
            and isinstance(space, spaces.Box)
            and np.issubdtype(space.dtype, np.floating)
            and np.isfinite(space.low).all()
            and np.isfinite(space.high).all()
            and (space.high > space.low).all()
        ):
            raise ValueError(
                "action_space: expected a float Box with one axis and finite bounds for sac, got "
                f"{space}: use ppo, or wrap the environment"
            )
        low, high = (torch.as_tensor(x, dtype=torch.float32) for x in (space.low, space.high))
        self.register_buffer("center", (low + high) / 2, persistent=False)
        self.register_buffer("half_width", (high - low) / 2, persistent=False)
        self.width = len(low)

    def encode(self, action: Tensor) -> Tensor:
        """Return codes (..., A) of actions of the space."""
        return (action.to(self.center.dtype) - self.center) / self.half_width

    def decode(self, code: Tensor) -> Tensor:
        """Return actions (..., A) of the space."""
        return self.center + self.half_width * code
