"""Where training windows start: statistics of the draws, whose state goes where, and resets."""

import pytest
import torch
from torch import Tensor

from statewise.ssm import SEQUENCES, SequenceConfig, SequenceModel, State, build_sequence
from statewise.ssm.dss import DSSConfig, DSSLayer
from statewise.ssm.s5 import S5Config, S5Layer
from statewise.ssm.start import FLAGS, StartConfig, StateStatistics, starting_state
from tests.tolerance import ORACLE_FLOAT64, assert_within

WIDTH = 8
every_row = pytest.mark.parametrize("kind", list(SEQUENCES))
WITH_FLAGS = ("attention", "rg_lru")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _model(kind: str = "s5") -> SequenceModel:
    return build_sequence(SequenceConfig(kind=kind, d_model=WIDTH, num_layers=1))


def _final(model: SequenceModel, rows: int, steps: int = 5) -> State:
    return model(torch.randn(rows, steps, WIDTH))[1]


def _start(config: StartConfig, model: SequenceModel, rows: int, seed: int = 0, **given) -> State:
    return starting_state(config, model, rows, generator=_generator(seed), **given)


def _equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _sources(start: Tensor, previous: Tensor) -> list[int]:
    """Return which row of `previous` each row of `start` is."""
    same = (start[:, None] == previous[None]).flatten(2).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1).tolist()


# Every row of the table


@every_row
@pytest.mark.parametrize("kind_of_start", ["zero", "pass", "stored"])
def test_every_model_goes_on_from_a_start_of_its_own_form(kind, kind_of_start):
    model = _model(kind)
    final = _final(model, 4)
    start = _start(StartConfig(kind=kind_of_start), model, 4, previous=final)
    assert {key: v.shape for key, v in start.items()} == {key: v.shape for key, v in final.items()}
    assert not any(value.requires_grad for value in start.values())
    y, _ = model(torch.randn(4, 3, WIDTH), start)
    assert y.isfinite().all()


@every_row
@pytest.mark.parametrize("kind_of_start", ["noise", "fitted"])
def test_drawn_starts_are_refused_where_an_entry_is_a_flag_and_nowhere_else(kind, kind_of_start):
    model, statistics = _model(kind), StateStatistics()
    statistics.update(_final(model, 4))
    config = StartConfig(kind=kind_of_start, std=1.0 if kind_of_start == "noise" else None)
    if kind in WITH_FLAGS:
        with pytest.raises(ValueError, match=r"^start: kind '.*' draws .* is 0 or 1: use .*$"):
            _start(config, model, 4, statistics=statistics)
        return
    start = _start(config, model, 4, statistics=statistics)
    assert model(torch.randn(4, 3, WIDTH), start)[0].isfinite().all()


@every_row
def test_entries_that_hold_only_zero_and_one_are_the_ones_known_as_flags(kind):
    model = _model(kind)
    states = [model.initial_state(4), _final(model, 4), _final(model, 4, steps=1)]
    for key in states[0]:
        numbers = torch.cat([state[key].flatten() for state in states])
        is_flag = bool(((numbers == 0) | (numbers == 1)).all())
        assert is_flag == (key.rpartition(".")[2] in FLAGS)


@every_row
def test_a_reset_at_the_first_step_clears_the_start(kind):
    model = _model(kind)
    start = _start(StartConfig(kind="pass"), model, 4, previous=_final(model, 4))
    x, reset = torch.randn(4, 6, WIDTH), torch.zeros(4, 6, dtype=torch.bool)
    reset[:2, 0] = True
    y, _ = model(x, start, reset)
    fresh, _ = model(x)
    torch.testing.assert_close(y[:2], fresh[:2], rtol=1e-5, atol=1e-6)
    assert (y[2:, 0] - fresh[2:, 0]).abs().max() > 1e-4


# What is drawn


def test_noise_has_the_deviation_asked_for_around_the_initial_state():
    layer = S5Layer(WIDTH, S5Config(initial_state="learned"))
    with torch.no_grad():
        layer.h_init.normal_(3.0)
    start = _start(StartConfig(kind="noise", std=0.25), layer, 20_000)["h"]
    torch.testing.assert_close(start.mean(0), layer.h_init.detach(), rtol=0, atol=0.01)
    assert start.std(0).flatten().tolist() == pytest.approx([0.25] * WIDTH, rel=0.03)
    start.sum().backward()
    assert (layer.h_init.grad == 20_000).all()


def test_fitted_starts_have_the_mean_and_deviation_of_the_final_states_entry_by_entry():
    model, statistics = _model(), StateStatistics()
    scale, offset = (torch.rand_like(_final(model, 1)["0.h"]) * 5 + 0.1 for _ in range(2))
    finals = [torch.randn(rows, *scale.shape[1:]) * scale + offset for rows in (3, 50, 200)]
    for final in finals:
        statistics.update({"0.h": final})
    seen = torch.cat(finals)
    start = _start(StartConfig(kind="fitted"), model, 20_000, statistics=statistics)["0.h"]
    standard = (start - seen.mean(0)) / seen.std(0)
    assert standard.mean(0).abs().max() < 0.05
    assert (standard.std(0) - 1).abs().max() < 0.05


def test_running_statistics_equal_those_of_all_rows_at_once_and_survive_a_checkpoint():
    statistics, rows = StateStatistics(), torch.randn(60, 3, 2, dtype=torch.float64) * 3 + 40
    statistics.update({"h": rows[:1]})
    statistics.update({"h": rows[1:25]})
    restored = StateStatistics()
    restored.load_state_dict(statistics.state_dict())
    for each in (statistics, restored):
        each.update({"h": rows[25:]})
        assert each.count == 60
        assert_within(each.mean()["h"], rows.mean(0), ORACLE_FLOAT64)
        assert_within(each.deviation()["h"], rows.std(0), ORACLE_FLOAT64)
    assert all(isinstance(value, Tensor) for value in statistics.state_dict().values())


def test_a_restored_object_does_not_share_memory_with_the_checkpoint():
    statistics = StateStatistics()
    statistics.update({"h": torch.randn(4, 2)})
    tensors = statistics.state_dict()
    kept = {key: value.clone() for key, value in tensors.items()}
    statistics.update({"h": torch.randn(4, 2)})
    assert all(torch.equal(tensors[key], kept[key]) for key in kept)


def test_every_row_starts_from_another_row_and_every_state_is_passed_on_once():
    model = _model()
    previous = _final(model, 6)
    for seed in range(50):
        start = _start(StartConfig(kind="pass"), model, 6, seed, previous=previous)
        sources = _sources(start["0.h"], previous["0.h"])
        assert sorted(sources) == list(range(6))
        assert all(source != row for row, source in enumerate(sources))


def test_passing_reaches_every_other_row_and_serves_smaller_batches():
    model = _model()
    previous = _final(model, 5)
    reached = set()
    for seed in range(60):
        start = _start(StartConfig(kind="pass"), model, 3, seed, previous=previous)
        reached |= set(enumerate(_sources(start["0.h"], previous["0.h"])))
    assert reached == {(row, source) for row in range(3) for source in range(5) if row != source}


def test_all_entries_of_a_state_come_from_the_same_row():
    model = build_sequence(SequenceConfig(kind="mamba", d_model=WIDTH))
    previous = _final(model, 6)
    start = _start(StartConfig(kind="pass"), model, 6, previous=previous)
    sources = [_sources(start[key], previous[key]) for key in previous]
    assert len(previous) == 4
    assert all(source == sources[0] for source in sources)


def test_a_stored_start_is_the_rows_own_without_its_graph():
    model = _model()
    previous = _final(model, 4)
    assert all(value.requires_grad for value in previous.values())
    start = _start(StartConfig(kind="stored"), model, 4, previous=previous)
    assert _equal(start, previous)
    assert not any(value.requires_grad for value in start.values())


@pytest.mark.parametrize("kind", ["noise", "fitted", "pass", "stored"])
def test_each_row_is_chosen_with_the_probability_asked_for_and_else_starts_fresh(kind):
    model, rows, statistics = _model(), 4000, StateStatistics()
    previous = _final(model, rows)
    statistics.update(previous)
    config = StartConfig(kind=kind, std=1.0 if kind == "noise" else None, probability=0.3)
    start = _start(config, model, rows, previous=previous, statistics=statistics)
    kept = (start["0.h"] != 0).flatten(1).any(1)
    assert kept.double().mean().item() == pytest.approx(0.3, abs=0.03)
    whole = _start(
        StartConfig(kind=kind, std=config.std),
        model,
        rows,
        previous=previous,
        statistics=statistics,
    )
    assert (whole["0.h"] != 0).flatten(1).any(1).all()


@pytest.mark.parametrize("kind", ["noise", "fitted", "pass"])
def test_a_generator_repeats_the_start_and_the_global_one_is_left_alone(kind):
    model, statistics = _model(), StateStatistics()
    previous = _final(model, 8)
    statistics.update(previous)
    config = StartConfig(kind=kind, std=1.0 if kind == "noise" else None, probability=0.7)
    given = {"previous": previous, "statistics": statistics}
    before = torch.get_rng_state()
    first, again, other = (_start(config, model, 8, seed, **given) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert _equal(first, again)
    assert not _equal(first, other)


@pytest.mark.parametrize("kind", ["zero", "fitted", "pass", "stored"])
def test_before_anything_was_seen_windows_start_from_the_initial_state(kind):
    model = _model()
    start = _start(StartConfig(kind=kind), model, 3, statistics=StateStatistics())
    assert _equal(start, model.initial_state(3))


def test_a_broken_state_that_is_not_chosen_does_not_reach_the_start():
    model = _model()
    broken = {key: torch.full_like(v, torch.nan) for key, v in _final(model, 64).items()}
    start = _start(StartConfig(kind="stored", probability=0.5), model, 64, previous=broken)
    is_fresh = (start["0.h"] == 0).flatten(1).all(1)
    assert (is_fresh | start["0.h"].isnan().flatten(1).all(1)).all()
    assert 0 < is_fresh.sum() < 64


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "noise"}, "std: expected a number with kind noise"),
        ({"kind": "pass", "std": 1.0}, "std: expected .* None otherwise, got 1.0 with pass"),
        ({"kind": "noise", "std": 0.0}, "std: expected a positive number"),
        ({"kind": "pass", "probability": 0.0}, "probability: expected"),
        ({"kind": "pass", "probability": 1.5}, "probability: expected"),
        ({"probability": 0.5}, "probability: would be ignored with kind zero"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StartConfig(**options)


def test_what_is_missing_or_has_too_few_rows_is_named_in_one_line():
    model = _model()
    one, three = _final(model, 1), _final(model, 3)
    with pytest.raises(ValueError, match="kind 'fitted' needs the statistics"):
        _start(StartConfig(kind="fitted"), model, 3)
    with pytest.raises(
        ValueError, match="kind 'pass' needs final states of at least 2 rows, got 1"
    ):
        _start(StartConfig(kind="pass"), model, 1, previous=one)
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        _start(StartConfig(kind="pass"), model, 4, previous=three)
    with pytest.raises(
        ValueError, match=r"expected \(4, 4, 2\) for entry '0.h' .* got \(3, 4, 2\)"
    ):
        _start(StartConfig(kind="stored"), model, 4, previous=three)
    with pytest.raises(ValueError, match=r"entry '0\.h' holds NaN or infinity"):
        StateStatistics().update({"0.h": torch.tensor([[float("nan")]])})


def test_a_model_without_a_state_takes_no_other_start():
    layer = DSSLayer(4, DSSConfig(kernel="softmax", length=8))
    assert _start(StartConfig(), layer, 2) == {}
    with pytest.raises(ValueError, match="kind 'pass' needs a model with a state: use kind 'zero'"):
        _start(StartConfig(kind="pass"), layer, 2)
