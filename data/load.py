"""One function for every kind of data set; what it is, its content says."""

from pathlib import Path

from statewise.data.d4rl import read_d4rl
from statewise.data.dataset import EpisodeDataset
from statewise.data.errors import DataConfigError, DatasetCorrupt, DatasetNotFound
from statewise.data.files import file_kind
from statewise.data.flat import Mode, ReadConfig
from statewise.data.npz import read_npz

_MINARI_FILES = ("metadata.json", "data/metadata.json", "main_data.hdf5", "data/main_data.hdf5")
_REPLAY_FILES = "$store$_observation_ckpt.*.gz"


def load_dataset(
    path: Path | str, *, mode: Mode = "memory", config: ReadConfig | None = None
) -> EpisodeDataset:
    """Read a D4RL file, an npz, or a folder of Minari or of DQN replay.

    Args:
        path: file or folder, which is not changed.
        mode: "memory", or "lazy" to read from the file when asked. Of DQN replay the first steps
            are read, in one way only.
        config: how flat files (D4RL, npz) are read; folders have no such settings.

    Raises:
        DataConfigError: a setting that this kind of data set does not have.
        DatasetError: one of its subclasses; see `statewise.data.errors`.
    """
    path = Path(path)
    if not path.is_dir():
        read = read_d4rl if file_kind(path) == "hdf5" else read_npz
        return read(path, mode=mode, config=config)
    if config is not None:
        hint = "leave it out"
        raise DataConfigError("expected none for a folder", file=path, key="config", hint=hint)
    return _load_folder(path, mode)


def _load_folder(path: Path, mode: Mode) -> EpisodeDataset:
    if any((path / name).is_file() for name in _MINARI_FILES):
        from statewise.data.minari import read_minari

        return EpisodeDataset(read_minari(path, mode=mode))
    if any(next(folder.glob(_REPLAY_FILES), None) for folder in (path, path / "replay_logs")):
        from statewise.data.dqn_replay import read_dqn_replay

        return EpisodeDataset(read_dqn_replay(path))
    if not any(path.iterdir()):
        raise DatasetNotFound("expected data, got an empty folder", file=path)
    raise DatasetCorrupt(
        "expected a Minari data set (data/metadata.json) or DQN replay (replay_logs), got"
        " another folder",
        file=path,
        hint="give the file itself for HDF5 or npz",
    )
