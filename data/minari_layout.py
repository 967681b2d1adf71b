"""Where Minari keeps its data sets and what their metadata must say.

    <root>/<namespace>/<name>-v<number>/data/metadata.json     and the episodes beside it
    <root>/<namespace>/namespace_metadata.json

The layout is that of the Farama Foundation's minari 0.4.0 to 0.5.4.
"""

import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from statewise.data import checks
from statewise.data.description import info_from
from statewise.data.episode import Array, DatasetInfo
from statewise.data.errors import (
    DatasetCorrupt,
    DatasetError,
    DatasetNotFound,
    MinariCount,
    MinariFormat,
    MinariName,
    MinariVersion,
)
from statewise.data.files import safe_name
from statewise.data.minari_spaces import Leaf

METADATA = "metadata.json"
NAMESPACE_METADATA = "namespace_metadata.json"
FORMATS = ("hdf5", "arrow", "parquet")
VERSIONS = ("0.4.0", "0.4.1", "0.4.2", "0.4.3", "0.5.0", "0.5.1", "0.5.2", "0.5.3", "0.5.4")
LEAF = "observations/obs"
"""Name of observations whose space is no tree."""
OURS = "statewise"
"""Key of the metadata with what the layout has no place for."""

_ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+")
_KEPT = (
    "dataset_id",
    "minari_version",
    "algorithm_name",
    "author",
    "author_email",
    "code_permalink",
    "description",
    "requirements",
    "combined_datasets",
    "env_spec",
    "eval_env_spec",
)


class Stored(NamedTuple):
    """One array of one episode in the file."""

    length: int
    shape: tuple[int, ...]
    """Of a row."""
    dtype: np.dtype[Any]


class Store(Protocol):
    """The episodes of a data set in one of its formats.

    Arrays are "observations/KEY", "actions", "rewards", "terminations", "truncations" and
    "infos/KEY".
    """

    file: Path
    """For messages."""

    def numbers(self) -> list[int]:
        """Return the numbers of the episodes that are there, in ascending order."""
        ...

    def attributes(self, index: int) -> Mapping[str, Any]:
        """Return what is noted about an episode: "id", "total_steps", ..."""
        ...

    def arrays(self, index: int) -> Mapping[str, Stored]:
        """Return the arrays of an episode."""
        ...

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows as they are stored, images decoded."""
        ...


def datasets_root(root: Path | str | None) -> Path:
    """Return the folder of all data sets: given, of MINARI_DATASETS_PATH, or in the home."""
    given = root or os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else Path.home() / ".minari" / "datasets"


def check_id(dataset_id: str) -> str:
    """Return an id of the form (namespace/)name-v0.

    Raises:
        UnsafePath: an absolute one, or one with "..".
        MinariName: another form.
    """
    safe_name(dataset_id)
    namespace = dataset_id.rpartition("/")[0]
    if not _ID.fullmatch(dataset_id) or len(namespace) == 1:
        hint = "use letters, digits, - and _; a namespace has at least two"
        raise MinariName(
            f"expected an id of the form (namespace/)name-v0, got {dataset_id!r}", hint=hint
        )
    return dataset_id


def find_folder(path_or_id: Path | str, root: Path | str | None) -> Path:
    """Return the folder with the metadata of a data set.

    Args:
        path_or_id: a `Path` of the set's folder, or text with its id below the root.
        root: as in `datasets_root`.

    Raises:
        UnsafePath, MinariName: text that is no id.
        DatasetNotFound: there is no metadata.
    """
    if isinstance(path_or_id, str):
        folder = datasets_root(root) / check_id(path_or_id)
        hint = f"get it with: minari download {path_or_id}; a folder is given as a Path"
    else:
        folder, hint = Path(path_or_id), "give the folder that holds data/"
    for candidate in (folder / "data", folder):
        if (candidate / METADATA).is_file():
            return candidate
    raise DatasetNotFound("expected data/metadata.json, got nothing", file=folder, hint=hint)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the checked metadata of the data set in `folder`.

    Raises:
        DatasetCorrupt: no JSON object.
        MissingKey: something is not there.
        MinariVersion, MinariName, MinariFormat, MinariCount: a value that is not read.
    """
    file = folder / METADATA
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetCorrupt(f"expected JSON, got: {error}", file=file) from error
    if not isinstance(metadata, dict):
        raise DatasetCorrupt(f"expected a JSON object, got {str(metadata)[:40]}", file=file)
    checks.check_keys(metadata, ("minari_version",), file)
    version = metadata["minari_version"]
    if version not in VERSIONS:
        raise MinariVersion(
            f"expected one of {VERSIONS[0]} to {VERSIONS[-1]}, got {version!r}",
            file=file,
            key="minari_version",
            hint="load it with minari and write it again",
        )
    texts = ("dataset_id", "data_format", "observation_space", "action_space")
    counts = ("total_episodes", "total_steps")
    checks.check_keys(metadata, (*texts, *counts), file)
    for key in texts:
        if not isinstance(metadata[key], str):
            problem = f"expected text, got {str(metadata[key])[:40]}"
            raise MinariFormat(problem, file=file, key=key)
    for key in counts:
        if type(metadata[key]) is not int or metadata[key] < 0:
            raise MinariCount(f"expected a number, got {metadata[key]!r}", file=file, key=key)
    if metadata["data_format"] not in FORMATS:
        problem = f"expected one of {', '.join(FORMATS)}, got {metadata['data_format']!r}"
        raise MinariFormat(problem, file=file, key="data_format")
    _check_name(metadata["dataset_id"], folder)
    return metadata


def _check_name(dataset_id: str, folder: Path) -> None:
    file = folder / METADATA
    try:
        parts = check_id(dataset_id).split("/")
    except DatasetError as error:
        raise MinariName(str(error), file=file, key="dataset_id") from error
    here = Path(os.path.abspath(folder))
    here = here.parent if here.name == "data" else here
    if list(here.parts[-len(parts) :]) != parts:
        raise MinariName(
            f"expected the folder {dataset_id}, got {here}",
            file=file,
            key="dataset_id",
            hint="rename the folder, or correct the id",
        )


def info_of(metadata: Mapping[str, Any], folder: Path) -> DatasetInfo:
    """Return what the metadata say, without the specs of arrays.

    Raises:
        DatasetCorrupt: an environment or a score that cannot be read.
    """
    file = folder / METADATA
    environment = _environment(metadata, file)
    info = DatasetInfo(
        env_id=environment.get("id"),
        max_episode_steps=environment.get("max_episode_steps"),
        ref_min=_score(metadata, "ref_min_score", file),
        ref_max=_score(metadata, "ref_max_score", file),
        source=str(folder),
        generator={key: metadata[key] for key in _KEPT if metadata.get(key)},
    )
    ours = metadata.get(OURS)
    if not isinstance(ours, str):
        return info
    kept = info_from(ours, info, OURS)
    return replace(
        info,
        env_id=info.env_id or kept.env_id,
        max_episode_steps=info.max_episode_steps or kept.max_episode_steps,
        generator=kept.generator,
    )


def _environment(metadata: Mapping[str, Any], file: Path) -> dict[str, Any]:
    text = metadata.get("env_spec")
    if text is None:
        return {}
    try:
        environment = json.loads(text)
        known = {key: environment.get(key) for key in ("id", "max_episode_steps")}
    except (ValueError, TypeError, AttributeError) as error:
        problem = f"expected the JSON of an environment, got {str(text)[:40]!r}"
        raise DatasetCorrupt(problem, file=file, key="env_spec") from error
    return known


def _score(metadata: Mapping[str, Any], key: str, file: Path) -> float | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetCorrupt(f"expected a number, got {value!r}", file=file, key=key)
    return float(value)


def decode_frames(frames: Iterable[Any], leaf: Leaf, file: Path, key: str) -> Array:
    """Return JPEG images (n, *shape of the leaf) uint8.

    Raises:
        DatasetError: pillow is not installed.
        DatasetCorrupt: a frame that is no JPEG, or has another size.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        problem = "expected pillow to decode its images, got none"
        raise DatasetError(problem, file=file, hint="pip install pillow") from error
    decoded = []
    for frame in frames:
        try:
            with Image.open(io.BytesIO(bytes(frame)), formats=("JPEG",)) as image:
                decoded.append(np.array(image))
        except (UnidentifiedImageError, OSError, TypeError) as error:
            raise DatasetCorrupt("expected a JPEG image, got none", file=file, key=key) from error
        if decoded[-1].shape != leaf.stored.shape:
            problem = f"expected an image {leaf.stored.shape}, got {decoded[-1].shape}"
            raise DatasetCorrupt(problem, file=file, key=key)
    return np.array(decoded, np.uint8).reshape(len(decoded), *leaf.stored.shape)
