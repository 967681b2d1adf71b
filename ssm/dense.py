"""Layers with a dense state matrix per channel: S4 and LSSL differ only in their parameters."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from statewise.kernels import Backend, fft_conv
from statewise.ssm import chunked
from statewise.ssm.chunked import Dense
from statewise.ssm.lti import Mode, pick, start
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.windows import trace_by_windows


class DenseLayer(nn.Module, ABC):
    """A layer whose parameters `discretize` turns into a dense system; a `SequenceModel`.

    Holds the skip D (H,). State key "h": (B, H, *state_shape), which flattens to N.
    """

    def __init__(self, d_model: int, state_shape: tuple[int, ...], backend: Backend):
        super().__init__()
        self.d_in = self.d_out = d_model
        self.state_shape = state_shape
        self.backend: Backend = backend
        self.D = nn.Parameter(torch.randn(d_model))

    @abstractmethod
    def discretize(self) -> Dense:
        """Return the discrete system of the present parameters."""

    def kernel(self, length: int) -> Tensor:
        """Return the response (H, length) to an impulse, without D."""
        with full_precision(self.D.device):
            return chunked.kernel(self.discretize(), length)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        return {"h": self.D.new_zeros((batch_size, self.d_in, *self.state_shape))}

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        mode: Mode = "auto",
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`.

        Args:
            x: (B, T, H).
            state: state before x[:, 0].
            reset: (B, T) bool.
            mode: "scan" goes through time in chunks, with any resets; "conv" convolves by FFT
                and takes a reset at step 0 alone; "auto" is "scan": what the convolution needs
                for its states alone is nearly all of the work of the scan.

        Raises:
            ValueError: mode "conv" and a reset after step 0.
        """
        state = self.initial_state(len(x)) if state is None else state
        if x.numel() == 0:
            return x.clone(), {"h": state["h"].clone()}
        picked = pick(mode, reset)
        with full_precision(x.device):
            h = start(state["h"], reset).flatten(2)
            system, wide = self.discretize(), x.to(h.dtype)
            if picked == "scan":
                y, last = chunked.scan(system, wide, h, reset, backend=self.backend)
            else:
                y, last = chunked.free_response(system, h, x.shape[1])
                y = y + fft_conv(wide, self.kernel(x.shape[1]))
                last = last + chunked.driven_state(system, wide)
            y = y + wide * self.D
        return y.to(x.dtype), {"h": last.unflatten(2, self.state_shape)}

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way, window by window."""
        return trace_by_windows(self, x, state, reset, every)

    def prepare_step(self) -> Cache:
        """Discretise once for many steps; see `SequenceModel`."""
        with torch.no_grad():
            return {name: value.clone() for name, value in self._step_form().items()}

    def _step_form(self) -> Cache:
        with full_precision(self.D.device):
            return self.discretize()._asdict()

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        form = self._step_form() if cache is None else cache
        h = state["h"].flatten(2)
        if reset is not None:
            h = torch.where(reset[:, None, None], h.new_zeros(()), h)
        with full_precision(x.device):
            wide = x.to(h.dtype)
            moved = (h.transpose(0, 1) @ form["A"].mT).transpose(0, 1)
            h = torch.addcmul(moved, wide[..., None], form["B"])
            y = (h * form["C"]).sum(-1) + wide * self.D
        return y.to(x.dtype), {"h": h.unflatten(2, self.state_shape)}


def conforms(layer: DenseLayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
