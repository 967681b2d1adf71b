"""S5 layers and stacks against arrays computed by the authors' code (`tests/golden`)."""

import pytest
import torch
from torch import Tensor

from statewise.ssm.block import Block, BlockConfig
from statewise.ssm.s5 import S5Config, S5Layer
from statewise.ssm.stack import Stack
from tests.golden_files import batch_first, load, names
from tests.kernels.scan_cases import BACKENDS
from tests.ssm.variants import step_loop
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_within

LAYERS = [name for name in names("s5_*") if "stack" not in name]
STACKS = names("s5_stack_*")
SHARED = ("B", "C", "D", "Lambda_im")


def _set(layer: S5Layer, arrays: dict[str, Tensor], prefix: str) -> None:
    with torch.no_grad():
        for name in SHARED:
            getattr(layer, name).copy_(arrays[prefix + name])
        layer.log_step.copy_(arrays[prefix + "log_step"].squeeze(-1))
        real = arrays[prefix + "Lambda_re"]
        if layer.config.re_param == "exp":
            layer.log_neg_re.copy_((-real).log())
        else:
            layer.Lambda_re.copy_(real)


def _check_gradients(layer: S5Layer, arrays: dict[str, Tensor], prefix: str) -> None:
    for name in SHARED:
        assert_within(getattr(layer, name).grad, arrays[prefix + name], GOLDEN_GRADIENT)
    assert_within(layer.log_step.grad, arrays[prefix + "log_step"].squeeze(-1), GOLDEN_GRADIENT)
    if layer.config.re_param == "exp":
        # Lambda_re = -exp(p), so dL/dp = dL/dLambda_re * Lambda_re.
        gradient = layer.log_neg_re.grad / -layer.log_neg_re.detach().exp()
    else:
        gradient = layer.Lambda_re.grad
    assert_within(gradient, arrays[prefix + "Lambda_re"], GOLDEN_GRADIENT)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_the_authors_values_and_gradients(name):
    arrays, meta = load(name)
    config = S5Config(
        state_size=meta["N"],
        blocks=meta["blocks"],
        conj_sym=meta["conj_sym"],
        discretization=meta["disc"],
        re_param="clip" if meta["clip_eigs"] else "exp",
    )
    for backend in BACKENDS:
        layer = S5Layer(meta["H"], config, backend).double()
        _set(layer, arrays, "p_")
        x = batch_first(arrays["in_u"]).requires_grad_()
        state = {"h": torch.view_as_real(arrays["in_state0"]).clone().requires_grad_()}
        reset = batch_first(arrays["in_reset"])
        y, last = layer(x, state, reset)
        last_pairs = torch.view_as_real(arrays["out_last_state"])
        assert_within(y, batch_first(arrays["out_y"]), GOLDEN_VALUE)
        assert_within(last["h"], last_pairs, GOLDEN_VALUE)
        stepped, stepped_last, _ = step_loop(layer, x, state, reset)
        assert_within(stepped, batch_first(arrays["out_y"]), GOLDEN_VALUE)
        assert_within(stepped_last["h"], last_pairs, GOLDEN_VALUE)
        loss = (y * batch_first(arrays["w_y"])).sum() + (last["h"] * arrays["w_last_ri"]).sum()
        loss.backward()
        assert_within(x.grad, batch_first(arrays["grad_u"]), GOLDEN_GRADIENT)
        assert_within(state["h"].grad, arrays["grad_state0_ri"], GOLDEN_GRADIENT)
        _check_gradients(layer, arrays, "grad_")


@pytest.mark.parametrize("name", LAYERS)
def test_the_discretised_system_is_the_authors(name):
    arrays, meta = load(name)
    config = S5Config(
        state_size=meta["N"],
        blocks=meta["blocks"],
        conj_sym=meta["conj_sym"],
        discretization=meta["disc"],
    )
    layer = S5Layer(meta["H"], config).double()
    _set(layer, arrays, "p_")
    system = layer.discretize()
    assert_within(system.a, torch.view_as_real(arrays["out_Lambda_bar"]), GOLDEN_VALUE)
    interleaved = torch.view_as_real(arrays["out_B_bar"]).transpose(1, 2).flatten(0, 1)
    assert_within(system.w_in, interleaved, GOLDEN_VALUE)


def _block_config(meta: dict) -> BlockConfig:
    return BlockConfig(
        norm="layer" if meta["do_norm"] else "none",
        norm_position="pre" if meta["prenorm"] or not meta["do_norm"] else "post",
        after_norm="shared" if meta["do_gtrxl_norm"] else "none",
        gate=meta["activation"],
        norm_eps=1e-6,
    )


def _gate_rows(arrays: dict[str, Tensor], prefix: str, kind: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one linear map: rows [value; gate], or the gate alone."""
    parts = ("out1", "out2") if kind == "full_glu" else ("out2",)
    return (
        torch.cat([arrays[f"{prefix}{part}.kernel"].T for part in parts]),
        torch.cat([arrays[f"{prefix}{part}.bias"] for part in parts]),
    )


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_gives_the_authors_values_and_gradients(name):
    arrays, meta = load(name)
    stack = Stack(
        [
            Block(S5Layer(meta["H"], S5Config(state_size=meta["N"])), _block_config(meta))
            for _ in range(meta["layers"])
        ]
    ).double()
    with torch.no_grad():
        for i, block in enumerate(stack.blocks):
            _set(block.layer, arrays, f"p_layers_{i}.seq.")
            weight, bias = _gate_rows(arrays, f"p_layers_{i}.", meta["activation"])
            block.gate.weight.copy_(weight)
            block.gate.bias.copy_(bias)
            if meta["do_norm"]:
                block.norm.weight.copy_(arrays[f"p_layers_{i}.norm.scale"])
                block.norm.bias.copy_(arrays[f"p_layers_{i}.norm.bias"])
    x, reset = batch_first(arrays["in_u"]), batch_first(arrays["in_reset"])
    state = {
        f"{i}.h": torch.view_as_real(arrays["in_state0"][i]).clone() for i in range(meta["layers"])
    }
    y, last = stack(x, state, reset)
    assert_within(y, batch_first(arrays["out_y"]), GOLDEN_VALUE)
    stepped, _, _ = step_loop(stack, x, state, reset)
    assert_within(stepped, batch_first(arrays["out_y"]), GOLDEN_VALUE)
    (y * batch_first(arrays["w_y"])).sum().backward()
    for i, block in enumerate(stack.blocks):
        expected = torch.view_as_real(arrays["out_last_state"][i])
        assert_within(last[f"{i}.h"], expected, GOLDEN_VALUE)
        _check_gradients(block.layer, arrays, f"grad_layers_{i}.seq.")
        weight, bias = _gate_rows(arrays, f"grad_layers_{i}.", meta["activation"])
        assert_within(block.gate.weight.grad, weight, GOLDEN_GRADIENT)
        assert_within(block.gate.bias.grad, bias, GOLDEN_GRADIENT)
        if meta["do_norm"]:
            assert_within(
                block.norm.weight.grad, arrays[f"grad_layers_{i}.norm.scale"], GOLDEN_GRADIENT
            )
            assert_within(
                block.norm.bias.grad, arrays[f"grad_layers_{i}.norm.bias"], GOLDEN_GRADIENT
            )
