"""Inputs for the scan of Mamba-2."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels import ssd_scan
from tests.kernels.scan_cases import wide
from tests.resets import pattern


class Case(NamedTuple):
    """One point of the test matrix; `skip` is the number of axes of D, 0 for none."""

    B: int = 2
    T: int = 9
    H: int = 4
    P: int = 3
    G: int = 2
    N: int = 5
    chunk: int = 4
    skip: int = 1
    h0: bool = True
    reset: str = "staggered"

    def __str__(self) -> str:
        sizes = "x".join(map(str, self[:6]))
        return f"{sizes}-chunk{self.chunk}-D{self.skip}-{'h0-' if self.h0 else ''}{self.reset}"


MATRIX = (
    Case(),
    Case(T=1, H=1, P=1, G=1, N=1, chunk=64, skip=0, h0=False),
    Case(T=2, H=2, P=17, G=1, N=16, chunk=1, skip=2, reset="all"),
    Case(B=1, T=33, H=6, P=2, G=3, N=1, chunk=16, skip=1, reset="none"),
    Case(B=3, T=31, H=5, P=8, G=1, N=4, chunk=31, skip=2, reset="last"),
    Case(B=1, T=65, H=9, P=4, G=1, N=18, chunk=64, skip=0, reset="random"),
    Case(B=3, T=64, H=2, P=5, G=2, N=3, chunk=7, skip=1, h0=False, reset="first"),
    Case(B=1, T=130, H=2, P=33, G=1, N=34, chunk=64, skip=2, reset="adjacent"),
)


def make(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Draw the arguments of `ssd_scan`; for bfloat16 the state's own are float32."""
    B, T, H, P, G, N, chunk = case[:7]
    own = wide(dtype)
    arguments: dict[str, Any] = {
        "x": torch.randn(B, T, H, P).to(dtype),
        "dt": torch.rand(B, T, H, dtype=own),
        "A": -2 * torch.rand(H, dtype=own),
        "Bm": torch.randn(B, T, G, N).to(dtype),
        "Cm": torch.randn(B, T, G, N).to(dtype),
        "chunk": chunk,
        "reset": pattern(case.reset, B, T),
    }
    if case.skip:
        arguments["D"] = torch.randn((H, P)[: case.skip], dtype=own)
    if case.h0:
        arguments["h0"] = torch.randn(B, H, P, N, dtype=own)
    return arguments


def floats(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Return what the scan is differentiable in."""
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.dtype != torch.bool
    }


def results(
    arguments: dict[str, Any], backend: str, weights: tuple[Tensor, Tensor] | None = None
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Return outputs and gradients of a random loss of both outputs, and the loss's weights."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in floats(arguments).items()}
    y, last = ssd_scan(**(arguments | leaves), backend=backend)
    if weights is None:
        weights = torch.randn_like(y), torch.randn_like(last)
    loss = (y * weights[0].to(y.dtype)).sum() + (last * weights[1].to(last.dtype)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"y": y, "last": last} | named, weights
