"""Inputs for the selective scan."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels import selective_scan
from tests.kernels.scan_cases import wide
from tests.resets import pattern


class Case(NamedTuple):
    """One point of the test matrix; a group of options is named by letters.

    D skip, z gate, b bias of dt, s softplus, h initial state, o override of two decays.
    """

    B: int = 2
    T: int = 9
    E: int = 6
    N: int = 3
    G: int = 1
    kind: str = "real"  # real, signed or complex
    options: str = "Dzbsh"
    reset: str = "staggered"

    def __str__(self) -> str:
        sizes = "x".join(map(str, self[:5]))
        return f"{self.kind}-{sizes}-{self.options or 'bare'}-{self.reset}"


MATRIX = (
    Case(),
    Case(T=1, E=1, N=1, options=""),
    Case(T=2, G=2, kind="signed", options="zs", reset="all"),
    Case(T=3, N=1, kind="complex", options="Dzbsh", reset="none"),
    Case(B=1, T=31, E=5, N=2, options="Dh", reset="random"),
    Case(B=3, T=32, E=1, N=5, kind="signed", options="bh", reset="last"),
    Case(T=33, E=4, N=4, G=4, kind="complex", options="sho", reset="random"),
    Case(T=63, E=65, N=2, options="Dzsh", reset="first"),
    Case(T=64, E=130, N=3, G=2, kind="signed", options="zbso", reset="adjacent"),
    Case(B=1, T=65, E=3, N=16, options="Dzbsho", reset="staggered"),
    Case(B=3, T=130, E=7, N=4, kind="complex", options="Dzbsh", reset="adjacent"),
    Case(B=1, T=130, E=64, N=8, options="zh", reset="random"),
)


def make(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Draw the arguments of `selective_scan`; for bfloat16 the state's own are float32."""
    B, T, E, N, G = case[:5]
    own = wide(dtype)
    state = own
    A = -torch.rand(E, N, dtype=torch.float64) - 0.1
    if case.kind == "complex":
        state = torch.complex128 if own == torch.float64 else torch.complex64
        A = torch.complex(A, 3 * torch.randn(E, N, dtype=torch.float64))
    mixing = state if state.is_complex else dtype
    arguments: dict[str, Any] = {
        "u": torch.randn(B, T, E).to(dtype),
        "dt": torch.randn(B, T, E).to(dtype),
        "A": A.to(state),
        "Bm": torch.randn(B, T, G, N, dtype=mixing),
        "Cm": torch.randn(B, T, G, N, dtype=mixing),
        "dt_softplus": "s" in case.options,
        "decay": "signed" if case.kind == "signed" else "exp",
        "reset": pattern(case.reset, B, T),
    }
    if not arguments["dt_softplus"]:
        arguments["dt"] = arguments["dt"].abs()
    extra = {
        "D": ("D", (E,), own),
        "z": ("z", (B, T, E), dtype),
        "b": ("dt_bias", (E,), own),
        "h": ("h0", (B, E, N), state),
    }
    for letter, (name, shape, kind) in extra.items():
        if letter in case.options:
            arguments[name] = torch.randn(shape, dtype=kind)
    if "b" in case.options and not arguments["dt_softplus"]:
        arguments["dt_bias"] = arguments["dt_bias"].abs()
    if "o" in case.options:
        arguments["a_override"] = torch.full((N,), float("nan"), dtype=own)
        arguments["a_override"][-2:] = torch.tensor([0.0, 1.0])[-N:]
    return arguments


def floats(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Return what the scan is differentiable in."""
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.dtype != torch.bool and name != "a_override"
    }


def results(
    arguments: dict[str, Any], backend: str, weights: tuple[Tensor, Tensor] | None = None
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Return outputs and gradients of a random loss of both outputs, and the loss's weights."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in floats(arguments).items()}
    y, last = selective_scan(**(arguments | leaves), backend=backend)
    if weights is None:
        weights = torch.randn_like(y), torch.randn_like(last)
    loss = (y * weights[0].to(y.dtype)).sum() + (last * weights[1].to(last.dtype).conj()).real.sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"y": y, "last": last} | named, weights
