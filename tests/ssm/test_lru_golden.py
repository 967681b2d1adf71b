"""The LRU layer against arrays computed by the authors' code (`tests/golden`)."""

import pytest
import torch

from statewise.ssm.lru import LRUConfig, LRULayer
from tests.golden_files import batch_first, load, names
from tests.kernels.scan_cases import BACKENDS
from tests.ssm.variants import step_loop
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_within

PARAMETERS = ("B_im", "B_re", "C_im", "C_re", "D", "gamma_log", "nu_log", "theta_log")


@pytest.mark.parametrize("name", names("lru_*"))
def test_a_layer_gives_the_authors_values_and_gradients(name):
    arrays, meta = load(name)
    config = LRUConfig(
        state_size=meta["N"],
        r_min=meta["r_min"],
        r_max=meta["r_max"],
        max_phase=meta["max_phase"],
    )
    reset = batch_first(arrays["in_reset"]) if "in_reset" in arrays else None
    for backend in BACKENDS:
        layer = LRULayer(meta["H"], config, backend).double()
        with torch.no_grad():
            for parameter in PARAMETERS:
                getattr(layer, parameter).copy_(arrays[f"p_{parameter}"])
        x = batch_first(arrays["in_u"]).requires_grad_()
        y, _ = layer(x, None, reset)
        assert_within(y, batch_first(arrays["out_y"]), GOLDEN_VALUE)
        stepped, _, _ = step_loop(layer, x, layer.initial_state(len(x)), reset)
        assert_within(stepped, batch_first(arrays["out_y"]), GOLDEN_VALUE)
        if "w_y" not in arrays:
            continue
        (y * batch_first(arrays["w_y"])).sum().backward()
        assert_within(x.grad, batch_first(arrays["grad_u"]), GOLDEN_GRADIENT)
        for parameter in PARAMETERS:
            gradient = getattr(layer, parameter).grad
            assert_within(gradient, arrays[f"grad_{parameter}"], GOLDEN_GRADIENT)


def test_gradients_are_among_what_is_compared():
    assert sum("w_y" in load(name)[0] for name in names("lru_*")) == 2
