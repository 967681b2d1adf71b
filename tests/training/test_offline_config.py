"""Settings of runs on data: one dataclass per system, and errors of one line with their path."""

import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from statewise.agents.build import AGENTS
from statewise.training.config import (
    ROOTS,
    ConfigError,
    OfflineTrainConfig,
    apply_overrides,
    dump_config,
    load_config,
    load_preset,
    preset_names,
    show_config_help,
)
from statewise.training.offline_config import TargetEvalConfig

PRESET = "dt/pendulum"
OFFLINE = sorted(name for name, row in AGENTS.items() if row.loop == "offline")
TOLD = sorted(
    name for name, root in ROOTS.items() if typing.get_type_hints(root)["eval"] is TargetEvalConfig
)
MINIMAL: dict[str, Any] = {
    "system": "dt",
    "agent": {},
    "total_updates": 5,
    "eval": {"targets": [3]},
}


def preset_of(system: str) -> str:
    """Return one of its presets, that of Pendulum if there is one."""
    own = [name for name in preset_names() if name.startswith(f"{system}/")]
    return next((name for name in own if name.endswith("/pendulum")), own[0])


def problem(folder: Path, **changes: Any) -> str:
    """Return the one-line error of a configuration file, without the file's name."""
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (MINIMAL | changes).items() if v != "-"}))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def override_problem(*tokens: str, preset: str = PRESET) -> str:
    with pytest.raises(ConfigError) as caught:
        load_preset(preset, tokens)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("override: ")


# --- tables


def test_every_system_has_a_dataclass_with_the_settings_of_its_agent() -> None:
    assert list(ROOTS) == list(AGENTS)
    for name, root in ROOTS.items():
        hints = typing.get_type_hints(root)
        assert hints["agent"] is AGENTS[name].config
        assert typing.get_args(hints["system"]) == (name,)
        assert issubclass(root, OfflineTrainConfig) == (AGENTS[name].loop == "offline")


def test_every_system_has_a_preset() -> None:
    assert {name.partition("/")[0] for name in preset_names()} == set(ROOTS)


@pytest.mark.parametrize("name", OFFLINE)
def test_presets_are_told_their_data_later(name: str) -> None:
    preset = preset_of(name)
    config = load_preset(preset)
    assert isinstance(config, OfflineTrainConfig)
    assert config.data.paths == ()
    if preset.endswith("/pendulum"):
        assert config.env.id == "Pendulum-v1"
    assert config.eval.returns_asked() == ((-150.0, -800.0) if name in TOLD else ())


# --- files


def test_a_minimal_file_gets_the_defaults_and_the_class_of_its_system(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_config(path)
    assert type(config) is ROOTS["dt"]
    assert config.agent == AGENTS["dt"].config()
    assert (config.env.id, config.data.keep_best, config.eval.reference) == ("", 1.0, "data")
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"system": "dtt"}, "system: expected one of ppo, sac, dt, "),
        ({"system": 3}, "system: expected one of ppo, sac, dt, "),
        ({"system": "-"}, "system: expected one of ppo, sac, dt, "),
        ({"eval": "-"}, "eval: expected a value, got none"),
        ({"eval": {}}, "eval.targets: expected a value, got none"),
        ({"eval": {"targets": []}}, "eval.targets: expected one or more finite returns, got []"),
        ({"eval": {"targets": [1, 1.0]}}, "eval.targets: expected every return once, got [1.0, 1"),
        ({"eval": {"targets": [True]}}, "eval.targets.0: expected a number, got True"),
        ({"eval": {"targets": [float("inf")]}}, "eval.targets.0: expected a finite number"),
        ({"agent": {"return_scale": 0}}, "agent.return_scale: expected a positive number, got 0"),
        ({"agent": {"contxt": 3}}, "agent.contxt: expected a known field, got an unknown one: did"),
        ({"rollout_steps": 3}, "rollout_steps: expected a known field"),
        ({"data": {"path": "a"}}, "data.path: expected a known field, got an unknown one: did you"),
        ({"data": {"paths": "a"}}, "data.paths: expected a valid tuple, got 'a'"),
        ({"data": {"keep_best": 0}}, "data.keep_best: expected a share in (0, 1], got 0"),
        ({"data": {"reward": "late"}}, "data.reward: expected 'as_is' or 'delayed', got 'late'"),
        ({"total_updates": 0}, "total_updates: expected at least 1, got 0"),
        ({"log_every": 0}, "log_every: expected at least 1, got 0"),
        ({"device": "gpu"}, "device: expected cpu, cuda or cuda:N, got 'gpu'"),
        ({"env": {"num_envs": 3}}, "env.num_envs: expected a known field"),
    ],
)
def test_what_is_wrong_is_said_with_its_path(
    changes: dict[str, Any], start: str, tmp_path: Path
) -> None:
    assert problem(tmp_path, **changes).startswith(start)


def test_an_unknown_reference_names_the_nearest(tmp_path: Path) -> None:
    changes = {"eval": {"targets": [1], "reference": "hoper-medium-v2"}}
    message = problem(tmp_path, **changes)
    assert message.startswith("eval.reference: expected a data set of D4RL, got 'hoper-medium-v2'")
    assert "did you mean hopper-medium-v2" in message


def test_a_system_that_is_not_told_a_return_has_no_targets() -> None:
    for name in sorted(set(OFFLINE) - set(TOLD)):
        message = override_problem("--eval.targets", "3", preset=preset_of(name))
        assert message.startswith("eval.targets: expected a known field")


@pytest.mark.parametrize("name", ["td3bc", "iql"])
def test_a_discount_out_of_range_is_refused(name: str) -> None:
    message = override_problem("--agent.discount", "1.5", preset=f"{name}/pendulum")
    assert message == "agent.discount: expected [0, 1], got 1.5"


# --- overrides


@pytest.mark.parametrize(
    ("tokens", "path", "value"),
    [
        (["--data.paths", "a", "b"], "data.paths", ("a", "b")),
        (["--eval.targets", "-150", "-8e2"], "eval.targets", (-150.0, -800.0)),
        (["--data.keep-best=0.1"], "data.keep_best", 0.1),
        (["--env.kwargs.g", "9.8"], "env.kwargs", {"g": 9.8}),
        (["--agent.context", "5"], "agent.context", 5),
    ],
)
def test_words_are_read_by_the_type_of_the_field(tokens: list[str], path: str, value: Any) -> None:
    got: Any = load_preset(PRESET, tokens)
    for name in path.split("."):
        got = getattr(got, name)
    assert got == value


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ("--system ppo", "system: expected 'dt', got 'ppo'"),
        ("--rollout-steps 3", "rollout_steps: expected a known field"),
        ("--eval.targets", "eval.targets: expected one or more finite returns, got []"),
        ("--paths a", "paths: expected a known field, got an unknown one: did you mean data.paths"),
        ("--data a", "data: expected one of its fields, got the group"),
    ],
)
def test_a_wrong_override_is_one_line_with_its_path(tokens: str, start: str) -> None:
    assert override_problem(*tokens.split()).startswith(start)


def test_an_override_keeps_the_class_of_the_system() -> None:
    config = load_preset(PRESET)
    assert type(apply_overrides(config, {"seed": 3})) is type(config)


def test_the_help_text_holds_the_options_of_the_system(capsys: pytest.CaptureFixture[str]) -> None:
    show_config_help(load_preset(PRESET), "statewise train dt/pendulum")
    text = capsys.readouterr().out
    for option in ("--data.paths", "--data.keep-best", "--eval.targets", "--agent.context"):
        assert option in text
    assert "--rollout-steps" not in text
