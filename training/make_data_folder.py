"""The folder of a made data set, and what says that it is finished.

recipe.json          settings with their hash, versions, references, and per level what is in it
<level>.hdf5         as D4RL has it
minari/<level>-v0/   the same as Minari has it
training/            see `training.make_data`
"""

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from statewise.data import EpisodeDataset, info_scores, normalized_score, write_d4rl
from statewise.data.files import sha256_of
from statewise.data.minari_write import MinariMetadata, write_minari
from statewise.training.run import RunDirectory, RunError, read_json, write_json
from statewise.training.schema import ConfigError

FORMAT = 1
_RECIPE = "recipe.json"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return the sha256 of settings, whatever the order of their names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the version of this package and of others that are installed."""
    return {package: version(package) for package in ("statewise", *packages)}


class DataFolder:
    """One folder, for one process at a time and one recipe.

    Args:
        path: exists and holds a recipe; see `open_folder`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recipe(self) -> dict[str, Any]:
        """What recipe.json says."""
        return read_json(self.path / _RECIPE)

    def note(self, **entries: Any) -> None:
        """Write entries into recipe.json, atomically."""
        write_json(self.path / _RECIPE, self.recipe | entries)

    def file(self, level: str) -> Path:
        """Return the D4RL file of a level."""
        return self.path / f"{level}.hdf5"

    def minari(self, level: str) -> Path:
        """Return the Minari folder of a level."""
        return self.path / "minari" / f"{level}-v0"

    def has(self, level: str) -> bool:
        """Return whether a level is there and as it was written."""
        entry = self.recipe["levels"].get(level)
        paths = {"sha256": self.file(level), "minari_sha256": self.minari(level)}
        return entry is not None and all(
            path.exists() and sha256_of(path) == entry[key] for key, path in paths.items()
        )

    def add(self, level: str, dataset: EpisodeDataset, origin: Mapping[str, Any]) -> None:
        """Write a level in both layouts and note it.

        Args:
            level: its name.
            dataset: with both reference returns.
            origin: how it was made, with "made_by"; becomes `info.generator`.

        Raises:
            DatasetError: the disk is full or refuses. What was there before is unchanged.
        """
        dataset = dataset.with_info(generator=dict(origin))
        write_d4rl(dataset, self.file(level), overwrite=True)
        write_minari(
            dataset.episodes(),
            dataset.info,
            self.minari(level).name,
            root=self.minari(level).parent,
            overwrite=True,
            metadata=MinariMetadata(
                algorithm_name=str(origin.get("algorithm", origin["made_by"])),
                description=f"{level} of {dataset.info.env_id}, made by statewise",
            ),
        )
        entry = {
            **_summary(dataset),
            "sha256": sha256_of(self.file(level)),
            "minari_sha256": sha256_of(self.minari(level)),
        }
        self.note(levels=self.recipe["levels"] | {level: entry})


def is_complete(path: Path, settings: Mapping[str, Any], levels: Sequence[str]) -> bool:
    """Return whether a folder was made with these settings and has all of these levels."""
    folder = DataFolder(path)
    if not (path / _RECIPE).is_file() or folder.recipe.get("hash") != settings_hash(settings):
        return False
    return all(folder.has(level) for level in levels)


def _summary(dataset: EpisodeDataset) -> dict[str, Any]:
    """Return the numbers of a level that recipe.json and the table show."""
    numbers = dataset.statistics()
    return {
        "episodes": numbers.num_episodes,
        "steps": numbers.num_steps,
        "return_mean": numbers.return_mean,
        "return_std": numbers.return_std,
        "return_min": numbers.return_min,
        "return_max": numbers.return_max,
        "score": float(normalized_score(numbers.return_mean, info_scores(dataset.info))),
    }


@contextmanager
def open_folder(
    path: Path, settings: Mapping[str, Any], versions: Mapping[str, str]
) -> Generator[DataFolder, None, None]:
    """Open the folder of a recipe for this process alone; a new or empty one becomes one.

    Raises:
        ConfigError: it holds something else, other settings, or is in use.
    """
    recipe = path / _RECIPE
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{path}: expected a folder, got: {error.strerror}: pass another --out"
        raise ConfigError(problem) from error
    with _alone(path):
        if recipe.exists():
            _check_settings(read_json(recipe), settings, recipe)
        elif found := sorted(one.name for one in path.iterdir() if not one.name.startswith(".")):
            raise ConfigError(
                f"{path}: expected a new folder or one with {_RECIPE}, it holds {found[0]}:"
                " pass another --out"
            )
        else:
            content = {"format": FORMAT, "hash": settings_hash(settings)}
            content |= {"settings": dict(settings), "versions": dict(versions), "levels": {}}
            write_json(recipe, content)
        yield DataFolder(path)


@contextmanager
def _alone(path: Path) -> Generator[None, None, None]:
    """Hold the lock of the folder."""
    with ExitStack() as stack:
        try:
            stack.enter_context(RunDirectory(path).lock())
        except RunError as error:
            raise ConfigError(str(error).replace("--run", "--out")) from error
        yield


def _check_settings(recipe: dict[str, Any], settings: Mapping[str, Any], file: Path) -> None:
    if recipe.get("format") != FORMAT or not isinstance(recipe.get("settings"), dict):
        raise ConfigError(
            f"{file}: expected a recipe of format {FORMAT}, got another file: pass another --out"
        )
    if recipe["hash"] == settings_hash(settings):
        return
    made = recipe["settings"]
    for key in sorted({*made, *settings}):
        if made.get(key) != settings.get(key):
            raise ConfigError(
                f"{file}: {key}: expected {made.get(key)} as this folder was made with,"
                f" got {settings.get(key)}: pass another --out, or remove the folder"
            )
    raise ConfigError(f"{file}: its hash does not fit its settings: remove the folder")
