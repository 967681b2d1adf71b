"""Data of others train without conversion: sets of the package minari, and D4RL files as they are.

All of the real Pendulum-v1, by the command line, each with another system.
"""

import json
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from statewise.__main__ import main
from statewise.data.scores import REFERENCE_SCORES
from tests.data.minari_sets import collect
from tests.training import offline_cases as cases

LIMIT = 40
ENV = {"env__id": "Pendulum-v1", "env__kwargs__max_episode_steps": LIMIT, "eval__episodes": 2}
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def d4rl_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two episodes and an unfinished third as D4RL's first files have them."""
    episodes = cases.play(gymnasium.make("Pendulum-v1", max_episode_steps=LIMIT), 3, seed=1)
    kept = [LIMIT, LIMIT, LIMIT // 2]
    path = tmp_path_factory.mktemp("own") / "swing-up.hdf5"
    rows = {
        "observations": [
            one.observations["obs"][:n] for one, n in zip(episodes, kept, strict=True)
        ],
        "actions": [one.actions[:n] for one, n in zip(episodes, kept, strict=True)],
        "rewards": [one.rewards[:n, None] for one, n in zip(episodes, kept, strict=True)],
    }
    with h5py.File(path, "w") as file:
        for key, parts in rows.items():
            file.create_dataset(key, data=np.concatenate(parts), compression="gzip")
        file["terminals"] = np.zeros(sum(kept), np.bool_)
        file["infos/action_log_probs"] = np.zeros(sum(kept), np.float32)
        file["metadata/algorithm"] = "SAC"
    return path


def train(system: str, data: Path, run: Path, **changes: Any) -> int:
    settings = cases.TINY[system] | ENV | changes
    words = ["--data", str(data), "--run", str(run), *cases.words(settings)]
    return main(["train", f"{system}/pendulum", *words])


def learned_from(run: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run / "manifest.json").read_text())["data"]
    return data


def check_evaluated(run: Path) -> None:
    assert main(["eval", str(run)]) == 0
    report = json.loads((run / "eval.json").read_text())
    assert [row["length"] for row in report["episodes"]] == [LIMIT] * 2
    assert -17 * LIMIT < report["return_mean"] < 0
    assert report["data_sha256"] == learned_from(run)["sha256"]


def test_a_data_set_that_minari_collected_trains_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    theirs = collect("Pendulum-v1", "pendulum/random-v0", "hdf5", episodes=3)
    folder = tmp_path / "pendulum" / "random-v0"
    assert train("dt", folder, tmp_path / "run", env__id="", agent__num_timesteps=200) == 0
    data = learned_from(tmp_path / "run")
    assert data["env_id"] == "Pendulum-v1"
    assert (data["num_episodes"], data["num_steps"]) == (3, theirs.total_steps) == (3, 402)
    returns = [episode.rewards.sum() for episode in theirs.iterate_episodes()]
    assert data["return_mean"] == pytest.approx(np.mean(returns), rel=1e-5)
    check_evaluated(tmp_path / "run")


@pytest.mark.parametrize("system", ["decision_s4", "td3bc", "iql"])
def test_a_d4rl_file_without_timeouts_trains_and_is_evaluated(
    system: str, d4rl_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    changes = {"data__max_episode_steps": LIMIT, "eval__reference": "hopper-medium-v2"}
    assert train(system, d4rl_file, run, **changes) == 0
    data = learned_from(run)
    assert (data["env_id"], data["ref_min"]) == (None, None)
    assert (data["num_episodes"], data["num_steps"]) == (2, 2 * LIMIT)
    check_evaluated(run)
    report = json.loads((run / "eval.json").read_text())
    low, high = REFERENCE_SCORES["hopper-medium-v2"]
    assert report["score"] == pytest.approx(100 * (report["return_mean"] - low) / (high - low))
    if system == "decision_s4":
        assert main(["plot", str(run)]) == 0
        assert (run / "plots" / "learning_curve.png").stat().st_size > 0
        return
    assert report["target"] is None
    capsys.readouterr()
    assert main(["eval", str(run), "--targets", "-150"]) == 2
    error = (
        f"error: targets: expected none for {system}, which is not told a return, got [-150.0]\n"
    )
    assert capsys.readouterr().err == error


def test_what_a_d4rl_file_does_not_say_is_asked_for_in_one_line(
    d4rl_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("dt", d4rl_file, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "swing-up.hdf5" in error
    assert error.endswith("got none: give max_episode_steps\n")
    (tmp_path / "set").mkdir()
    assert train("dt", tmp_path / "set", tmp_path / "run", data__max_episode_steps=9) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data.max_episode_steps: expected none for a folder")
    assert train("dt", d4rl_file, tmp_path / "run", data__max_episode_steps=0) == 2
    assert "data.max_episode_steps: expected at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
