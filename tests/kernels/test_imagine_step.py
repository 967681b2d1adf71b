"""A step of imagination in one call, against the operations it stands for."""

from typing import Any

import pytest
import torch

from statewise.kernels.acting import op
from statewise.kernels.extension import reason_missing
from statewise.nets.latents import LatentConfig, gumbel
from statewise.ssm.block import BlockConfig
from statewise.ssm.build import SequenceConfig
from statewise.ssm.lru import LRUConfig
from statewise.ssm.protocol import State
from statewise.ssm.s5 import S5Config
from statewise.worldmodels import parallel
from statewise.worldmodels.parallel import ParallelConfig, ParallelDynamics
from tests.tolerance import assert_close

STEPS, ACTIONS = 5, 3
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
MODELS: dict[str, dict[str, Any]] = {
    "s5": {},
    "s5, norm behind, no unimix": {"block": BlockConfig(norm_position="post"), "unimix": 0.0},
    "lru, 5 classes": {"kind": "lru", "classes": 5},
    "rms, two hidden": {"norm": "rms", "input_hidden": (24,), "prior_hidden": (32, 20)},
    "no hidden in the prior": {"prior_hidden": ()},
    "wider h": {"deter": 48, "classes": 16},
}
OTHERS: dict[str, dict[str, Any]] = {
    "norm in place of a layer": {"output": "norm"},
    "mamba": {"kind": "mamba"},
    "memory cleared": {"memory": "none"},
    "wide layers": {"prior_hidden": (160,)},
}


@pytest.fixture(autouse=True)
def _loaded():
    assert not reason_missing(op.OP)


def _dynamics(
    dtype: torch.dtype,
    *,
    kind: str = "s5",
    block: BlockConfig | None = None,
    memory: str = "kept",
    classes: int = 8,
    unimix: float = 0.01,
    deter: int = 16,
    **sizes: Any,
) -> ParallelDynamics:
    layer = {
        "s5": {"s5": S5Config(state_size=16, conj_sym=False, initial_state="learned")},
        "lru": {"lru": LRUConfig(state_size=8)},
    }.get(kind, {})
    sequence = SequenceConfig(
        kind=kind, num_layers=2, d_model=16, block=block or BlockConfig(), memory=memory, **layer
    )
    config = ParallelConfig(
        deter=deter, **{"prior_hidden": (32,), "posterior_hidden": (8,), **sizes}, sequence=sequence
    )
    torch.manual_seed(0)
    model = ParallelDynamics(
        4, ACTIONS, LatentConfig(num=3, classes=classes, unimix=unimix), config
    )
    for parameter in model.parameters():  # norms and starts are 1 and 0 in the beginning
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def _roll_out(
    model: ParallelDynamics, B: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[State], int]:
    """Return the states and log p of some steps, and how many of them were one call."""
    served: list[int] = []
    original = parallel.imagine_step

    def counted(*args: Any):
        served.append(1)
        return original(*args)

    monkeypatch.setattr(parallel, "imagine_step", counted)
    draw = torch.Generator().manual_seed(1)
    state: State = {k: x.detach() for k, x in model.initial_state(B).items()}
    cache, found = model.prepare_step(), []
    for _ in range(STEPS):
        action = torch.randn(B, ACTIONS, generator=draw, dtype=torch.float64).to(dtype)
        noise = gumbel((B, *model.initial.shape), draw, dtype=torch.float64).to(dtype)
        state, log_p = model.imagine_step(action, state, noise, cache=cache)
        found.append({**state, "log_p": log_p})
    monkeypatch.setattr(parallel, "imagine_step", original)
    return found, len(served)


# Rows around tiles of 24 rows.
@pytest.mark.parametrize("B", [16, 23, 24, 25, 101])
@pytest.mark.parametrize("name", MODELS)
@DTYPES
def test_a_step_in_one_call_equals_its_operations(name, B, dtype, monkeypatch):
    model = _dynamics(dtype, **MODELS[name])
    with torch.no_grad():
        fast, count = _roll_out(model, B, dtype, monkeypatch)
    assert count == STEPS
    with torch.enable_grad():  # operation by operation
        slow, count = _roll_out(model, B, dtype, monkeypatch)
    assert count == 0
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.keys() == theirs.keys()
        assert torch.equal(ours["stoch"], theirs["stoch"])
        for key, x in theirs.items():
            assert ours[key].shape == x.shape
            assert_close(ours[key], x, dtype, 10)
    assert len(fast[-1]["stoch"].flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_call_does_not_serve_is_left_to_the_operations(name, monkeypatch):
    dtype = torch.float32
    with torch.no_grad():
        assert _roll_out(_dynamics(dtype, **OTHERS[name]), 24, dtype, monkeypatch)[1] == 0
        assert _roll_out(_dynamics(dtype), 15, dtype, monkeypatch)[1] == 0


@torch.no_grad()
def test_strided_inputs_are_read_row_by_row():
    model = _dynamics(torch.float64)
    B, shape = 24, model.initial.shape
    draw = torch.Generator().manual_seed(2)
    state = model.initial_state(B)
    action = torch.randn(ACTIONS, B, generator=draw, dtype=torch.float64).t()
    noise = gumbel((B, 2, *shape), draw, dtype=torch.float64)[:, 1]
    cache = model.prepare_step()
    strided, _ = model.imagine_step(action, state, noise, cache=cache)
    dense, _ = model.imagine_step(action.contiguous(), state, noise.contiguous(), cache=cache)
    assert all(torch.equal(strided[key], x) for key, x in dense.items())


@torch.no_grad()
def test_noise_of_another_shape_is_refused():
    model = _dynamics(torch.float32)
    state = model.initial_state(24)
    noise = torch.zeros(1, *model.initial.shape)
    with pytest.raises(ValueError, match=r"expected noise \(24, 3, 8\) as log_p, got \(1, 3, 8\)"):
        model.imagine_step(torch.zeros(24, ACTIONS), state, noise, cache=model.prepare_step())


@torch.no_grad()
def test_a_state_that_is_not_finite_stays_in_its_row():
    model = _dynamics(torch.float32)
    B = 30
    cache, action = model.prepare_step(), torch.zeros(B, ACTIONS)
    noise = gumbel((B, *model.initial.shape), torch.Generator().manual_seed(3))
    state = {key: x.clone() for key, x in model.initial_state(B).items()}
    clean, _ = model.imagine_step(action, state, noise, cache=cache)
    state["core.0.h"][26] = torch.nan
    broken, _ = model.imagine_step(action, state, noise, cache=cache)
    for key, x in broken.items():
        assert x[26].isnan().any(), key
        rest = torch.arange(B) != 26
        assert torch.equal(x[rest], clean[key][rest])
