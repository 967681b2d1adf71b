"""`statewise reproduce` of a claim about data: made, learned from, stopped, gone on with."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from statewise.bench import arm, cli, pool, resumable
from statewise.bench.arm import ClaimRun, find_row
from statewise.bench.claims import load_claim
from statewise.bench.process import Job
from statewise.data import load_dataset
from statewise.training.config import load_config
from statewise.training.evaluate import evaluate_run
from statewise.training.make_data_recipes import find_recipe
from statewise.training.run import RunError, read_json
from tests.bench.offline_claims import plain_claim, run_here, write

pytestmark = pytest.mark.filterwarnings("ignore:.*constant entries")  # of the dial: (t / T, 1)


class Place:
    """A claim file with folders for everything beside it.

    Args:
        folder: of the claim.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = write(folder, plain_claim())

    def change(self, **values: Any) -> None:
        """Replace fields of the claim."""
        write(self.folder, yaml.safe_load(Path(self.file).read_text()) | values)

    def words(self, *more: str) -> list[str]:
        """Return the words of a command."""
        places = {"out": "out", "run-root": "runs", "data-root": "sets"}
        own = [w for k, name in places.items() for w in (f"--{k}", str(self.folder / name))]
        return [self.file, "--workers", "1", *own, *more]

    def rows(self) -> list[dict[str, str]]:
        """Return the table."""
        return list(csv.DictReader((self.folder / "out/tiny.csv").read_text().splitlines()))

    def tables(self) -> dict[str, bytes]:
        """Return what was written, but for the figure."""
        found = (self.folder / "out").glob("tiny.*")
        return {path.name: path.read_bytes() for path in found if path.suffix != ".png"}

    def run(self, name: str, seed: int) -> Path:
        """Return a run directory."""
        return self.folder / "runs/tiny" / f"{name}-seed{seed}"

    def job(self, name: str = "bc") -> Job:
        """Return the job of a run."""
        roots = {"root": str(self.folder / "runs"), "data_root": str(self.folder / "sets")}
        return {"claim": self.file, "arm": name, "seed": 1, **roots}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[Job], str]:
    """A claim that was reproduced in two parts: its place, the jobs and what was printed."""
    place = Place(tmp_path_factory.mktemp("claim"))
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        begun = run_here(patch)
        patch.setattr(
            "builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words)))
        )
        assert cli.reproduce(place.words("--arms", "bc")) == 1
        assert cli.reproduce(place.words()) == 1
    return place, begun, "\n".join(printed)


def test_data_are_made_once_and_every_run_is_trained_once(
    finished: tuple[Place, list[Job], str],
) -> None:
    place, begun, _ = finished
    kinds = [(job["kind"], job.get("arm"), job.get("seed")) for job in begun]
    bc = [("arm", "bc", 1), ("arm", "bc", 2)]
    s4 = [("arm", "s4", 1), ("arm", "s4", 2)]
    assert kinds == [("data", None, None), *bc, *s4]  # those of bc are found
    [folder] = (place.folder / "sets").iterdir()
    dataset = load_dataset(folder / "mixed.hdf5")
    assert (len(dataset), dataset.lengths.tolist()) == (3, [5, 5, 5])
    for name in ("s4", "bc"):
        run = place.run(name, 1)
        assert load_config(run / "config.yaml").env.kwargs == {"length": 5}
        assert "resumed" not in read_json(run / "manifest.json")


def test_the_table_has_what_the_runs_hold(finished: tuple[Place, list[Job], str]) -> None:
    place, _, text = finished
    rows = place.rows()
    assert [(row["arm"], row["seed"]) for row in rows] == [
        ("s4", "1"),
        ("s4", "2"),
        ("bc", "1"),
        ("bc", "2"),
    ]
    for row in rows:
        evaluation = read_json(place.run(row["arm"], int(row["seed"])) / "eval.json")
        assert len(evaluation["episodes"]) == 2
        first, last = evaluation["targets"][0], evaluation["targets"][-1]
        assert float(row["return"]) == pytest.approx(first["return_mean"], rel=1e-5)
        assert float(row["score"]) == pytest.approx(first["score"], rel=1e-5)
        assert (row["steps"], row["reached"]) == ("2", "1")
        assert row["task"] == "statewise/RtgDial-v0"
        assert float(row["ms_per_action"]) > 0
        assert float(row["tokens_per_s"]) > float(row["updates_per_s"]) > 0
        if row["arm"] == "s4":
            spread = first["score"] - last["score"]
            assert float(row["spread"]) == pytest.approx(spread, rel=1e-4, abs=1e-4)
        else:
            assert row["spread"] == row["spearman"] == row["relative_error"] == ""
    assert "NOT RUN  s4, return: 2 of 2 runs are missing" in text
    assert "PASS  s4, return: min of 2 seeds" in text
    assert "PASS  bc over s4, return: max of 2 seeds" in text
    assert "FAIL  s4, spearman: max of 2 seeds" in text
    page = (place.folder / "out/tiny.md").read_text()
    assert all(line in text for line in page.splitlines() if line.startswith("| "))
    assert (place.folder / "out/tiny.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_makes_nothing_and_the_order_does_not_matter(
    finished: tuple[Place, list[Job], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _, _ = finished
    before = place.tables()
    files = [p for p in place.folder.rglob("*") if p.is_file() and "out" not in p.parts]
    stamps = {path: path.stat().st_mtime_ns for path in files}
    begun = run_here(monkeypatch)
    monkeypatch.setattr(resumable, "run_training", None)
    monkeypatch.setattr(arm, "evaluate_run", None)
    assert cli.reproduce(place.words("--arms", "s4")) == 1
    assert not begun
    assert place.tables() == before
    assert {path: path.stat().st_mtime_ns for path in files} == stamps


def test_an_evaluation_for_other_returns_is_made_again(
    finished: tuple[Place, list[Job], str],
) -> None:
    place, _, _ = finished
    path = place.run("s4", 1)
    before = (path / "eval.json").read_bytes()
    evaluate_run(path, episodes=2, targets=(4.0, 3.0, 2.0))
    claim = load_claim(place.file)
    run = ClaimRun(claim, claim.arm("s4"), 1, place.folder / "runs", place.folder / "sets")
    assert find_row(run) is None
    arm.run_job(place.job("s4"))
    assert (path / "eval.json").read_bytes() == before
    assert find_row(run) is not None


def test_other_data_are_refused(finished: tuple[Place, list[Job], str]) -> None:
    place, _, _ = finished
    [file] = (place.folder / "sets").glob("*/mixed.hdf5")
    content = file.read_bytes()
    try:
        file.write_bytes(content + b" ")
        with pytest.raises(RunError, match=r"was trained with another .*mixed\.hdf5: put that b"):
            arm.run_job(place.job())
    finally:
        file.write_bytes(content)


def test_what_was_stopped_is_named_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    place.change(seeds=[1], checks=plain_claim()["checks"][:2])
    with monkeypatch.context() as patch:
        run_here(patch)
        begin = pool.start

        def stop_at_bc(job: Job) -> Any:
            if job.get("arm") == "bc":
                raise KeyboardInterrupt
            return begin(job)

        patch.setattr(pool, "start", stop_at_bc)
        with pytest.raises(KeyboardInterrupt):
            cli.reproduce(place.words())
    assert [(row["arm"], row["score"] == "not run") for row in place.rows()] == [
        ("s4", False),
        ("bc", True),
    ]
    assert "NOT RUN  bc over s4, return: 1 of 2" in (tmp_path / "out/tiny.md").read_text()
    first = place.rows()[0]
    run_here(monkeypatch)
    assert cli.reproduce(place.words()) == 0
    assert place.rows()[0] == first
    assert "not run" not in (tmp_path / "out/tiny.csv").read_text()


def test_a_folder_of_other_data_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    run_here(monkeypatch)
    other = plain_claim()["data"]["dial"] | {"episodes": 4}
    place.change(data={"dial": other})
    [folder] = {a.data.folder for a in load_claim(place.file).arms if a.data is not None}
    recipe = {"format": 1, "hash": "", "settings": {"toy": "rtg-dial", "episodes": 9}, "levels": {}}
    (tmp_path / "sets" / folder).mkdir(parents=True)
    (tmp_path / "sets" / folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(RunError, match=r"episodes: expected 9 .*: pass another --data-root"):
        cli.reproduce(place.words())
    assert not (tmp_path / "out").exists()


def test_an_arm_that_the_claim_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(cli.ConfigError, match=r"--arms: expected arms among s4, bc, got 'cb'"):
        cli.reproduce(Place(tmp_path).words("--arms", "cb"))
    with pytest.raises(cli.ConfigError, match="expected no --arms with --all"):
        cli.reproduce(["--all", "--arms", "s4"])
    assert find_recipe("rtg-dial", length=20) == find_recipe("rtg-dial")
