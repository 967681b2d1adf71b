"""A data set in words and numbers, for a table."""

import numpy as np

from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import ArraySpec
from statewise.data.scores import normalized_score

_NUM_SHOWN = 6  # entries of a mean


def dataset_table(dataset: EpisodeDataset) -> list[tuple[str, str]]:
    """Return rows of (name, value) about a data set; reads all of it once.

    Raises:
        EmptyDataset: there is no episode.
    """
    info, numbers = dataset.info, dataset.statistics()
    rows = [
        ("source", info.source or "in memory"),
        ("sha256", info.sha256 or "not taken"),
        ("environment", info.env_id or "not known"),
        ("episodes", str(numbers.num_episodes)),
        ("steps", str(numbers.num_steps)),
        ("terminated", str(numbers.num_terminated)),
        ("truncated", str(numbers.num_truncated)),
        ("final observation known", f"{numbers.num_final} of {numbers.num_episodes}"),
        (
            "length mean (min, max)",
            f"{numbers.length_mean:.1f} ({numbers.length_min}, {numbers.length_max})",
        ),
        ("return mean, std", f"{numbers.return_mean:.6g}, {numbers.return_std:.6g}"),
        ("return min, max", f"{numbers.return_min:.6g}, {numbers.return_max:.6g}"),
    ]
    if info.ref_min is not None and info.ref_max is not None:
        score = normalized_score(numbers.return_mean, (info.ref_min, info.ref_max))
        rows.append(("normalised score", f"{float(score):.2f} ({info.ref_min}, {info.ref_max})"))
    for key, spec in info.obs_specs.items():
        rows.append((f"observations/{key}", _spec_text(spec)))
        mean, std = numbers.obs_mean[key], numbers.obs_std[key]
        if mean.ndim <= 1:
            rows.append((f"observations/{key} mean", _numbers_text(mean)))
            rows.append((f"observations/{key} std", _numbers_text(std)))
    if info.action_spec is not None:
        rows.append(("actions", _spec_text(info.action_spec)))
    names = dataset.source.names
    infos = [name.removeprefix("infos/") for name in names if name.startswith("infos/")]
    if infos:
        rows.append(("infos", ", ".join(infos)))
    rows += [(f"generator/{key}", str(value)) for key, value in info.generator.items()]
    return rows


def _spec_text(spec: ArraySpec) -> str:
    text = f"{spec.dtype} {spec.shape}"
    if spec.num_choices is not None:
        text += f", choices {', '.join(map(str, spec.num_choices))}"
    if spec.low is not None and spec.high is not None:
        text += f", in [{np.min(spec.low):g}, {np.max(spec.high):g}]"
    return text


def _numbers_text(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    entries = np.atleast_1d(values)
    text = ", ".join(f"{x:.4g}" for x in entries[:_NUM_SHOWN])
    return text + (f", ... ({len(entries)})" if len(entries) > _NUM_SHOWN else "")
