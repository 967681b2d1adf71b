"""A run with `device: cuda`, from a preset to an agent that acts, through the Python interface."""

import math

import numpy as np
import pytest
import torch

import statewise
from statewise.training.run import RunDirectory
from tests.gpu.gpu_only import marks

pytestmark = marks
SETTINGS = {
    "device": "cuda",
    "env__num_envs": 8,
    "env__kwargs": {"length": 5},
    "rollout_steps": 12,
    "total_steps": 400,
    "agent__sequence__d_model": 32,
}


@pytest.mark.parametrize("kind", ["s5", "mamba"])
def test_a_preset_trains_on_the_gpu_and_the_agent_acts_there(kind, tmp_path):
    path = tmp_path / "run"
    trained = statewise.train("ppo/memory_chain", run=path, agent__sequence__kind=kind, **SETTINGS)
    assert next(trained.agent.network.parameters()).device.type == "cuda"
    lines = RunDirectory.open(path).metrics_path.read_text().splitlines()
    assert lines
    assert "NaN" not in lines[-1]
    loaded = statewise.load(path)
    obs = {key: space.sample()[None] for key, space in loaded.obs_space.spaces.items()}
    first, state = loaded.predict(obs, deterministic=True)
    again, _ = trained.predict(obs, deterministic=True)
    assert np.array_equal(first, again)
    assert {value.device.type for value in state.values()} == {"cuda"}


def test_bfloat16_products_train_too(tmp_path):
    trained = statewise.train(
        "ppo/memory_chain", run=tmp_path / "run", agent__precision="bfloat16", **SETTINGS
    )
    weights = [p.abs().max().item() for p in trained.agent.network.parameters()]
    assert all(map(math.isfinite, weights))
    assert torch.cuda.max_memory_allocated() > 0
