"""Minari, reading: what contradicts itself has a class, and a message that says where."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from statewise.data import DatasetError, DatasetWarning, errors
from statewise.data.minari import read_minari, write_minari
from tests.data.episodes import integrator_episodes
from tests.data.minari_sets import ID, Damage, make, metadata, space, toy_info


def replaced(key: str, values: Any) -> Damage:
    """Exchange an array of the HDF5 file; None takes it away."""

    def damage(data: Path) -> None:
        with h5py.File(data / "main_data.hdf5", "a") as file:
            if key in file:
                del file[key]
            if values is not None:
                file[key] = values

    return damage


def attribute(group: str, name: str, value: int) -> Damage:
    def damage(data: Path) -> None:
        with h5py.File(data / "main_data.hdf5", "a") as file:
            file[group].attrs[name] = value

    return damage


def renamed(data: Path) -> None:
    with h5py.File(data / "main_data.hdf5", "a") as file:
        file.move("episode_1", "episode_7")


def linked(data: Path) -> None:
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = h5py.ExternalLink("/etc/secret.hdf5", "/x")


def nested(data: Path) -> None:
    with h5py.File(data / "main_data.hdf5", "a") as file:
        file["episode_1/infos/again"] = file["episode_1"]


def truncated(data: Path) -> None:
    file = data / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-3000])


def moved(data: Path) -> None:
    shutil.move(data.parent, data.parent.with_name("other-v0"))
    shutil.copytree(data.parent.with_name("other-v0"), data.parent)
    metadata(dataset_id="set/other-v0")(data)


def text(content: str) -> Damage:
    return lambda data: (data / "metadata.json").write_text(content)


FLOAT = {"dtype": "float32", "low": -1.0, "high": 1.0}
STATES = np.zeros((5, 2), np.float32)
CASES: dict[str, tuple[Damage, type[DatasetError], str]] = {
    "observations without the final one": (
        replaced("episode_0/observations", STATES[:4]),
        errors.MinariEpisode,
        "main_data.hdf5: episode[0]: expected 5 rows of observations/obs for 4 rewards, got 4",
    ),
    "too few actions": (
        replaced("episode_2/actions", np.zeros((5, 1), np.float32)),
        errors.MinariEpisode,
        "main_data.hdf5: episode[2]: expected 6 rows of actions for 6 rewards, got 5",
    ),
    "too few flags": (
        replaced("episode_2/truncations", np.zeros(5, np.bool_)),
        errors.MinariEpisode,
        "main_data.hdf5: episode[2]: expected 6 rows of truncations for 6 rewards, got 5",
    ),
    "an end before the last step": (
        replaced("episode_0/terminations", np.array([0, 1, 0, 0], np.bool_)),
        errors.MinariEpisode,
        "main_data.hdf5: episode[0]: expected terminations at the last of 4 steps, got one at"
        " step 1: cut the episode there",
    ),
    "a gap in the numbers": (
        renamed,
        errors.MinariCount,
        "main_data.hdf5: episode[1]: expected the episodes 0 .. 2, got 3",
    ),
    "a group that is no episode": (
        replaced("extra/x", 1),
        errors.MinariCount,
        "main_data.hdf5: expected episodes episode_0, episode_1, ..., got extra",
    ),
    "more episodes promised": (
        metadata(total_episodes=4),
        errors.MinariCount,
        "main_data.hdf5: episode[3]: expected the episodes 0 .. 3, got 3",
    ),
    "more steps promised": (
        metadata(total_steps=12),
        errors.MinariCount,
        "metadata.json: total_steps: expected 12 steps, got 11 in the episodes",
    ),
    "steps that are no number": (
        metadata(total_steps="many"),
        errors.MinariCount,
        "metadata.json: total_steps: expected a number, got 'many'",
    ),
    "a wrong number of steps noted": (
        attribute("episode_1", "total_steps", 2),
        errors.MinariCount,
        "main_data.hdf5: episode[1]: expected total_steps 1, got 2",
    ),
    "a wrong number of the episode noted": (
        attribute("episode_1", "id", 2),
        errors.MinariCount,
        "main_data.hdf5: episode[1]: expected id 1, got 2",
    ),
    "an id of another folder": (
        moved,
        errors.MinariName,
        "metadata.json: dataset_id: expected the folder set/other-v0, got",
    ),
    "an id without a version": (
        metadata(dataset_id="set/toy"),
        errors.MinariName,
        "metadata.json: dataset_id: expected an id of the form (namespace/)name-v0, got 'set/toy'",
    ),
    "an old version": (
        metadata(minari_version="0.3.1"),
        errors.MinariVersion,
        "metadata.json: minari_version: expected one of 0.4.0 to 0.5.4, got '0.3.1': load it",
    ),
    "a version to come": (
        metadata(minari_version="0.6.0"),
        errors.MinariVersion,
        "expected one of 0.4.0 to 0.5.4, got '0.6.0'",
    ),
    "an unknown format": (
        metadata(data_format="zarr"),
        errors.MinariFormat,
        "metadata.json: data_format: expected one of hdf5, arrow, parquet, got 'zarr'",
    ),
    "a space of text": (
        space("observation_space", type="Dict", subspaces={"say": {"type": "Text"}}),
        errors.MinariFormat,
        "metadata.json: say: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple,"
        " got Text",
    ),
    "an unknown space": (
        space("observation_space", type="Graph"),
        errors.MinariFormat,
        "metadata.json: space: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple,"
        " got Graph",
    ),
    "a space without its bounds": (
        space("observation_space", type="Box", dtype="float32", shape=[2]),
        errors.MinariFormat,
        "metadata.json: space: expected a space as minari writes it, got",
    ),
    "two observations of one name": (
        space(
            "observation_space",
            type="Dict",
            subspaces={
                "a.b": {"type": "MultiBinary", "n": 2},
                "a": {"type": "Dict", "subspaces": {"b": {"type": "MultiBinary", "n": 2}}},
            },
        ),
        errors.MinariFormat,
        "metadata.json: observation_space: expected one or more observations of different names",
    ),
    "actions without a policy": (
        space("action_space", type="Box", shape=[2, 2], **FLOAT),
        errors.MinariFormat,
        "metadata.json: action_space: expected Discrete, or MultiDiscrete or a float Box with one"
        " axis, got Box of shape (2, 2) and dtype float32",
    ),
    "a tree of actions": (
        space("action_space", type="Dict", subspaces={}),
        errors.MinariFormat,
        "or a float Box with one axis, got Dict: no policy takes others",
    ),
    "observations of another shape": (
        replaced("episode_0/observations", np.zeros((5, 3), np.float32)),
        errors.SpecMismatch,
        "main_data.hdf5: episode[0]/observations/obs: expected rows of shape (2,) and dtype"
        " float32, got (3,) and float32",
    ),
    "observations of text": (
        replaced("episode_0/observations", np.full((5, 2), b"x", "S1")),
        errors.SpecMismatch,
        "main_data.hdf5: episode[0]/observations/obs: expected rows of shape (2,)",
    ),
    "rewards of two columns": (
        replaced("episode_0/rewards", np.zeros((4, 2))),
        errors.ShapeError,
        "main_data.hdf5: episode[0]/rewards: expected shape (N,) or (N, 1), got (4, 2)",
    ),
    "flags that are neither 0 nor 1": (
        replaced("episode_0/terminations", np.array([0, 0, 2, 1])),
        errors.ShapeError,
        "main_data.hdf5: episode[0]/terminations[2]: expected flags 0 or 1, got 2",
    ),
    "NaN": (
        replaced("episode_0/observations", STATES + np.array([[0], [0], [0], [np.nan], [0]])),
        errors.NonFinite,
        "main_data.hdf5: episode[0]/observations/obs[3]: expected finite numbers",
    ),
    "no step": (
        replaced("episode_1/rewards", np.zeros(0)),
        errors.EmptyDataset,
        "main_data.hdf5: episode[1]: expected a step, got none",
    ),
    "no rewards": (
        replaced("episode_1/rewards", None),
        errors.MissingKey,
        "main_data.hdf5: episode[1]: expected rewards, got actions",
    ),
    "no spaces": (
        metadata(action_space=None),
        errors.MissingKey,
        "metadata.json: action_space: expected this key, got",
    ),
    "no version": (
        metadata(minari_version=None),
        errors.MissingKey,
        "metadata.json: minari_version: expected this key, got",
    ),
    "an episode that is too long": (
        metadata(env_spec=json.dumps({"id": "toy-v0", "max_episode_steps": 5})),
        errors.EpisodeTooLong,
        "main_data.hdf5: episode[2]: expected at most 5 steps, got 6",
    ),
    "an environment that is no JSON": (
        metadata(env_spec="{"),
        errors.DatasetCorrupt,
        "metadata.json: env_spec: expected the JSON of an environment, got '{'",
    ),
    "a score that is no number": (
        metadata(ref_max_score="high"),
        errors.DatasetCorrupt,
        "metadata.json: ref_max_score: expected a number, got 'high'",
    ),
    "metadata that are no JSON": (
        text("{"),
        errors.DatasetCorrupt,
        "metadata.json: expected JSON, got:",
    ),
    "metadata that are no object": (
        text("[1]"),
        errors.DatasetCorrupt,
        "metadata.json: expected a JSON object, got [1]",
    ),
    "a truncated file": (
        truncated,
        errors.DatasetCorrupt,
        "main_data.hdf5: expected a whole HDF5 file, got:",
    ),
    "a pointer of git-lfs": (
        lambda data: (data / "main_data.hdf5").write_text("version https://git-lfs.github.com"),
        errors.DatasetCorrupt,
        "main_data.hdf5: expected data, got a pointer of git-lfs",
    ),
    "a pickle": (
        lambda data: (data / "main_data.hdf5").write_bytes(b"\x80\x04abc"),
        errors.PickleRefused,
        "main_data.hdf5: expected HDF5 or npz, got a pickle",
    ),
    "no bytes": (
        lambda data: (data / "main_data.hdf5").write_bytes(b""),
        errors.DatasetNotFound,
        "main_data.hdf5: expected data, got 0 bytes",
    ),
    "no file": (
        lambda data: (data / "main_data.hdf5").unlink(),
        errors.DatasetNotFound,
        "main_data.hdf5: expected a file, got nothing",
    ),
    "no metadata": (
        lambda data: (data / "metadata.json").unlink(),
        errors.DatasetNotFound,
        "toy-v0: expected data/metadata.json, got nothing: get it with: minari download set/toy-v0",
    ),
    "a group inside itself": (
        nested,
        errors.DatasetCorrupt,
        "expected at most 32 levels, got a group inside itself or more",
    ),
    "a link to another file": (
        linked,
        errors.UnsafePath,
        "main_data.hdf5: episode_1/rewards: expected data, got a link to /etc/secret.hdf5",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_set_with_this_is_refused(tmp_path: Path, case: str) -> None:
    damage, kind, message = CASES[case]
    damage(make(tmp_path))
    with pytest.raises(kind, match=re.escape(message)) as caught:
        read_minari(ID, root=tmp_path)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../toy-v0", "/tmp/toy-v0", "set/../../toy-v0", "set\\toy-v0"])
def test_an_id_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.UnsafePath, match=re.escape(repr(name))):
        read_minari(name, root=tmp_path)
    with pytest.raises(errors.UnsafePath, match=re.escape(repr(name))):
        write_minari(integrator_episodes((2,)), toy_info(), name, root=tmp_path)


@pytest.mark.parametrize("name", ["toy", "toy-v", "toy-vx", "a/toy-v0", "se t/toy-v0", "toy-v0.1"])
def test_text_that_is_no_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.MinariName, match="expected an id of the form"):
        read_minari(name, root=tmp_path)


def test_a_set_that_is_not_there_and_an_unknown_mode_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.DatasetNotFound, match="minari download set/none-v0"):
        read_minari("set/none-v0", root=tmp_path)
    with pytest.raises(errors.DatasetNotFound, match="give the folder that holds data/"):
        read_minari(tmp_path)
    mode: Any = "fast"
    with pytest.raises(errors.DataConfigError, match="mode: expected one of memory, lazy"):
        read_minari(ID, root=tmp_path, mode=mode)


def test_a_set_that_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    # Rows of 2 float32 observations, one more per episode; of 1 action and 1 reward.
    needed = (11 + 3) * 8 + 11 * 8
    assert len(read_minari(ID, root=tmp_path, memory_budget=needed).lengths) == 3
    with pytest.raises(errors.MemoryBudget, match="mode='lazy'"):
        read_minari(ID, root=tmp_path, memory_budget=needed - 1)


def test_a_lazy_source_refuses_a_wrong_row_when_it_is_read(tmp_path: Path) -> None:
    data = make(tmp_path)
    values = STATES.copy()
    values[3] = np.inf
    replaced("episode_0/observations", values)(data)
    source = read_minari(ID, root=tmp_path, mode="lazy")
    assert len(source.read("observations/obs", 0, 0, 3)) == 3
    message = re.escape("main_data.hdf5: episode[0]/observations/obs[3]: expected finite numbers")
    with pytest.raises(errors.NonFinite, match=message):
        source.read("observations/obs", 0, 2, 5)


def test_an_action_that_is_no_choice_is_refused(tmp_path: Path) -> None:
    data = make(tmp_path)
    space("action_space", type="Discrete", n=3, start=1)(data)
    for index, steps in enumerate((4, 1, 6)):
        replaced(f"episode_{index}/actions", np.ones(steps, np.int64))(data)
    assert read_minari(ID, root=tmp_path).read("actions", 2, 0, 6).tolist() == [0] * 6
    replaced("episode_2/actions", np.array([1, 2, 3, 0, 1, 1]))(data)
    with pytest.raises(errors.ActionRange, match="below 3, got -1"):
        read_minari(ID, root=tmp_path)


def test_an_episode_without_a_flag_is_truncated_with_a_warning(tmp_path: Path) -> None:
    data = make(tmp_path)
    replaced("episode_0/terminations", np.zeros(4, np.bool_))(data)
    with pytest.warns(DatasetWarning, match="1 of 3 episodes end without a flag"):
        source = read_minari(ID, root=tmp_path)
    assert (source.terminated[0], source.truncated[0]) == (False, True)


def test_links_inside_the_file_are_not_followed(tmp_path: Path) -> None:
    data = make(tmp_path)
    with h5py.File(data / "main_data.hdf5", "a") as file:
        file["episode_1/infos/again"] = h5py.SoftLink("/episode_1")
    assert not [name for name in read_minari(ID, root=tmp_path).names if "infos" in name]


@pytest.mark.parametrize("length", [0, 3, 6])
def test_infos_that_are_not_per_step_are_left_out_with_a_warning(
    tmp_path: Path, length: int
) -> None:
    data = make(tmp_path)
    for index, steps in enumerate((4, 1, 6)):
        replaced(f"episode_{index}/infos/good", np.arange(steps + 1.0))(data)
        replaced(f"episode_{index}/infos/bad", np.arange(steps))(data)
    replaced("episode_0/infos/bad", np.arange(length) if length else None)(data)
    with pytest.warns(DatasetWarning, match="infos/bad: left out"):
        source = read_minari(ID, root=tmp_path)
    assert [name for name in source.names if name.startswith("infos/")] == ["infos/good"]


def pictures(data: Path, frames: list[bytes]) -> None:
    """Turn the observations of a set of one episode into JPEG images of 32 x 32."""
    space("observation_space", type="Box", dtype="uint8", shape=[32, 32, 3], low=0, high=255)(data)
    metadata(jpeg_encoding=True)(data)
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        stored = file.create_dataset(
            "episode_0/observations", len(frames), h5py.vlen_dtype(np.uint8)
        )
        for index, frame in enumerate(frames):
            stored[index] = np.frombuffer(frame, np.uint8)


def jpeg(size: int, path: Path) -> bytes:
    Image.fromarray(np.full((size, size, 3), 100, np.uint8)).save(path, format="JPEG")
    return path.read_bytes()


def test_frames_that_are_no_jpeg_of_the_right_size_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, small = jpeg(32, tmp_path / "good"), jpeg(31, tmp_path / "small")
    episode = replace(integrator_episodes((2,))[0], infos={})
    data = write_minari([episode], toy_info(), ID, root=tmp_path) / "data"
    pictures(data, [good] * 3)
    assert (read_minari(ID, root=tmp_path).read("observations/obs", 0, 0, 3) == 100).all()
    pictures(data, [good, good, b"text"])
    with pytest.raises(errors.DatasetCorrupt, match="expected a JPEG image, got none"):
        read_minari(ID, root=tmp_path)
    pictures(data, [good, small, good])
    with pytest.raises(errors.DatasetCorrupt, match=re.escape("image (32, 32, 3), got (31, 31")):
        read_minari(ID, root=tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DatasetError, match="pip install pillow"):
        read_minari(ID, root=tmp_path)
