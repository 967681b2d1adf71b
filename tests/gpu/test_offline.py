"""Agents that learn from data, with `device: cuda`: training, evaluation, and the weights kept."""

import pytest

import statewise
from statewise.data import write_d4rl
from statewise.data.toys import double_integrator
from statewise.training.evaluate import EvalOptions
from tests.gpu.gpu_only import marks
from tests.training import offline_cases as cases

pytestmark = marks


@pytest.mark.parametrize("system", cases.TINY)
def test_an_agent_learns_from_data_and_plays_on_the_gpu(system, tmp_path):
    cases.register()
    run, settings = tmp_path / "run", cases.TINY[system] | {"device": "cuda"}
    data = tmp_path / "data.hdf5"
    if system == "td3bc":  # its actions are boxes
        settings["env__id"] = "statewise/DoubleIntegrator-v0"
        write_d4rl(double_integrator(20), data)
    else:
        write_d4rl(cases.counter_data(), data)
    statewise.train(f"{system}/pendulum", run=run, data=data, **settings)
    loaded = statewise.load(run)
    assert loaded.agent.device.type == "cuda"
    _, found = loaded.evaluate(EvalOptions(episodes=3))
    assert len(found["episodes"]) == 3
