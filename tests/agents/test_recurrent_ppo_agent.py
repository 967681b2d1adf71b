"""Recurrent PPO as an agent: acting, spaces, seeds, saved states, settings."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.recurrent_ppo import (
    RecurrentPPO,
    RecurrentPPOConfig,
)
from statewise.envs.build import EnvConfig, make_env
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.build import SEQUENCES
from statewise.training.collector import Collector
from tests.agents.ppo_cases import (
    DISCRETE,
    OBS_SPACE,
    B,
    assert_same_tree,
    copied,
    make_agent,
    make_batch,
    make_config,
    parameters,
)
from tests.resets import pattern

# --- acting


def act_inputs(agent: RecurrentPPO) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    batch = make_batch(agent)
    return {"obs": batch.step.obs["obs"][:, 0]}, batch.state, pattern("staggered", B, 3)[:, 0]


@pytest.mark.parametrize("kind", sorted(SEQUENCES))
def test_act_changes_no_state_and_repeats_with_the_same_generator(kind: str) -> None:
    agent = make_agent(make_config(kind))
    obs, state, reset = act_inputs(agent)
    kept = {key: x.clone() for key, x in state.items()}
    begin = agent.generator.get_state()
    one = agent.act(obs, state, reset, reset, explore=True)
    assert_same_tree(state, kept)
    assert not torch.equal(begin, agent.generator.get_state())
    agent.generator.set_state(begin)
    two = agent.act(obs, state, reset, reset, explore=True)
    for a, b in zip(one, two, strict=True):
        assert_same_tree(a, b)
    begin = agent.generator.get_state()
    agent.act(obs, state, reset, reset, explore=False)
    assert torch.equal(begin, agent.generator.get_state())


@pytest.mark.parametrize("kind", sorted(SEQUENCES))
def test_act_follows_the_weights_after_an_update_and_after_a_load(kind: str) -> None:
    agent = make_agent(make_config(kind, learning_rate=0.05))
    obs, state, reset = act_inputs(agent)
    batch = make_batch(agent)

    def check() -> Tensor:
        _, extras, after = agent.act(obs, state, reset, reset, explore=False)
        with torch.no_grad():  # the parallel mode knows no cache
            rows = {"obs": obs["obs"][:, None]}
            _, value, expected = agent.network(rows, state, reset[:, None])
        assert torch.allclose(extras["value"], value[:, 0], atol=1e-5)
        for key, x in expected.items():
            assert torch.allclose(after[key], x, atol=1e-5), key
        return extras["value"].clone()

    saved = copied(agent.state_dict())
    first = check()
    agent.update(batch)
    assert not torch.allclose(check(), first, atol=1e-3)
    agent.load_state_dict(saved)
    assert torch.equal(check(), first)


def test_a_reset_restores_fresh_memory_row_by_row() -> None:
    agent = make_agent()
    obs, state, _ = act_inputs(agent)
    reset = torch.tensor([True, False, True, False])
    fresh = agent.initial_state(B)
    _, mixed, _ = agent.act(obs, state, reset, reset, explore=False)
    none = torch.zeros(B, dtype=torch.bool)
    _, clean, _ = agent.act(obs, fresh, none, none, explore=False)
    _, old, _ = agent.act(obs, state, none, none, explore=False)
    assert torch.equal(mixed["value"], torch.where(reset, clean["value"], old["value"]))
    assert not torch.equal(clean["value"], old["value"])


# --- spaces


class SpaceEnv(gymnasium.Env[Any, Any]):
    """Samples its spaces; episodes of 4 steps."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._count = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._count += 1
        return self.observation_space.sample(), 1.0, self._count == 4, False, {}


BOX = spaces.Box(-1, 1, (2,))
PAIRS: dict[str, tuple[spaces.Space[Any], spaces.Space[Any]]] = {
    "box-discrete": (BOX, spaces.Discrete(3)),
    "box-discrete-from-5": (BOX, spaces.Discrete(3, start=5)),
    "box-multidiscrete": (BOX, spaces.MultiDiscrete([2, 4])),
    "box-continuous": (BOX, spaces.Box(-1, 1, (2,))),
    "box-unbounded": (BOX, spaces.Box(-np.inf, np.inf, (1,))),
    "discrete-discrete": (spaces.Discrete(4), spaces.Discrete(2)),
    "dict": (spaces.Dict({"a": BOX, "b": spaces.Discrete(3)}), spaces.Discrete(2)),
    "tuple": (spaces.Tuple((BOX, spaces.MultiBinary(3))), spaces.Discrete(2)),
    "image": (spaces.Box(0, 255, (16, 16, 3), dtype=np.uint8), spaces.Discrete(2)),
    "small-grid": (spaces.Box(0, 255, (4, 4, 1), dtype=np.uint8), spaces.Box(-2, 2, (1,))),
}


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_every_space_collects_and_updates(name: str) -> None:
    env = make_env(EnvConfig(id="toy", num_envs=2), lambda: SpaceEnv(*PAIRS[name]))
    agent = RecurrentPPO(make_config(), env.obs_space, env.action_space, total_steps=99, seed=0)
    before = parameters(agent)
    collector = Collector(env, agent, 11)
    collector.start(0)
    rollout = collector.collect()
    metrics = agent.update(rollout.batch)
    env.close()
    # 5 rows per episode, one of them without an action: 11 rows hold 9 steps
    assert (rollout.num_steps, rollout.num_episodes) == (18, 4)
    assert all(math.isfinite(value) for value in metrics.values())
    # what acting computed step by step is what training computes at once
    with torch.no_grad():
        agent.load_state_dict(agent.state_dict() | {"network": agent.network.state_dict() | before})
        policy, value, _ = agent.network(
            rollout.batch.step.obs, rollout.batch.state, rollout.batch.step.reset
        )
        log_prob = policy.log_prob(rollout.batch.step.action)
    assert torch.allclose(value, rollout.batch.extras["value"], atol=1e-5)
    assert torch.allclose(log_prob, rollout.batch.extras["log_prob"], atol=1e-5)


def test_an_encoder_of_another_width_is_projected() -> None:
    class Wide(torch.nn.Module):
        d_out = 5

        def __init__(self, space: spaces.Dict) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 5)

        def forward(self, obs: dict[str, Tensor]) -> Tensor:
            return self.linear(obs["obs"])

    agent = RecurrentPPO(make_config(), OBS_SPACE, DISCRETE, total_steps=99, seed=0, encoder=Wide)
    assert isinstance(agent.network.project, torch.nn.Linear)
    before = parameters(agent)
    agent.update(make_batch(agent))
    assert not torch.equal(before["encoder.linear.weight"], agent.network.encoder.linear.weight)


def test_an_encoder_without_a_width_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected a module with d_out.*on Linear: set self.d_out"
    ):
        RecurrentPPO(
            make_config(),
            OBS_SPACE,
            DISCRETE,
            total_steps=99,
            seed=0,
            encoder=lambda space: torch.nn.Linear(3, 8),
        )


# --- seeds and saved states


def test_the_same_seed_gives_the_same_agent_and_touches_no_global_stream() -> None:
    begin = torch.random.get_rng_state()
    one, other = make_agent(seed=5), make_agent(seed=5)
    different = make_agent(seed=6)
    assert_same_tree(one.state_dict(), other.state_dict())
    assert any(
        not torch.equal(parameters(one)[name], p) for name, p in parameters(different).items()
    )
    batch = make_batch(one)
    one.update(batch)
    other.update(batch)
    assert_same_tree(one.state_dict(), other.state_dict())
    assert torch.equal(begin, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", sorted(SEQUENCES))
def test_a_restored_agent_goes_on_bit_for_bit(kind: str) -> None:
    one = make_agent(make_config(kind), seed=1)
    batch = make_batch(one)
    one.update(batch)
    obs, state, reset = act_inputs(one)
    one.act(obs, state, reset, reset, explore=True)
    other = make_agent(make_config(kind), seed=2)
    other.act(obs, state, reset, reset, explore=True)
    other.load_state_dict(copied(one.state_dict()))
    assert_same_tree(other.state_dict(), one.state_dict())
    assert one.update(batch) == other.update(batch)
    assert_same_tree(
        other.act(obs, state, reset, reset, explore=True)[0],
        one.act(obs, state, reset, reset, explore=True)[0],
    )
    assert_same_tree(other.state_dict(), one.state_dict())


def test_a_restored_agent_shares_no_memory_with_its_source() -> None:
    one, other = make_agent(seed=1), make_agent(seed=2)
    batch = make_batch(one)
    one.update(batch)
    other.load_state_dict(one.state_dict())
    kept = parameters(other)
    moments = [entry["exp_avg"].clone() for entry in other.state_dict()["optimizer"].values()]
    one.update(batch)
    assert_same_tree(parameters(other), kept)
    for before, entry in zip(moments, other.state_dict()["optimizer"].values(), strict=True):
        assert torch.equal(before, entry["exp_avg"])


def test_weights_of_another_shape_are_refused_by_name() -> None:
    agent = make_agent()
    before = parameters(agent)
    other = make_agent(make_config(encoder=EncoderConfig(hidden=(7,))))
    with pytest.raises(ValueError, match=r"encoder\S*: expected \(8,\S* ?\S*\), got \(7,"):
        agent.load_state_dict(other.state_dict())
    state = agent.state_dict()
    network = dict(state["network"])
    name = sorted(network)[0]
    del network[name]
    with pytest.raises(ValueError, match=rf"{name}: expected .* got nothing"):
        agent.load_state_dict(state | {"network": network})
    with pytest.raises(ValueError, match="extra: expected nothing"):
        agent.load_state_dict(state | {"network": state["network"] | {"extra": torch.zeros(1)}})
    with pytest.raises(ValueError, match="expected the keys"):
        agent.load_state_dict({"network": state["network"]})
    assert_same_tree(parameters(agent), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("clip", -0.1),
        ("value_clip", -0.1),
        ("target_kl", -1.0),
        ("num_epochs", 0),
        ("num_minibatches", 0),
        ("discount", 1.1),
        ("trace", -0.1),
        ("reward_scale", 0.0),
        ("initial_std", 0.0),
        ("max_grad_norm", math.nan),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        RecurrentPPOConfig(**{name: value})


def test_moments_are_kept_by_the_names_of_their_parameters() -> None:
    # The order of an optimiser's groups may change between versions.
    agent = make_agent()
    agent.update(make_batch(agent))
    shapes = {name: value.shape for name, value in parameters(agent).items()}
    moments = agent.state_dict()["optimizer"]
    assert {name: entry["exp_avg"].shape for name, entry in moments.items()} == shapes


def test_moments_of_unknown_parameters_are_refused_by_name() -> None:
    agent = make_agent()
    agent.update(make_batch(agent))
    state = agent.state_dict()
    state["optimizer"] = {"gone": next(iter(state["optimizer"].values()))}
    with pytest.raises(ValueError, match="expected names of parameters, got 'gone'"):
        agent.load_state_dict(state)


# --- scaled observations


OPEN = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (3,))})


def test_scaled_observations_are_the_same_when_acting_and_when_learning() -> None:
    config = make_config(normalize_obs="running", num_epochs=1, num_minibatches=1)
    agent = RecurrentPPO(config, OPEN, DISCRETE, total_steps=10_000, seed=0)
    for seed in range(3):
        batch = make_batch(agent, seed=seed)
        batch.step.obs["obs"].mul_(100.0).add_(7.0)
        state, log_prob = batch.state, []
        for t in range(batch.step.reward.shape[1]):
            step = {"obs": batch.step.obs["obs"][:, t]}
            reset = batch.step.reset[:, t]
            with torch.no_grad():
                policy, _, state = agent.network.step(step, state, reset, None)
            log_prob.append(policy.log_prob(batch.step.action[:, t]))
        batch.extras["log_prob"] = torch.stack(log_prob, 1)
        # With one minibatch the old policy is the new one: any other scale would show.
        assert agent.update(batch)["approx_kl"] < 1e-8
    rows = torch.cat([100.0 * make_batch(agent, seed=s).step.obs["obs"] + 7.0 for s in range(3)])
    valid = torch.cat([make_batch(agent, seed=s).step.valid for s in range(3)])
    mean = agent.network.get_submodule("encoder").get_buffer("mean")
    torch.testing.assert_close(mean, rows[valid].double().mean(0), rtol=1e-6, atol=0)
    other = RecurrentPPO(config, OPEN, DISCRETE, total_steps=10_000, seed=1)
    other.load_state_dict(copied(agent.state_dict()))
    assert_same_tree(other.state_dict(), agent.state_dict())


def test_scaling_bounded_observations_is_an_error() -> None:
    with pytest.raises(ValueError, match="normalize_obs: expected a Box of numbers without"):
        make_agent(make_config(normalize_obs="running"))
