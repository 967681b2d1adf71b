"""What is known about a data set, as JSON and back, for files that we write."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from statewise.data.episode import Array, ArraySpec, DatasetInfo
from statewise.data.errors import DatasetCorrupt


def info_text(info: DatasetInfo) -> str:
    """Return the fields of `info` that do not follow from the file itself, as JSON."""
    content = {
        "env_id": info.env_id,
        "obs_specs": {key: _spec_content(spec) for key, spec in info.obs_specs.items()},
        "action_spec": None if info.action_spec is None else _spec_content(info.action_spec),
        "max_episode_steps": info.max_episode_steps,
        "ref_min": info.ref_min,
        "ref_max": info.ref_max,
        "generator": info.generator,
    }
    return json.dumps(content, default=_plain)


def info_from(text: str, info: DatasetInfo, key: str) -> DatasetInfo:
    """Return `info` with the fields that `info_text` wrote.

    Args:
        text: what `info_text` returned.
        info: gives the fields that are not in the text.
        key: where the text was found, for messages.

    Raises:
        DatasetCorrupt: another text.
    """
    try:
        content = json.loads(text)
        specs = {name: _spec(spec) for name, spec in content["obs_specs"].items()}
        action_spec = None if content["action_spec"] is None else _spec(content["action_spec"])
        return replace(
            info,
            env_id=content["env_id"],
            obs_specs=specs,
            action_spec=action_spec,
            max_episode_steps=content["max_episode_steps"],
            ref_min=content["ref_min"],
            ref_max=content["ref_max"],
            generator=dict(content["generator"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetCorrupt(
            f"expected the description that was written, got {text[:40]!r}",
            file=info.source or None,
            key=key,
            hint="remove it, or write the file again",
        ) from error


def _spec_content(spec: ArraySpec) -> dict[str, Any]:
    return {
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "low": _bound_content(spec.low),
        "high": _bound_content(spec.high),
        "num_choices": None if spec.num_choices is None else list(spec.num_choices),
    }


def _spec(content: dict[str, Any]) -> ArraySpec:
    shape, dtype = tuple(content["shape"]), str(np.dtype(content["dtype"]))
    choices = content["num_choices"]
    return ArraySpec(
        shape=shape,
        dtype=dtype,
        low=_bound(content["low"], shape, dtype),
        high=_bound(content["high"], shape, dtype),
        num_choices=None if choices is None else tuple(int(n) for n in choices),
    )


def _bound_content(bound: Array | None) -> Any:
    """Return a bound as nested lists, as one entry if all are equal; infinities as text."""
    if bound is None:
        return None
    entries = [str(x) if np.isinf(x) else x for x in np.ravel(bound).tolist()]
    return entries[:1] if len(set(entries)) == 1 else entries


def _bound(content: Any, shape: tuple[int, ...], dtype: str) -> Array | None:
    if content is None:
        return None
    entries = np.array([float(x) for x in content]).astype(dtype)
    size = int(np.prod(shape))
    return np.broadcast_to(entries, (size,)).reshape(shape).copy()


def _plain(value: object) -> Any:
    """Return numbers and arrays of numpy as JSON has them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"generator: expected text, numbers, lists and dictionaries, got {value!r}")
