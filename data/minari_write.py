"""Minari data sets: writing. The package minari loads what is written here.

Images are stored as they are, without JPEG. Spaces are flat: a leaf, or one Dict of leaves, with
choices that count from 0.
"""

import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from statewise.data import checks
from statewise.data.description import info_text
from statewise.data.episode import Array, ArraySpec, DatasetInfo, Episode
from statewise.data.errors import (
    DataConfigError,
    DatasetError,
    DatasetExists,
    MinariEpisode,
    NoEpisodeBoundary,
    SpecMismatch,
    UnsafePath,
)
from statewise.data.files import one_line, safe_join, safe_name, sync_path
from statewise.data.memory import canonical
from statewise.data.minari_arrow import ArrowWriter
from statewise.data.minari_hdf5 import Hdf5Writer
from statewise.data.minari_layout import (
    METADATA,
    NAMESPACE_METADATA,
    OURS,
    check_id,
    datasets_root,
)
from statewise.data.minari_spaces import observation_text, space_text

DataFormat = Literal["hdf5", "arrow"]

_STATISTICS = ("sum", "mean", "std", "max", "min")
_VERSION, _RAW_IMAGE_VERSION = "0.5.3", "0.5.4"  # before 0.5.4, images are taken for JPEG
_ENV_ID = re.compile(r"(?:[\w:-]+/)?[\w:.-]+?(?:-v\d+)?")  # what gymnasium takes for an id


@dataclass(frozen=True, kw_only=True)
class MinariMetadata:
    """What a Minari data set says about itself.

    Raises:
        DataConfigError: an environment that is no JSON object with an "id".
    """

    author: tuple[str, ...] = ()
    author_email: tuple[str, ...] = ()
    algorithm_name: str | None = None
    code_permalink: str | None = None
    description: str | None = None
    requirements: tuple[str, ...] = ()  # of the environment, as pip has them
    env_spec: str | None = None  # `env.spec.to_json()`; None: made from `info.env_id`
    eval_env_spec: str | None = None  # of the environment to evaluate on

    def __post_init__(self) -> None:
        for key in ("env_spec", "eval_env_spec"):
            if getattr(self, key) is not None:
                _spec_id(getattr(self, key), key)


def write_minari(
    episodes: Iterable[Episode],
    info: DatasetInfo,
    dataset_id: str,
    *,
    root: Path | str | None = None,
    data_format: DataFormat = "hdf5",
    overwrite: bool = False,
    metadata: MinariMetadata | None = None,
) -> Path:
    """Write episodes as a Minari data set, which appears when it is whole.

    Args:
        episodes: each with its final observation and marked as terminated or truncated. They
            are taken one by one.
        info: specs that are missing are those of the first episode; choices need theirs.
        dataset_id: "(namespace/)name-v0".
        root: folder of all sets; None means MINARI_DATASETS_PATH, else ~/.minari/datasets.
        data_format: "hdf5", or "arrow", which needs pyarrow and T + 1 rows of every info.
        overwrite: replace a data set that is there.
        metadata: what the set says about itself.

    Returns:
        The folder of the set.

    Raises:
        UnsafePath, MinariName: an id that cannot be used.
        DatasetExists: there is one and `overwrite` is False, or something else is there.
        MinariEpisode, NoEpisodeBoundary: an episode that the format cannot hold.
        EmptyDataset, LengthMismatch, SpecMismatch, NonFinite, ActionRange: episodes that
            contradict `info` or each other.
        DataConfigError: a setting that cannot be used.
        DatasetError: the disk is full or refuses, or pyarrow is not installed.
    """
    checks.check_choice("data_format", data_format, get_args(DataFormat))
    metadata = metadata or MinariMetadata()
    target = safe_join(datasets_root(root), check_id(dataset_id))
    iterator = iter(episodes)
    first = next(iterator, None)
    checks.check_some_episodes(first is not None, target)
    assert first is not None
    info = _with_specs(info, first, target)
    environment = _environment(info, metadata)
    with _replacing(target, overwrite=overwrite) as temporary:
        data = temporary / "data"
        data.mkdir(parents=True)
        writer = Hdf5Writer(data) if data_format == "hdf5" else ArrowWriter(data)
        try:
            counts = _write_all(itertools.chain([first], iterator), info, writer, target)
        finally:
            writer.close()
        content = {
            **_described(info, metadata, environment),
            **counts,
            "dataset_id": dataset_id,
            "data_format": data_format,
            "dataset_size": round(sum(f.stat().st_size for f in data.rglob("*")) / 1e6, 1),
        }
        (data / METADATA).write_text(json.dumps(content), encoding="utf-8")
    _add_namespaces(target, datasets_root(root))
    return target


def _with_specs(info: DatasetInfo, first: Episode, file: Path) -> DatasetInfo:
    """Return `info` with the specs that it lacks, floats as float32.

    Raises:
        DataConfigError: actions that are choices, and nobody said how many there are.
        SpecMismatch: a name that cannot be a key.
    """

    def spec(values: Array, declared: ArraySpec | None) -> ArraySpec:
        values = canonical(np.asarray(values))
        found = declared or ArraySpec(shape=values.shape[1:], dtype=str(values.dtype))
        return found._replace(dtype="float32") if np.dtype(found.dtype).kind == "f" else found

    observed = {key: spec(v, info.obs_specs.get(key)) for key, v in first.observations.items()}
    action = spec(first.actions, info.action_spec)
    if np.dtype(action.dtype).kind != "f" and action.num_choices is None:
        hint = "give info.action_spec with num_choices"
        raise DataConfigError("expected the number of actions, got none", key="info", hint=hint)
    for key in (*observed, *first.infos):
        if key in first.observations and "/" in key:
            problem = f"expected observations without '/' in their name, got {key!r}"
            raise SpecMismatch(problem, file=file, hint="rename it")
        safe_name(key)
    return replace(info, obs_specs=observed, action_spec=action)


def _write_all(
    episodes: Iterable[Episode],
    info: DatasetInfo,
    writer: Hdf5Writer | ArrowWriter,
    target: Path,
) -> dict[str, int]:
    """Write all episodes and return how many there were."""
    total_steps = total_episodes = 0
    infos: dict[str, tuple[tuple[int, ...], str]] | None = None
    for index, episode in enumerate(episodes):
        arrays = _checked(episode, info, index, target)
        found = {k: (v.shape[1:], str(v.dtype)) for k, v in arrays.items() if k[:6] == "infos/"}
        infos = found if infos is None else infos
        if found != infos:
            raise SpecMismatch(
                f"expected the infos {infos} as in the first episode, got {found}",
                file=target,
                key="episode",
                index=index,
                hint="leave out those that not every episode has",
            )
        if isinstance(writer, ArrowWriter):
            _check_info_rows(arrays, index, target)
        rewards = arrays["rewards"].astype(np.float64)
        noted = {f"rewards_{key}": float(getattr(rewards, key)()) for key in _STATISTICS}
        writer.add(index, arrays, {"id": index, "total_steps": len(episode), **noted})
        total_steps += len(episode)
        total_episodes += 1
    return {"total_episodes": total_episodes, "total_steps": total_steps}


def _checked(episode: Episode, info: DatasetInfo, index: int, file: Path) -> dict[str, Array]:
    """Return the arrays of an episode as they are written."""
    assert info.action_spec is not None
    steps = len(episode)
    _check_form(episode, info, index, file)
    specs = {f"observations/{key}": spec for key, spec in info.obs_specs.items()}
    specs["actions"] = info.action_spec
    given = {f"observations/{key}": episode.observations[key] for key in info.obs_specs}
    given["actions"] = episode.actions
    arrays = {}
    for name, spec in specs.items():
        values = canonical(np.asarray(given[name]))
        checks.check_spec(name, values.shape[1:], values.dtype, spec, file)
        arrays[name] = values.astype(spec.dtype, copy=False)
    arrays["rewards"] = np.asarray(episode.rewards, np.float32)
    for name, values in arrays.items():
        checks.check_finite(f"episode[{index}]/{name}", values, file)
    checks.check_actions(arrays["actions"], info.action_spec, file)
    arrays["terminations"], arrays["truncations"] = np.zeros((2, steps), np.bool_)
    arrays["terminations"][-1] = episode.terminated
    arrays["truncations"][-1] = episode.truncated
    for key, values in episode.infos.items():
        checks.check_numeric(f"infos/{key}", np.asarray(values).dtype, file)
        arrays[f"infos/{key}"] = np.asarray(values)
    return arrays


def _check_form(episode: Episode, info: DatasetInfo, index: int, file: Path) -> None:
    """Check keys, lengths and flags."""
    steps = len(episode)
    checks.check_some_episodes(steps, file, hint=f"episode[{index}] has no step")
    if not (episode.terminated or episode.truncated):
        raise NoEpisodeBoundary(
            "expected a terminated or truncated episode, got neither",
            file=file,
            key="episode",
            index=index,
            hint="mark it truncated",
        )
    if set(episode.observations) != set(info.obs_specs):
        raise SpecMismatch(
            f"expected the observations {sorted(info.obs_specs)},"
            f" got {sorted(episode.observations)}",
            file=file,
            key="episode",
            index=index,
        )
    rows = {f"observations/{key}": len(values) for key, values in episode.observations.items()}
    for name, found in {**rows, "actions": len(episode.actions)}.items():
        expected = steps + int(name != "actions")
        if found != expected:
            raise MinariEpisode(
                f"expected {expected} rows of {name} for {steps} steps, got {found}",
                file=file,
                key="episode",
                index=index,
                hint="Minari keeps the final observation: without it, leave out the last step",
            )


def _check_info_rows(arrays: Mapping[str, Array], index: int, file: Path) -> None:
    rows = len(arrays["rewards"]) + 1
    for name, values in arrays.items():
        if name.startswith("infos/") and len(values) != rows:
            raise MinariEpisode(
                f"expected {rows} rows of {name}, got {len(values)}",
                file=file,
                key="episode",
                index=index,
                hint="write hdf5, which keeps infos of any length",
            )


def _described(
    info: DatasetInfo, metadata: MinariMetadata, environment: str | None
) -> dict[str, Any]:
    """Return the metadata that do not depend on the episodes."""
    assert info.action_spec is not None
    leaves = (*info.obs_specs.values(), info.action_spec)
    has_images = any(s.dtype == "uint8" and len(s.shape) in (2, 3) for s in leaves)
    content = {key: value for key, value in asdict(metadata).items() if value}
    scores = {"ref_min_score": info.ref_min, "ref_max_score": info.ref_max}
    content |= {key: value for key, value in scores.items() if value is not None}
    if environment is not None:
        content["env_spec"] = environment
    return {
        **content,
        "jpeg_encoding": False,
        "minari_version": _RAW_IMAGE_VERSION if has_images else _VERSION,
        "observation_space": observation_text(info.obs_specs),
        "action_space": space_text(info.action_spec),
        OURS: info_text(replace(info, obs_specs={}, action_spec=None)),
    }


def _environment(info: DatasetInfo, metadata: MinariMetadata) -> str | None:
    """Return the JSON of the environment: given, as it was read, or by its id.

    By its id, it is made by gymnasium's own `make`; None if gymnasium takes no such id.

    Raises:
        DataConfigError: the environment given is another than that of `info`.
    """
    if metadata.env_spec is not None:
        found = _spec_id(metadata.env_spec, "env_spec")
        if info.env_id not in (None, found):
            problem = f"expected the environment {info.env_id}, got {found}"
            raise DataConfigError(problem, key="env_spec", hint="correct info.env_id")
        return metadata.env_spec
    kept = info.generator.get("env_spec")
    if isinstance(kept, str) and _spec_id(kept, "env_spec") == info.env_id:
        return kept
    if info.env_id is None or not _ENV_ID.fullmatch(info.env_id):
        return None
    limit = info.max_episode_steps
    settings = {"id": info.env_id} | ({} if limit is None else {"max_episode_steps": limit})
    return json.dumps(
        {
            "id": info.env_id,
            "entry_point": "gymnasium:make",
            "max_episode_steps": limit,
            "kwargs": settings,
            "additional_wrappers": [],
        }
    )


def _spec_id(text: str, key: str) -> str:
    try:
        return str(json.loads(text)["id"])
    except (ValueError, TypeError, KeyError) as error:
        hint = "give env.spec.to_json()"
        raise DataConfigError(
            f"expected the JSON of an environment, got {text[:40]!r}", key=key, hint=hint
        ) from error


@contextmanager
def _replacing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `target`, and move it there when the block has succeeded.

    If the block fails, what was at `target` is as before and the temporary folder is gone.
    """
    if target.is_symlink():
        raise UnsafePath("expected a folder, got a link", file=target, hint="remove the link")
    if target.exists() and not (overwrite and (target / "data" / METADATA).is_file()):
        hint = "choose another id" if overwrite else "choose another id, or overwrite"
        raise DatasetExists("expected no such folder, got one", file=target, hint=hint)
    token = secrets.token_hex(4)
    temporary = target.with_name(f".{target.name}.{token}.tmp")
    before = target.with_name(f".{target.name}.{token}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        if target.exists():
            os.rename(target, before)
        try:
            os.rename(temporary, target)
        except OSError:
            if before.exists():
                os.rename(before, target)
            raise
    except (OSError, RuntimeError) as error:
        text = one_line(error)
        hint = "free some space; what was there before is unchanged"
        raise DatasetError(f"expected to write it, got: {text}", file=target, hint=hint) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(before, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Wait until all files are on the disk."""
    for file in folder.rglob("*"):
        sync_path(file)


def _add_namespaces(target: Path, root: Path) -> None:
    """Tell minari that the folders above a data set are namespaces."""
    for folder in target.parents:
        if not folder.is_relative_to(root) or folder == root:
            return
        file = folder / NAMESPACE_METADATA
        if not file.exists():
            file.write_text("{}", encoding="utf-8")
