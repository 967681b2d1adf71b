"""Reading the recorded arrays of `tests/golden`; its README says how they were made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def names(pattern: str) -> list[str]:
    """Return the names, without suffix, of the files that match; at least one must."""
    found = sorted(path.stem for path in FOLDER.glob(f"{pattern}.npz"))
    assert found, f"no golden file matches {pattern!r} in {FOLDER}"
    return found


def load(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays of a file as tensors, and its `meta`."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "meta"}
        return arrays, json.loads(str(stored["meta"]))


def batch_first(x: Tensor) -> Tensor:
    """Turn (T, B, ...) into (B, T, ...)."""
    return x.transpose(0, 1).contiguous()
