import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from statewise.training.log import MetricLogger, MetricsWarning, read_metrics
from statewise.training.run import RunDirectory, RunError


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "", {})


def without_wall(run: RunDirectory) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "wall_s"} for row in read_metrics(run)]


def scalars(run: RunDirectory, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run.tb_dir))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_both_places_hold_what_was_written(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(10, {"a/x": 1.5, "a/y": 2})
        log.write(20, {"a/x": -0.25})
    assert without_wall(run) == [{"step": 10, "a/x": 1.5, "a/y": 2.0}, {"step": 20, "a/x": -0.25}]
    assert scalars(run, "a/x") == [(10, 1.5), (20, -0.25)]
    assert scalars(run, "a/y") == [(10, 2.0)]


def test_a_line_can_be_read_before_the_logger_is_closed(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(1, {"a/x": 3.0})
        assert without_wall(run) == [{"step": 1, "a/x": 3.0}]


def test_nan_and_infinity_are_null_in_the_file_and_nan_when_read(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(1, {"a/x": math.nan, "a/y": math.inf})
    row = json.loads(run.metrics_path.read_text())
    assert (row["a/x"], row["a/y"]) == (None, None)
    assert math.isnan(read_metrics(run)[0]["a/x"])


def test_resume_drops_what_was_written_after_the_state_was_taken(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(10, {"a/x": 1.0})
        log.write(20, {"a/x": 2.0})
        state = log.state_dict()
        log.write(30, {"a/x": 99.0})
        log.write(40, {"a/x": 99.0})
    with MetricLogger.resume(run, state) as log:
        log.write(30, {"a/x": 3.0})
    expected = [(10, 1.0), (20, 2.0), (30, 3.0)]
    assert [(row["step"], row["a/x"]) for row in read_metrics(run)] == expected
    assert scalars(run, "a/x") == expected


def test_resume_drops_the_half_line_of_a_process_that_died(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(10, {"a/x": 1.0})
        state = log.state_dict()
    with run.metrics_path.open("a") as file:
        file.write('{"step": 20, "a/')
    assert without_wall(run) == [{"step": 10, "a/x": 1.0}]
    with MetricLogger.resume(run, state) as log:
        log.write(20, {"a/x": 2.0})
    assert without_wall(run) == [{"step": 10, "a/x": 1.0}, {"step": 20, "a/x": 2.0}]


def test_resume_from_a_state_without_any_metrics_drops_everything(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        state = log.state_dict()
        log.write(0, {"a/x": 99.0})
        log.write(10, {"a/x": 99.0})
    with MetricLogger.resume(run, state) as log:
        log.write(0, {"a/x": 1.0})
        log.write(10, {"a/x": 2.0})
    assert without_wall(run) == [{"step": 0, "a/x": 1.0}, {"step": 10, "a/x": 2.0}]
    assert scalars(run, "a/x") == [(0, 1.0), (10, 2.0)]


def test_a_logger_that_writes_nothing_changes_nothing(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(10, {"a/x": 1.0})
    MetricLogger(run).close()
    assert without_wall(run) == [{"step": 10, "a/x": 1.0}]
    assert scalars(run, "a/x") == [(10, 1.0)]


def test_steps_do_not_go_back(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(10, {"a/x": 1.0})
        log.write(10, {"a/y": 1.0})
        with pytest.raises(AssertionError):
            log.write(9, {"a/x": 1.0})


def test_wall_time_goes_on_from_the_checkpoint(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(1, {})
        state = log.state_dict()
    with MetricLogger.resume(run, state | {"wall_s": 5000.0}) as log:
        log.write(2, {})
        assert 5000 <= log.state_dict()["wall_s"] < 6000
    first, second = (row["wall_s"] for row in read_metrics(run))
    assert 0 <= first < 1000
    assert 5000 <= second < 6000


def test_lost_metrics_do_not_stop_a_resume_but_warn(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(10, {"a/x": 1.0})
        state = log.state_dict()
    run.metrics_path.unlink()
    with pytest.warns(MetricsWarning, match="holds 0 bytes, .* the curves have a gap"):
        log = MetricLogger.resume(run, state)
    log.write(20, {"a/x": 2.0})
    log.close()
    assert without_wall(run) == [{"step": 20, "a/x": 2.0}]


def test_the_state_is_json(run: RunDirectory) -> None:
    with MetricLogger(run) as log:
        log.write(10, {"a/x": 1.0})
        state = log.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert state["offset"] == run.metrics_path.stat().st_size


def test_a_run_without_metrics_has_no_rows(run: RunDirectory) -> None:
    assert read_metrics(run) == []


@pytest.mark.parametrize("line", ["{", "[1]", ""])
def test_a_damaged_line_in_the_middle_is_named(line: str, run: RunDirectory) -> None:
    run.metrics_path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        read_metrics(run)
