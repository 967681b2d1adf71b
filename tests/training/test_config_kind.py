"""Another kind of layer over a preset that has settings for its own."""

from dataclasses import replace
from typing import Any

import pytest

from statewise.ssm.build import SequenceConfig
from statewise.training.config import ConfigError, apply_overrides, load_preset

WORLD = "agent.world.parallel.sequence"
PRESETS = {
    "sac/pendulum_position": "agent.sequence",
    "ppo/half_cheetah_position": "agent.sequence",
    "ppo/dmc_position": "agent.sequence",
    "ppo/repeat_previous_medium": "agent.sequence",
    "ppo/pong": "agent.sequence",
    "r2i/delayed_offer": WORLD,
    "s4wm/hallway": WORLD,
}
"""Where the sequence stands in presets that have settings of S5."""
MEDIUM = "ppo/repeat_previous_medium"


def sequence_of(config: Any, path: str) -> SequenceConfig:
    for name in path.split("."):
        config = getattr(config, name)
    assert isinstance(config, SequenceConfig)
    return config


def refusal(name: str, *tokens: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_preset(name, tokens)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", ["gru", "lru"])
def test_another_kind_drops_the_settings_of_the_presets_layer(name: str, kind: Any) -> None:
    path = PRESETS[name]
    preset = sequence_of(load_preset(name), path)
    assert preset.s5 != type(preset.s5)()  # else there is nothing to drop
    got = sequence_of(load_preset(name, [f"--{path}.kind", kind]), path)
    assert got == replace(preset, kind=kind, s5=type(preset.s5)())


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_kind_keeps_the_settings(name: str) -> None:
    assert load_preset(name, [f"--{PRESETS[name]}.kind", "s5"]) == load_preset(name)


def test_settings_of_the_new_layer_are_taken() -> None:
    tokens = ["--agent.sequence.kind", "lru", "--agent.sequence.lru.r-min", "0.5"]
    sequence = sequence_of(load_preset(MEDIUM, tokens), "agent.sequence")
    assert (sequence.kind, sequence.lru.r_min) == ("lru", 0.5)


@pytest.mark.parametrize("empty", [["--agent.sequence.s5", "{}"], []], ids=["emptied", "dropped"])
def test_emptying_the_settings_by_hand_still_works_and_is_the_same(empty: list[str]) -> None:
    by_hand = {"agent.sequence.s5": {}, "agent.sequence.kind": "gru"}
    wanted = apply_overrides(load_preset(MEDIUM), by_hand)
    assert load_preset(MEDIUM, ["--agent.sequence.kind", "gru", *empty]) == wanted


@pytest.mark.parametrize("order", [1, -1])
def test_a_setting_that_the_overrides_make_themselves_is_refused(order: int) -> None:
    options = [["--agent.sequence.kind", "gru"], ["--agent.sequence.s5.memory_steps", "4", "9"]]
    tokens = [token for option in options[::order] for token in option]
    assert refusal(MEDIUM, *tokens) == (
        "override: agent.sequence.s5: would be ignored with kind 'gru': remove the setting or "
        "change kind"
    )


def test_a_sequence_replaced_as_a_whole_is_refused_where_it_would_be_ignored() -> None:
    overrides = {
        "agent.sequence": {"s5": {"state_size": 7}, "backend": "reference"},
        "agent.sequence.kind": "gru",
    }
    with pytest.raises(ConfigError, match=r"agent\.sequence\.s5: would be ignored"):
        apply_overrides(load_preset(MEDIUM), overrides)


def test_settings_of_a_layer_of_neither_kind_are_refused() -> None:
    tokens = ["--agent.sequence.kind", "gru", "--agent.sequence.lru.r-min", "0.5"]
    assert "agent.sequence.lru: would be ignored with kind 'gru'" in refusal(MEDIUM, *tokens)


def test_the_backend_goes_where_the_new_kind_has_none_and_stays_where_it_has() -> None:
    preset = apply_overrides(load_preset(MEDIUM), {"agent.sequence.backend": "reference"})
    for kind, backend in (("gru", "auto"), ("attention", "auto"), ("lru", "reference")):
        config = apply_overrides(preset, {"agent.sequence.kind": kind})
        assert sequence_of(config, "agent.sequence").backend == backend


def test_a_backend_that_the_overrides_set_themselves_is_refused() -> None:
    tokens = ["--agent.sequence.kind", "gru", "--agent.sequence.backend", "reference"]
    assert "agent.sequence.backend: would be ignored with kind 'gru'" in refusal(MEDIUM, *tokens)


def test_a_kind_that_there_is_not_is_the_only_thing_complained_about() -> None:
    text = refusal(MEDIUM, "--agent.sequence.kind", "gruu")
    assert text.startswith("override: agent.sequence.kind: expected 's5'")
    assert "would be ignored" not in text


def test_a_kind_among_keyword_arguments_is_left_alone() -> None:
    kwargs = {"kind": "s5", "s5": {"depth": 3}, "backend": "mine"}
    config: Any = apply_overrides(load_preset(MEDIUM), {"env.kwargs": kwargs})
    config = apply_overrides(config, {"env.kwargs.kind": "gru"})
    assert config.env.kwargs == {**kwargs, "kind": "gru"}


def test_the_kind_of_an_optimiser_drops_nothing() -> None:
    preset: Any = load_preset("s4wm/hallway")
    config = apply_overrides(preset, {"agent.optimizer.kind": "laprop"})
    assert config.agent.optimizer == replace(preset.agent.optimizer, kind="laprop")
