"""Decision Mamba: its layer in closed form, the start of its memory, and pairs that fit."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from statewise.agents.offline.acting import RecurrentActing, WindowActing
from statewise.agents.offline.decision_mamba import DecisionMambaConfig, build_core
from statewise.data.samplers import TrajectoryConfig, WindowConfig
from statewise.ssm.mamba import MambaConfig, MambaLayer
from tests.agents.offline.sequence_cases import mamba
from tests.tolerance import ORACLE_FLOAT64, assert_within


def layers(module: torch.nn.Module) -> list[MambaLayer]:
    return [layer for layer in module.modules() if isinstance(layer, MambaLayer)]


def test_a_layer_is_its_equation() -> None:
    config = DecisionMambaConfig(d_model=4, num_layers=2, mamba=MambaConfig(state_size=2))
    core = build_core(config).double().eval()
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    reset = torch.rand(2, 7) < 0.3
    with torch.no_grad():
        expected = x
        for block in core.layer.blocks:
            mlp = block.layer.after.mlp
            expected = expected + block.layer.layer(F.layer_norm(expected, (4,)), None, reset)[0]
            hidden = F.gelu(mlp[0](F.layer_norm(expected, (4,))))
            expected = expected + mlp[2](hidden)
        expected = F.layer_norm(expected, (4,))
        assert_within(core(x, None, reset)[0], expected, ORACLE_FLOAT64)


def test_step_sizes_start_small_and_in_the_release_they_do_not() -> None:
    ours = mamba(d_model=64)
    for layer in layers(ours.policy):
        steps = F.softplus(layer.dt_bias)
        assert 9e-4 < steps.min() < steps.max() < 0.11
        assert layer.dt_weight.abs().max() <= layer.rank**-0.5
        assert layer.dt_weight.std() > 0.2
    with pytest.warns(UserWarning, match="'release' starts Mamba with step sizes near 0.69"):
        release = mamba(d_model=64, parity="release")
    for layer in layers(release.policy):
        assert torch.equal(layer.dt_bias, torch.zeros_like(layer.dt_bias))
        assert layer.dt_weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert layer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_start_as_attention_is_not_lost_among_small_weights() -> None:
    core = build_core(DecisionMambaConfig(d_model=64, mamba=MambaConfig(init="mimetic")))
    plain = build_core(DecisionMambaConfig(d_model=64))
    for layer, other in zip(layers(core), layers(plain), strict=True):
        _, B, C = layer.x_proj.weight.split((layer.rank, layer.width, layer.width))
        assert torch.equal(B, C)
        # torch's layers: uniform within 1 / sqrt(inputs), so a deviation of 1 / sqrt(3 inputs)
        assert layer.in_proj.weight.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.1)
        assert other.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert core.layer.blocks[0].layer.after.mlp[0].weight.std().item() < 0.025


def test_ours_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mamba()


@pytest.mark.parametrize(
    ("train_on", "inference", "acting", "sampling"),
    [
        ("windows", "window", WindowActing, WindowConfig(length=20, batch_size=3)),
        ("trajectories", "window", WindowActing, TrajectoryConfig(batch_size=3)),
        ("trajectories", "recurrent", RecurrentActing, TrajectoryConfig(batch_size=3)),
    ],
)
def test_training_and_acting_are_what_was_asked_for(
    train_on: str, inference: str, acting: type, sampling: Any
) -> None:
    agent = mamba(train_on=train_on, inference=inference)
    assert isinstance(agent.acting, acting)
    assert agent.sampling == sampling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inference": "recurrent"}, "inference: expected 'window' with train_on 'windows'"),
        (
            {"inference": "recurrent", "train_on": "trajectories", "context": 5},
            "context: would be ignored with inference 'recurrent', got 5",
        ),
        ({"context": 0}, "context: expected at least 1, got 0"),
        ({"num_layers": 0}, "num_layers: expected at least 1, got 0"),
        ({"ssm_lr_factor": 0.0}, "ssm_lr_factor: expected a positive number, got 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionMambaConfig(**changes)
