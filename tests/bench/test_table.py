import pytest
from rich.console import Console

from statewise.bench import table
from statewise.bench.measure import Timing
from statewise.bench.table import Figure, build_rows, build_tables, warnings_of

KEYS = ["bench", "case", "system", "metric", "value", "unit", "speedup"]


def test_speedup_says_how_many_times_ours_is_faster() -> None:
    rows = build_rows(
        "scan",
        [
            Figure("c", "statewise cpu", "forward", 2.0, "ms"),
            Figure("c", "peer", "forward", 10.0, "ms"),
            Figure("d", "statewise S5", "env steps", 900.0, "steps/s"),
            Figure("d", "peer", "env steps", 300.0, "steps/s"),
            Figure("d", "peer", "parameters", 5.0, "numbers"),
        ],
    )
    assert [list(row) for row in rows] == [KEYS] * 5
    assert [row["speedup"] for row in rows] == [1.0, 5.0, 1.0, 3.0, None]


def test_a_peer_is_never_taken_for_ours() -> None:
    rows = build_rows("scan", [Figure("c", "peer", "forward", 10.0, "ms")])
    assert rows[0]["speedup"] is None


def test_tables_show_wall_cpu_and_speedup() -> None:
    timing = Timing([0.002], [0.004])
    figures = [Figure("some case", "statewise cpu", "forward", 2.0, "ms", timing)]
    console = Console(width=120)
    with console.capture() as capture:
        for entry in build_tables("scan", figures):
            console.print(entry)
    text = capture.get()
    assert "some case" in text
    assert all(part in text for part in ("2 ms", "1 x", "4", "2.00"))


def test_a_busy_machine_and_starved_threads_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "num_cores", lambda: 2)
    starved = Figure("c", "peer", "forward", 1.0, "ms", Timing([1.0], [1.0]), threads=2)
    fed = Figure("c", "statewise cpu", "forward", 1.0, "ms", Timing([1.0], [1.9]), threads=2)
    busy, few = warnings_of([starved, fed], load_before=1.5)
    assert "busy" in busy
    assert "1 of 2" in few
    assert "peer, c" in few
    assert warnings_of([fed], load_before=0.9) == []
