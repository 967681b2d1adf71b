"""Data sets from data sets: fewer episodes, other rewards, hidden or noisy parts.

Nothing is changed in place. What was done is appended to "changes" of the result's
`info.generator`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from statewise.data.checks import check_choice
from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import Array, ArraySpec, DatasetInfo
from statewise.data.errors import DataConfigError, EmptyDataset, EnvMismatch, SpecMismatch
from statewise.data.memory import canonical
from statewise.data.views import join, noted, with_info, with_row_maps, with_steps


def keep_best(
    dataset: EpisodeDataset,
    fraction: float,
    *,
    of: Literal["trajectories", "timesteps"] = "trajectories",
) -> EpisodeDataset:
    """Keep the episodes of highest return, at least one, in their order.

    Args:
        dataset: with at least one episode.
        fraction: in (0, 1].
        of: "trajectories" keeps floor(fraction * E) episodes; "timesteps" the best ones, as
            long as their steps sum to at most floor(fraction * N) (Decision Transformer).

    Raises:
        DataConfigError: a setting is out of its range.
    """
    _check_fraction(fraction)
    check_choice("of", of, ("trajectories", "timesteps"))
    order = np.argsort(-dataset.returns, kind="stable")
    if of == "trajectories":
        count = _share(fraction, len(dataset))
    else:
        steps = np.cumsum(dataset.lengths[order])
        limit = _share(fraction, dataset.num_steps)
        count = int(np.searchsorted(steps, limit, side="right"))
    kept = dataset.subset(np.sort(order[: max(1, count)]))
    info = noted(dataset.info, name="keep_best", fraction=fraction, of=of)
    return EpisodeDataset(with_info(kept.source, info))


def delayed_reward(dataset: EpisodeDataset) -> EpisodeDataset:
    """Give the whole return of an episode at its last step, and nothing before."""
    rewards = np.zeros(dataset.num_steps, np.float32)
    rewards[np.cumsum(dataset.lengths) - 1] = dataset.returns
    info = noted(dataset.info, name="delayed_reward")
    return EpisodeDataset(with_steps(dataset.source, {"rewards": rewards}, info))


def scale_rewards(
    dataset: EpisodeDataset, *, scale: float = 1.0, shift: float = 0.0
) -> EpisodeDataset:
    """Replace every reward r by scale * r + shift.

    Reference returns are scaled too; with a shift they are forgotten, since returns then depend
    on lengths.

    Args:
        dataset: any.
        scale: finite, > 0.
        shift: finite.

    Raises:
        DataConfigError: a number is out of its range.
    """
    if not (np.isfinite(scale) and scale > 0 and np.isfinite(shift)):
        problem = f"expected finite numbers and scale > 0, got {scale} and {shift}"
        raise DataConfigError(problem, key="scale")
    info = noted(dataset.info, name="scale_rewards", scale=scale, shift=shift)
    known = shift == 0 and info.ref_min is not None and info.ref_max is not None
    ref_min, ref_max = (info.ref_min, info.ref_max) if known else (None, None)
    info = replace(
        info,
        ref_min=None if ref_min is None else ref_min * scale,
        ref_max=None if ref_max is None else ref_max * scale,
    )
    rewards = (_all_steps(dataset, "rewards") * scale + shift).astype(np.float32)
    return EpisodeDataset(with_steps(dataset.source, {"rewards": rewards}, info))


def mask_observations(
    dataset: EpisodeDataset,
    indices: Sequence[int],
    *,
    key: str = "obs",
    how: Literal["zero", "remove"] = "zero",
) -> EpisodeDataset:
    """Hide entries of vector observations, for example velocities.

    Args:
        dataset: with observations (T, O) under `key`.
        indices: entries 0 .. O - 1 to hide.
        key: of the observations.
        how: set them to 0, or take them out.

    Raises:
        DataConfigError: a setting is out of its range.
    """
    spec = dataset.info.obs_specs.get(key)
    if spec is None or len(spec.shape) != 1:
        have = ", ".join(dataset.info.obs_specs)
        raise DataConfigError(f"expected vector observations, got {key!r} of {have}", key="key")
    hidden = np.zeros(spec.shape[0], np.bool_)
    check_choice("how", how, ("zero", "remove"))
    if any(not 0 <= index < len(hidden) for index in indices):
        problem = f"expected entries 0 .. {len(hidden) - 1}, got {list(indices)}"
        raise DataConfigError(problem, key="indices")
    hidden[list(indices)] = True
    if how == "remove" and hidden.all():
        raise DataConfigError("expected some entry to stay, got none", key="indices")

    def mask(rows: Array) -> Array:
        if how == "zero":
            return np.where(hidden, np.zeros_like(rows), rows)
        return np.ascontiguousarray(rows[:, ~hidden])

    info = noted(dataset.info, name="mask_observations", key=key, indices=list(indices), how=how)
    if how == "remove":
        specs = {**info.obs_specs, key: _without(spec, hidden)}
        info = replace(info, obs_specs=specs)
    return EpisodeDataset(with_row_maps(dataset.source, {f"observations/{key}": mask}, info))


def noisy_actions(
    dataset: EpisodeDataset, fraction: float, generator: np.random.Generator
) -> EpisodeDataset:
    """Replace a fraction of the actions by uniform random ones.

    Bounds and numbers of choices are those of `info.action_spec`; where it has none, those that
    occur.

    Args:
        dataset: any.
        fraction: in (0, 1], probability that an action is replaced.
        generator: is drawn from.

    Raises:
        DataConfigError: the fraction is out of its range.
    """
    _check_fraction(fraction)
    actions = np.array(_all_steps(dataset, "actions"))
    spec = dataset.info.action_spec
    replaced = generator.random(len(actions)) < fraction
    shape = (int(replaced.sum()), *actions.shape[1:])
    if actions.dtype.kind in "iu":
        choices = None if spec is None else spec.num_choices
        limit = actions.max(0) + 1 if choices is None else np.reshape(choices, actions.shape[1:])
        actions[replaced] = generator.integers(limit, size=shape)
    else:
        low, high = actions.min(0), actions.max(0)
        if spec is not None and spec.low is not None:
            low = np.where(np.isfinite(spec.low), spec.low, low)
        if spec is not None and spec.high is not None:
            high = np.where(np.isfinite(spec.high), spec.high, high)
        actions[replaced] = np.clip(generator.uniform(low, high, shape), low, high)
    info = noted(dataset.info, name="noisy_actions", fraction=fraction)
    return EpisodeDataset(with_steps(dataset.source, {"actions": actions}, info))


def concatenate(datasets: Sequence[EpisodeDataset]) -> EpisodeDataset:
    """Put the episodes of several data sets of one environment one after the other.

    Infos that are not in all of them are left out.

    Raises:
        EmptyDataset: there is no data set.
        EnvMismatch: their environments differ.
        SpecMismatch: their observations or actions differ.
    """
    if not datasets:
        raise EmptyDataset("expected at least one data set, got none")
    first = datasets[0].info
    for other in datasets[1:]:
        _check_same(first, other.info)
    parts = [
        {"source": d.info.source, "sha256": d.info.sha256, "num_episodes": len(d)} for d in datasets
    ]
    limits = [d.info.max_episode_steps for d in datasets]
    known = [limit for limit in limits if limit is not None]
    info = noted(
        replace(
            first,
            sha256="",
            source=" + ".join(d.info.source for d in datasets if d.info.source),
            max_episode_steps=max(known) if len(known) == len(limits) else None,
        ),
        name="concatenate",
        parts=parts,
    )
    return EpisodeDataset(join([d.source for d in datasets], info))


def _check_same(first: DatasetInfo, other: DatasetInfo) -> None:
    file = other.source or None
    if first.env_id != other.env_id:
        problem = f"expected data of {first.env_id}, got {other.env_id}"
        raise EnvMismatch(problem, file=file, key="env_id", hint="set one env_id if they agree")
    shapes = [
        {
            **{f"observations/{key}": (s.shape, s.dtype) for key, s in info.obs_specs.items()},
            "actions": None if info.action_spec is None else tuple(info.action_spec[:2]),
        }
        for info in (first, other)
    ]
    for name in sorted({*shapes[0], *shapes[1]}):
        if shapes[0].get(name) != shapes[1].get(name):
            problem = f"expected {shapes[0].get(name)}, got {shapes[1].get(name)}"
            raise SpecMismatch(problem, file=file, key=name, hint="use sets of one kind")


def _without(spec: ArraySpec, hidden: Array) -> ArraySpec:
    return spec._replace(
        shape=(int((~hidden).sum()),),
        low=None if spec.low is None else spec.low[~hidden],
        high=None if spec.high is None else spec.high[~hidden],
    )


def _all_steps(dataset: EpisodeDataset, name: str) -> Array:
    """Return the rows of an array of steps, episode after episode."""
    source = dataset.source
    return canonical(
        np.concatenate(
            [source.read(name, index, 0, int(steps)) for index, steps in enumerate(dataset.lengths)]
        )
    )


def _share(fraction: float, total: int) -> int:
    """Return floor(fraction * total), where 0.29 * 100 is 29."""
    return int(fraction * total + 1e-6)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise DataConfigError(f"expected a number in (0, 1], got {fraction}", key="fraction")
