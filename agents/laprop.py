"""LaProp: the gradient is scaled first and averaged then.

Paper: Ziyin, Wang and Ueda 2020, "LaProp: Separating Momentum and Adaptivity in Adam" (alg. 1).

    v <- b2 v + (1 - b2) g^2;   m <- b1 m + (1 - b1) lr g / (sqrt(v / (1 - b2^t)) + eps)
    theta <- theta - m / (1 - b1^t)

With b1 = 0 it is Adam without momentum. A learning rate that changes enters the average with the
gradient it belongs to.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor


class LaProp(torch.optim.Optimizer):
    """LaProp with decoupled weight decay.

    Args:
        params: parameters, or groups of them with their own `lr` and `weight_decay`.
        lr: > 0.
        betas: decay of m and of v, each in [0, 1).
        eps: > 0, added to the root.
        weight_decay: >= 0, times lr.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                t = float(state["step"])
                v = state["exp_avg_sq"].mul_(b2)
                v.addcmul_(parameter.grad, parameter.grad, value=1 - b2)
                root = (v / (1 - b2**t)).sqrt_().add_(group["eps"])
                m = state["exp_avg"].mul_(b1)
                m.addcdiv_(parameter.grad, root, value=(1 - b1) * group["lr"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(m, alpha=1 / (1 - b1**t))
        return loss
