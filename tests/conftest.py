"""What every test starts from: fixed seeds, one thread, and no lucky zeros in fresh memory."""

import random
import sys
import types
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor


def _poisoned(allocate: Any) -> Any:
    """Wrap an allocator so that the memory it returns is NaN instead of whatever was there."""

    def poisoned_allocate(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = allocate(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() or out.is_complex() else out

    return poisoned_allocate


def _poisoned_torch() -> types.ModuleType:
    """Return a copy of the torch module whose `empty` family hands out NaN."""
    module = types.ModuleType("torch")
    module.__dict__.update(torch.__dict__)
    for name in ("empty", "empty_like", "empty_strided"):
        setattr(module, name, _poisoned(getattr(torch, name)))
    return module


_POISONED_TORCH = _poisoned_torch()
_seen: set[str] = set()  # names of modules that were looked at


def _poison_kernel_modules() -> None:
    """Give kernel modules imported since the last call the poisoned torch, for good."""
    if len(_seen) == len(sys.modules):  # looking at thousands of names takes milliseconds
        return
    for name, module in list(sys.modules.items()):
        if name.startswith("statewise.kernels") and getattr(module, "torch", None) is torch:
            module.torch = _POISONED_TORCH  # type: ignore[attr-defined]
    _seen.clear()
    _seen.update(sys.modules)


@pytest.fixture(autouse=True)
def _fixed_seeds_and_one_thread() -> None:
    # torch.manual_seed also files a call, with a traceback, for each kind of device it may find.
    torch.default_generator.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - tests of numpy code that takes no generator
    random.seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _poison_fresh_kernel_memory() -> None:
    """A kernel that forgets to write an element then returns NaN, not an old right answer."""
    _poison_kernel_modules()


def _poisoned_new_empty(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out = _NEW_EMPTY(self, *args, **kwargs)
    caller = sys._getframe(1).f_globals.get("__name__", "")
    if caller.startswith("statewise.kernels") and out.is_floating_point():
        out.fill_(float("nan"))
    return out


_NEW_EMPTY = torch.Tensor.new_empty
torch.Tensor.new_empty = _poisoned_new_empty  # type: ignore[method-assign]
# A test says what is right, not how long it may take on a busy machine.
hypothesis.settings.register_profile("statewise", deadline=None)
hypothesis.settings.load_profile("statewise")
