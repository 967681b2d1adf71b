"""Time constants of layers against closed forms, and against what a step does to a state."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.ssm.build import SEQUENCES, SequenceConfig, build_sequence
from statewise.ssm.decays import (
    KINDS,
    Read,
    find_layers,
    fixed_decays,
    recurrence,
    selective_decays,
    time_constants,
    why_none,
)
from statewise.ssm.delta_net import GatedDeltaNetConfig, GatedDeltaNetLayer
from statewise.ssm.dss import DSSConfig, DSSLayer
from statewise.ssm.forgetful import Forgetful
from statewise.ssm.lru import LRUConfig, LRULayer
from statewise.ssm.lssl import LSSLConfig, LSSLLayer
from statewise.ssm.mamba import MambaConfig, MambaLayer
from statewise.ssm.mamba2 import Mamba2Config, Mamba2Layer
from statewise.ssm.rg_lru import RGLRUConfig, RGLRULayer
from statewise.ssm.s4 import S4Config, S4Layer
from statewise.ssm.s4d import S4DConfig, S4DLayer
from statewise.ssm.s5 import S5Config, S5Layer

D = 4


def taus(layer: torch.nn.Module) -> Tensor:
    return time_constants(fixed_decays(layer)).sort().values


def test_a_time_constant_is_the_number_of_steps_after_which_one_part_in_e_is_left() -> None:
    size = torch.tensor([0.0, math.exp(-0.5), math.exp(-0.001), 1.0, 1.5], dtype=torch.float64)
    expected = torch.tensor([0.0, 2.0, 1000.0, math.inf, math.inf], dtype=torch.float64)
    torch.testing.assert_close(time_constants(size), expected)


def test_a_layer_with_known_eigenvalues_has_their_time_constants() -> None:
    wanted = torch.tensor([1.0, 10.0, 250.0, 4000.0], dtype=torch.float64)
    layer = LRULayer(D, LRUConfig(state_size=4)).double()
    with torch.no_grad():
        layer.nu_log.copy_((1 / wanted).log())  # |a| = exp(-exp(nu_log))
    torch.testing.assert_close(taus(layer), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["zoh", "bilinear"])
def test_time_constants_are_those_of_the_discretised_system(kind: Any) -> None:
    s5 = S5Layer(D, S5Config(discretization=kind)).double()
    re, im = s5.eigenvalues()
    s4d = S4DLayer(D, S4DConfig(state_size=4, discretization=kind)).double()
    pairs = [
        (s5, torch.complex(re, im) * s5.log_step.exp()),
        (s4d, torch.complex(-s4d.log_neg_re.exp(), s4d.A_im) * s4d.log_dt.exp()),
    ]
    for layer, z in pairs:
        a = z.exp() if kind == "zoh" else (1 + z / 2) / (1 - z / 2)
        expected = (-1 / a.abs().log()).detach().flatten().sort().values
        torch.testing.assert_close(taus(layer), expected, rtol=1e-9, atol=0)


def test_dense_matrices_have_those_of_their_eigenvalues() -> None:
    lssl = LSSLLayer(D, LSSLConfig(state_size=3)).double()
    values = torch.tensor([-1.0, -2.0, -5.0], dtype=torch.float64)
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
        lssl.A.copy_(basis @ values.diag() @ basis.mT)
    z = lssl.log_dt.exp()[:, None] * values
    expected = (-1 / ((1 + z / 2) / (1 - z / 2)).log()).detach().flatten().sort().values
    torch.testing.assert_close(taus(lssl), expected, rtol=1e-7, atol=0)
    s4 = S4Layer(D, S4Config(state_size=4)).double()
    with torch.no_grad():
        s4.P.zero_()  # no low rank: the matrix is its diagonal
    z = torch.complex(-s4.log_neg_re.exp(), s4.A_im) * s4.log_dt.exp()[:, None]
    size = ((1 + z / 2) / (1 - z / 2)).abs().detach().flatten().repeat(2)  # with the conjugates
    torch.testing.assert_close(taus(s4), (-1 / size.log()).sort().values, rtol=1e-7, atol=0)


SELECTIVE = {
    "mamba": (MambaLayer, MambaConfig(state_size=4), "ssm"),
    "mamba, scaled": (MambaLayer, MambaConfig(state_size=4, dt_scale=3.0), "ssm"),
    "mamba, signed": (MambaLayer, MambaConfig(state_size=4, eigenvalues="signed"), "ssm"),
    "mamba, complex": (MambaLayer, MambaConfig(state_size=4, eigenvalues="complex"), "ssm"),
    "mamba, polarized": (MambaLayer, MambaConfig(state_size=4, polarized="both"), "ssm"),
    "mamba2": (Mamba2Layer, Mamba2Config(state_size=4, head_dim=4), "ssm"),
    "rg_lru": (RGLRULayer, RGLRUConfig(), "h"),
}


def size_of(x: Tensor, name: str) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1) if name == "mamba, complex" else x.abs()


@pytest.mark.parametrize("name", SELECTIVE)
def test_the_factors_of_a_selective_layer_are_what_a_step_leaves_of_a_state(name: str) -> None:
    make, config, key = SELECTIVE[name]
    layer = make(D, config).double()
    x = torch.randn(2, 6, D, dtype=torch.float64)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[1, 3] = True
    found = selective_decays(layer, Read(x, None, reset))
    assert torch.equal(selective_decays(layer, Read(x, None, reset), 4), found[:, ::4])
    assert found.shape[:2] == (2, 6)
    state = layer.initial_state(2)
    with torch.no_grad():
        for t in range(6):
            before = state
            _, state = layer.step(x[:, t], before, reset[:, t])
            if t == 0 or reset[:, t].any():
                continue
            # Two states differ after a step by what it leaves of their difference.
            other = before | {key: before[key] + torch.randn_like(before[key])}
            _, moved = layer.step(x[:, t], other)
            left = size_of(moved[key] - state[key], name)
            left = left / size_of(other[key] - before[key], name)
            expected = found[:, t, :, None, None] if name == "mamba2" else found[:, t]
            torch.testing.assert_close(left, expected.expand_as(left), rtol=1e-6, atol=1e-9)


def test_a_delta_net_keeps_the_factor_of_what_a_step_does_not_correct() -> None:
    layer = GatedDeltaNetLayer(D, GatedDeltaNetConfig(num_heads=1, head_dim=3)).double()
    x = torch.randn(1, 5, D, dtype=torch.float64)
    found = selective_decays(layer, Read(x, None, None))
    assert torch.equal(selective_decays(layer, Read(x, None, None), 2), found[:, ::2])
    state = layer.initial_state(1)
    basis = torch.eye(3, state["s"].shape[-1], dtype=torch.float64)
    with torch.no_grad():
        _, zero = layer.step(x[:, 0], state)
        _, moved = layer.step(x[:, 0], state | {"s": basis[None, None]})
    values = torch.linalg.eigvals((moved["s"] - zero["s"])[0, 0, :, :3]).abs().sort().values
    torch.testing.assert_close(values[1:], found[0, 0].expand(2), rtol=1e-7, atol=0)
    assert values[0] < values[1]


@pytest.mark.parametrize("kind", SEQUENCES)
def test_every_layer_has_time_constants_or_says_why_not(kind: Any) -> None:
    stack = build_sequence(SequenceConfig(kind=kind, num_layers=2, d_model=D))
    layers = find_layers(stack)
    assert list(layers) == ["0", "1"]
    layer = layers["1"]
    assert KINDS[type(layer)] == kind
    if recurrence(layer) == "none":
        assert kind in ("gru", "lstm", "attention")
        assert why_none(layer) != why_none(torch.nn.Identity())
        return
    read = Read(torch.randn(1, 3, D), None, None)
    fixed = recurrence(layer) == "fixed"
    size = fixed_decays(layer) if fixed else selective_decays(layer, read)
    assert ((size >= 0) & (size <= 1)).all()
    assert size.dim() == 1 if fixed else size.shape[:2] == (1, 3)


def test_a_control_without_memory_still_names_its_layers() -> None:
    made = build_sequence(SequenceConfig(num_layers=1, d_model=D, memory="none"))
    assert isinstance(made, Forgetful)
    assert list(find_layers(made)) == ["0"]


def test_a_convolution_over_whole_windows_has_no_time_constants() -> None:
    layer = DSSLayer(D, DSSConfig(state_size=4, kernel="softmax", length=8))
    assert recurrence(layer) == "none"
    assert "no recurrence" in why_none(layer)
