"""Which backend runs an op: one pure rule, queryable, never silent about a fallback."""

import functools
import importlib
import importlib.util
import types
import warnings
from pathlib import Path
from typing import Literal

import torch

from statewise.kernels import extension

Backend = Literal["auto", "reference", "torch", "cpu", "triton"]
BACKENDS: tuple[Backend, ...] = ("reference", "torch", "cpu", "triton")
OLDEST_GPU = (7, 5)  # compute capability that Triton serves
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


def launcher(op: str, backend: str) -> types.ModuleType:
    """Return the module `kernels/<op>/<backend>.py`; imports it at the first use of the backend.

    Loads the C++ kernel as well: a program exported elsewhere has not asked `select_backend`.

    Raises:
        BackendError: the kernel is not there.
    """
    if backend == "cpu" and (reason := extension.reason_missing(op)):
        raise BackendError(f"{op}: the cpu backend cannot run: {reason}")
    return importlib.import_module(f"statewise.kernels.{op}.{backend}")


@functools.cache
def _warn_fallback(reason: str) -> None:
    warnings.warn(
        f"the cpu kernels are not available ({reason}); the slower torch backend serves",
        RuntimeWarning,
        stacklevel=5,
    )


# Called while a graph is traced as well; within one process the answer never changes.
@extension.constant_in_graphs
@functools.cache
def triton_missing(device_type: str) -> str:
    """Return "" if Triton kernels can run on tensors of this device type, else why not.

    Triton's interpreter runs them on CPU tensors, for tests: TRITON_INTERPRET=1 must be in the
    environment before triton is imported.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    import triton

    interpreted = bool(triton.knobs.runtime.interpret)
    if device_type == "cpu":
        return "" if interpreted else "it needs CUDA tensors, got CPU tensors"
    if device_type != "cuda":
        return f"it needs CUDA tensors, got {device_type} tensors"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_GPU:
        return f"it needs compute capability {OLDEST_GPU}, got {capability}"
    return ""


@extension.constant_in_graphs
@functools.cache
def _has_triton(op: str) -> bool:
    return (Path(__file__).resolve().parent / op / "triton.py").exists()


def select_backend(
    op: str, device: torch.device, dtype: torch.dtype, requested: Backend = "auto"
) -> Backend:
    """Choose the backend of `op` for tensors of this device and dtype.

    "auto" is the C++ kernel for CPU tensors where it could be built, the Triton kernel for CUDA
    tensors where there is one and Triton runs, else plain torch. An explicit name wins.

    Raises:
        BackendError: `requested` cannot run, with the reason.
    """
    accumulate_dtype(dtype)
    if requested == "auto":
        return _automatic(op, device)
    if requested not in BACKENDS:
        raise BackendError(f"{op}: expected a backend of {', '.join(BACKENDS)}, got {requested!r}")
    reason = ""
    if requested == "cpu":
        if device.type != "cpu":
            raise BackendError(f"{op}: the cpu backend needs CPU tensors, got {device}")
        reason = extension.reason_missing(op)
    elif requested == "triton":
        reason = triton_missing(device.type) if _has_triton(op) else "there is no such kernel"
    if reason:
        raise BackendError(f"{op}: the {requested} backend cannot run: {reason}")
    return requested


def steps_in_cpp(op: str, x: torch.Tensor, state: torch.Tensor, requested: Backend) -> bool:
    """Tell whether one step of acting on `x` is a call into the C++ kernel of `op`.

    With a gradient, under a compiler and on other devices a step is torch operations.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if x.dtype != state.dtype or x.device.type != "cpu":
        return False
    return select_backend(op, x.device, x.dtype, requested) == "cpu"


def trains_in_cpp(op: str, *tensors: torch.Tensor | None, backend: Backend = "auto") -> bool:
    """Tell whether a composition with an adjoint of its own, of `op`, is a call into C++.

    It is for CPU tensors of one dtype, float32 or float64, outside of a compiler and of autocast.

    Args:
        op: "fused" or "categorical".
        *tensors: the first is there and decides on device and dtype; others may be None.
        backend: of the layer that asks; all but "auto" and "cpu" mean the composition.
    """
    first = tensors[0]
    assert first is not None
    if backend not in ("auto", "cpu") or first.device.type != "cpu" or first.numel() == 0:
        return False
    if first.dtype not in (torch.float32, torch.float64):
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if any(x is not None and x.dtype != first.dtype for x in tensors[1:]):
        return False
    return select_backend(op, first.device, first.dtype) == "cpu"


def _automatic(op: str, device: torch.device) -> Backend:
    if device.type == "cuda":
        return "torch" if triton_missing("cuda") or not _has_triton(op) else "triton"
    if device.type != "cpu":
        return "torch"
    if torch.compiler.is_compiling() and not extension.loaded(op):
        return "torch"
    reason = extension.reason_missing(op)
    if reason:
        _warn_fallback(reason)
        return "torch"
    return "cpu"


def available() -> dict[str, str]:
    """Return backend -> "" if it can run here, else the reason why not."""
    reasons = {op: extension.reason_missing(op) for op in extension.OPS}
    cpu = [f"{op}: {reason}" for op, reason in reasons.items() if reason]
    same = len(cpu) == len(extension.OPS) and len(set(reasons.values())) == 1
    return {
        "reference": "",
        "torch": "",
        "cpu": next(iter(reasons.values())) if same else "; ".join(cpu),
        "triton": triton_missing("cuda"),
        "jax": "" if importlib.util.find_spec("jax") else "jax is not installed: pip install jax",
    }


def explain() -> list[str]:
    """Return lines that tell which backend serves which device, for `statewise doctor`."""
    reasons = available()
    lines = [
        f"{name}: {'ready' if not reason else 'not available, ' + reason}"
        for name, reason in reasons.items()
    ]
    on_cpu = "torch" if reasons["cpu"] else "cpu"
    on_cuda = "torch" if reasons["triton"] else "triton"
    lines.append(f"auto: {on_cpu} for CPU tensors, {on_cuda} for CUDA tensors, torch elsewhere")
    return lines
