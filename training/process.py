"""What a training process sets once: threads, global seeds, how memory is kept."""

import ctypes
import sys

import numpy as np
import torch

from statewise.training.config import RunConfig
from statewise.training.distributed import own_stream
from statewise.training.seeding import Seeds

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 1 << 30


def keep_freed_memory() -> bool:
    """Let the allocator keep freed blocks instead of giving them back to the system.

    An update allocates and frees the same activations hundreds of times. By default glibc maps
    each large block anew, and the page faults cost more than the arithmetic on it. Returns
    whether the C library knows the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _NEVER) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


def prepare_process(config: RunConfig) -> None:
    """Set torch's threads, the allocator, and the global generators third-party code may use."""
    keep_freed_memory()
    torch.set_num_threads(config.num_threads)
    seed = Seeds(config.seed).integer(own_stream("global"))
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for environments that draw from numpy's global state
