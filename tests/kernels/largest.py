"""Which tensor is the largest that a piece of code makes, and how much it holds at once."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Notes the largest result of any operation."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return out


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors made under it, and the most that lived at one time.

    Tensors given to it beforehand are not counted, nor is scratch memory inside a kernel.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, Any] = {x.untyped_storage()._cdata: None for x in given}

    def _freed(self, key: int, size: int) -> None:
        self.live -= size
        del self._seen[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and (key := x.untyped_storage()._cdata) not in self._seen:
                size = x.untyped_storage().nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                self._seen[key] = weakref.ref(
                    x.untyped_storage(), lambda _, key=key, size=size: self._freed(key, size)
                )
        return out
