"""Layers for the steps of one window whose matrices get one gradient, not one per step.

    y_t = W x_t + added_t       t = 0 .. T - 1, one after the other
    dW  = sum_t dy_t x_t^T      one product of (D_out, T B) and (T B, D_in)

Autograd alone forms a product and a sum of the size of W at every step. With small batches these
are most of a backward pass through time.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.nets.dreamer_layers import FeatureNorm, NormedMLP


class _Collect(torch.autograd.Function):
    """Copies what is added to y. Its cotangent is that of y, from which that of W follows."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs = inputs
        return added.clone(memory_format=torch.contiguous_format)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the cotangents of what is added and of W."""
        needed = ctx.needs_input_grad[1]
        weight = grad.flatten(0, 1).t() @ torch.cat(ctx.inputs) if needed else None
        return grad, weight, None


class LoopLinear:
    """y_t = W x_t + added_t for the steps of one window, each made once and in order.

    Args:
        weight: W (D_out, D_in).
        added: (B, T, D_out).
    """

    def __init__(self, weight: Tensor, added: Tensor):
        self._inputs: list[Tensor] = []
        if torch.compiler.is_compiling():  # which cannot see into `_Collect`
            self._is_kept, self._weight = False, weight.t()
            self._added = iter(added.unbind(1))
            return
        self._is_kept = torch.is_grad_enabled() and weight.requires_grad
        collect = _Collect.apply(added.transpose(0, 1), weight, self._inputs)  # type: ignore[no-untyped-call]
        self._added = iter(collect.unbind(0))
        self._weight = weight.detach().t()

    def __call__(self, x: Tensor) -> Tensor:
        """Map x (B, D_in) of the next step to y (B, D_out)."""
        if self._is_kept:
            self._inputs.append(x.detach())
        return torch.addmm(next(self._added), x, self._weight)


class LoopMLP:
    """A `NormedMLP`, and a linear layer behind it, for the steps of one window.

    The input is [x_t, known_t]; only x_t has to wait for the steps before.

    Args:
        mlp: its layers may be none if there is `out`.
        known: (B, T, D_known).
        out: the last layer; None ends with the MLP.
    """

    def __init__(self, mlp: NormedMLP, known: Tensor, out: nn.Linear | None = None):
        linears = [cast("nn.Linear", linear) for linear in mlp.linears]
        linears += [] if out is None else [out]
        self.norms = [cast("FeatureNorm", norm) for norm in mlp.norms]
        self.dtype = linears[0].weight.dtype
        self.linears = []
        for i, linear in enumerate(linears):
            weight, bias = linear.weight, linear.bias
            if i == 0:
                d_in = weight.shape[1] - known.shape[-1]
                added = F.linear(known.to(self.dtype), weight[:, d_in:], bias)
                weight = weight[:, :d_in]
            else:
                added = weight.new_zeros(()) if bias is None else bias
                added = added.expand(*known.shape[:2], len(weight))
            self.linears.append(LoopLinear(weight, added))

    def __call__(self, x: Tensor) -> Tensor:
        """Map x (B, D_in - D_known) of the next step to (B, D_out)."""
        for norm, linear in zip(self.norms, self.linears, strict=False):
            x = F.silu(norm(linear(x))).to(self.dtype)
        return self.linears[-1](x) if len(self.linears) > len(self.norms) else x
