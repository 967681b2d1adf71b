"""Claims about learning: what `statewise reproduce` trains, and what has to come out.

A claim is a YAML file of `configs/claims`: arms (a preset with overrides each), seeds, how the
last checkpoint is evaluated, and checks on what the runs say. Arms that learn from data name an
entry of `data`. The file is plain text checked here, before anything is made; presets and
overrides are checked by `training.config`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from statewise.bench.claim_checks import Check, read_check
from statewise.bench.claim_data import ClaimData, read_claim_data
from statewise.bench.claim_metrics import METRICS, SCORE, Measure, measurable
from statewise.bench.plain_values import PlainReader
from statewise.training.config import (
    OfflineTrainConfig,
    RunConfig,
    S4WMRun,
    TrainConfig,
    apply_overrides,
    load_preset,
)
from statewise.training.offline_config import AlgorithmDistillationRun
from statewise.training.schema import ACTIONS, ConfigError, nearest
from statewise.training.yaml_text import read_yaml

Kind = Literal["online", "policies", "worlds"]
KINDS: dict[Kind, str] = {
    "online": "agents that learn in their environment",
    "policies": "agents that learn from data",
    "worlds": "world models that learn from data",
}
"""What the arms of a claim are, all of them."""
_SET_BY_THE_COMMAND = ("seed", "num_threads", "data.paths")


def kind_of(config: RunConfig) -> Kind:
    """Return what an arm with these settings is."""
    if isinstance(config, S4WMRun):
        return "worlds"
    return "policies" if isinstance(config, OfflineTrainConfig) else "online"


def has_trials(config: RunConfig) -> bool:
    """Return whether an agent with these settings plays in trials of several episodes."""
    is_on = isinstance(config, TrainConfig) and config.env.trial.is_on
    return is_on or isinstance(config, AlgorithmDistillationRun)


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared: a preset with overrides."""

    name: str
    preset: str
    base: RunConfig
    """What the preset says."""
    overrides: dict[str, Any]
    """Dotted path -> value; {} for a group puts it back to its defaults."""
    data: ClaimData | None = None
    """What it learns from, None for agents that learn in their environment."""
    held_out: ClaimData | None = None
    """Of a world model from data: what it is evaluated on; None is a part of its own data."""
    series: str = ""
    """The line of the figure that it is a point of; "" where there are no such lines."""
    at: float = 0.0
    """Where on that line."""

    def config(self, seed: int, data_root: Path = Path()) -> RunConfig:
        """Return the settings of a run.

        Args:
            seed: of the run.
            data_root: folder of all data sets.

        Raises:
            ConfigError: an override that does not fit.
        """
        values = {**self.overrides, "seed": seed, "num_threads": 1}
        if self.data is not None:
            values["data.paths"] = list(self.data.files(data_root))
        if self.held_out is not None:
            [values["eval.data"]] = self.held_out.files(data_root)
        return apply_overrides(self.base, values)

    @property
    def sets(self) -> tuple[ClaimData, ...]:
        """The data sets that it reads."""
        return tuple(one for one in (self.data, self.held_out) if one is not None)


@dataclass(frozen=True)
class Claim:
    """A claim file."""

    name: str
    title: str
    statement: str
    seeds: tuple[int, ...]
    episodes: int
    """Of an evaluation: played, or held out and imagined."""
    actions: str
    """"" where nothing is played."""
    kind: Kind
    arms: tuple[Arm, ...]
    checks: tuple[Check, ...]
    reached: float | None = None
    """Of agents that learn from data: the return whose first update is told."""
    axis: str = ""
    """What `at` of the arms counts, with its unit; "" where there are no lines."""

    def arm(self, name: str) -> Arm:
        """Return the arm of this name, which must exist."""
        return next(arm for arm in self.arms if arm.name == name)

    def measures(self) -> tuple[Measure, ...]:
        """Return what its checks are about: those of `METRICS` in their order, then the others."""
        checked = tuple(dict.fromkeys(check.measure for check in self.checks))
        known = [Measure(metric) for metric in METRICS]
        return (
            *(one for one in known if one in checked),
            *(one for one in checked if one not in known),
        )

    @property
    def has_trials(self) -> bool:
        """Whether all of its arms play in trials of several episodes."""
        return all(has_trials(arm.config(0)) for arm in self.arms)

    @property
    def unit(self) -> str:
        """What the runs' steps are."""
        return "steps" if self.kind == "online" else "updates"

    @property
    def has_summary(self) -> bool:
        """Whether there is more to tell than a score per run."""
        return self.kind != "online" or any(one.metric != SCORE for one in self.measures())


def claim_names() -> list[str]:
    """Return the names of the claims that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_claim(name: str) -> Claim:
    """Read a claim.

    Args:
        name: one of `claim_names`, or the path of a file that ends in .yaml.

    Raises:
        ConfigError: no such claim, or the file is not what it should be.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif name in claim_names():
        path = _folder() / f"{name}.yaml"
    else:
        raise ConfigError(
            f"claim: expected one of {', '.join(claim_names())} or a .yaml file, got {name!r}"
            f"{nearest(name, claim_names())}"
        )
    return _read_claim(PlainReader(str(path)), path.stem, read_yaml(path))


def _folder() -> Path:
    return Path(str(files("statewise"))) / "configs" / "claims"


def _read_claim(reader: PlainReader, name: str, value: Any) -> Claim:
    keys = ("title", "statement", "seeds", "episodes", "arms", "checks")
    fields = reader.mapping(value, "the file", keys, ("actions", "axis", "data", "reached"))
    sets = {
        key: read_claim_data(reader, key, entry)
        for key, entry in reader.named(fields.get("data", {}), "data", "data sets by name").items()
    }
    entries = enumerate(reader.entries(fields["arms"], "arms"))
    presets: dict[str, RunConfig] = {}
    configured = [_read_arm(reader, entry, f"arms.{i}", sets, presets) for i, entry in entries]
    arms = tuple(arm for arm, _ in configured)
    kind = _check_alike(reader, configured)
    configs = {arm.name: config for arm, config in configured}
    able = {
        arm.name: measurable(config, arm.data.obs_keys if arm.data is not None else ())
        for arm, config in configured
    }
    checks = tuple(
        read_check(reader, entry, f"checks.{i}", able)
        for i, entry in enumerate(reader.entries(fields["checks"], "checks"))
    )
    seeds = reader.entries(fields["seeds"], "seeds")
    if len(set(map(str, seeds))) < len(seeds):
        reader.fail("seeds", "different numbers", seeds)
    return Claim(
        name=name,
        title=reader.text(fields["title"], "title"),
        statement=reader.text(fields["statement"], "statement"),
        seeds=tuple(reader.integer(seed, f"seeds.{i}", 0) for i, seed in enumerate(seeds)),
        episodes=reader.integer(fields["episodes"], "episodes", 1),
        actions=_read_actions(reader, fields, kind),
        kind=kind,
        arms=arms,
        checks=checks,
        reached=_read_reached(reader, fields, tuple(configs.values())),
        axis=_read_axis(reader, fields, arms),
    )


def _check_alike(reader: PlainReader, configured: Sequence[tuple[Arm, RunConfig]]) -> Kind:
    """Return what all arms are."""
    names = [arm.name for arm, _ in configured]
    if len(set(names)) < len(names):
        reader.fail("arms", "different names", names)
    kinds = list(dict.fromkeys(kind_of(config) for _, config in configured))
    if len(kinds) > 1:
        got = " and ".join(KINDS[kind] for kind in kinds)
        reader.fail("arms", "arms of one kind", got, plain=True)
    lines = [bool(arm.series) for arm, _ in configured]
    if any(lines) and not all(lines):
        words = "series and at, as others have them"
        reader.fail(f"arms.{lines.index(False)}", words, "none", plain=True)
    return kinds[0]


def _read_axis(reader: PlainReader, fields: Mapping[str, Any], arms: Sequence[Arm]) -> str:
    """Return what `at` of the arms counts."""
    has_line = bool(arms[0].series)
    if has_line and "axis" not in fields:
        reader.fail("the file", "the field axis, which says what at counts", "none", plain=True)
    if not has_line and "axis" in fields:
        reader.fail("axis", "none, as no arm has series and at", fields["axis"])
    return reader.text(fields["axis"], "axis") if has_line else ""


def _read_actions(reader: PlainReader, fields: Mapping[str, Any], kind: Kind) -> str:
    if kind == "worlds":
        if "actions" in fields:
            reader.fail("actions", f"none, as {KINDS[kind]} do not act", fields["actions"])
        return ""
    if "actions" not in fields:
        reader.fail("the file", "the field actions", "none", plain=True)
    if fields["actions"] not in ACTIONS:
        reader.fail("actions", " or ".join(ACTIONS), fields["actions"])
    return str(fields["actions"])


def _read_arm(
    reader: PlainReader,
    value: Any,
    where: str,
    sets: Mapping[str, ClaimData],
    presets: dict[str, RunConfig],
) -> tuple[Arm, RunConfig]:
    """Return an arm, and its settings without data; `presets` receives what was read."""
    optional = ("data", "held_out", "series", "at", "overrides")
    fields = reader.mapping(value, where, ("name", "preset"), optional)
    name = reader.name(fields["name"], f"{where}.name")
    preset = reader.text(fields["preset"], f"{where}.preset")
    own = reader.named(
        fields.get("overrides", {}), f"{where}.overrides", "dotted paths with values"
    )
    for key in (*_SET_BY_THE_COMMAND, *(["eval.data"] if "held_out" in fields else [])):
        if key in own:
            reader.fail(f"{where}.overrides", f"no {key}, which the command sets", key)
    known = [*sets] or ["(the file has no data)"]
    data, held_out = (
        sets[reader.choice(fields[key], f"{where}.{key}", known)] if key in fields else None
        for key in ("data", "held_out")
    )
    line = _read_line(reader, fields, where)
    try:
        base = presets.get(preset) or presets.setdefault(preset, load_preset(preset))
        kwargs: dict[str, Any] = {}
        if data is not None and isinstance(base, OfflineTrainConfig):
            kwargs = data.env_kwargs
        arm = Arm(
            name,
            preset,
            base,
            kwargs | dict(own),
            data,
            held_out,
            *line,
        )
        config = replace(arm, data=None, held_out=None).config(0)
    except ConfigError as error:
        raise ConfigError(f"{reader.file}: {where}: {error}") from None
    _check_data(reader, where, arm, config)
    return arm, config


def _read_line(reader: PlainReader, fields: Mapping[str, Any], where: str) -> tuple[str, float]:
    """Return which line of the figure an arm is a point of, and where on it."""
    if ("series" in fields) != ("at" in fields):
        reader.fail(where, "series and at, or none of them", "one", plain=True)
    if "series" not in fields:
        return "", 0.0
    name = reader.name(fields["series"], f"{where}.series")
    return name, reader.number(fields["at"], f"{where}.at")


def _check_data(reader: PlainReader, where: str, arm: Arm, config: RunConfig) -> None:
    if kind_of(config) == "online":
        if arm.data is not None:
            words = f"none, as {arm.preset} learns in its environment"
            reader.fail(f"{where}.data", words, arm.data.name)
    elif arm.data is None:
        words = f"the name of what {arm.preset} learns from"
        reader.fail(f"{where}.data", words, "none", plain=True)
    if arm.held_out is not None:
        if not isinstance(config, S4WMRun):
            words = f"none, as {arm.preset} is no world model from data"
            reader.fail(f"{where}.held_out", words, arm.held_out.name)
        if len(arm.held_out.levels) != 1:
            words = "a data set of one level"
            reader.fail(f"{where}.held_out", words, ", ".join(arm.held_out.levels), plain=True)
    if isinstance(config, OfflineTrainConfig) and arm.data is not None:
        ids = ("", arm.data.env_id)
        if config.env.id not in ids and config.data.env_mismatch == "error":
            words = f"data of {config.env.id}, where {arm.preset} is evaluated"
            reader.fail(f"{where}.data", words, arm.data.env_id)


def _read_reached(
    reader: PlainReader, fields: Mapping[str, Any], configs: Sequence[RunConfig]
) -> float | None:
    if "reached" not in fields:
        return None
    for i, config in enumerate(configs):
        if not isinstance(config, OfflineTrainConfig):
            reader.fail("reached", KINDS["policies"], config.system)
        if not config.eval.every_updates:
            reader.fail(f"arms.{i}", "eval.every_updates above 0, as `reached` needs it", 0)
    return reader.number(fields["reached"], "reached")
