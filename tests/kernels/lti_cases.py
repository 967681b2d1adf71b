"""Inputs for the time-invariant scan."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels.ssm_scan_lti.op import ssm_scan_lti
from tests.kernels.scan_cases import complex_of, wide
from tests.resets import pattern

INPUTS = ("x", "abar", "bbar", "c", "h0")


class Case(NamedTuple):
    """One point of the test matrix."""

    B: int = 2
    T: int = 9
    H: int = 3
    N: int = 4
    reset: str = "staggered"
    h0: bool = True

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self[:4]))}-{self.reset}" + ("-h0" if self.h0 else "")


# Lengths on both sides of a segment (32), a kept state (64) and a tile (1024) of the C++ kernel;
# widths on both sides of its block of channels (16) and of its vectors.
MATRIX = (
    Case(B=1, T=1, H=1, N=1, reset="none", h0=False),
    Case(T=1, H=3, N=2, reset="first"),
    Case(B=3, T=2, H=2, N=3, reset="all"),
    Case(T=7, H=17, N=5, reset="random"),
    Case(T=31, H=1, N=9, reset="last"),
    Case(T=32, H=4, N=4, reset="none"),
    Case(B=3, T=33, H=2, N=8, reset="adjacent"),
    Case(T=63, H=5, N=33, reset="staggered", h0=False),
    Case(T=64, H=3, N=16, reset="none"),
    Case(T=65, H=33, N=3, reset="all_false"),
    Case(B=5, T=97, H=2, N=12, reset="random"),
    Case(B=1, T=128, H=16, N=32, reset="none", h0=False),
    Case(T=130, H=4, N=1, reset="all"),
    Case(B=1, T=1100, H=2, N=4, reset="staggered"),
)


def make(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Draw the arguments of `ssm_scan_lti`; for bfloat16 all but x is complex64."""
    B, T, H, N = case[:4]
    state = complex_of(wide(dtype))
    modulus = 0.3 + 0.699 * torch.rand(H, N, dtype=torch.float64)
    angle = 6.28 * torch.rand(H, N, dtype=torch.float64)
    arguments: dict[str, Any] = {
        "x": torch.randn(B, T, H, dtype=torch.float64).to(dtype),
        "abar": torch.polar(modulus, angle).to(state),
        "bbar": torch.randn(H, N, dtype=torch.complex128).to(state),
        "c": torch.randn(H, N, dtype=torch.complex128).to(state),
        "reset": pattern(case.reset, B, T),
    }
    if case.h0:
        arguments["h0"] = torch.randn(B, H, N, dtype=torch.complex128).to(state)
    return arguments


def double(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the same numbers in double precision."""
    return {
        name: value.to(torch.complex128 if value.is_complex() else torch.float64)
        if isinstance(value, Tensor) and name in INPUTS
        else value
        for name, value in arguments.items()
    }


def results(
    arguments: dict[str, Any],
    backend: str,
    weights: tuple[Tensor, Tensor] | None = None,
    only: tuple[str, ...] = INPUTS,
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Return outputs and gradients of a random loss of both outputs, and the loss's weights."""
    leaves = {
        name: arguments[name].detach().clone().requires_grad_()
        for name in only
        if name in arguments
    }
    y, last = ssm_scan_lti(**(arguments | leaves), backend=backend)
    if weights is None:
        weights = torch.randn_like(y), torch.randn_like(last)
    loss = (y * weights[0].to(y.dtype)).sum() + (last * weights[1].to(last.dtype).conj()).real.sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"y": y, "last": last} | named, weights
