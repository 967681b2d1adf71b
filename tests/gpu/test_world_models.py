"""World models on a GPU: the loss and its gradients are those of the CPU, and agents train."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import statewise
from statewise.data.shift import Arrival
from statewise.training.evaluate import EvalOptions
from statewise.training.run import RunDirectory
from statewise.worldmodels.model import WorldModel
from tests.gpu.gpu_only import CUDA, marks
from tests.resets import pattern
from tests.tolerance import assert_close
from tests.training import offline_cases, world_data_cases
from tests.worldmodels import cases

pytestmark = marks
B, T = 3, 40
FLOAT = torch.float32
TINY: dict[str, dict[str, Any]] = {
    "r2i/delayed_offer": {},
    "dreamer/delayed_offer": {},
    "drama/catch": {"windows__num_contexts": 4},
}
SHORT: dict[str, Any] = {
    "env__num_envs": 2,
    "windows__batch_size": 2,
    "windows__train_ratio": 4.0,
    "windows__prefill": 80,
    "total_steps": 200,
    "eval__every_steps": 0,
    "eval__episodes": 4,
    "eval__num_envs": 2,
    "log_every": 1,
}


def _loss(world: WorldModel, window: cases.Window, arrival: Arrival) -> dict[str, Tensor]:
    """Return the loss, its terms and its gradients, on the CPU."""
    place = next(world.parameters())

    def put(x: Tensor) -> Tensor:
        return x.to(place.device, place.dtype) if x.is_floating_point() else x.to(place.device)

    obs, state = ({k: put(x) for k, x in tree.items()} for tree in (window.obs, window.state))
    arrival = Arrival(*map(put, arrival))
    reset = arrival.is_first
    seen = world.observe(obs, put(window.action), state, reset, put(window.noise))
    total, terms = world.loss(obs, arrival, seen)
    total.backward()
    gradients = {f"grad {n}": p.grad for n, p in world.named_parameters() if p.grad is not None}
    return {key: x.cpu() for key, x in ({"total": total} | terms | gradients).items()}


@pytest.mark.parametrize("core", cases.CORES)
def test_the_loss_of_a_window_and_its_gradients_are_those_of_the_cpu(core):
    here = cases.model(core)
    there = copy.deepcopy(here).to(CUDA, FLOAT)
    window = cases.Window(here, B, T)
    reset = pattern("staggered", B, T)
    assert reset is not None
    none = torch.zeros(B, T, dtype=torch.bool)
    arrival = Arrival(
        action_in=window.action.argmax(-1),
        reward_in=torch.randn(B, T, dtype=torch.float64),
        is_first=reset,
        is_terminal=none,
        is_last=none,
        counts=~none,
    )
    actual, expected = _loss(there, window, arrival), _loss(here, window, arrival)
    for name, value in expected.items():
        assert_close(actual[name], value, FLOAT, T, gradient=name.startswith("grad"))


@pytest.mark.parametrize("preset", TINY)
def test_an_agent_learns_in_its_imagination_and_acts_on_the_gpu(preset, tmp_path):
    settings = SHORT | TINY[preset]
    trained = statewise.train(preset, run=tmp_path / "run", device="cuda", **settings)
    assert trained.agent.updates_done > 0
    assert next(trained.agent.world.parameters()).device.type == "cuda"
    lines = RunDirectory.open(tmp_path / "run").metrics_path.read_text().splitlines()
    assert lines
    assert "NaN" not in lines[-1]
    loaded = statewise.load(tmp_path / "run")
    obs = {key: space.sample()[None] for key, space in loaded.obs_space.spaces.items()}
    action, state = loaded.predict(obs, deterministic=True)
    assert np.asarray(action).shape == (1,)
    assert {value.device.type for value in state.values()} == {"cuda"}


def test_a_world_model_learns_from_data_on_the_gpu_and_is_judged_there(tmp_path):
    data = offline_cases.written(tmp_path, count=20)
    settings = world_data_cases.TINY | {"device": "cuda"}
    trained = statewise.train(world_data_cases.PRESET, run=tmp_path / "run", data=data, **settings)
    assert trained.agent.updates_made == settings["total_updates"]
    assert next(trained.agent.world.parameters()).device.type == "cuda"
    result, _ = statewise.load(tmp_path / "run").evaluate(EvalOptions())
    assert np.isfinite(result.found["generation"]["loss"])
