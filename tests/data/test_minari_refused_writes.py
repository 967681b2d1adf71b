"""Minari, writing: what the format cannot hold is refused, and nothing is left behind."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statewise.data import ArraySpec, DatasetError, DatasetInfo, Episode, errors
from statewise.data.minari import MinariMetadata, write_minari
from tests.data.episodes import integrator_episodes
from tests.data.minari_sets import ID, make, toy_info


def refused(root: Path, episodes: list[Episode], info: DatasetInfo | None = None, **s: Any) -> str:
    """Return class and message of what writing raises; nothing may be left behind."""
    with pytest.raises(DatasetError) as caught:
        write_minari(episodes, info or toy_info(), ID, root=root, **s)
    assert not [path for path in root.rglob("*") if path.is_file()]
    return f"{type(caught.value).__name__}: {caught.value}"


def test_episodes_that_the_format_cannot_hold_are_not_written(tmp_path: Path) -> None:
    good, other = integrator_episodes((3, 2))
    states = good.observations["obs"]
    cases = {
        "EmptyDataset: ": [],
        "MinariEpisode: .*episode.0.: expected 4 rows of observations/obs for 3 steps, got 3": [
            replace(good, observations={"obs": states[:-1]})
        ],
        "MinariEpisode: .*episode.1.: expected 2 rows of actions for 2 steps, got 3": [
            good,
            replace(other, actions=good.actions),
        ],
        "NoEpisodeBoundary: .*episode.1.: expected a terminated or truncated": [
            good,
            replace(other, truncated=False),
        ],
        "SpecMismatch: .*episode.1.: expected the observations .'obs'., got .'x'.": [
            good,
            replace(other, observations={"x": other.observations["obs"]}),
        ],
        "SpecMismatch: .*expected observations without '/'": [
            replace(good, observations={"a/b": states, "c": states})
        ],
        "SpecMismatch: .*episode.1.: expected the infos": [good, replace(other, infos={})],
        "NonFinite: .*episode.0./rewards.1.": [
            replace(good, rewards=np.array([0, np.nan, 0], np.float32))
        ],
        "SpecMismatch: .*infos/text": [replace(good, infos={"text": np.array(["a"] * 4)})],
        "DataConfigError: info: expected the number of actions": [
            replace(good, actions=np.zeros(3, np.int64))
        ],
    }
    for pattern, episodes in cases.items():
        assert re.match(pattern, refused(tmp_path, episodes)), pattern
    choices = DatasetInfo(action_spec=ArraySpec((), "int64", num_choices=(2,)))
    bad = replace(good, actions=np.array([0, 1, 2]))
    assert refused(tmp_path, [bad], choices).startswith("ActionRange: ")
    assert "write hdf5" in refused(tmp_path, [good], data_format="arrow")
    assert "expected one of hdf5, arrow" in refused(tmp_path, [good], data_format="zarr")


def test_a_folder_that_is_there_is_replaced_only_if_it_is_a_set_and_asked_for(
    tmp_path: Path,
) -> None:
    episodes = integrator_episodes((2,))
    make(tmp_path)
    with pytest.raises(errors.DatasetExists, match="choose another id, or overwrite"):
        make(tmp_path)
    other = tmp_path / "mine-v0"
    other.mkdir()
    (other / "thesis.txt").write_text("words")
    with pytest.raises(errors.DatasetExists, match="choose another id"):
        write_minari(episodes, toy_info(), "mine-v0", root=tmp_path, overwrite=True)
    assert (other / "thesis.txt").read_text() == "words"
    (tmp_path / "link-v0").symlink_to(tmp_path / "set/toy-v0")
    with pytest.raises(errors.UnsafePath, match="got a link"):
        write_minari(episodes, toy_info(), "link-v0", root=tmp_path, overwrite=True)
    (tmp_path / "away").symlink_to(tmp_path.parent)
    with pytest.raises(errors.UnsafePath, match="expected a path below"):
        write_minari(episodes, toy_info(), "away/toy-v0", root=tmp_path)


def test_an_environment_that_is_another_or_no_json_is_refused(tmp_path: Path) -> None:
    spec = json.dumps({"id": "Other-v0"})
    message = refused(tmp_path, integrator_episodes((2,)), metadata=MinariMetadata(env_spec=spec))
    assert message.startswith("DataConfigError: env_spec: expected the environment toy/Integrator")
    with pytest.raises(errors.DataConfigError, match="eval_env_spec: expected the JSON"):
        MinariMetadata(eval_env_spec="{}")
