"""Steps of acting that are one call into C++ instead of a dozen small operations.

At batch 1 a torch operation costs more than the arithmetic in it. What is here computes what the
composition of operations computes, without gradient, on CPU tensors; everywhere else the caller's
composition runs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels.dispatch import Backend, steps_in_cpp
from statewise.kernels.extension import reason_missing

OP = "acting"
_PARTS_OF_MAMBA = ("causal_conv1d", "selective_scan")


def rms_norm(x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
    """Divide rows by their root mean square, `torch.nn.functional.rms_norm` over the last axis.

    Args:
        x: (..., D).
        weight: (D,); None is 1.
        eps: > 0, added to the mean square; None means that of torch.

    Returns:
        (..., D). Differentiable; one call into C++ where no gradient is asked for.
    """
    known = eps is not None and x.dtype in (torch.float32, torch.float64)
    if known and steps_in_cpp(OP, x, x if weight is None else weight, "auto"):
        y: Tensor = torch.ops.statewise_cpu.rms_norm(x, weight, eps)
        return y
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def mamba_step_runs(x: Tensor, ssm: Tensor, backend: Backend) -> bool:
    """Tell whether `mamba_step` serves this input and state."""
    if not steps_in_cpp(OP, x, ssm, backend) or torch.is_autocast_enabled("cpu"):
        return False
    return not any(map(reason_missing, _PARTS_OF_MAMBA))


def mamba_step(
    x: Tensor,
    weights: Sequence[Tensor],
    conv: Tensor,
    ssm: Tensor,
    reset: Tensor | None,
    a_override: Tensor | None,
    *,
    signed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of a Mamba layer with real eigenvalues, where `mamba_step_runs`; no checks.

    Args:
        x: (B, D).
        weights: in_proj (2 E, D), conv_weight (E, W), conv_bias (E,), x_proj (R + 2 N, E),
            dt_weight (E, R), dt_bias (E,), A (E, N), D (E,), out_proj (D, E).
        conv: (B, E, W - 1).
        ssm: (B, E, N).
        reset: (B,) bool or None.
        a_override: (N,) or None, see `selective_scan`.
        signed: decays 2 exp(d A) - 1.

    Returns:
        y (B, D) and the next conv and ssm.
    """
    y, conv, ssm = torch.ops.statewise_cpu.mamba_step(
        x, *weights, conv, ssm, reset, a_override, signed
    )
    return y, conv, ssm
