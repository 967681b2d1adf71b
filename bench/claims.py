"""Claims about learning: what `statewise reproduce` trains, and what has to come out.

A claim is a YAML file of `configs/claims`: arms (a preset with overrides each), seeds, how the
last checkpoint is evaluated, and checks on the evaluations. The file is plain text checked
here; presets and overrides are checked by `training.config`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean, median
from typing import Any, NoReturn

from statewise.training.config import TrainConfig, apply_overrides, load_preset
from statewise.training.schema import ConfigError, nearest
from statewise.training.yaml_text import read_yaml

STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "median": median,
    "mean": fmean,
    "max": max,
    "abs_mean": lambda scores: abs(fmean(scores)),
}
LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_least": (">=", lambda value, limit: value >= limit),
    "at_most": ("<=", lambda value, limit: value <= limit),
    "below": ("<", lambda value, limit: value < limit),
}
ACTIONS = ("greedy", "sample")


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared: a preset with overrides."""

    name: str
    preset: str
    overrides: dict[str, Any]
    """Dotted path -> value."""

    def config(self, seed: int) -> TrainConfig:
        """Return the settings of a run.

        Raises:
            ConfigError: no such preset, or an override that does not fit.
        """
        values = {**self.overrides, "seed": seed, "num_threads": 1}
        config = apply_overrides(load_preset(self.preset), values)
        if not isinstance(config, TrainConfig):
            raise ConfigError(
                f"expected the preset of an agent that learns from its environment, got "
                f"{self.preset}, which learns from data"
            )
        return config


@dataclass(frozen=True)
class Check:
    """A statistic over the seeds of an arm, and its limit."""

    arm: str
    statistic: str
    relation: str
    limit: float

    def verdict(self, scores: Sequence[float]) -> tuple[bool, str]:
        """Return whether the check holds, and a line that says so with the number."""
        value = STATISTICS[self.statistic](scores)
        sign, holds = LIMITS[self.relation]
        passed = holds(value, self.limit)
        line = (
            f"{'PASS' if passed else 'FAIL'}  {self.arm}: {self.statistic} of {len(scores)} "
            f"seeds {value:.4f}, claimed {sign} {self.limit:g}"
        )
        return passed, line


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

    def arm(self, name: str) -> Arm:
        """Return the arm of this name, which must exist."""
        return next(arm for arm in self.arms if arm.name == name)


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
    return _Reader(str(path)).claim(path.stem, read_yaml(path))


def _folder() -> Path:
    return Path(str(files("statewise"))) / "configs" / "claims"


@dataclass(frozen=True)
class _Reader:
    """Turns plain values into a claim; every error names the file and the place in it."""

    file: str

    def claim(self, name: str, value: Any) -> Claim:
        keys = ("title", "statement", "seeds", "episodes", "actions", "arms", "checks")
        fields = self._mapping(value, "the file", keys)
        arms = tuple(
            self._arm(entry, f"arms.{i}")
            for i, entry in enumerate(self._list(fields["arms"], "arms"))
        )
        names = [arm.name for arm in arms]
        if len(set(names)) < len(names):
            self._fail("arms", "different names", names)
        checks = tuple(
            self._check(entry, f"checks.{i}", names)
            for i, entry in enumerate(self._list(fields["checks"], "checks"))
        )
        seeds = self._list(fields["seeds"], "seeds")
        if len(set(map(str, seeds))) < len(seeds):
            self._fail("seeds", "different numbers", seeds)
        if fields["actions"] not in ACTIONS:
            self._fail("actions", " or ".join(ACTIONS), fields["actions"])
        return Claim(
            name=name,
            title=self._text(fields["title"], "title"),
            statement=self._text(fields["statement"], "statement"),
            seeds=tuple(self._integer(seed, f"seeds.{i}", 0) for i, seed in enumerate(seeds)),
            episodes=self._integer(fields["episodes"], "episodes", 1),
            actions=fields["actions"],
            arms=arms,
            checks=checks,
        )

    def _arm(self, value: Any, where: str) -> Arm:
        fields = self._mapping(value, where, ("name", "preset"), ("overrides",))
        name = self._text(fields["name"], f"{where}.name")
        if not name.replace("-", "").replace("_", "").isalnum():
            self._fail(f"{where}.name", "letters, digits, - and _", name)
        overrides = fields.get("overrides", {})
        if not isinstance(overrides, Mapping) or not all(isinstance(k, str) for k in overrides):
            self._fail(f"{where}.overrides", "dotted paths with values", overrides)
        for key in ("seed", "num_threads"):
            if key in overrides:
                self._fail(f"{where}.overrides", f"no {key}, which the command sets", key)
        arm = Arm(name, self._text(fields["preset"], f"{where}.preset"), dict(overrides))
        try:
            arm.config(0)
        except ConfigError as error:
            raise ConfigError(f"{self.file}: {where}: {error}") from None
        return arm

    def _check(self, value: Any, where: str, arms: Sequence[str]) -> Check:
        fields = self._mapping(value, where, ("arm", "statistic"), tuple(LIMITS))
        for key, allowed in (("arm", arms), ("statistic", tuple(STATISTICS))):
            if fields[key] not in allowed:
                self._fail(f"{where}.{key}", f"one of {', '.join(allowed)}", fields[key])
        given = [key for key in LIMITS if key in fields]
        if len(given) != 1:
            self._fail(where, f"exactly one of {', '.join(LIMITS)}", ", ".join(given) or "none")
        limit = fields[given[0]]
        if (
            isinstance(limit, bool)
            or not isinstance(limit, int | float)
            or not math.isfinite(limit)
        ):
            self._fail(f"{where}.{given[0]}", "a number", limit)
        return Check(fields["arm"], fields["statistic"], given[0], float(limit))

    def _mapping(
        self, value: Any, where: str, needed: Sequence[str], optional: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._fail(where, "a mapping of fields", value)
        known = [*needed, *optional]
        for key in value:
            if key not in known:
                hint = nearest(str(key), known)
                self._fail(where, f"only {', '.join(known)}", f"{key!r}{hint}", plain=True)
        for key in needed:
            if key not in value:
                self._fail(where, f"the field {key}", "none", plain=True)
        fields: Mapping[str, Any] = value
        return fields

    def _list(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            self._fail(where, "a list that is not empty", value)
        entries: list[Any] = value
        return entries

    def _text(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value.strip():
            self._fail(where, "text", value)
        return " ".join(str(value).split())

    def _integer(self, value: Any, where: str, low: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            self._fail(where, f"an integer of at least {low}", value)
        number: int = value
        return number

    def _fail(self, where: str, expected: str, got: Any, *, plain: bool = False) -> NoReturn:
        shown = got if plain else repr(got)
        raise ConfigError(f"{self.file}: {where}: expected {expected}, got {shown}")
