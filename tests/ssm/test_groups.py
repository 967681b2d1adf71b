"""What the optimiser treats apart."""

import pytest
import torch
from torch import nn

from statewise.ssm import SEQUENCES, SequenceConfig, build_sequence
from statewise.ssm.dss import DSSConfig, DSSLayer
from statewise.ssm.groups import parameter_groups, ssm_parameter_names
from statewise.ssm.s4 import S4Config, S4Layer
from statewise.ssm.s4d import S4DConfig, S4DLayer
from statewise.ssm.s5 import S5Config, S5Layer

every_row = pytest.mark.parametrize("kind", list(SEQUENCES))


def _groups(model: nn.Module) -> dict[str, dict]:
    groups = parameter_groups(model, learning_rate=1e-2, weight_decay=0.1, ssm_factor=0.5)
    return {group["name"]: group for group in groups}


@every_row
def test_every_parameter_is_in_exactly_one_group(kind):
    model = build_sequence(SequenceConfig(kind=kind, d_model=8))
    members = [id(p) for group in _groups(model).values() for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())


@every_row
def test_what_a_layer_declares_exists_and_all_state_space_layers_declare(kind):
    model = build_sequence(SequenceConfig(kind=kind, d_model=8))
    found = ssm_parameter_names(model)
    assert found <= {name for name, _ in model.named_parameters()}
    assert bool(found) == (kind not in ("gru", "lstm", "attention"))


def test_state_space_parameters_take_no_decay_and_a_rate_of_their_own():
    model = build_sequence(SequenceConfig(kind="lru", d_model=8))
    groups = _groups(model)
    assert (groups["ssm"]["lr"], groups["ssm"]["weight_decay"]) == (5e-3, 0.0)
    assert (groups["regular"]["lr"], groups["regular"]["weight_decay"]) == (1e-2, 0.1)
    assert groups["vectors"]["weight_decay"] == 0.0
    layer = model.blocks[0].layer
    assert any(p is layer.nu_log for p in groups["ssm"]["params"])
    assert any(p is layer.C_re for p in groups["regular"]["params"])
    assert all(p.dim() < 2 for p in groups["vectors"]["params"])


@pytest.mark.parametrize("re_param", ["exp", "softplus", "inv_square", "clip"])
def test_all_of_s5_but_its_output_matrix_is_a_state_space_parameter(re_param):
    layer = S5Layer(8, S5Config(re_param=re_param, initial_state="learned"))
    names = {name for name, _ in layer.named_parameters()}
    assert ssm_parameter_names(layer) == names - {"C"}
    assert len(names) == 7


@pytest.mark.parametrize("re_param", ["exp", "softplus", "inv_square", "clip"])
@pytest.mark.parametrize(
    ("layer", "config"), [(S4DLayer, S4DConfig), (S4Layer, S4Config), (DSSLayer, DSSConfig)]
)
def test_the_real_part_is_a_state_space_parameter_under_every_name(layer, config, re_param):
    model = layer(8, config(re_param=re_param))
    assert ssm_parameter_names(model) == {name for name, _ in model.named_parameters()} - {"C"}


def test_one_step_without_gradient_decays_matrices_alone():
    model = build_sequence(SequenceConfig(kind="lru", d_model=8))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.AdamW(list(_groups(model).values())).step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    ssm = ssm_parameter_names(model)
    assert changed == {n for n, p in before.items() if p.dim() >= 2 and n not in ssm}
