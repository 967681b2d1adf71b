"""Layers with a diagonal complex state: S5 and LRU differ only in their parameters.

    x_t = a * x_{t-1} + W_in u_t,    y_t = W_out x_t + D * u_t

with a (P,) complex, everything held in real pairs, so that input and output are one real
matrix product each. State key "h": (B, P, 2).
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import Backend, add_scaled, linear_scan_pairs
from statewise.ssm.protocol import Cache, SequenceModel, State


class Discrete(NamedTuple):
    """The discretised system."""

    a: Tensor
    """(P, 2), |a| < 1."""
    w_in: Tensor
    """(2P, H): rows are the real and imaginary parts of each state's input, interleaved."""
    w_out: Tensor
    """(H, 2P): columns interleaved likewise, the sign of the imaginary part included."""


def complex_product(x: Tensor, y: Tensor) -> Tensor:
    """Multiply real pairs (..., 2)."""
    return torch.stack(
        (
            x[..., 0] * y[..., 0] - x[..., 1] * y[..., 1],
            x[..., 0] * y[..., 1] + x[..., 1] * y[..., 0],
        ),
        -1,
    )


def polar(log_radius: Tensor, angle: Tensor) -> Tensor:
    """Return exp(log_radius + i angle) as real pairs (..., 2)."""
    radius = log_radius.exp()
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)


def input_matrix(B: Tensor) -> Tensor:
    """Interleave a complex (P, H, 2) into a real (2P, H)."""
    return B.transpose(1, 2).flatten(0, 1)


def output_matrix(C: Tensor, scale: float) -> Tensor:
    """Turn a complex (H, P, 2) into the real (H, 2P) that gives scale * Re(C x)."""
    return (C * C.new_tensor((scale, -scale))).flatten(1, 2)


class DiagonalLayer(nn.Module, ABC):
    """A layer whose parameters `discretize` turns into a diagonal system; a `SequenceModel`.

    Holds the skip D (H,) and, with `initial_state` "learned", what a reset restores, `h_init`
    (P, 2).
    """

    def __init__(
        self,
        d_model: int,
        num_states: int,
        initial_state: Literal["zero", "learned"],
        backend: Backend,
    ):
        super().__init__()
        self.d_in = self.d_out = d_model
        self.num_states = num_states
        self.backend: Backend = backend
        self.D = nn.Parameter(torch.randn(d_model))
        learned = initial_state == "learned"
        self.h_init = nn.Parameter(torch.zeros(num_states, 2)) if learned else None

    @abstractmethod
    def discretize(self) -> Discrete:
        """Return the discrete system of the present parameters."""

    def initial_state(self, batch_size: int) -> State:
        """Return what a reset restores: zeros, or the learned state, for every row."""
        if self.h_init is None:
            return {"h": self.D.new_zeros((batch_size, self.num_states, 2))}
        return {"h": self.h_init.expand(batch_size, -1, -1)}

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        y, last, _ = self.trace(x, state, reset)
        return y, last

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way; see `SequenceModel`."""
        system = self.discretize()
        if state is None and self.h_init is not None:
            state = self.initial_state(x.shape[0])
        h, last = linear_scan_pairs(
            system.a,
            F.linear(x, system.w_in).unflatten(-1, (-1, 2)),
            h0=None if state is None else state["h"],
            reset=reset,
            h_init=self.h_init,
            backend=self.backend,
        )
        y = add_scaled(F.linear(h.flatten(-2), system.w_out), x, self.D, self.backend)
        return y, {"h": last}, {"h": h[:, every - 1 :: every].to(last.dtype)}

    def prepare_step(self) -> Cache:
        """Discretise once for many steps; see `SequenceModel`."""
        with torch.no_grad():
            return _step_form(self.discretize())

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        form = _step_form(self.discretize()) if cache is None else cache
        h = state["h"]
        if reset is not None:
            restored = h.new_zeros(()) if self.h_init is None else self.h_init
            h = torch.where(reset[:, None, None], restored, h)
        driven = F.linear(x, form["w_in"]).unflatten(-1, (-1, 2))
        h = torch.addcmul(torch.addcmul(driven, h, form["a_same"]), h.flip(-1), form["a_cross"])
        return torch.addcmul(F.linear(h.flatten(-2), form["w_out"]), x, self.D), {"h": h}


def _step_form(system: Discrete) -> Cache:
    """Return the system, and `a` split for real arithmetic: a_same * h + a_cross * (h swapped)."""
    imaginary = system.a[:, 1:]
    return {
        "a": system.a,
        "a_same": system.a[:, :1],
        "a_cross": torch.cat((-imaginary, imaginary), 1),
        "w_in": system.w_in,
        "w_out": system.w_out,
    }


def conforms(layer: DiagonalLayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
