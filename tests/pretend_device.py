"""A device that is not here: torch's "meta", refusing what a GPU refuses, with numbers to read.

Meta tensors have shapes and no memory. Mixing them with CPU tensors is not always refused, and
nothing can be read from them; a program that decides by values then stops. `PretendDevice` refuses
the one and answers the other, and runs the kernels' own operations instead of their declared
shapes. So the device of every tensor is checked, forwards and backwards, on a machine without GPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
SELECTED = 2  # rows that a mask is said to select
aten = torch.ops.aten
MOVES = (aten._to_copy, aten.to, aten.copy_)


class DeviceMixError(AssertionError):
    """An operation got tensors of the pretended device and of the CPU."""


class PretendDevice(TorchDispatchMode):
    """Within it, every number read from the device is 1 and every flag is set."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if x.device == DEVICE]
        here = [x for x in tensors if x.device != DEVICE and x.dim() > 0]
        if there and here and func.overloadpacket not in MOVES:
            shapes = [f"{tuple(x.shape)} on {x.device}" for x in tensors]
            raise DeviceMixError(f"{func} got {', '.join(shapes)}")
        if func is aten._local_scalar_dense.default and there:
            return there[0].dtype == torch.bool or torch.ones((), dtype=there[0].dtype).item()
        if func.overloadpacket in MOVES[:2] and there and _target(kwargs) != DEVICE:
            return torch.ones(there[0].shape, dtype=kwargs.get("dtype") or there[0].dtype)
        if func is aten.index.Tensor and there and args[1][0].dtype == torch.bool:
            return args[0].new_empty((SELECTED, *args[0].shape[args[1][0].dim() :]))
        if func.namespace == "statewise":
            with self:
                return OPDEFS[f"statewise::{func._opname}"]._init_fn(*args, **kwargs)
        return func(*args, **kwargs)


def _target(kwargs: dict[str, Any]) -> torch.device:
    device = kwargs.get("device")
    return DEVICE if device is None else torch.device(device)
