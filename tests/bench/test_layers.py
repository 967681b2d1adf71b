import pytest
import torch

from statewise.bench import layers, layers_systems, worker
from statewise.bench.layers import CASES, LayersOptions, every_layer, every_step, run_layers
from statewise.bench.layers_systems import peak_memory
from statewise.bench.table import build_rows
from statewise.ssm import SEQUENCES

HISTORY = 12
QUICK = LayersOptions(
    shape=(2, 8, 16), threads=1, rounds=2, reps=1, seconds=0.001, step_seconds=0.001
)


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        layers, "launch", lambda job, **env: worker.run_job(job | {"history": HISTORY})
    )


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_system_of_a_case_has_its_rows_ours_first(case) -> None:
    options = LayersOptions(**{**vars(QUICK), "cases": (case,)})
    outcome = run_layers(options, lambda line: None)
    assert not outcome.missing
    assert not outcome.refused
    metrics = {"step": [f"step after {HISTORY}"]}.get(case.mode, ["forward", "forward+backward"])
    for metric in metrics:
        rows = [r for r in build_rows("layers", outcome.figures) if r["metric"] == f"{metric} best"]
        assert [row["system"] for row in rows] == list(case.systems)
        assert rows[0]["speedup"] == 1.0
        assert all(row["value"] > 0 for row in rows)


@pytest.mark.usefixtures("_in_this_process")
def test_every_row_of_the_table_is_measured() -> None:
    for case in (every_layer(), every_step()):
        assert set(case.systems) == {f"statewise {kind}" for kind in SEQUENCES}
        options = LayersOptions(**{**vars(QUICK), "rounds": 1, "cases": (case,)})
        outcome = run_layers(options, lambda line: None)
        assert {figure.system for figure in outcome.figures} == set(case.systems)


def test_the_peak_of_memory_is_that_of_the_call() -> None:
    size = 1 << 26

    def grow_and_shrink() -> None:
        torch.ones(size, dtype=torch.uint8)

    peak = peak_memory(grow_and_shrink, torch.device("cpu"))
    assert peak is not None
    assert 0.9 * size < peak < 1.5 * size


def test_the_causal_attention_baseline_does_not_see_the_future() -> None:
    x, reset = torch.randn(1, 6, 16), torch.zeros(1, 6, dtype=torch.bool)
    later = x.clone()
    later[:, 4:] += 1.0
    torch.manual_seed(0)
    _, first = layers_systems._trained("causal attention", x, reset)
    torch.manual_seed(0)
    _, second = layers_systems._trained("causal attention", later, reset)
    torch.testing.assert_close(first()[:, :4], second()[:, :4])
    assert not torch.allclose(first()[:, 4:], second()[:, 4:])
