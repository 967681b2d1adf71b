"""Keeping parts of a layer out of autocast: recurrences and what is derived from parameters."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which nothing on `device` is rounded to bfloat16."""
    if device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
