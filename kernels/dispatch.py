"""Which backend runs an op: one pure rule, queryable, never silent about a fallback."""

import functools
import warnings
from typing import Literal

import torch

from statewise.kernels import extension

Backend = Literal["auto", "reference", "torch", "cpu"]
BACKENDS: tuple[Backend, ...] = ("reference", "torch", "cpu")
_ACCUMULATE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
}


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run."""


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a scan over `dtype` adds up; raise ValueError if there is none."""
    if dtype not in _ACCUMULATE:
        names = ", ".join(str(d).removeprefix("torch.") for d in _ACCUMULATE)
        raise ValueError(f"scans take {names}, got {dtype}: convert the input")
    return _ACCUMULATE[dtype]


@functools.cache
def _warn_fallback(reason: str) -> None:
    warnings.warn(
        f"the cpu kernels are not available ({reason}); the slower torch backend serves",
        RuntimeWarning,
        stacklevel=5,
    )


def select_backend(
    op: str, device: torch.device, dtype: torch.dtype, requested: Backend = "auto"
) -> Backend:
    """Choose the backend of `op` for tensors of this device and dtype.

    "auto" is the C++ kernel for CPU tensors where it could be built, else plain torch. An
    explicit name wins.

    Raises:
        BackendError: `requested` cannot run, with the reason.
    """
    accumulate_dtype(dtype)
    if requested == "auto":
        if device.type != "cpu":
            return "torch"
        if torch.compiler.is_compiling() and not _loaded():
            return "torch"
        reason = extension.reason_missing()
        if reason:
            _warn_fallback(reason)
            return "torch"
        return "cpu"
    if requested not in BACKENDS:
        raise BackendError(f"{op}: expected a backend of {', '.join(BACKENDS)}, got {requested!r}")
    if requested == "cpu":
        if device.type != "cpu":
            raise BackendError(f"{op}: the cpu backend needs CPU tensors, got {device}")
        reason = extension.reason_missing()
        if reason:
            raise BackendError(f"{op}: the cpu backend cannot run: {reason}")
    return requested


def _loaded() -> bool:
    return hasattr(torch.ops.statewise_cpu, "linear_scan_forward")


def available() -> dict[str, str]:
    """Return backend -> "" if it can run here, else the reason why not."""
    return {"reference": "", "torch": "", "cpu": extension.reason_missing()}


def explain() -> list[str]:
    """Return lines that tell which backend serves which device, for `statewise doctor`."""
    lines = [
        f"{name}: {'ready' if not reason else 'not available, ' + reason}"
        for name, reason in available().items()
    ]
    serves = "torch" if extension.reason_missing() else "cpu"
    lines.append(f"auto: {serves} for CPU tensors, torch for other devices")
    return lines
