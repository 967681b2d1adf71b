"""Actions as the vectors that a world model reads."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn


class ActionVectors(nn.Module):
    """Turn actions into vectors (..., width): one-hot, or numbers with bounds at -1 and 1.

    Numbers without bounds are kept; beyond 1 in size they are cut to it, without gradient
    through the cut (DreamerV3's action_clip).

    Args:
        space: Discrete, MultiDiscrete with one axis or a float Box with one axis.

    Raises:
        ValueError: another space.
    """

    middle: Tensor
    reach: Tensor

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.nvec: list[int] = []
        middle: NDArray[Any] = np.zeros(0)
        reach: NDArray[Any] = np.ones(0)
        match space:
            case spaces.Discrete():
                self.nvec = [int(space.n)]
            case spaces.MultiDiscrete() if len(space.shape) == 1:
                self.nvec = [int(n) for n in space.nvec]
            case spaces.Box() if len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
                low, high = space.low.astype(np.float32), space.high.astype(np.float32)
                bounded = np.isfinite(low) & np.isfinite(high)
                low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
                middle, reach = (low + high) / 2, (high - low) / 2
            case _:
                raise ValueError(
                    "action_space: expected Discrete, MultiDiscrete with one axis or a float Box "
                    f"with one axis, got {space}: wrap the environment"
                )
        self.is_single = isinstance(space, spaces.Discrete)
        self.width = sum(self.nvec) or len(middle)
        self.register_buffer(
            "middle", torch.as_tensor(middle, dtype=torch.get_default_dtype()), persistent=False
        )
        self.register_buffer(
            "reach", torch.as_tensor(reach, dtype=torch.get_default_dtype()), persistent=False
        )

    def forward(self, action: Tensor) -> Tensor:
        """Map actions (...), (..., M) or (..., A), counted from 0, to vectors (..., width)."""
        if not self.nvec:
            return self.clip((action - self.middle) / self.reach)
        parts = action[..., None] if self.is_single else action
        one_hot = [F.one_hot(parts[..., i].long(), n) for i, n in enumerate(self.nvec)]
        return torch.cat(one_hot, -1).to(torch.get_default_dtype())

    def clip(self, vector: Tensor) -> Tensor:
        """Cut entries beyond 1 in size to it; the cut itself has no gradient."""
        return vector / vector.detach().abs().clamp(min=1.0)

    def restore(self, vector: Tensor) -> Tensor:
        """Turn numbers (..., A) with bounds at -1 and 1 into those of the space."""
        return self.middle + self.reach * vector
