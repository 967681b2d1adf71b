"""`bench worldmodel`: systems are checked before they are timed, figures are ratios of medians."""

from typing import Any

import pytest
import torch

from statewise.bench import cli, rounds, worker, worldmodel_systems
from statewise.bench.measure import Timing
from statewise.bench.worldmodel import (
    CELL,
    GRU,
    GRU_Z,
    OVER_RSSM,
    R2I,
    SYSTEMS,
    WorldModelOptions,
    cases_of,
)
from statewise.bench.worldmodel import _figures as figures
from statewise.training.schema import ConfigError


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_systems_of_a_case_pass_their_check(system: str) -> None:
    assert worldmodel_systems.check(worldmodel_systems.make_model(system, 16)) == ""


def test_a_model_whose_window_is_not_its_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = worldmodel_systems.make_model(R2I, 16)
    observe = model.observe

    def shifted(obs: Any, action: Any, state: Any, reset: Any, noise: Any) -> Any:
        return observe(obs, action.roll(1, 1), state, reset, noise)

    monkeypatch.setattr(model, "observe", shifted)
    assert "expected h within" in worldmodel_systems.check(model)
    job = {"kind": "worldmodel", "system": R2I, "width": 16, "check": True, "mode": "update"}
    job["device"] = "cpu"
    monkeypatch.setattr(worldmodel_systems, "make_model", lambda *_: model)
    assert worldmodel_systems.run_job(job)["refused"]


def test_baselines_differ_in_the_posterior_and_in_the_cell_alone() -> None:
    sizes = {s: dict(worldmodel_systems.make_model(s, 16).named_parameters()) for s in SYSTEMS}
    own = {name for name in sizes[GRU] if "dynamics.cell" not in name}
    assert own == {name for name in sizes[CELL] if "dynamics.cell" not in name}
    odd = [n for n in sizes[GRU] if sizes[GRU][n].shape != sizes[GRU_Z][n].shape]
    assert odd == ["dynamics.posterior.layers.linears.0.weight"]


def test_figures_are_ratios_of_medians() -> None:
    case = cases_of(WorldModelOptions(lengths=(8,)))[0]
    timings = {
        R2I: Timing([0.01, 0.03, 0.02], [0.02] * 3),
        GRU: Timing([0.2, 0.1, 0.4], [0.2] * 3),
    }
    found = {(f.system, f.metric): f.value for f in figures(WorldModelOptions(), case, timings)}
    assert found[R2I, OVER_RSSM] == pytest.approx(10.0)
    assert found[R2I, "update median"] == pytest.approx(20.0)
    assert (GRU, OVER_RSSM) not in found


def test_the_command_measures_every_system_of_every_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds, "launch", lambda job: worker.run_job(job))
    assert cli.bench(["worldmodel", "--quick", "--threads", str(torch.get_num_threads())]) == 0
    shown = capsys.readouterr().out
    for system in SYSTEMS:
        assert system in shown
    assert "imagined steps" in shown
    titles = [line for line in shown.splitlines() if line.startswith("worldmodel: ")]
    assert len(titles) == len(set(titles)) == 3  # one table a case, with the parameters


def test_a_device_that_is_not_there_and_a_shape_that_is_none_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: expected a device of this machine, got 'cuda'"):
        cli.bench(["worldmodel", "--device", "cuda"])
    with pytest.raises(ConfigError, match="device: expected cpu, cuda or cuda:N, got 'gpu'"):
        cli.bench(["worldmodel", "--device", "gpu"])
    with pytest.raises(ConfigError, match="--shape: expected B,T,D, three positive integers"):
        cli.bench(["worldmodel", "--shape", "16,64"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("worldmodel", "layers"):
        with pytest.raises(ConfigError, match="--threads: expected none with --device cuda"):
            cli.bench([name, "--device", "cuda", "--threads", "3"])


def test_a_shape_and_a_device_name_the_cases() -> None:
    options = WorldModelOptions(lengths=(8,), wide=(2, 16, 32), device="cuda", threads=1)
    case = cases_of(options)[1]
    assert (case.batch, case.steps, case.width) == (2, 16, 32)
    found = figures(options, case, {R2I: Timing([0.01], [0.01])})
    assert found[0].case == "update, B 2, width 32, T 16, cuda"
    assert found[0].threads == 1
