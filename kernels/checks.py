"""What all ops ask of their arguments; each error is one line that names the argument."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
COMPLEX = (torch.complex64, torch.complex128)


def require_shape(op: str, name: str, value: Tensor | None, *shapes: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` is None or has one of the shapes."""
    if value is not None and tuple(value.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{op}: {name} must be {wanted}, got {tuple(value.shape)}")


def require_flag(op: str, name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` is None or bool of this shape."""
    require_shape(op, name, value, shape)
    if value is not None and value.dtype != torch.bool:
        raise ValueError(f"{op}: {name} must be bool, got {value.dtype}: compare it with 0")


def require_dtype(op: str, allowed: tuple[torch.dtype, ...], **values: Tensor | None) -> None:
    """Raise ValueError unless every value is None or of an allowed dtype."""
    for name, value in values.items():
        if value is not None and value.dtype not in allowed:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise ValueError(f"{op}: {name} must be one of {names}, got {value.dtype}: convert it")


def require_one_device(op: str, **values: Tensor | None) -> None:
    """Raise ValueError unless all values that are not None are on one device."""
    devices = {name: value.device for name, value in values.items() if value is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {where}: move them")
