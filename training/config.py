"""Configuration: the runs' dataclasses, YAML presets, overrides, and errors of one line.

The dataclasses are the schema, one per system (`ROOTS`). PyYAML reads a preset, overrides are
laid over it, pydantic turns the mapping into the dataclasses, and tyro writes the help text. This
is the only file that imports pydantic or tyro.

Every value is checked in one place (`_build`), whether it came from YAML, from the command
line or from Python, so all errors read alike:
`<where>: <dotted.path>: expected <what>, got <what>: <what to do>`.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import tyro
import yaml

from statewise.agents.recurrent_ppo import RecurrentPPOConfig
from statewise.envs.build import EnvConfig
from statewise.ssm.build import NO_BACKEND, SequenceConfig
from statewise.training.finetune_config import FinetuneConfig
from statewise.training.offline_config import (
    AlgorithmDistillationRun,
    BehaviorCloningRun,
    DecisionMambaMGRun,
    DecisionMambaRun,
    DecisionS4Run,
    DecisionTransformerRun,
    IQLRun,
    OfflineTrainConfig,
    TD3BCRun,
)
from statewise.training.replay_config import RecurrentSACRun, ReplayTrainConfig
from statewise.training.schema import (
    ConfigError,
    check_at_least,
    check_device,
    nearest,
    number_problems,
    parse_words,
    reached,
    resolve,
    split_tokens,
    unknown_field,
)
from statewise.training.world_config import (
    DramaRun,
    DreamerRun,
    R2IRun,
    S4WMRun,
    WorldTrainConfig,
)
from statewise.training.yaml_text import read_word, read_yaml

__all__ = [
    "CheckpointConfig",
    "ConfigError",
    "EvalConfig",
    "OfflineTrainConfig",
    "ReplayTrainConfig",
    "RunConfig",
    "S4WMRun",
    "TrainConfig",
    "WorldTrainConfig",
    "apply_overrides",
    "dump_config",
    "load_config",
    "load_preset",
    "preset_about",
    "preset_names",
    "show_config_help",
]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = 50_000  # environment steps between two checkpoints, >= 1
    keep: int = 3  # newest checkpoints kept, >= 1

    def __post_init__(self) -> None:
        check_at_least(1, every_steps=self.every_steps, keep=self.keep)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How a trained agent is evaluated."""

    episodes: int = 100  # episodes per evaluation, whole trials if there are trials, >= 1
    num_envs: int = 16  # environments stepped together, >= 1
    actions: Literal["greedy", "sample"] = "greedy"  # mode of the policy, or a sample of it
    every_steps: int = 0  # environment steps between two evaluations while training; 0: none
    kwargs: dict[str, Any] = field(default_factory=dict)  # laid over env.kwargs

    def __post_init__(self) -> None:
        check_at_least(1, episodes=self.episodes, num_envs=self.num_envs)
        check_at_least(0, every_steps=self.every_steps)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a training run."""

    system: Literal["ppo"]  # key of `agents.build.AGENTS`
    env: EnvConfig  # the task
    agent: RecurrentPPOConfig  # the agent and its network
    rollout_steps: int  # rows per environment between two updates, >= 1
    total_steps: int  # environment steps of the whole run, all environments together, >= 1
    seed: int = 0  # root of every random stream, >= 0
    device: str = "cpu"  # "cpu", "cuda" or "cuda:N"
    num_threads: int = 1  # threads of one tensor operation, >= 1
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        check_at_least(
            1,
            rollout_steps=self.rollout_steps,
            total_steps=self.total_steps,
            num_threads=self.num_threads,
        )
        check_at_least(0, seed=self.seed)
        check_device(self.device)
        if self.env.num_envs % self.agent.num_minibatches:
            raise ValueError(
                f"agent.num_minibatches: expected a divisor of env.num_envs "
                f"({self.env.num_envs}), got {self.agent.num_minibatches}"
            )

    @property
    def end(self) -> int:
        """Where training ends, in environment steps."""
        return self.total_steps


RunConfig = TrainConfig | OfflineTrainConfig | ReplayTrainConfig | S4WMRun
T = TypeVar("T", bound=RunConfig | FinetuneConfig)

ROOTS: dict[str, type[RunConfig]] = {
    "ppo": TrainConfig,
    "sac": RecurrentSACRun,
    "dt": DecisionTransformerRun,
    "decision_s4": DecisionS4Run,
    "decision_mamba": DecisionMambaRun,
    "decision_mamba_mg": DecisionMambaMGRun,
    "ad": AlgorithmDistillationRun,
    "bc": BehaviorCloningRun,
    "td3bc": TD3BCRun,
    "iql": IQLRun,
    "dreamer": DreamerRun,
    "r2i": R2IRun,
    "drama": DramaRun,
    "s4wm": S4WMRun,
}
"""Which dataclass holds the settings of a system."""


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package, `<system>/<name>`."""
    return sorted(
        f"{system}/{path.stem}"
        for system in ROOTS
        for path in (_preset_folder() / system).glob("*.yaml")
    )


def preset_about(name: str) -> str:
    """Return the first line of a preset: the task, what to expect, how long it takes."""
    with (_preset_folder() / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def load_preset(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a preset and lay overrides over it.

    Args:
        name: `<system>/<name>` of a preset, or the path of a file that ends in .yaml.
        overrides: tokens of a command line, see `apply_overrides`.

    Raises:
        ConfigError: no such preset, or a key or value that the dataclasses refuse.
    """
    if name.endswith((".yaml", ".yml")):
        config = load_config(Path(name))
    elif name in preset_names():
        config = _build(read_yaml(_preset_folder() / f"{name}.yaml"), where=f"preset {name}")
    else:
        raise ConfigError(
            f"preset: expected a name from `statewise list presets` or a .yaml file, "
            f"got {name!r}{nearest(name, preset_names())}"
        )
    return apply_overrides(config, overrides)


def load_config(path: Path) -> RunConfig:
    """Read a configuration file, for example `config.yaml` of a run directory.

    Raises:
        ConfigError: the file cannot be read, or the dataclasses refuse what is in it.
    """
    return _build(read_yaml(path), where=str(path))


def apply_overrides(config: T, overrides: Sequence[str] | Mapping[str, Any]) -> T:
    """Return `config` with single values replaced.

    Args:
        config: stays as it is.
        overrides: tokens of a command line, `--agent.learning-rate 1e-3` or
            `--agent.learning_rate=1e-3`, with several values after the name of a tuple
            (`--agent.encoder.hidden 64 64`, or `[64, 64]` as in YAML); or a mapping from dotted
            paths to values, `{"agent.learning_rate": 1e-3}`. Another `kind` of sequence layer
            drops what `config` had set for the old one.

    Raises:
        ConfigError: unknown path, or a value that the dataclasses refuse.
    """
    if not overrides:
        return config
    try:
        values = _override_values(type(config), overrides)
    except ConfigError as error:
        raise ConfigError(f"override: {error}") from None
    mapping = dataclasses.asdict(config)
    _drop_old_layers(type(config), mapping, values)
    for path, value in values.items():
        *parents, last = path.split(".")
        node = mapping
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = copy.deepcopy(value)  # a later path may lead into it
    return _build_root(type(config), mapping, where="override")


def dump_config(config: RunConfig | FinetuneConfig) -> str:
    """Return YAML text of every field; reading it gives an equal configuration.

    Raises:
        ConfigError: `env.kwargs` holds something that YAML has no notation for.
    """
    try:
        return yaml.safe_dump(_without_tuples(dataclasses.asdict(config)), sort_keys=False)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"env.kwargs: expected numbers, text, lists and mappings, got {error.args[-1]!r}: "
            "pass other objects to a factory of your own"
        ) from error


def show_config_help(config: RunConfig | FinetuneConfig, program: str) -> None:
    """Write the text of `--help` to stdout: every option with its value in `config`."""
    with suppress(SystemExit):  # how tyro ends after it has shown the help
        tyro.cli(
            type(config),
            default=config,
            prog=program,
            args=["--help"],
            config=(tyro.conf.FlagConversionOff,),
        )


def _override_values(
    root: type[Any], overrides: Sequence[str] | Mapping[str, Any]
) -> dict[str, Any]:
    """Return dotted path -> value; every path is one that exists."""
    if isinstance(overrides, Mapping):
        for path in overrides:
            resolve(root, path)
        return dict(overrides)
    return {
        path: parse_words(path, words, resolve(root, path), read_word)
        for path, words in split_tokens(overrides).items()
    }


def _drop_old_layers(root: type[Any], mapping: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Reset, in place, what a layer had set whose `kind` an override changes.

    What the overrides set of that layer themselves is left to be refused.

    Args:
        root: of `mapping`.
        mapping: every field, before the overrides are laid over it.
        values: dotted path -> value of the overrides.
    """
    for path, kind in values.items():
        parent, _, name = path.rpartition(".")
        group = resolve(root, parent) if parent and name == "kind" else None
        if not (isinstance(group, type) and issubclass(group, SequenceConfig)):
            continue
        node = mapping
        for part in parent.split("."):
            node = node[part]
        old = node["kind"]
        if kind != old and old in node and not _is_set(f"{parent}.{old}", values):
            node[old] = {}
        if kind in NO_BACKEND and not _is_set(f"{parent}.backend", values):
            node.pop("backend")


def _is_set(path: str, values: Mapping[str, Any]) -> bool:
    """Return whether something at or below a dotted path is among the overrides."""
    return any(f"{other}.".startswith(f"{path}.") for other in values)


def _preset_folder() -> Path:
    return Path(str(files("statewise"))) / "configs"


def _build(mapping: Any, where: str) -> RunConfig:
    """Turn a nested mapping into the dataclasses of the system that it names, or raise."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a mapping of fields, got {mapping!r}")
    if "system" not in mapping:
        raise ConfigError(f"{where}: system: expected one of {', '.join(ROOTS)}, got none")
    system = mapping["system"]
    if not isinstance(system, str) or system not in ROOTS:
        hint = nearest(str(system), list(ROOTS))
        known = ", ".join(ROOTS)
        raise ConfigError(f"{where}: system: expected one of {known}, got {system!r}{hint}")
    return _build_root(ROOTS[system], mapping, where)


def _build_root(root: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Turn a nested mapping into dataclasses, or raise with every problem in one line."""
    problems = dict(number_problems(root, mapping))
    key: Any = root  # mypy takes a class with a type variable for unhashable
    try:
        config: T = _adapter(key).validate_python(mapping)
    except pydantic.ValidationError as error:
        for details in error.errors():
            path = ".".join(str(part) for part in details["loc"])
            problems.setdefault(path, _line(root, path, details))
        raise ConfigError(f"{where}: {'; '.join(problems.values())}") from None
    if problems:
        raise ConfigError(f"{where}: {'; '.join(problems.values())}")
    return config


@cache
def _adapter(root: type[Any]) -> pydantic.TypeAdapter[Any]:
    """Return what checks a mapping; making it takes longer than most checks."""
    for cls in reached(root):
        # Read by pydantic; without it unknown keys of a standard dataclass are dropped.
        cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    return pydantic.TypeAdapter(root)


def _line(root: type[Any], path: str, details: Any) -> str:
    """Say in one line what pydantic found at a dotted path."""
    kind, got = details["type"], details["input"]
    if kind == "unexpected_keyword_argument":
        return unknown_field(root, path)
    if kind == "missing":
        return f"{path}: expected a value, got none: this field has no default"
    if kind == "value_error":
        text = str(details["ctx"]["error"])
        # Raised by a __post_init__ as "field: expected ..., got ...".
        joint = "." if re.match(r"[\w.]+: ", text) else ": "
        return f"{path}{joint}{text}" if path else text
    if kind == "dataclass_type":
        return f"{path}: expected a mapping of fields, got {got!r}"
    expected = details["msg"].removeprefix("Input should be ").partition(", unable")[0]
    hint = ""
    if kind == "literal_error" and isinstance(got, str):
        hint = nearest(got, re.findall(r"'([^']*)'", expected))
    return f"{path}: expected {expected}, got {got!r}{hint}"


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tuples(entry) for entry in value]
    return value
