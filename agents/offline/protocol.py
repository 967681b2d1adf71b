"""What every agent that learns from a data set offers to the loop and to evaluation."""

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from statewise.agents.protocol import Metrics
from statewise.data.history_sampler import HistoryConfig
from statewise.data.samplers import (
    SampledBatch,
    StreamConfig,
    TrajectoryConfig,
    TransitionBatch,
    TransitionConfig,
    WindowConfig,
)
from statewise.ssm.protocol import State

OfflineBatch = SampledBatch | TransitionBatch
Sampling = WindowConfig | TrajectoryConfig | StreamConfig | HistoryConfig | TransitionConfig
ActingInput = Literal["previous_action", "previous_reward", "first_step", "return_to_go"]


class ObsStatistics(NamedTuple):
    """Moments of a data set's observations, by which an agent shifts and scales its inputs."""

    mean: dict[str, NDArray[np.float64]]
    """Per key, of the shape of one observation."""
    std: dict[str, NDArray[np.float64]]


class OfflineAgent(Protocol):
    """A policy that learns from batches of a data set; it acts as an `Agent` does.

    Makers take `(config, obs_space, action_space, *, statistics, total_updates, seed, device)`:
    `obs_space` is the flat Dict of one environment without `inputs`, with the keys of the data
    set; `statistics` is an `ObsStatistics`, or None where the weights will be loaded.
    """

    sampling: Sampling
    """Which batches `update` takes."""
    inputs: tuple[ActingInput, ...]
    """Further entries of the observation in `act`: previous_action (B, A), encoded and clipped
    as `envs.previous` has it, 0 at a first step, previous_reward (B, 1) and first_step (B, 1),
    both from there; return_to_go (B, 1), the target minus the rewards so far, in their units
    (with delayed rewards the target until the episode ends)."""
    updates_made: int

    def initial_state(self, batch_size: int) -> State:
        """Return the state for `batch_size` environments that are about to start."""
        ...

    def act(
        self,
        obs: dict[str, Tensor],
        state: State,
        is_first: Tensor,
        reset: Tensor,
        *,
        explore: bool,
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """Choose actions without gradient; see `Agent.act`."""
        ...

    def update(self, batch: OfflineBatch) -> Metrics:
        """Take one gradient step; the losses by name.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume: nested dictionaries of tensors, numbers, text."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; raise ValueError on missing or extra keys."""
        ...
