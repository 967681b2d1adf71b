"""Claims about learning: what `statewise reproduce` trains, and what has to come out.

A claim is a YAML file of `configs/claims`: arms (a preset with overrides each), seeds, how the
last checkpoint is evaluated, and checks on the evaluations. Arms whose agents learn from data
name an entry of `data`. The file is plain text checked here; presets and overrides are checked
by `training.config`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from statewise.bench.claim_checks import LIMITS, METRICS, SCORE, STATISTICS, Check, known_metrics
from statewise.bench.claim_data import ClaimData, read_claim_data
from statewise.bench.plain_values import PlainReader
from statewise.training.config import (
    OfflineTrainConfig,
    RunConfig,
    apply_overrides,
    load_preset,
)
from statewise.training.schema import ConfigError, nearest
from statewise.training.yaml_text import read_yaml

ACTIONS = ("greedy", "sample")
_SET_BY_THE_COMMAND = ("seed", "num_threads", "data.paths")


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared: a preset with overrides."""

    name: str
    preset: str
    overrides: dict[str, Any]
    """Dotted path -> value."""
    data: ClaimData | None = None
    """What it learns from, None for agents that learn in their environment."""

    def config(self, seed: int, data_root: Path = Path()) -> RunConfig:
        """Return the settings of a run.

        Args:
            seed: of the run.
            data_root: folder of all data sets.

        Raises:
            ConfigError: no such preset, or an override that does not fit.
        """
        values = {**self.overrides, "seed": seed, "num_threads": 1}
        if self.data is not None:
            values["data.paths"] = list(self.data.files(data_root))
        return apply_overrides(load_preset(self.preset), values)


@dataclass(frozen=True)
class Claim:
    """A claim file."""

    name: str
    title: str
    statement: str
    seeds: tuple[int, ...]
    episodes: int
    actions: str
    arms: tuple[Arm, ...]
    checks: tuple[Check, ...]
    reached: float | None = None
    """Of agents that learn from data: the return whose first update is told."""

    @property
    def has_data(self) -> bool:
        """Whether its agents learn from data."""
        return self.arms[0].data is not None

    def arm(self, name: str) -> Arm:
        """Return the arm of this name, which must exist."""
        return next(arm for arm in self.arms if arm.name == name)

    def metrics(self) -> tuple[str, ...]:
        """Return what its checks are about, in the order of `METRICS`."""
        checked = {check.metric for check in self.checks}
        return tuple(metric for metric in METRICS if metric in checked)


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
    keys = ("title", "statement", "seeds", "episodes", "actions", "arms", "checks")
    fields = reader.mapping(value, "the file", keys, ("data", "reached"))
    sets = {
        key: read_claim_data(reader, key, entry)
        for key, entry in reader.named(fields.get("data", {}), "data", "data sets by name").items()
    }
    entries = enumerate(reader.entries(fields["arms"], "arms"))
    configured = [_read_arm(reader, entry, f"arms.{i}", sets) for i, entry in entries]
    arms = tuple(arm for arm, _ in configured)
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        reader.fail("arms", "different names", names)
    if len({arm.data is None for arm in arms}) > 1:
        reader.fail("arms", "agents that all learn from data, or none", "both", plain=True)
    configs = {arm.name: config for arm, config in configured}
    checks = tuple(
        _read_check(reader, entry, f"checks.{i}", configs)
        for i, entry in enumerate(reader.entries(fields["checks"], "checks"))
    )
    seeds = reader.entries(fields["seeds"], "seeds")
    if len(set(map(str, seeds))) < len(seeds):
        reader.fail("seeds", "different numbers", seeds)
    if fields["actions"] not in ACTIONS:
        reader.fail("actions", " or ".join(ACTIONS), fields["actions"])
    return Claim(
        name=name,
        title=reader.text(fields["title"], "title"),
        statement=reader.text(fields["statement"], "statement"),
        seeds=tuple(reader.integer(seed, f"seeds.{i}", 0) for i, seed in enumerate(seeds)),
        episodes=reader.integer(fields["episodes"], "episodes", 1),
        actions=fields["actions"],
        arms=arms,
        checks=checks,
        reached=_read_reached(reader, fields, tuple(configs.values())),
    )


def _read_arm(
    reader: PlainReader, value: Any, where: str, sets: Mapping[str, ClaimData]
) -> tuple[Arm, RunConfig]:
    """Return an arm, and its settings without data."""
    fields = reader.mapping(value, where, ("name", "preset"), ("data", "overrides"))
    name = reader.name(fields["name"], f"{where}.name")
    own = reader.named(
        fields.get("overrides", {}), f"{where}.overrides", "dotted paths with values"
    )
    for key in _SET_BY_THE_COMMAND:
        if key in own:
            reader.fail(f"{where}.overrides", f"no {key}, which the command sets", key)
    data = None
    if "data" in fields:
        known = [*sets] or ["(the file has no data)"]
        data = sets.get(reader.choice(fields["data"], f"{where}.data", known))
    overrides = ({} if data is None else data.env_kwargs) | dict(own)
    arm = Arm(name, reader.text(fields["preset"], f"{where}.preset"), overrides, data)
    try:
        config = replace(arm, data=None).config(0)
    except ConfigError as error:
        raise ConfigError(f"{reader.file}: {where}: {error}") from None
    _check_data(reader, where, arm, config)
    return arm, config


def _check_data(reader: PlainReader, where: str, arm: Arm, config: RunConfig) -> None:
    if not isinstance(config, OfflineTrainConfig):
        if arm.data is not None:
            words = f"none, as {arm.preset} learns in its environment"
            reader.fail(f"{where}.data", words, arm.data.name)
        return
    if arm.data is None:
        words = f"the name of what {arm.preset} learns from"
        reader.fail(f"{where}.data", words, "none", plain=True)
    ids = ("", arm.data.env_id)
    if config.env.id not in ids and config.data.env_mismatch == "error":
        words = f"data of {config.env.id}, where {arm.preset} is evaluated"
        reader.fail(f"{where}.data", words, arm.data.env_id)


def _read_check(
    reader: PlainReader, value: Any, where: str, configs: Mapping[str, RunConfig]
) -> Check:
    optional = (*LIMITS, "metric", "over")
    fields = reader.mapping(value, where, ("arm", "statistic"), optional)
    arm = reader.choice(fields["arm"], f"{where}.arm", tuple(configs))
    statistic = reader.choice(fields["statistic"], f"{where}.statistic", tuple(STATISTICS))
    given = [key for key in LIMITS if key in fields]
    if len(given) != 1:
        reader.fail(where, f"exactly one of {', '.join(LIMITS)}", ", ".join(given) or "none")
    limit = reader.number(fields[given[0]], f"{where}.{given[0]}")
    over = None
    if "over" in fields:
        others = [name for name in configs if name != arm] or ["(there is no other arm)"]
        over = reader.choice(fields["over"], f"{where}.over", others)
    metric = fields.get("metric", SCORE)
    for name in (arm, over):
        known = METRICS if name is None else known_metrics(configs[name])
        if metric not in known:
            words = f"one of {', '.join(known)}, which {name} has"
            reader.fail(f"{where}.metric", words, metric)
    return Check(arm, statistic, given[0], limit, metric, over)


def _read_reached(
    reader: PlainReader, fields: Mapping[str, Any], configs: Sequence[RunConfig]
) -> float | None:
    if "reached" not in fields:
        return None
    for i, config in enumerate(configs):
        if not isinstance(config, OfflineTrainConfig):
            reader.fail("reached", "agents that learn from data", config.system)
        if not config.eval.every_updates:
            reader.fail(f"arms.{i}", "eval.every_updates above 0, as `reached` needs it", 0)
    return reader.number(fields["reached"], "reached")
