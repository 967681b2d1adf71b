import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statewise.training.config import (
    ConfigError,
    TrainConfig,
    apply_overrides,
    dump_config,
    load_config,
    load_preset,
    preset_about,
    preset_names,
    show_config_help,
)

PRESET = "ppo/t_maze"
MINIMAL = """
system: ppo
env: {id: CartPole-v1, num_envs: 8}
agent: {}
rollout_steps: 16
total_steps: 1000
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def problem(folder: Path, text: str) -> str:
    """Return the one-line error that a configuration file gets, without the file's name."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def override_problem(*tokens: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_preset(PRESET, tokens)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("override: ")
    return message.removeprefix("override: ")


# --- files


def test_a_minimal_file_gets_the_defaults_of_the_dataclasses(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config.seed == 0
    assert config.agent == type(config.agent)()
    assert config.eval.actions == "greedy"


@pytest.mark.parametrize("name", preset_names())
def test_a_dumped_preset_reads_back_as_an_equal_object(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    again = load_config(write(tmp_path, dump_config(config)))
    assert again == config
    assert hash(again.agent) == hash(config.agent)  # tuples came back as tuples, not as lists


@given(rate=st.floats(min_value=1e-300, max_value=1e300))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_floats_come_back_exactly(rate: float, tmp_path: Path) -> None:
    config = apply_overrides(load_preset(PRESET), {"agent.learning_rate": rate})
    assert load_config(write(tmp_path, dump_config(config))).agent.learning_rate == rate


@pytest.mark.parametrize("text", ["3e-4", "'3e-4'", "3.0e-4", "0.0003"])
def test_every_notation_of_a_float_is_read(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace("agent: {}", f"agent: {{learning_rate: {text}}}"))
    assert load_config(path).agent.learning_rate == 3e-4


def test_exponents_are_numbers_in_free_keyword_arguments(tmp_path: Path) -> None:
    text = MINIMAL.replace("num_envs: 8", "num_envs: 8, kwargs: {gravity: 1e-3, name: low}")
    assert load_config(write(tmp_path, text)).env.kwargs == {"gravity": 1e-3, "name": "low"}


def test_an_unknown_key_is_named_with_its_path_and_the_nearest_one(tmp_path: Path) -> None:
    text = MINIMAL.replace("agent: {}", "agent: {sequence: {s5: {dt_mn: 0.1}}}")
    message = problem(tmp_path, text)
    assert message.startswith("agent.sequence.s5.dt_mn: expected a known field")
    assert "did you mean agent.sequence.s5.dt_min" in message


def test_an_unknown_key_unlike_any_other_lists_the_valid_ones(tmp_path: Path) -> None:
    assert problem(tmp_path, MINIMAL + "zzz: 1\n") == (
        "zzz: expected a known field, got an unknown one: valid: "
        + ", ".join(entry.name for entry in dataclasses.fields(TrainConfig))
    )


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    message = problem(tmp_path, MINIMAL.replace("rollout_steps: 16", ""))
    assert message == "rollout_steps: expected a value, got none: this field has no default"


@pytest.mark.parametrize("value", ["true", "on", "'16'", "1.5", "1e6", "none", "[1]"])
def test_an_integer_field_takes_integers_only(value: str, tmp_path: Path) -> None:
    message = problem(tmp_path, MINIMAL.replace("rollout_steps: 16", f"rollout_steps: {value}"))
    assert message.startswith("rollout_steps: expected a")
    assert "integer" in message
    assert ("write 1000000" in message) == (value == "1e6")


@pytest.mark.parametrize("value", ["true", "fast", ".nan", ".inf", "[0.1]"])
def test_a_float_field_takes_finite_numbers_only(value: str, tmp_path: Path) -> None:
    message = problem(tmp_path, MINIMAL.replace("agent: {}", f"agent: {{discount: {value}}}"))
    assert message.startswith("agent.discount: expected a")
    assert "number" in message


def test_a_boolean_inside_a_tuple_of_integers_is_refused(tmp_path: Path) -> None:
    text = MINIMAL.replace("agent: {}", "agent: {encoder: {hidden: [64, true]}}")
    assert problem(tmp_path, text) == "agent.encoder.hidden.1: expected an integer, got True"


def test_a_bad_choice_lists_the_choices_and_the_nearest(tmp_path: Path) -> None:
    text = MINIMAL.replace("agent: {}", "agent: {sequence: {kind: lstn}}")
    message = problem(tmp_path, text)
    assert message.startswith("agent.sequence.kind: expected 's5'")
    assert "got 'lstn': did you mean lstm" in message


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ("agent: {}", "agent: {learning_rate: -1}", "agent.learning_rate: expected a positive"),
        ("num_envs: 8", "num_envs: 0", "env.num_envs: expected"),
        ("total_steps: 1000", "total_steps: 0", "total_steps: expected at least 1, got 0"),
        ("total_steps: 1000", "total_steps: 1\nseed: -1", "seed: expected at least 0, got -1"),
        ("agent: {}", "agent: {}\neval: {episodes: 0}", "eval.episodes: expected at least 1"),
        ("agent: {}", "agent: {}\ncheckpoint: {keep: 0}", "checkpoint.keep: expected at least 1"),
        ("agent: {}", "agent: {}\ndevice: gpu", "device: expected cpu, cuda or cuda:N, got 'gpu'"),
        (
            "agent: {}",
            "agent: {num_minibatches: 3}",
            "agent.num_minibatches: expected a divisor of env.num_envs (8), got 3",
        ),
    ],
)
def test_a_value_out_of_range_is_reported_under_its_path(
    old: str, new: str, start: str, tmp_path: Path
) -> None:
    assert problem(tmp_path, MINIMAL.replace(old, new)).startswith(start)


def test_several_problems_stand_in_one_line(tmp_path: Path) -> None:
    text = MINIMAL.replace("num_envs: 8", "num_env: 8").replace("agent: {}", "agent: {clip: x}")
    message = problem(tmp_path, text)
    assert "env.num_env: expected a known field" in message
    assert "agent.clip: expected a valid number, got 'x'" in message


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "expected a mapping of fields, got None"),
        ("- 1", "expected a mapping of fields, got [1]"),
        ("a: b: c", "line 1: expected YAML, got mapping values"),
        ("system: ppo\nseed: 1\nseed: 2", "line 3: expected YAML, got the key seed twice"),
        (MINIMAL.replace("agent: {}", "agent: 3"), "agent: expected a mapping of fields, got 3"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text: str, start: str, tmp_path: Path) -> None:
    assert problem(tmp_path, text).startswith(start)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    text = MINIMAL.replace("agent: {}", "agent: !!python/object/apply:os.getcwd []")
    assert "could not determine a constructor" in problem(tmp_path, text)


def test_a_file_that_is_absent_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_preset(str(tmp_path / "absent.yaml"))


def test_keyword_arguments_without_a_notation_cannot_be_dumped() -> None:
    config = apply_overrides(load_preset(PRESET), {"env.kwargs.make": object()})
    with pytest.raises(ConfigError, match=r"env\.kwargs: expected numbers, text"):
        dump_config(config)


# --- presets


def test_an_unknown_preset_names_the_nearest_and_the_command_that_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"statewise list presets.*did you mean ppo/t_maze"):
        load_preset("ppo/tmaze")


def test_a_path_of_ones_own_file_is_a_preset(tmp_path: Path) -> None:
    config = load_preset(str(write(tmp_path, MINIMAL)), ["--seed", "5"])
    assert (config.env.id, config.seed) == ("CartPole-v1", 5)


def test_presets_of_other_schemas_are_not_listed() -> None:
    assert "ppo/repeat_previous_easy" in preset_names()
    assert not [name for name in preset_names() if name.startswith("claims/")]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_what_to_expect_and_how_long_it_takes(name: str) -> None:
    about = preset_about(name)
    # What is learned from data depends on the data that are given.
    assert "return at least" in about or "from data" in about
    assert "minute" in about


# --- overrides


@pytest.mark.parametrize(
    "tokens",
    [
        ["--agent.learning-rate", "1e-3"],
        ["--agent.learning_rate", "1e-3"],
        ["--agent.learning-rate=1e-3"],
        ["--agent.learning-rate", "5", "--agent.learning-rate", "0.001"],
    ],
    ids=["dash", "underscore", "equals", "last-wins"],
)
def test_an_override_replaces_one_value(tokens: list[str]) -> None:
    preset = load_preset(PRESET)
    assert preset.agent.learning_rate == 5e-4
    config = load_preset(PRESET, tokens)
    assert config.agent.learning_rate == 1e-3
    same = apply_overrides(config, {"agent.learning_rate": preset.agent.learning_rate})
    assert same == preset


@pytest.mark.parametrize(
    ("tokens", "path", "value"),
    [
        (["--seed", "7"], "seed", 7),
        (["--total-steps", "1_000_000"], "total_steps", 1_000_000),
        (["--agent.encoder.hidden", "32", "16"], "agent.encoder.hidden", (32, 16)),
        (["--agent.encoder.hidden", "[32, 16]"], "agent.encoder.hidden", (32, 16)),
        (["--agent.encoder.hidden=[32,16]"], "agent.encoder.hidden", (32, 16)),
        (["--agent.encoder.hidden", "[32,", "16]"], "agent.encoder.hidden", (32, 16)),
        (["--env.inputs", "[first_step]"], "env.inputs", ("first_step",)),
        (
            ["--env.inputs", "['first_step', 'previous_reward']"],
            "env.inputs",
            ("first_step", "previous_reward"),
        ),
        (["--env.inputs", "[]"], "env.inputs", ()),
        (["--env.inputs"], "env.inputs", ()),
        (["--env.inputs", "first_step"], "env.inputs", ("first_step",)),
        (["--env.id", "3"], "env.id", "3"),
        (["--agent.sequence.kind=gru"], "agent.sequence.kind", "gru"),
        (["--agent.reward-scale", "1"], "agent.reward_scale", 1.0),
        (["--env.kwargs.length", "30"], "env.kwargs", {"length": 30}),
        (["--env.kwargs.slip", "1e-3"], "env.kwargs", {"length": 50, "slip": 1e-3}),
        (["--env.kwargs.dense", "true"], "env.kwargs", {"length": 50, "dense": True}),
        (["--env.kwargs.size", "3", "4"], "env.kwargs", {"length": 50, "size": [3, 4]}),
        (["--env.kwargs", "{length: 9}"], "env.kwargs", {"length": 9}),
        (["--eval.num-envs", "2", "--seed", "1"], "eval.num_envs", 2),
    ],
)
def test_words_are_read_by_the_type_of_the_field(
    tokens: list[str], path: str, value: object
) -> None:
    got: Any = load_preset(PRESET, tokens)
    for name in path.split("."):
        got = getattr(got, name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("word", ["none", "None", "null"])
@pytest.mark.parametrize("name", ["memory_steps", "state_size"])  # a list and a number
def test_no_value_is_written_as_in_the_help_or_as_in_yaml(name: str, word: str) -> None:
    path = f"agent.world.parallel.sequence.s5.{name}"
    config: Any = load_preset("s4wm/delayed_offer", [f"--{path}", word])
    assert getattr(config.agent.world.parallel.sequence.s5, name) is None


def test_a_choice_that_is_called_none_is_one() -> None:
    config: Any = load_preset(PRESET, ["--agent.sequence.memory", "none"])
    assert config.agent.sequence.memory == "none"


def test_overrides_leave_the_preset_as_it_is() -> None:
    preset = load_preset(PRESET)
    apply_overrides(preset, ["--env.kwargs.length", "30"])
    assert preset.env.kwargs == {"length": 50}


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ("--agent.learning-rat 1", "agent.learning_rat: expected a known field"),
        ("--learning-rate 1", "learning_rate: expected a known field"),
        ("--agent.learning-rate fast", "agent.learning_rate: expected a valid number, got 'fast'"),
        ("--agent.learning-rate", "agent.learning_rate: expected one value, got none"),
        ("--agent.learning-rate -1", "agent.learning_rate: expected a positive number, got -1"),
        ("--seed 1 2", "seed: expected one value, got 1 2"),
        ("--agent.encoder.hidden [32,x]", "agent.encoder.hidden.1: expected an integer, got 'x'"),
        ("--seed true", "seed: expected an integer, got 'true'"),
        ("--total-steps 1e6", "total_steps: expected an integer, got '1e6': write 1000000"),
        ("--agent 3", "agent: expected one of its fields"),
        ("--seed.x 3", "seed.x: expected seed alone"),
        ("--eval.actions sampl", "eval.actions: expected 'greedy' or 'sample', got 'sampl'"),
        ("seed=3", "expected --name value, got 'seed=3': write --seed=3"),
        ("-- 3", "expected --name value, got '--'"),
        ("--env.kwargs 3", "env.kwargs: expected a valid dictionary, got 3"),
        ("--agent.num-minibatches 5", "agent.num_minibatches: expected a divisor of env.num_envs"),
    ],
)
def test_a_wrong_override_is_one_line_with_its_path(tokens: str, start: str) -> None:
    assert override_problem(*tokens.split()).startswith(start)


def test_a_field_named_without_its_group_is_found() -> None:
    assert override_problem("--learning-rate", "1").endswith("did you mean agent.learning_rate?")


@pytest.mark.parametrize("value", [True, "3"])
def test_python_overrides_are_as_strict_as_yaml(value: object) -> None:
    with pytest.raises(ConfigError, match="override: seed: expected an integer"):
        apply_overrides(load_preset(PRESET), {"seed": value})


def test_python_overrides_of_unknown_fields_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean agent\.learning_rate"):
        apply_overrides(load_preset(PRESET), {"agent.learning_rte": 1.0})


def test_no_overrides_change_nothing() -> None:
    preset = load_preset(PRESET)
    assert apply_overrides(preset, []) is preset
    assert apply_overrides(preset, {}) is preset


def test_the_help_text_holds_every_option_with_the_value_of_the_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = apply_overrides(load_preset(PRESET), {"agent.discount": math.pi / 4})
    show_config_help(config, "statewise train ppo/t_maze")
    text = capsys.readouterr().out
    for path in _paths(yaml.safe_load(dump_config(config))):
        assert f"--{path.replace('_', '-')}" in text
    assert str(math.pi / 4) in text


def _paths(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        if value == {}:  # an empty mapping has no line in the help
            continue
        nested = isinstance(value, dict) and name != "kwargs"
        found += _paths(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return found


def test_a_path_into_a_mapping_that_was_given_leaves_it_as_it_was() -> None:
    given = {"kind": "gru", "num_layers": 1}
    paths = {"agent.sequence": given, "agent.sequence.d_model": 8}
    config = apply_overrides(load_preset(PRESET), paths)
    assert (config.agent.sequence.kind, config.agent.sequence.d_model) == ("gru", 8)
    assert given == {"kind": "gru", "num_layers": 1}
    assert list(paths) == ["agent.sequence", "agent.sequence.d_model"]
