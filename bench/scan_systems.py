"""The systems of `bench scan`, each prepared, checked and timed in a process of its own.

A scan is checked before it is timed: outputs and gradients against the sequential loop in
float64. GRU, LSTM and addcmul compute something else and have nothing to be checked against;
they are what one would use instead, and the cost of streaming the same arrays once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from statewise.bench.measure import time_calls
from statewise.bench.process import Answer, Job
from statewise.kernels import Backend, linear_scan

RESET_RATE = 0.02
Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # h, da, db; each (B, T, D)


class Inputs(NamedTuple):
    """What every system gets."""

    a: Tensor
    """(B, T, D) float32 in [0.9, 1)."""
    b: Tensor
    """(B, T, D) float32."""
    reset: Tensor
    """(B, T) bool."""
    grad: Tensor
    """(B, T, D) float32, gradient of a loss in h."""


@dataclass(frozen=True)
class Prepared:
    """A system that is ready to be timed on some inputs."""

    forward: Callable[[], object]
    forward_backward: Callable[[], object] | None
    arrays: Callable[[], Arrays] | None
    """Result and gradients of a scan; None where the system is none."""


def make_inputs(shape: tuple[int, int, int], seed: int = 0) -> Inputs:
    """Draw inputs of shape (B, T, D)."""
    generator = torch.Generator().manual_seed(seed)
    a = 0.9 + 0.0999 * torch.rand(shape, generator=generator)
    b = torch.randn(shape, generator=generator)
    reset = torch.rand(shape[:2], generator=generator) < RESET_RATE
    return Inputs(a, b, reset, torch.randn(shape, generator=generator))


def _scan(inputs: Inputs, backend: Backend) -> Prepared:
    a, b = (x.clone().requires_grad_() for x in inputs[:2])

    def forward() -> Tensor:
        with torch.no_grad():
            return linear_scan(a, b, reset=inputs.reset, backend=backend)[0]

    def both() -> tuple[Tensor, ...]:
        h, _ = linear_scan(a, b, reset=inputs.reset, backend=backend)
        return h, *torch.autograd.grad(h, (a, b), inputs.grad.to(h.dtype))

    def arrays() -> Arrays:
        h, da, db = (x.detach().numpy() for x in both())
        return h, da, db

    return Prepared(forward, both, arrays)


def _addcmul(inputs: Inputs) -> Prepared:
    out = torch.empty_like(inputs.b)
    return Prepared(lambda: torch.addcmul(inputs.b, inputs.a, inputs.grad, out=out), None, None)


def _recurrent(inputs: Inputs, make: Callable[..., nn.RNNBase]) -> Prepared:
    layer = make(inputs.b.shape[2], inputs.b.shape[2], batch_first=True)
    x = inputs.b.clone().requires_grad_()

    def forward() -> Tensor:
        with torch.no_grad():
            return layer(x)[0]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x)[0], (x, *layer.parameters()), inputs.grad)

    return Prepared(forward, both, None)


def _jax(inputs: Inputs, scan: Callable[[Any, Any], Any]) -> Prepared:
    """Prepare `scan(a, b)` -> h with the resets folded into a, as its users have to."""
    import jax

    keep = jax.numpy.asarray(~inputs.reset.numpy())[..., None]
    a, b, grad = (jax.numpy.asarray(x.numpy()) for x in (inputs.a, inputs.b, inputs.grad))

    def masked(a: Any, b: Any) -> Any:
        return scan(a * keep, b)

    def with_gradients(a: Any, b: Any, grad: Any) -> Any:
        h, pull = jax.vjp(masked, a, b)
        return h, *pull(grad)

    # Compiled here, so that no timed call compiles.
    forward = jax.jit(masked).lower(a, b).compile()
    both = jax.jit(with_gradients).lower(a, b, grad).compile()

    def arrays() -> Arrays:
        h, da, db = (np.asarray(x) for x in both(a, b, grad))
        return h, da, db

    return Prepared(
        lambda: forward(a, b).block_until_ready(),
        lambda: [x.block_until_ready() for x in both(a, b, grad)],
        arrays,
    )


def _associative_scan(inputs: Inputs) -> Prepared:
    import jax

    def scan(a: Any, b: Any) -> Any:
        def join(x: Any, y: Any) -> Any:
            return x[0] * y[0], y[0] * x[1] + y[1]

        return jax.lax.associative_scan(join, (a, b), axis=1)[1]

    return _jax(inputs, scan)


def _sequential_jax_scan(inputs: Inputs) -> Prepared:
    import jax

    def scan(a: Any, b: Any) -> Any:
        def step(h: Any, entry: Any) -> Any:
            h = entry[0] * h + entry[1]
            return h, h

        moved = (a.swapaxes(0, 1), b.swapaxes(0, 1))
        _, h = jax.lax.scan(step, jax.numpy.zeros_like(b[:, 0]), moved)
        return h.swapaxes(0, 1)

    return _jax(inputs, scan)


SYSTEMS: dict[str, Callable[[Inputs], Prepared]] = {
    "statewise cpu": lambda inputs: _scan(inputs, "cpu"),
    "statewise torch": lambda inputs: _scan(inputs, "torch"),
    "statewise reference": lambda inputs: _scan(inputs, "reference"),
    "torch.addcmul(out=)": _addcmul,
    "torch.nn.GRU": lambda inputs: _recurrent(inputs, nn.GRU),
    "torch.nn.LSTM": lambda inputs: _recurrent(inputs, nn.LSTM),
    "jax.lax.associative_scan": _associative_scan,
    "jax.lax.scan": _sequential_jax_scan,
}


def refusal(prepared: Prepared, inputs: Inputs) -> str:
    """Return why a scan must not be timed: its result is wrong; "" where it is right.

    The limit is that of the tests, 2e-6 sqrt(T) and at most 1e-4 of the largest entry, three
    times that for gradients.
    """
    if prepared.arrays is None:
        return ""
    exact = _scan(
        Inputs(inputs.a.double(), inputs.b.double(), inputs.reset, inputs.grad), "reference"
    )
    assert exact.arrays is not None
    T = inputs.b.shape[1]
    limit = min(2e-6 * math.sqrt(T), 1e-4)
    for name, got, want in zip(("h", "da", "db"), prepared.arrays(), exact.arrays(), strict=True):
        error = float(np.abs(got - want).max() / np.abs(want).max())
        allowed = limit if name == "h" else 3 * limit
        if not error <= allowed:  # NaN is refused too
            return f"{name} is off by {error:.2g} of its largest entry, at most {allowed:.2g}"
    return ""


def _timed_modes(
    prepared: Prepared, modes: list[str]
) -> Iterator[tuple[str, Callable[[], object]]]:
    if "forward" in modes:
        yield "forward", prepared.forward
    if "forward+backward" in modes and prepared.forward_backward is not None:
        yield "forward+backward", prepared.forward_backward


def run_job(job: Job) -> Answer:
    """Check and time one system.

    Args:
        job: system, cases (a list of [shape, modes]), check, reps, seconds.

    Returns:
        {"cases": [{"shape", "refused", "timings": {mode: [wall, cpu]}}, ...]}, seconds.
    """
    cases = []
    for shape, modes in job["cases"]:
        inputs = make_inputs(tuple(shape))
        prepared = SYSTEMS[job["system"]](inputs)
        refused = refusal(prepared, inputs) if job["check"] else ""
        timings = {
            mode: time_calls(call, reps=job["reps"], seconds=job["seconds"])
            for mode, call in _timed_modes(prepared, [] if refused else modes)
        }
        cases.append({"shape": shape, "refused": refused, "timings": timings})
    return {"cases": cases}
