"""Inputs for the linear scan, and the recursion written once more as a plain loop."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.resets import pattern

BACKENDS = ("reference", "torch", "cpu")
FAST_BACKENDS = ("torch", "cpu")


class Case(NamedTuple):
    """One point of the test matrix; `varying` says whether a has a time axis."""

    B: int
    T: int
    D: int
    is_complex: bool = False
    varying: bool = True
    reset: str = "none"
    h0: bool = True
    h_init: bool = False
    hold: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("h0", "h_init", "hold") if getattr(self, name)]
        kind = ("complex" if self.is_complex else "real") + ("" if self.varying else "-constant")
        return "-".join([kind, f"{self.B}x{self.T}x{self.D}", self.reset, *flags])


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype the state is kept in for inputs of `dtype`."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def complex_of(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def _noise(*shape: int, dtype: torch.dtype, is_complex: bool) -> Tensor:
    if is_complex:
        pairs = torch.randn(*shape, 2, dtype=torch.float64)
        return torch.view_as_complex(pairs).to(complex_of(dtype))
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def decay(*shape: int, dtype: torch.dtype, is_complex: bool) -> Tensor:
    """Return coefficients of modulus 0.3 to 0.999, of either sign or any phase."""
    modulus = 0.3 + 0.699 * torch.rand(*shape, dtype=torch.float64)
    if is_complex:
        angle = 6.28 * torch.rand(*shape, dtype=torch.float64)
        return torch.polar(modulus, angle).to(complex_of(dtype))
    sign = torch.where(torch.rand(*shape) < 0.3, -1.0, 1.0).double()
    return (modulus * sign).to(dtype)


def make(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Draw a, b and the keyword arguments of `linear_scan` for a case.

    For bfloat16, b is bfloat16 and everything else float32.
    """
    B, T, D = case.B, case.T, case.D
    state = {"dtype": wide(dtype), "is_complex": case.is_complex}
    a = decay(*((B, T, D) if case.varying else (D,)), **state)
    b = _noise(B, T, D, dtype=dtype, is_complex=case.is_complex)
    options: dict[str, Any] = {"reset": pattern(case.reset, B, T)}
    if case.h0:
        options["h0"] = _noise(B, D, **state)
    if case.h_init:
        options["h_init"] = _noise(D, **state)
    if case.hold:
        options["hold"] = torch.rand(B, T) < 0.3
    return a, b, options


def loop(
    a: Tensor,
    b: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    h_init: Tensor | None = None,
    hold: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recursion one row and one step at a time, with Python's own `if`."""
    rows, finals = [], []
    for i in range(b.shape[0]):
        h = torch.zeros_like(b[i, 0]) if h0 is None else h0[i]
        steps = []
        for t in range(b.shape[1]):
            if reset is not None and bool(reset[i, t]):
                h = torch.zeros_like(h) if h_init is None else h_init
            if hold is None or not bool(hold[i, t]):
                h = (a if a.dim() == 1 else a[i, t]) * h + b[i, t]
            steps.append(h)
        rows.append(torch.stack(steps))
        finals.append(h)
    return torch.stack(rows), torch.stack(finals)


def leaves(a: Tensor, b: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    """Return the inputs a scan is differentiable in, as fresh leaves."""
    named = {"a": a, "b": b, "h0": options.get("h0"), "h_init": options.get("h_init")}
    return {
        name: value.detach().clone().requires_grad_()
        for name, value in named.items()
        if value is not None
    }
