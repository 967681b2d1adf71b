"""What a world model knows of the world at one step, and what heads and policies read of it.

A state is a flat dictionary, batch first, as that of a sequence layer:

    stoch     (B, S, K)  one-hot sample of the categorical latents z_t
    deter     (B, D)     output of the sequence model h_t, which has seen z and a before t
    core.*    (B, ...)   memory of the sequence model x_t, by layer
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.ssm.protocol import State
from statewise.ssm.state import prefixed, select

CORE = "core."
FeatureSpec = Literal["output", "hidden", "full"]
HiddenNorm = Literal["none", "layer"]


class Observed(NamedTuple):
    """A window (B, T) as a world model sees it."""

    stoch: Tensor
    """(B, T, S, K) posterior samples z_t."""
    deter: Tensor
    """(B, T, D) h_t."""
    log_q: Tensor
    """(B, T, S, K) log-probabilities of the posterior."""
    log_p: Tensor
    """(B, T, S, K) log-probabilities of the prior."""
    last: State
    """After the last step."""
    traced: State
    """core.* after steps every - 1, 2 * every - 1, ...: (B, T // every, ...); {} if not asked."""
    every: int
    """Distance of two traced steps; 0 if not asked."""

    def states(self) -> State:
        """Return the traced steps as states (B, T // every, ...).

        Raises:
            ValueError: nothing was traced.
        """
        if not self.every:
            raise ValueError("states: expected a traced window, got none: observe with trace >= 1")
        rows = slice(self.every - 1, None, self.every)
        return {"stoch": self.stoch[:, rows], "deter": self.deter[:, rows], **self.traced}


def core_of(state: State) -> State:
    """Return the memory of the sequence model, by its own names."""
    return select(state, CORE)


def with_core(state: State, core: State) -> State:
    """Return a state with this memory."""
    return state | prefixed(core, CORE)


def flat_stoch(stoch: Tensor) -> Tensor:
    """Turn (..., S, K) into (..., S * K)."""
    return stoch.flatten(-2)


def _layer_number(key: str) -> tuple[int, str]:
    number, _, rest = key.removeprefix(CORE).partition(".")
    return (int(number), rest) if number.isdigit() else (0, number)


def hidden_vector(state: State, num_lead: int) -> Tensor:
    """Return the memory as numbers (..., N), layer by layer; complex ones as pairs.

    Args:
        state: tensors with `num_lead` axes in front.
        num_lead: 1 of a batch, 2 of a window.
    """
    keys = sorted((key for key in state if key.startswith(CORE)), key=_layer_number)
    parts = [state[key].flatten(num_lead) for key in keys]
    return torch.cat(parts, -1)


def policy_features(state: State, spec: FeatureSpec, hidden_norm: HiddenNorm = "none") -> Tensor:
    """Return what a policy reads: one function for acting, imagination and training.

        output   [h, z]
        hidden   [z, x]
        full     [h, z, x]

    Args:
        state: axes (N,) or (B, T) in front.
        spec: which parts.
        hidden_norm: "layer" normalises x to mean 0 and deviation 1, without parameters.
    """
    num_lead = state["stoch"].dim() - 2
    z = flat_stoch(state["stoch"])
    if spec == "output":
        return torch.cat((state["deter"], z), -1)
    x = hidden_vector(state, num_lead)
    if hidden_norm == "layer":
        x = F.layer_norm(x, x.shape[-1:])
    return torch.cat((z, x) if spec == "hidden" else (state["deter"], z, x), -1)


def masked(x: Tensor, start: Tensor, reset: Tensor | None) -> Tensor:
    """Return `start` where the memory is cleared: the only rule by which resets touch inputs.

    Args:
        x: (B, ...) or (B, T, ...).
        start: broadcasts against one row of x.
        reset: (B,) or (B, T) bool; None means nowhere.
    """
    if reset is None:
        return x
    return torch.where(reset.reshape(reset.shape + (1,) * (x.dim() - reset.dim())), start, x)
