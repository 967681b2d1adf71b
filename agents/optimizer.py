"""AdamW or LaProp with warm-up, a schedule and clipping; moments are saved by parameter name.

Clipping, before the step:

    joint       all gradients together, to `max_grad_norm`
    by_name     state-space parameters of one name (all B, all log_step, ...) together, each name to
                `max_grad_norm`, and all others together (Samsami et al. 2024, R2I)
    adaptive    each tensor to `max_grad_norm` times its own norm, at least 0.001 (Brock et al.
                2021; DreamerV3 of 2024 with 0.3)
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statewise.agents import parallel
from statewise.agents.laprop import LaProp
from statewise.agents.recurrent_ppo import NonFiniteLossError
from statewise.agents.state_dicts import copy_moments, give_moments, moments_of
from statewise.ssm.groups import parameter_groups, ssm_parameter_names

Schedule = Literal["constant", "cosine", "cooldown"]
Clip = Literal["joint", "by_name", "adaptive"]
Kind = Literal["adam", "laprop"]
_SMALLEST_NORM = 1e-3  # of a tensor, for adaptive clipping
_COOLDOWN = 5  # a cooldown takes one in so many updates, the last ones


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How a network learns; see `Optimizer`."""

    learning_rate: float  # > 0
    weight_decay: float = 0.0  # >= 0, of matrices that are not a layer's dynamics
    ssm_lr_factor: float = 1.0  # > 0, learning rate of state-space parameters, relative
    max_grad_norm: float  # > 0, see the module
    schedule: Schedule = "constant"
    warmup_updates: int = 0  # >= 0
    total_updates: int  # >= 1, where a schedule reaches 0
    eps: float = 1e-8  # > 0
    clip: Clip = "joint"
    kind: Kind = "adam"  # with decoupled weight decay

    def __post_init__(self) -> None:
        for name in ("learning_rate", "ssm_lr_factor", "max_grad_norm", "total_updates", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_updates"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")


def rate_factor(update: int, settings: OptimizerSettings) -> float:
    """Return the share in [0, 1] of the learning rate at an update, counted from 0.

    min(1, (update + 1) / warm-up), times (1 + cos(pi update / total)) / 2 for "cosine", for
    "cooldown" times min(1, 5 (1 - update / total)): constant, then down to 0 in a line over the
    last fifth (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed
    Training Durations").
    """
    factor = min(1.0, (update + 1) / max(1, settings.warmup_updates))
    done = min(1.0, update / settings.total_updates)
    match settings.schedule:
        case "cosine":
            factor *= (1.0 + math.cos(math.pi * done)) / 2
        case "cooldown":
            factor *= min(1.0, _COOLDOWN * (1.0 - done))
    return factor


@torch.no_grad()
def _clip_to_own_norm(parameters: list[Tensor], gradients: list[Tensor], max_norm: float) -> None:
    """Scale each gradient down to `max_norm` times its parameter's norm, on the device."""
    own = torch.stack(torch._foreach_norm(parameters)).clamp(min=_SMALLEST_NORM)
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (max_norm * own / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))


def clip_gradients(module: nn.Module, max_norm: float, how: Clip) -> Tensor:
    """Scale gradients down in place; return the norm of all of them before.

    Args:
        module: parameters without a gradient are left out.
        max_norm: > 0.
        how: see the module's text.
    """
    if how == "joint":
        return nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    named = [(name, p) for name, p in module.named_parameters() if p.grad is not None]
    gradients = [p.grad for _, p in named if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if how == "adaptive":
        _clip_to_own_norm([p.detach() for _, p in named], gradients, max_norm)
        return norm
    ssm = ssm_parameter_names(module)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault(name.rpartition(".")[2] if name in ssm else "", []).append(parameter)
    for members in groups.values():
        nn.utils.clip_grad_norm_(members, max_norm)
    return norm


class Optimizer:
    """Takes the gradient steps of a module's trainable parameters.

    The torch optimiser is made at the first step: torch takes seconds to import it, and acting
    needs none.

    Args:
        module: what learns.
        settings: how.
    """

    def __init__(self, module: nn.Module, settings: OptimizerSettings) -> None:
        self.module = module
        self.settings = settings
        self._adam: torch.optim.Optimizer | None = None
        self._moments: dict[str, Any] = {}

    def _made(self) -> torch.optim.Optimizer:
        if self._adam is None:
            groups = parameter_groups(
                self.module,
                learning_rate=self.settings.learning_rate,
                weight_decay=self.settings.weight_decay,
                ssm_factor=self.settings.ssm_lr_factor,
            )
            eps = self.settings.eps
            self._adam = (
                torch.optim.AdamW(groups, eps=eps, fused=True)
                if self.settings.kind == "adam"
                else LaProp(groups, eps=eps)
            )
            give_moments(self.module, self._adam, self._moments)
        return self._adam

    def step(self, losses: dict[str, Tensor], total: Tensor, update: int) -> dict[str, float]:
        """Differentiate `total` and move the parameters.

        With several processes `total` is this one's share; gradients are averaged.

        Args:
            losses: the terms of `total` by name, for the error.
            total: scalar.
            update: number of this step, from 0.

        Returns:
            `grad_norm` before clipping and `learning_rate`.

        Raises:
            NonFiniteLossError: the gradient is not finite; no parameter was changed.
        """
        adam = self._made()
        rate = self.settings.learning_rate * rate_factor(update, self.settings)
        for group in adam.param_groups:
            group["lr"] = rate * group["lr_factor"]
        adam.zero_grad(set_to_none=True)
        total.backward()
        parallel.mean_gradients(self.module)
        norm = clip_gradients(self.module, self.settings.max_grad_norm, self.settings.clip)
        if not bool(norm.isfinite()):
            losses = parallel.mean_losses(losses)
            bad = [name for name, loss in losses.items() if not bool(loss.isfinite())]
            raise NonFiniteLossError(
                f"expected a finite update, got {', '.join(bad) or 'a gradient norm'} = NaN or "
                f"infinity after {update} updates: lower the learning rate or look at the "
                "data; the last checkpoint is intact"
            )
        adam.step()
        return {"grad_norm": float(norm), "learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        """Return the moments by name of their parameter; empty before the first step."""
        if self._adam is None:
            return self._moments
        return moments_of(self.module, self._adam)

    def load_state_dict(self, moments: dict[str, Any]) -> None:
        """Restore moments.

        Raises:
            ValueError: one belongs to no parameter.
        """
        self._moments = copy_moments(self.module, moments)
        self._adam = None
