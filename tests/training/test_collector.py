"""Rollouts are the same in every vectorisation, and their advantages those of whole episodes."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from statewise.agents.returns import generalized_advantage
from statewise.data.step import Batch, Step
from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import VectorEnv
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.build import SequenceConfig
from statewise.training.collector import Collector
from tests.training.toys import (
    ACTION_SPACE,
    NATIVE_ID,
    OBS_SPACE,
    CounterEnv,
    register_native,
)

SEED = 11
KINDS = (
    "sync next_step",
    "sync same_step",
    "async next_step",
    "async same_step",
    "vector_entry_point next_step",
)
DISCOUNT, TRACE = 0.9, 0.8


def make(kind: str, num_envs: int) -> VectorEnv:
    how, mode = kind.split()
    config: Any = {"num_envs": num_envs, "vectorization": how, "autoreset": mode}
    if how == "vector_entry_point":
        register_native()
        return make_env(EnvConfig(id=NATIVE_ID, **config))
    return make_env(EnvConfig(id="toy", **config), CounterEnv)


@cache
def collect(kind: str, num_envs: int, rows: int, rollouts: int, layer: str = "s5") -> list[Batch]:
    env = make(kind, num_envs)
    try:
        collector = Collector(env, scripted(tiny_config(layer)), rows)
        collector.start(SEED)
        return [collector.collect().batch for _ in range(rollouts)]
    finally:
        env.close()


def tiny_config(kind: str = "s5", **changes: Any) -> RecurrentPPOConfig:
    """Return settings of a network that is quick to run."""
    values: dict[str, Any] = {
        "num_minibatches": 1,
        "encoder": EncoderConfig(hidden=(8,)),
        "sequence": SequenceConfig(kind=kind, num_layers=2, d_model=8),
        "head_hidden": (8,),
    }
    return RecurrentPPOConfig(**values | changes)


class ScriptedPPO(RecurrentPPO):
    """Recurrent PPO whose actions follow from the observation alone, in every layout."""

    def act(
        self, obs: dict[str, Tensor], state: Any, is_first: Tensor, reset: Tensor, *, explore: bool
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        _, extras, state = super().act(obs, state, is_first, reset, explore=False)
        return (obs["obs"].sum(-1) * 7).long() % 3, extras, state


def scripted(config: RecurrentPPOConfig | None = None) -> ScriptedPPO:
    """Return the scripted agent for the counter."""
    return ScriptedPPO(
        tiny_config() if config is None else config,
        spaces.Dict({"obs": OBS_SPACE}),
        ACTION_SPACE,
        total_steps=1000,
        seed=0,
    )


class Episode:
    """One episode of one environment, played in a plain loop with fresh memory at its start."""

    def __init__(self, agent: RecurrentPPO, env: CounterEnv, seed: int | None) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.values: list[float] = []
        self._agent, self._state = agent, agent.initial_state(1)
        obs, _ = env.reset(seed=seed)
        while True:
            action = self._see(obs)
            after, reward, self.terminated, self.truncated, _ = env.step(action)
            ends = (self.terminated, self.truncated)
            self.rows.append((obs.tolist(), action, float(np.float32(reward)), *ends))
            obs = after
            if any(ends):
                self._see(obs)  # the final observation, with the memory it had
                return

    def _see(self, obs: Any) -> int:
        flag = torch.tensor([not self.rows])
        action, extras, self._state = self._agent.act(
            {"obs": torch.from_numpy(obs)[None]}, self._state, flag, flag, explore=True
        )
        self.values.append(float(extras["value"][0]))
        return int(action[0])

    def advantage(self, begin: int, end: int) -> list[float]:
        """Return the advantages of steps begin .. end - 1, cut where the rollout ends."""
        found: list[float] = []
        following = 0.0
        for k in reversed(range(begin, end)):
            last = k == len(self.rows) - 1
            after = 0.0 if last and self.terminated else self.values[k + 1]
            delta = self.rows[k][2] + DISCOUNT * after - self.values[k]
            following = delta if last or k == end - 1 else delta + DISCOUNT * TRACE * following
            found.insert(0, following)
        return found


def play(agent: RecurrentPPO, index: int, num_steps: int) -> list[Episode]:
    """Return the episodes of environment `index` that hold its first `num_steps` steps."""
    env, episodes = CounterEnv(), []
    while sum(len(episode.rows) for episode in episodes) < num_steps:
        episodes.append(Episode(agent, env, None if episodes else SEED + index))
    return episodes


def valid_rows(batch: Batch, index: int) -> list[tuple[Any, ...]]:
    """Return obs, action, reward and ends of the valid rows of one environment."""
    step = batch.step
    return [
        (
            step.obs["obs"][index, t].tolist(),
            int(step.action[index, t]),
            float(step.reward[index, t]),
            bool(step.terminated[index, t]),
            bool(step.truncated[index, t]),
        )
        for t in step.valid[index].nonzero()[:, 0].tolist()
    ]


def advantages(batch: Batch) -> Tensor:
    advantage, _ = generalized_advantage(
        batch.step.reward,
        batch.extras["value"],
        batch.value_tp1,
        batch.step.terminated,
        batch.step.truncated,
        discount=DISCOUNT,
        trace=TRACE,
    )
    return advantage


def check_against_episodes(batches: list[Batch], layer: str = "s5") -> set[tuple[bool, bool]]:
    """Compare transitions, values and advantages of all rollouts with whole episodes."""
    agent = scripted(tiny_config(layer))
    kinds = set()
    for index in range(len(batches[0].step.reward)):
        total = sum(int(batch.step.valid[index].sum()) for batch in batches)
        episodes = play(agent, index, total)
        number, begin = 0, 0
        for batch in batches:
            valid = batch.step.valid[index]
            found = valid_rows(batch, index)
            rows: list[tuple[Any, ...]] = []
            values: list[float] = []
            expected: list[float] = []
            while len(rows) < len(found):
                episode = episodes[number]
                end = min(len(episode.rows), begin + len(found) - len(rows))
                rows += episode.rows[begin:end]
                values += episode.values[begin:end]
                expected += episode.advantage(begin, end)
                complete = end == len(episode.rows)
                number, begin = (number + 1, 0) if complete else (number, end)
            assert found == rows
            kinds |= {row[3:] for row in rows}
            assert batch.extras["value"][index][valid].tolist() == pytest.approx(values, abs=1e-5)
            assert advantages(batch)[index][valid].tolist() == pytest.approx(expected, abs=1e-4)
    return kinds


@pytest.mark.parametrize("kind", KINDS)
def test_staggered_rollouts_are_those_of_whole_episodes(kind: str) -> None:
    batches = collect(kind, 3, 7, 6)
    ends = torch.stack([b.step.terminated | b.step.truncated for b in batches]).any(0)
    assert len({tuple(row) for row in ends.tolist()}) == 3  # the environments are staggered
    assert check_against_episodes(batches) == {(False, False), (True, False), (False, True)}


@pytest.mark.parametrize("layer", ["lru", "gru", "lstm"])
def test_every_layer_gives_the_values_of_whole_episodes(layer: str) -> None:
    check_against_episodes(collect("sync next_step", 3, 7, 3, layer), layer)


@pytest.mark.parametrize("kind", ["sync next_step", "sync same_step"])
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 30])
def test_short_and_long_rollouts_of_one_environment_are_right(
    kind: str, num_envs: int, rows: int
) -> None:
    # rows 1 and 2: every episode is longer than the rollout; 30: several in one
    check_against_episodes(collect(kind, num_envs, rows, max(2, 40 // rows)))


def test_all_vectorisations_give_identical_valid_transitions() -> None:
    found = {}
    for kind in KINDS:
        batches = collect(kind, 3, 7, 6)
        found[kind] = [
            [row for batch in batches for row in valid_rows(batch, index)][:30]
            for index in range(3)
        ]
    reference = found[KINDS[0]]
    assert all(len(rows) == 30 for rows in reference)
    for kind, rows in found.items():
        assert rows == reference, kind


@pytest.mark.parametrize("kind", KINDS)
def test_flags_mark_first_observations_and_ignored_actions(kind: str) -> None:
    steps = [batch.step for batch in collect(kind, 3, 7, 6)]
    obs = torch.cat([step.obs["obs"] for step in steps], 1)
    joined = [torch.cat([step[i] for step in steps], 1) for i in range(1, len(Step._fields))]
    step = Step({"obs": obs}, *joined)
    ended = step.terminated | step.truncated
    before = torch.cat([torch.zeros(3, 1, dtype=torch.bool), ended[:, :-1]], 1)
    assert torch.equal(step.is_first, step.obs["obs"][..., 0] == 0)
    assert torch.equal(step.reset, step.is_first)
    if kind.endswith("same_step"):
        assert step.valid.all()
    else:
        assert torch.equal(step.valid, ~before)
        assert (step.reward[before] == 0).all()
        # the ignored row holds the final observation: its count is its length
        assert torch.equal(step.obs["obs"][before][:, 0], step.obs["obs"][before][:, 1])


# --- chaining


def own_agent() -> RecurrentPPO:
    return RecurrentPPO(
        tiny_config(), spaces.Dict({"obs": OBS_SPACE}), ACTION_SPACE, total_steps=1000, seed=0
    )


@pytest.fixture(params=["sync next_step", "sync same_step"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def sampled(kind: str, rows: int, rollouts: int) -> list[Batch]:
    env = make(kind, 3)
    collector = Collector(env, own_agent(), rows)
    collector.start(SEED)
    found = [collector.collect().batch for _ in range(rollouts)]
    env.close()
    return found


@pytest.mark.parametrize("rows", [1, 6])
def test_chained_rollouts_equal_one_long_rollout(kind: str, rows: int) -> None:
    [whole] = sampled(kind, 24, 1)
    parts = sampled(kind, rows, 24 // rows)
    for name in ("is_first", "reset", "action", "reward", "terminated", "truncated", "valid"):
        joined = torch.cat([getattr(part.step, name) for part in parts], 1)
        assert torch.equal(joined, getattr(whole.step, name)), name
    assert torch.equal(
        torch.cat([part.step.obs["obs"] for part in parts], 1), whole.step.obs["obs"]
    )
    for name, values in whole.extras.items():
        assert torch.equal(torch.cat([part.extras[name] for part in parts], 1), values), name
    joined = torch.cat([part.value_tp1 for part in parts], 1)
    # at the seam the value is computed by a step of its own: the same numbers
    assert torch.equal(joined, whole.value_tp1)


def test_a_rollout_begins_with_the_memory_after_the_row_before_it(kind: str) -> None:
    agent = own_agent()
    env = make(kind, 3)
    collector = Collector(env, agent, 5)
    collector.start(SEED)
    state = agent.initial_state(3)
    for _ in range(4):
        batch = collector.collect().batch
        assert batch.state.keys() == state.keys()
        for key, x in batch.state.items():
            assert torch.equal(x, state[key]), key
            assert not x.is_inference()
        for t in range(5):
            obs = {"obs": batch.step.obs["obs"][:, t]}
            flag = batch.step.reset[:, t]
            _, _, state = agent.act(obs, state, flag, flag, explore=False)
    env.close()


def test_training_computes_from_a_batch_what_acting_computed(kind: str) -> None:
    agent = own_agent()
    env = make(kind, 3)
    collector = Collector(env, agent, 13)
    collector.start(SEED)
    for _ in range(3):
        batch = collector.collect().batch
        with torch.no_grad():
            policy, value, _ = agent.network(batch.step.obs, batch.state, batch.step.reset)
            log_prob = policy.log_prob(batch.step.action)
        assert torch.allclose(value, batch.extras["value"], atol=1e-4)
        assert torch.allclose(log_prob, batch.extras["log_prob"], atol=1e-4)
        agent.update(batch)
    env.close()


# --- counting


def test_steps_episodes_returns_and_lengths_are_counted_over_rollouts(kind: str) -> None:
    env = make(kind, 2)
    collector = Collector(env, scripted(), 4)
    collector.start(SEED)
    assert collector.statistics == {}
    rollouts = [collector.collect() for _ in range(15)]
    env.close()
    steps = sum(rollout.num_steps for rollout in rollouts)
    assert steps == sum(int(rollout.batch.step.valid.sum()) for rollout in rollouts)
    returns, lengths = [], []
    for index in range(2):
        rows = [row for rollout in rollouts for row in valid_rows(rollout.batch, index)]
        total, length = 0.0, 0
        for _, _, reward, terminated, truncated in rows:
            total, length = total + reward, length + 1
            if terminated or truncated:
                returns.append(total)
                lengths.append(length)
                total, length = 0.0, 0
    assert sum(rollout.num_episodes for rollout in rollouts) == len(returns)
    assert collector.statistics == {
        "rollout/ep_rew_mean": pytest.approx(np.mean(returns)),
        "rollout/ep_len_mean": pytest.approx(np.mean(lengths)),
    }


class NaNEnv(CounterEnv):
    """Its observation is NaN at the fifth step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        self.steps = getattr(self, "steps", 0) + 1
        return obs * (np.nan if self.steps == 5 else 1), *rest


def test_collection_stops_at_an_observation_that_is_nan() -> None:
    env = make_env(EnvConfig(id="toy", num_envs=1), NaNEnv)
    collector = Collector(env, own_agent(), 10)
    collector.start(SEED)
    with pytest.raises(ValueError, match=r"NaN in 'obs' of environment 0 at step"):
        collector.collect()


# --- going on


@pytest.mark.parametrize("rows", [1, 5])
def test_a_restored_collector_goes_on_bit_for_bit(kind: str, rows: int) -> None:
    def run(num: int, state: dict[str, Any] | None) -> tuple[list[Batch], Any, Any]:
        env, agent = make(kind, 3), own_agent()
        collector = Collector(env, agent, rows)
        if state is None:
            collector.start(SEED)
        else:
            agent.load_state_dict(state["agent"])
            collector.load_state_dict(state["collector"])
        batches = [collector.collect().batch for _ in range(num)]
        saved = {"agent": agent.state_dict(), "collector": collector.state_dict()}
        env.close()
        return batches, saved, collector.statistics

    whole, _, statistics = run(12, None)
    first, saved, _ = run(7, None)
    second, _, resumed = run(5, saved)
    assert resumed == statistics
    for found, expected in zip(first + second, whole, strict=True):
        for name in ("action", "reward", "is_first", "valid"):
            assert torch.equal(getattr(found.step, name), getattr(expected.step, name))
        assert torch.equal(found.step.obs["obs"], expected.step.obs["obs"])
        assert torch.equal(found.value_tp1, expected.value_tp1)
        for key, x in expected.state.items():
            assert torch.equal(found.state[key], x)


def test_environments_that_cannot_be_restored_start_new_episodes_with_fresh_memory() -> None:
    agent = scripted()
    env = make("vector_entry_point next_step", 2)
    assert env.resume == "episode"
    collector = Collector(env, agent, 5)
    collector.start(SEED)
    collector.collect()
    saved = collector.state_dict()
    other = Collector(make("vector_entry_point next_step", 2), agent, 5)
    other.load_state_dict(saved)
    batch = other.collect().batch
    assert batch.step.is_first[:, 0].all()
    assert batch.step.reset[:, 0].all()
    assert (batch.step.obs["obs"][:, 0, 0] == 0).all()
    for key, x in agent.initial_state(2).items():
        assert torch.equal(batch.state[key], x)
