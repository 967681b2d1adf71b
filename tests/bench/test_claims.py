from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from statewise.agents.recurrent_ppo import RecurrentPPOConfig
from statewise.bench.claim_checks import Check
from statewise.bench.claims import Arm, claim_names, load_claim
from statewise.training.config import TrainConfig
from statewise.training.offline_config import AlgorithmDistillationRun
from statewise.training.replay_config import RecurrentSACRun
from statewise.training.schema import ConfigError


def plain_claim() -> dict[str, Any]:
    return {
        "title": "T",
        "statement": "S",
        "seeds": [1, 2],
        "episodes": 4,
        "actions": "greedy",
        "arms": [{"name": "s5", "preset": "ppo/cartpole", "overrides": {"total_steps": 64}}],
        "checks": [{"arm": "s5", "statistic": "min", "at_least": 0.5}],
    }


def write(folder: Path, value: Any) -> str:
    path = folder / "claim.yaml"
    path.write_text(yaml.safe_dump(value))
    return str(path)


def online(arm: Arm, seed: int) -> TrainConfig | RecurrentSACRun:
    """Return the settings of a run in an environment."""
    config = arm.config(seed)
    assert isinstance(config, TrainConfig | RecurrentSACRun)
    return config


def test_a_claim_file_is_read(tmp_path: Path) -> None:
    claim = load_claim(write(tmp_path, plain_claim()))
    assert (claim.name, claim.seeds, claim.episodes) == ("claim", (1, 2), 4)
    config = online(claim.arm("s5"), 2)
    assert (config.total_steps, config.seed, config.num_threads) == (64, 2, 1)


CORES = "_cores"  # ends the names of claims about other layers, beside that of S5 and the GRU
FROM_DATA = [
    "algorithm_distillation",
    "delayed_cue",
    "offline_mujoco",
    "offline_pendulum",
    "rtg_dial",
]
_OF_WORLDS = ("delayed_offer", "hallway", "dreamer", "drama", "r2i")
WORLDS = [name for name in claim_names() if name.startswith(_OF_WORLDS)]
IN_CONTEXT = ["bandit", "dark_room", "dark_room_9x9", "sign_cart_pole"]
PAIRS = ["popgym_easy"]
_OF_CONTROLS = ("half_cheetah", "hidden_velocities")  # beside agents without memory
CONTROLS = [name for name in claim_names() if name.startswith(_OF_CONTROLS)]
OTHERS = {*FROM_DATA, *WORLDS, *PAIRS, *CONTROLS}
PLAIN = [name for name in claim_names() if not name.endswith(CORES) and name not in OTHERS]


@pytest.mark.parametrize("name", PLAIN)
def test_every_claim_compares_s5_with_a_plain_gru_in_the_same_loop(name: str) -> None:
    claim = load_claim(name)
    assert len(claim.seeds) >= 3
    assert 0 not in claim.seeds  # on which the presets were tuned
    s5, gru = (online(claim.arm(arm), 1) for arm in ("s5", "gru"))
    assert s5.total_steps == gru.total_steps
    assert s5.agent.encoder == gru.agent.encoder
    assert gru.agent.sequence.kind == "gru"
    assert gru.agent.sequence.block.kind == "plain"
    assert gru.agent.sequence.num_layers == 1


@pytest.mark.parametrize("name", PAIRS)
def test_every_task_of_a_claim_compares_s5_with_a_plain_gru(name: str) -> None:
    claim = load_claim(name)
    assert 0 not in claim.seeds
    assert {check.arm for check in claim.checks} == {
        arm.name for arm in claim.arms if arm.name.endswith("_s5")
    }
    for check in claim.checks:
        assert check.over == check.arm.removesuffix("_s5") + "_gru"
        s5, gru = (online(claim.arm(arm), 1) for arm in (check.arm, check.over))
        assert (gru.agent.sequence.kind, gru.agent.sequence.num_layers) == ("gru", 1)
        assert gru.agent.sequence.block.kind == "plain"
        assert replace(gru, agent=replace(gru.agent, sequence=s5.agent.sequence)) == s5


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_differ_in_their_memory_alone(name: str) -> None:
    claim = load_claim(name)
    for check in claim.checks:
        kept, none = (claim.arm(arm).config(1) for arm in (check.arm, check.over))
        cleared = replace(kept.agent.sequence, memory="none")
        env = replace(kept.env, inputs=())  # a last action would carry a message over the cut
        # It gives a velocity away: the claim says so, and has controls with and without it.
        assert ("previous_reward" in kept.env.inputs) == ("reward" in name)
        if "reward" in name:
            assert {other.over for other in claim.checks if other.arm == check.arm} == {
                f"{check.arm}_none",
                f"{check.arm}_blind",
            }
            assert kept.env.inputs == ("previous_reward",)
            env = env if check.over == f"{check.arm}_blind" else kept.env
        else:
            assert str(check.over).removesuffix("_shared") == f"{check.arm}_none"
            assert f"{check.arm}_none" in {one.over for one in claim.checks if one.arm == check.arm}
        agent = replace(kept.agent, sequence=cleared)
        if str(check.over).endswith("_shared"):  # the better control of the two
            assert isinstance(agent, RecurrentPPOConfig)
            assert agent.critic == "separate"
            agent = replace(agent, critic="shared")
        assert none == replace(kept, agent=agent, env=env)
        assert kept.env.keep


@pytest.mark.parametrize("name", [name for name in claim_names() if name.endswith(CORES)])
def test_runs_of_other_layers_differ_from_those_of_s5_in_the_layer_alone(name: str) -> None:
    claim, base = load_claim(name), load_claim(name.removesuffix(CORES))
    expected = online(base.arm("s5"), 1)
    assert (claim.seeds, claim.episodes) == (base.seeds, base.episodes)
    assert {arm.name for arm in claim.arms} == {"mamba", "mamba2", "s4d"}
    for arm in claim.arms:
        config = online(arm, 1)
        assert config.agent.sequence.kind == arm.name
        agent = replace(config.agent, sequence=expected.agent.sequence)
        assert replace(config, agent=agent) == expected


@pytest.mark.parametrize("name", [*IN_CONTEXT, "algorithm_distillation"])
def test_claims_about_trials_check_what_is_learned_within_them(name: str) -> None:
    claim = load_claim(name)
    assert claim.has_trials
    assert claim.has_summary
    assert any(check.measure.metric == "adaptation_gain" for check in claim.checks) or (
        {check.measure.metric for check in claim.checks} == {"first_episode", "last_episode"}
    )


def test_the_control_and_the_held_out_goals_differ_from_s5_in_that_alone() -> None:
    claim = load_claim("dark_room")
    names = ("s5", "control", "held_out_one_hot", "held_out")
    s5, control, held_out, helped = (online(claim.arm(arm), 1) for arm in names)
    assert control.env.trial == replace(s5.env.trial, memory="episode")
    assert replace(control, env=s5.env, total_steps=s5.total_steps) == s5
    assert held_out.env.kwargs == s5.env.kwargs | {"goals": "train"}
    assert held_out.eval.kwargs == {"goals": "held_out"}
    assert replace(held_out, env=s5.env, eval=s5.eval) == s5
    shown = {"shown": "coordinates", "novelty": 0.3}
    assert helped.env.kwargs == held_out.env.kwargs | shown
    # The bonus is paid in training alone.
    assert helped.eval.kwargs == held_out.eval.kwargs | {"novelty": 0.0}
    assert replace(helped, env=s5.env, eval=s5.eval, agent=s5.agent) == s5


def test_arms_of_algorithm_distillation_differ_in_memory_or_layer_alone() -> None:
    claim = load_claim("algorithm_distillation")
    s5, gru, control = (claim.arm(arm).config(1) for arm in ("s5", "gru", "control"))
    assert isinstance(s5, AlgorithmDistillationRun)
    assert isinstance(gru, AlgorithmDistillationRun)
    assert s5.env.kwargs == {"goals": "held_out"}
    assert control == replace(s5, agent=replace(s5.agent, memory="episode"))
    assert (gru.agent.sequence.kind, gru.agent.sequence.num_layers) == ("gru", 1)
    assert replace(gru, agent=replace(gru.agent, sequence=s5.agent.sequence)) == s5


def test_the_claims_are_those_of_the_package() -> None:
    plain = [*IN_CONTEXT, "memory_chain", "pendulum_position", "t_maze"]
    plain += [f"repeat_previous_{level}" for level in ("easy", "medium")]
    assert sorted(plain) == PLAIN
    others = ["memory_chain_cores", "repeat_previous_easy_cores", "t_maze_cores"]
    delays = ("far", "gate", "gate_60", "mixed", "sweep")
    worlds = ["delayed_offer", *(f"delayed_offer_{name}" for name in delays)]
    worlds += ["drama_catch", "dreamer_cartpole", "hallway"]
    worlds += [f"r2i_repeat_previous_{level}" for level in ("easy", "medium")]
    assert worlds == WORLDS
    assert claim_names() == sorted([*plain, *others, *FROM_DATA, *PAIRS, *CONTROLS, *worlds])
    with pytest.raises(ConfigError, match="did you mean t_maze"):
        load_claim("tmaze")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("title"), "the file: expected the field title"),
        (lambda c: c.update(sedes=[1]), "got 'sedes': did you mean seeds"),
        (lambda c: c.update(seeds=[1, 1]), "seeds: expected different numbers"),
        (lambda c: c.update(seeds=[]), "seeds: expected a list that is not empty"),
        (lambda c: c.update(seeds=[True]), r"seeds.0: expected an integer"),
        (lambda c: c.update(episodes=0), "episodes: expected an integer of at least 1, got 0"),
        (lambda c: c.update(actions="best"), "actions: expected greedy or sample, got 'best'"),
        (lambda c: c.update(arms=c["arms"] * 2), "arms: expected different names"),
        (lambda c: c["arms"][0].update(name="a/b"), "arms.0.name: expected letters"),
        (lambda c: c["arms"][0].update(preset="ppo/nothing"), "arms.0: preset: expected"),
        (
            lambda c: c["arms"][0].update(preset="bc/pendulum", overrides={}),
            "arms.0.data: expected the name of what bc/pendulum learns from, got none",
        ),
        (lambda c: c["arms"][0]["overrides"].update(totl=1), "arms.0: override: totl"),
        (lambda c: c["arms"][0]["overrides"].update(seed=1), "arms.0.overrides: expected no seed"),
        (lambda c: c["checks"][0].update(arm="lru"), "checks.0.arm: expected one of s5"),
        (lambda c: c["checks"][0].update(statistic="best"), "checks.0.statistic: expected one"),
        (lambda c: c["checks"][0].update(below=1), "checks.0: expected exactly one of at_least"),
        (lambda c: c["checks"][0].update(at_least="x"), "checks.0.at_least: expected a number"),
    ],
)
def test_a_wrong_claim_is_one_line_that_names_the_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    value = plain_claim()
    change(value)
    with pytest.raises(ConfigError, match=message) as error:
        load_claim(write(tmp_path, value))
    assert "\n" not in str(error.value)
    assert "claim.yaml" in str(error.value)


def test_a_file_without_a_mapping_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a mapping of fields"):
        load_claim(write(tmp_path, [1]))


@pytest.mark.parametrize(
    ("statistic", "relation", "limit", "passes"),
    [
        ("min", "at_least", -3.0, True),
        ("min", "at_least", -2.9, False),
        ("median", "below", 1.0, False),
        ("median", "at_most", 1.0, True),
        ("max", "below", 1.1, True),
        ("mean", "at_least", -1 / 3, True),
        ("abs_mean", "at_most", 0.34, True),
        ("abs_mean", "at_most", 0.33, False),
    ],
)
def test_checks_compare_a_statistic_with_a_limit(
    statistic: str, relation: str, limit: float, passes: bool
) -> None:
    # scores -3, 1, 1: min -3, median 1, max 1, mean -1/3
    passed, line = Check("s5", statistic, relation, limit).verdict([-3.0, 1.0, 1.0])
    assert passed is passes
    assert line.startswith("PASS" if passes else "FAIL")
