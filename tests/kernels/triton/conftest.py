"""Tests of Triton kernels on CPU tensors, by Triton's interpreter.

The interpreter must be on before triton is imported, so they need a process of their own, which
`tests/kernels/test_triton_interpreter.py` starts for each file. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/triton
"""

import os
from typing import Any

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


_patched: set[str] = set()


@pytest.fixture(autouse=True)
def _patch_the_language_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halve the time: triton patches its language again for each function that a kernel calls.

    A launch does so itself, and undoes it; what lasts is the patch of the inner modules of the
    language, which its own functions see.
    """
    from triton.runtime import interpreter

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in _patched:
            _patched.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
