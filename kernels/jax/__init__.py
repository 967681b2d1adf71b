"""The scans for JAX arrays: the same arguments and meaning as in torch; jit, grad, vmap.

They serve agents written in JAX and are the independent check of the torch backends. Nothing that
a torch agent runs calls them.
"""

from statewise.kernels.jax.linear_scan import linear_scan
from statewise.kernels.jax.selective_scan import selective_scan
from statewise.kernels.jax.ssd_scan import ssd_scan

__all__ = ["linear_scan", "selective_scan", "ssd_scan"]
