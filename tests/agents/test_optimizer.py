"""Clipping by groups and LaProp against loops written out."""

import pytest
import torch
from torch import nn

from statewise.agents.laprop import LaProp
from statewise.agents.optimizer import Optimizer, OptimizerSettings, clip_gradients
from statewise.ssm.groups import ssm_parameter_names
from tests.worldmodels.cases import model


def test_laprop_scales_before_it_averages() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = LaProp([p], lr=0.1, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.01)
    theta, m, v = p.detach().clone(), torch.zeros(5), torch.zeros(5)
    m, v = m.double(), v.double()
    for t in range(1, 6):
        g = torch.randn(5, dtype=torch.float64)
        lr = 0.1 / t
        optimizer.param_groups[0]["lr"] = lr
        p.grad = g.clone()
        optimizer.step()
        v = 0.99 * v + 0.01 * g * g
        m = 0.9 * m + 0.1 * lr * g / ((v / (1 - 0.99**t)).sqrt() + 1e-12)
        theta = theta * (1 - lr * 0.01) - m / (1 - 0.9**t)
        torch.testing.assert_close(p.detach(), theta)


def test_laprop_without_momentum_is_adam_without_momentum() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    a = LaProp([ours], lr=0.1, betas=(0.0, 0.9), eps=1e-8)
    b = torch.optim.Adam([theirs], lr=0.1, betas=(0.0, 0.9), eps=1e-8)
    for t in range(4):
        ours.grad = theirs.grad = torch.tensor([1.0, -2.0, 0.5]) * (t + 1)
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def with_gradients() -> nn.Module:
    world = model("s5")
    torch.manual_seed(3)
    for i, p in enumerate(world.parameters()):
        p.grad = torch.randn_like(p) * (1 + i % 7)
    return world


def norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([g.norm() for g in gradients]).norm()


def test_state_space_parameters_of_one_name_are_clipped_together_and_apart_from_the_rest() -> None:
    world = with_gradients()
    before = {name: p.grad.clone() for name, p in world.named_parameters() if p.grad is not None}
    returned = clip_gradients(world, 0.5, "by_name")
    torch.testing.assert_close(returned, norm(list(before.values())))
    ssm = ssm_parameter_names(world)
    groups: dict[str, list[str]] = {}
    for name in before:
        groups.setdefault(name.rpartition(".")[2] if name in ssm else "", []).append(name)
    assert {"B", "D", "log_step", "h_init", ""} <= groups.keys()
    assert len(groups["B"]) == 2  # both layers
    grads = {name: p.grad for name, p in world.named_parameters() if p.grad is not None}
    for members in groups.values():
        scale = torch.clamp(0.5 / norm([before[name] for name in members]), max=1.0)
        for name in members:
            torch.testing.assert_close(grads[name], before[name] * scale, rtol=1e-4, atol=0.0)


def test_adaptive_clipping_looks_at_the_size_of_each_tensor() -> None:
    world = with_gradients()
    before = {name: p.grad.clone() for name, p in world.named_parameters() if p.grad is not None}
    clip_gradients(world, 0.3, "adaptive")
    for name, p in world.named_parameters():
        most = 0.3 * max(1e-3, float(p.detach().norm()))
        scale = min(1.0, most / float(before[name].norm()))
        assert p.grad is not None
        torch.testing.assert_close(p.grad, before[name] * scale, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("kind", ["adam", "laprop"])
def test_state_space_parameters_take_their_own_rate_and_no_decay(kind: str) -> None:
    world = model("s5")
    settings = OptimizerSettings(
        learning_rate=0.1,
        ssm_lr_factor=0.5,
        weight_decay=0.1,
        max_grad_norm=1e9,
        total_updates=1,
        kind=kind,  # type: ignore[arg-type]
    )
    optimizer = Optimizer(world, settings)
    ssm = ssm_parameter_names(world)
    before = {name: p.detach().clone() for name, p in world.named_parameters()}
    # A gradient of 1 everywhere: a first step of Adam and of LaProp is the learning rate.
    total = torch.stack([p.sum() for p in world.parameters()]).sum()
    optimizer.step({"total": total}, total, 0)
    for name, p in world.named_parameters():
        rate = 0.05 if name in ssm else 0.1
        decay = 0.1 if name not in ssm and p.dim() > 1 else 0.0
        wanted = before[name] * (1 - rate * decay) - rate
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-6)
