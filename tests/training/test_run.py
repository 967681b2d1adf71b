import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from statewise.training import run as run_module
from statewise.training.run import (
    RunDirectory,
    RunError,
    build_manifest,
    note_resume,
    write_json,
)


def make(path: Path) -> RunDirectory:
    return RunDirectory.create(path, "seed: 3\n", {"seed": 3})


def test_create_writes_config_and_manifest_and_no_folders(tmp_path: Path) -> None:
    run = make(tmp_path / "a" / "run")
    assert run.config_path.read_text() == "seed: 3\n"
    assert run.read_manifest() == {"seed": 3}
    assert [entry.name for entry in run.path.iterdir() if entry.is_dir()] == []


def test_create_accepts_an_empty_folder(tmp_path: Path) -> None:
    assert make(tmp_path).path == tmp_path


def test_create_refuses_a_folder_that_holds_a_run_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(RunError, match="already holds a run: pass --resume or another --run"):
        RunDirectory.create(tmp_path, "seed: 4\n", {"seed": 4})
    assert RunDirectory.open(tmp_path).config_path.read_text() == "seed: 3\n"


def test_create_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"it holds thesis\.tex: pass another --run"):
        make(tmp_path)


def test_create_refuses_a_file_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be made \(File exists\)") as caught:
        make(tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_open_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such folder"):
        RunDirectory.open(tmp_path / "absent")
    with pytest.raises(RunError, match=r"config\.yaml and manifest\.json missing"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(RunError, match=r"directory: manifest\.json missing"):
        RunDirectory.open(tmp_path)


def test_a_damaged_manifest_is_reported_with_its_path(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.manifest_path.write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json cannot be read as JSON"):
        run.read_manifest()
    run.manifest_path.write_text("[]")
    with pytest.raises(RunError, match="expected a JSON object, got list"):
        run.read_manifest()


@pytest.mark.parametrize(
    ("command", "preset"), [(["statewise", "train", "ppo/x", "--seed", "1"], "ppo/x"), ([], "")]
)
def test_the_preset_is_read_from_the_command(
    command: list[str], preset: str, tmp_path: Path
) -> None:
    run = RunDirectory.create(tmp_path, "", {"command": command})
    assert run.read_preset() == preset


def test_write_json_writes_null_for_what_json_cannot_say(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [math.nan, 1.5], "b": (math.inf, {"c": -math.inf})})
    expected = {"a": [None, 1.5], "b": [None, {"c": None}]}
    assert json.loads((tmp_path / "x.json").read_text()) == expected


def test_write_json_keeps_the_old_file_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_lock_is_held_once_and_can_be_taken_again(tmp_path: Path) -> None:
    run = make(tmp_path)
    with (
        run.lock(),
        pytest.raises(RunError, match=f"in use by process {os.getpid()}: wait"),
        RunDirectory.open(tmp_path).lock(),
    ):
        pass
    with run.lock():
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    run = make(tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from statewise.training.run import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"in use by process {other.pid}:"), run.lock():
            pass
        other.kill()
    with run.lock():
        pass


def test_manifest_names_versions_seed_and_what_resume_restores(tmp_path: Path) -> None:
    manifest = build_manifest(["statewise", "train", "x"], 7, "cpu", "episode")
    assert manifest["command"] == ["statewise", "train", "x"]
    assert manifest["seed"] == 7
    versions = manifest["versions"]
    assert isinstance(versions, dict)
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == np.__version__
    assert set(versions) == {"python", "statewise", "torch", "numpy", "gymnasium"}
    assert "start new episodes" in str(manifest["resume"])
    assert json.loads(json.dumps(manifest)) == manifest


def test_manifest_refuses_an_unknown_way_of_resuming() -> None:
    with pytest.raises(RunError, match="expected one of exact, episode, got 'never'"):
        build_manifest([], 0, "cpu", "never")


def test_revision_is_that_of_the_tree_that_tracks_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "run.py"
    source.write_text("a = 1\n")
    monkeypatch.setattr(run_module, "__file__", str(source))
    assert run_module.source_revision() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody else's repository")
    assert run_module.source_revision() is None
    git("add", "run.py")
    git("commit", "-q", "-m", "ours")
    assert run_module.source_revision() == git("rev-parse", "HEAD")
    source.write_text("a = 2\n")
    assert run_module.source_revision() == git("rev-parse", "HEAD") + "-dirty"


def test_a_manifest_tells_every_time_the_run_went_on(tmp_path: Path) -> None:
    manifest = build_manifest(["statewise", "train", "x"], 0, "cpu", "exact")
    run = RunDirectory.create(tmp_path / "run", "seed: 0\n", manifest)
    for step in (10, 20):
        note_resume(run, ["statewise", "train", "--resume", str(run.path)], step)
    noted = run.read_manifest()
    assert [entry["step"] for entry in noted.pop("resumed")] == [10, 20]
    assert noted == manifest
