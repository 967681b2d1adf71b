"""Benchmarks on a GPU: the systems pass their checks there, and every case of a command runs."""

from dataclasses import replace

import pytest

from statewise.bench import layers, rounds, worker, worldmodel_systems
from statewise.bench.layers import CASES, Case, LayersOptions, every_layer
from statewise.bench.worldmodel import SYSTEMS, WorldModelOptions, run_worldmodel
from tests.gpu.gpu_only import CUDA, marks

pytestmark = marks


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_window_of_a_world_model_is_its_steps(system: str) -> None:
    assert worldmodel_systems.check(worldmodel_systems.make_model(system, 16).to(CUDA)) == ""


def test_world_models_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "launch", worker.run_job)
    options = WorldModelOptions(
        lengths=(3,), wide=(2, 4, 16), rollouts=4, device="cuda", rounds=1, reps=1, seconds=0.01
    )
    outcome = run_worldmodel(options, lambda line: None)
    assert not outcome.missing
    assert not outcome.refused
    assert {f.system for f in outcome.figures} == set(SYSTEMS)


@pytest.mark.parametrize("case", [*CASES, every_layer()], ids=lambda case: case.name)
def test_layers_are_measured(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "launch", lambda job: worker.run_job(job | {"history": 12}))
    options = LayersOptions(
        shape=(2, 8, 32), device="cuda", rounds=1, reps=1, seconds=0.001, step_seconds=0.001
    )
    outcome = layers.run_layers(replace(options, cases=(case,)), lambda line: None)
    missing = {line.split(":")[0].rsplit(", ", 1)[-1] for line in outcome.missing}
    assert missing <= {"mambapy"}
    assert {f.system for f in outcome.figures} == set(case.systems) - missing
    assert all(f.case.endswith(", cuda") for f in outcome.figures)
