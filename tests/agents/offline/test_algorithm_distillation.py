"""Algorithm Distillation: what a step is told, and that acting is what was learned."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.offline.algorithm_distillation import (
    AlgorithmDistillation,
    AlgorithmDistillationConfig,
)
from statewise.data import EpisodeDataset
from statewise.data.episode import Episode
from statewise.data.history_sampler import HistoryConfig, HistorySampler
from statewise.data.samplers import SampledBatch
from statewise.ssm.attention import AttentionConfig
from statewise.ssm.build import SequenceConfig
from tests.agents.offline.sequence_cases import BOX, DISCRETE, OBS_SPACE, statistics_of
from tests.tolerance import assert_close

SMALL: dict[str, Any] = {
    "s5": {},
    "gru": {},
    "mamba": {},
    "attention": {"attention": AttentionConfig(context=5)},
}


def histories(count: int = 2, episodes: int = 4, *, discrete: bool = True) -> EpisodeDataset:
    """Return histories of random steps, one to three per episode."""
    rng, made = np.random.default_rng(0), []
    for number in list(range(episodes)) * count:
        n = int(rng.integers(1, 4))
        box = rng.uniform(BOX.low, BOX.high, (n, 2)).astype(np.float32)
        made.append(
            Episode(
                observations={"obs": rng.normal(1, 2, (n + 1, 3)).astype(np.float32)},
                actions=rng.integers(3, size=n) if discrete else box,
                rewards=rng.normal(size=n).astype(np.float32),
                terminated=True,
                truncated=False,
                infos={"history_episode": np.full(n, number)},
            )
        )
    return EpisodeDataset.from_episodes(made)


def agent_for(
    data: EpisodeDataset, kind: Any = "s5", space: spaces.Space[Any] = DISCRETE, **changes: Any
) -> AlgorithmDistillation:
    sequence = SequenceConfig(kind=kind, num_layers=1, d_model=8, **SMALL[kind])
    settings = {"warmup_updates": 2, "sequence": sequence, "reward_scale": 0.5} | changes
    return AlgorithmDistillation(
        AlgorithmDistillationConfig(**settings),
        OBS_SPACE,
        space,
        statistics=statistics_of(data),
        total_updates=100,
        seed=0,
    )


def window(data: EpisodeDataset, length: int = 6) -> SampledBatch:
    config = HistoryConfig(length=length, batch_size=3)
    batch = HistorySampler(data, config, np.random.default_rng(1)).sample()
    assert isinstance(batch, SampledBatch)
    return batch


def predictions(agent: AlgorithmDistillation, batch: SampledBatch) -> Tensor:
    """Return what the policy predicts for every step of windows, (B, T, A)."""
    agent.policy.eval()
    with torch.no_grad():
        y: Tensor = agent.policy(agent.policy.rows(batch))
    return y


def told(agent: AlgorithmDistillation, batch: SampledBatch, t: int) -> dict[str, Tensor]:
    """Return the observation that an environment shows at step t, by its own rules."""
    step = batch.step
    shown = {
        "obs": step.obs["obs"][:, t],
        "previous_action": torch.zeros(3, agent.policy.code.width),
        "previous_reward": torch.zeros(3, 1),
        "first_step": step.is_first[:, t, None].float(),
    }
    if t:  # an environment keeps both over the ends of episodes
        action = step.action[:, t - 1]
        shown["previous_action"] = action if action.dim() > 1 else torch.eye(3)[action]
        shown["previous_reward"] = step.reward[:, t - 1, None]
    return shown


@pytest.mark.parametrize("memory", ["history", "episode"])
@pytest.mark.parametrize("kind", SMALL)
def test_acting_step_by_step_is_the_window_it_was_trained_on(kind: str, memory: str) -> None:
    data = histories()
    agent = agent_for(data, kind, memory=memory)
    batch = window(data)
    assert batch.step.is_first[:, 1:].any()
    expected, state = predictions(agent, batch), agent.initial_state(3)
    for t in range(6):
        at_edge = torch.full((3,), t == 0)
        # is_first is told at the start alone, as of a trial that is played as one episode
        arrived = agent.arrived(told(agent, batch, t), at_edge, at_edge)
        with torch.no_grad():
            got, state = agent.acting.act(arrived, state)
        assert_close(got, expected[:, t], torch.float32, 6)


def test_box_actions_are_told_with_the_codes_that_were_learned_from() -> None:
    data = histories(discrete=False)
    agent = agent_for(data, space=BOX)
    batch = window(data)
    rows, no = agent.policy.rows(batch), torch.zeros(3, dtype=torch.bool)
    for t in range(1, 6):
        arrived = agent.arrived(told(agent, batch, t), no, no)
        assert torch.equal(arrived.previous, rows.previous[:, t])
        assert torch.equal(arrived.obs, rows.obs[:, t])
        heard = torch.stack((0.5 * batch.step.reward[:, t - 1], batch.step.is_first[:, t]), -1)
        assert torch.equal(arrived.obs[:, -2:], heard)


@pytest.mark.parametrize(("memory", "reaches"), [("history", True), ("episode", False)])
def test_what_ended_an_episode_is_known_in_the_next_unless_memory_ends_with_it(
    memory: str, reaches: bool
) -> None:
    data = histories()
    agent = agent_for(data, memory=memory)
    batch = window(data)
    start = int(batch.step.is_first[0, 1:].nonzero()[0, 0]) + 1
    before = predictions(agent, batch)
    for name in ("reward", "action"):
        changed = getattr(batch.step, name).clone()
        changed[0, start - 1] = (changed[0, start - 1] + 1) % 3
        other = batch._replace(step=batch.step._replace(**{name: changed}))
        moved = (predictions(agent, other) - before).abs().amax(-1)
        assert (moved[0, start:] > 0).any() == reaches
        assert (moved[0, start] > 0) == reaches
        assert not moved[0, :start].any()
        assert not moved[1:].any()


def test_a_reward_that_is_not_finite_before_a_cleared_memory_does_not_pass() -> None:
    data = histories()
    agent = agent_for(data)
    shown = told(agent, window(data), 1)
    shown["previous_reward"][1] = torch.nan
    reset = torch.tensor([False, True, False])
    _, _, state = agent.act(shown, agent.initial_state(3), reset, reset, explore=False)
    assert all(value.isfinite().all() for value in state.values())


def search_histories(count: int = 64) -> EpisodeDataset:
    """Return histories of one-step episodes: arms 0, 1, 2 are tried, then the one that paid."""
    rng, episodes = np.random.default_rng(0), []
    for _ in range(count):
        arm = int(rng.integers(3))
        for number, action in enumerate([0, 1, 2, arm, arm]):
            episodes.append(
                Episode(
                    observations={"obs": np.ones((2, 3), np.float32)},
                    actions=np.array([action]),
                    rewards=np.array([action == arm], np.float32),
                    terminated=True,
                    truncated=False,
                    infos={"history_episode": np.array([number])},
                )
            )
    return EpisodeDataset.from_episodes(episodes)


def test_it_learns_to_find_out_what_pays_and_to_do_that() -> None:
    data = search_histories()
    agent = agent_for(data, learning_rate=3e-2, context=5, batch_size=16, reward_scale=1.0)
    assert isinstance(agent.sampling, HistoryConfig)
    sampler = HistorySampler(data, agent.sampling, np.random.default_rng(0))
    for _ in range(40):
        agent.update(sampler.sample())
    paid, state, reward = torch.arange(3), agent.initial_state(3), torch.zeros(3, 1)
    action, tried = torch.zeros(3, 3), []
    for t in range(5):
        flag = torch.full((3,), t == 0)
        shown = {
            "obs": torch.ones(3, 3),
            "previous_action": action,
            "previous_reward": reward,
            "first_step": torch.ones(3, 1),
        }
        chosen, _, state = agent.act(shown, state, flag, flag, explore=False)
        tried.append(chosen)
        action, reward = torch.eye(3)[chosen], (chosen == paid).float()[:, None]
    assert torch.stack(tried).T.tolist() == [[0, 1, 2, arm, arm] for arm in range(3)]


def test_observations_are_scaled_by_the_data_or_left_as_they_are() -> None:
    data = histories()
    step, (mean, std) = window(data).step, statistics_of(data)
    x = step.obs["obs"]
    for key, shift, scale in (("data", mean["obs"], std["obs"]), ("none", 0.0, 1.0)):
        found = agent_for(data, obs_scale=key).policy.rows(window(data)).obs[..., :3]
        assert_close(found, (x - torch.as_tensor(shift)) / torch.as_tensor(scale), x.dtype, 1)


def test_settings_out_of_range_are_refused() -> None:
    for key, words in (
        ("context", "at least 1"),
        ("every", "at least 1"),
        ("reward_scale", "a positive number"),
        ("ssm_lr_factor", "a positive number"),
        ("learning_rate", "a positive number"),
    ):
        with pytest.raises(ValueError, match=f"{key}: expected {words}, got 0"):
            AlgorithmDistillationConfig(**{key: 0})
