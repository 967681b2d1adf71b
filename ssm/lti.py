"""What layers with a time-invariant recurrence share: discretisation, modes, a diagonal base.

    h_t = a * h_{t-1} + b x_t,    y_t = 2 Re sum_n c_n h_{t,n} + D x_t     per channel

with a, b, c (H, N) complex, held in real pairs, and h replaced by 0 where `reset_t`. Without
resets the same map is a convolution with the kernel k_l = 2 Re sum_n c_n b_n a_n^l (Gu, Goel & Re
2022, "Efficiently Modeling Long Sequences with Structured State Spaces").
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import (
    Backend,
    fft_conv,
    ssm_scan_lti_pairs,
    ssm_scan_lti_step,
    vandermonde_pairs,
)
from statewise.ssm.diagonal import complex_product, polar
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.windows import trace_by_windows

Mode = Literal["auto", "scan", "conv"]
Discretization = Literal["zoh", "bilinear"]
CHUNK = 64  # steps per matrix product where states enter or leave a convolution


class Diagonal(NamedTuple):
    """A discretised system; all (H, N, 2)."""

    a: Tensor
    b: Tensor
    c: Tensor


def discretize(kind: Discretization, re: Tensor, im: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Discretise x' = A x + u for diagonal A.

    Args:
        kind: "zoh" (the input is constant within a step) or "bilinear".
        re: real parts of A, < 0.
        im: imaginary parts.
        dt: > 0, broadcasts with both.

    Returns:
        The factor a of the state and the gain of the input, pairs (..., 2).
    """
    if kind == "bilinear":
        x, y = re * dt / 2, im * dt / 2
        inverse = torch.stack((1 - x, y), -1) / ((1 - x).square() + y.square())[..., None]
        return complex_product(torch.stack((1 + x, y), -1), inverse), dt[..., None] * inverse
    a = polar(re * dt, im * dt)
    return a, complex_product(less_one(re * dt, im * dt), reciprocal(re, im))


def less_one(re: Tensor, im: Tensor) -> Tensor:
    """Return exp(re + i im) - 1 without cancellation, as pairs."""
    turned = torch.expm1(re) * im.cos() - 2 * (im / 2).sin().square()
    return torch.stack((turned, re.exp() * im.sin()), -1)


def reciprocal(re: Tensor, im: Tensor) -> Tensor:
    """Return 1 / (re + i im) as pairs."""
    return torch.stack((re, -im), -1) / (re.square() + im.square())[..., None]


def pick(mode: Mode, reset: Tensor | None) -> Literal["scan", "conv"]:
    """Turn the mode asked for into the one that runs; "auto" is "scan".

    The FFTs of a convolution alone take as long as the whole fused scan of 32 complex states per
    channel (256 channels, 1024 steps, forward and backward, CPU), and the kernel, the initial
    and the final state come on top; the scan also is the one that takes resets.

    Raises:
        ValueError: unknown mode, or "conv" with a reset after the first step.
    """
    if mode == "auto":
        return "scan"
    if mode not in ("scan", "conv"):
        raise ValueError(f"mode: expected auto, scan or conv, got {mode!r}")
    if mode == "conv" and reset is not None:
        inside = reset[:, 1:].nonzero()
        if len(inside):
            row, step = inside[0].tolist()
            raise ValueError(
                f"mode 'conv' takes a reset at step 0 alone, got one in row {row} at step "
                f"{step + 1}: use mode 'scan', or cut the window there"
            )
    return mode


def start(h: Tensor, reset: Tensor | None) -> Tensor:
    """Return the state (B, ...) before a window, cleared in rows whose first step resets."""
    if reset is None or reset.shape[1] == 0:
        return h
    return torch.where(reset[:, 0].view(-1, *(1,) * (h.dim() - 1)), h.new_zeros(()), h)


def powers(a: Tensor, count: int) -> Tensor:
    """Return a^0 ... a^(count - 1) of pairs a (H, N, 2), as (H, N, count, 2)."""
    ones = torch.zeros_like(a)
    ones[..., 0] = 1
    table, square = ones[..., None, :], a[..., None, :]
    while table.shape[-2] < count:
        table = torch.cat((table, complex_product(table, square)), -2)
        square = complex_product(square, square)
    return table[..., :count, :]


def _blocks(T: int) -> tuple[int, int]:
    """Return the length of a chunk and how many cover T >= 1 steps."""
    length = min(CHUNK, T)
    return length, -(-T // length)


def free_response(system: Diagonal, h: Tensor, T: int) -> Tensor:
    """Return what the state h (B, H, N, 2) adds to T >= 1 outputs: (B, T, H).

    2 Re sum_n c_n a_n^(t+1) h_n, as one real matrix product per channel.
    """
    Q, count = _blocks(T)
    table = powers(system.a, Q + 1)
    starts = complex_product(powers(table[..., -1, :], count), h[..., None, :])
    leaving = complex_product(system.c[..., None, :], table[..., 1:, :])
    leaving = leaving * leaving.new_tensor((2.0, -2.0))
    rows = starts.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)  # (H, B count, 2N)
    y = rows @ leaving.transpose(2, 3).flatten(1, 2)  # (H, B count, Q)
    return y.unflatten(1, (h.shape[0], count)).flatten(2).permute(1, 2, 0)[:, :T]


def final_state(system: Diagonal, x: Tensor, h: Tensor) -> Tensor:
    """Return the state after T >= 1 inputs x (B, T, H) from the state h (B, H, N, 2)."""
    (B, T, _), (Q, count) = x.shape, _blocks(x.shape[1])
    table = powers(system.a, Q + 1)
    chunks = powers(table[..., -1, :], count)
    missing = count * Q - T
    # Zeros before the window change nothing that starts from 0.
    padded = F.pad(x, (0, 0, missing, 0)).permute(2, 0, 1).unflatten(2, (count, Q))
    entering = table[..., :Q, :].flip(-2).transpose(1, 2).flatten(2)  # (H, Q, 2N)
    sums = (padded.flatten(1, 2) @ entering).unflatten(2, (-1, 2)).unflatten(1, (B, count))
    later = chunks.flip(-2).transpose(1, 2)[:, None]  # (H, 1, count, N, 2)
    driven = complex_product(sums, later).sum(2).transpose(0, 1)
    left = complex_product(chunks[..., -1, :], table[..., Q - missing, :])
    return complex_product(driven, system.b) + complex_product(left, h)


class ChannelLayer(nn.Module, ABC):
    """A layer with a diagonal state per channel; a `SequenceModel` with a convolution mode.

    A subclass holds the parameters and returns the discrete system of the present ones. State
    key "h": (B, H, N, 2).
    """

    def __init__(self, d_model: int, num_states: int, backend: Backend):
        super().__init__()
        self.d_in = self.d_out = d_model
        self.num_states = num_states
        self.backend: Backend = backend
        self.D = nn.Parameter(torch.randn(d_model))

    @abstractmethod
    def discretize(self) -> Diagonal:
        """Return the discrete system of the present parameters."""

    def kernel(self, length: int) -> Tensor:
        """Return the response (H, length) to an impulse, without D."""
        with full_precision(self.D.device):
            system = self.discretize()
            weight = complex_product(system.c, system.b)
            return vandermonde_pairs(weight, system.a, length, backend=self.backend)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        return {"h": self.D.new_zeros((batch_size, self.d_in, self.num_states, 2))}

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
            mode: "scan" goes through time with any resets; "conv" convolves by FFT and takes a
                reset at step 0 alone; "auto" is "scan", see `pick`.

        Raises:
            ValueError: mode "conv" and a reset after step 0.
        """
        if pick(mode, reset) == "conv" and x.numel():
            return self._convolve(x, state, reset)
        with full_precision(x.device):
            system = self.discretize()
        y, last = ssm_scan_lti_pairs(
            x,
            *system,
            h0=None if state is None else state["h"],
            reset=reset,
            backend=self.backend,
        )
        return y + x * self.D, {"h": last}

    def _convolve(
        self, x: Tensor, state: State | None, reset: Tensor | None
    ) -> tuple[Tensor, State]:
        with full_precision(x.device):
            wide = x.to(self.D.dtype)
            system = self.discretize()
            y = fft_conv(wide, self.kernel(x.shape[1]), D=self.D)
            if state is None:
                h = self.initial_state(len(x))["h"]
            else:
                h = start(state["h"], reset)
                y = y + free_response(system, h, x.shape[1])
            return y.to(x.dtype), {"h": final_state(system, wide, h)}

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
        y, h = ssm_scan_lti_step(
            x, form["a"], form["b"], form["c"], state["h"], reset=reset, backend=self.backend
        )
        return y + x * self.D, {"h": h}


def conforms(layer: ChannelLayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
