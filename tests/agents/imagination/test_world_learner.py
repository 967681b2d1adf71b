"""A world model that learns from data alone: its batches, its loss by hand, its exact state."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from statewise.agents.imagination.world_learner import (
    S4WMConfig,
    S4WMLossScale,
    S4WMOptimizerConfig,
    S4WMWorldConfig,
    WorldLearner,
)
from statewise.agents.recurrent_ppo import NonFiniteLossError
from statewise.data import (
    DatasetInfo,
    Episode,
    EpisodeDataset,
    SampledBatch,
    StreamConfig,
    StreamSampler,
    TrajectoryConfig,
    TrajectorySampler,
)
from statewise.data.shift import to_arrival
from statewise.nets.latents import kl_divergence
from tests.worldmodels import cases

OPTIMIZER = S4WMOptimizerConfig(learning_rate=1e-2, warmup_updates=0)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "episodes": {},
    "packed": {},
    "stream": {"length": 7},
}


def config(core: str = "s5", *, sampling: str = "episodes", **world: Any) -> S4WMConfig:
    settings = cases.config(core, **world)
    fields = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return S4WMConfig(
        world=S4WMWorldConfig(**fields | {"first_rows": "context"} | world),
        optimizer=OPTIMIZER,
        batch_size=3,
        sampling=sampling,  # type: ignore[arg-type]
        **SAMPLINGS[sampling],
    )


def learner(core: str = "s5", *, seed: int = 0, **changes: Any) -> WorldLearner:
    return made_of(config(core, **changes), seed=seed)


def made_of(settings: S4WMConfig, *, total_updates: int = 10, seed: int = 0) -> WorldLearner:
    return WorldLearner(
        settings, cases.OBS_SPACE, cases.ACTIONS, total_updates=total_updates, seed=seed
    )


def dataset(lengths: tuple[int, ...] = (7, 2, 3, 2, 1, 2)) -> EpisodeDataset:
    draw = np.random.default_rng(0)
    episodes = [
        Episode(
            observations={"obs": draw.normal(size=(n + 1, 3)).astype(np.float32)},
            actions=draw.integers(3, size=n),
            rewards=draw.normal(size=n).astype(np.float32),
            terminated=index % 2 == 0,
            truncated=index % 2 == 1,
        )
        for index, n in enumerate(lengths)
    ]
    return EpisodeDataset.from_episodes(episodes, DatasetInfo())


def batches(made: WorldLearner, count: int, seed: int = 0) -> list[SampledBatch]:
    generator = np.random.default_rng(seed)
    sampling = made.sampling
    if isinstance(sampling, StreamConfig):
        stream = StreamSampler(dataset(), sampling, generator)
        return [stream.sample() for _ in range(count)]
    assert isinstance(sampling, TrajectoryConfig)
    whole = TrajectorySampler(dataset(), sampling, generator)
    return [whole.sample() for _ in range(count)]


def test_the_defaults_are_those_of_the_paper_and_its_figures() -> None:
    world = S4WMConfig().world
    assert (world.loss_scale.dyn, world.loss_scale.rep) == (0.8, 0.2)
    assert world.first_rows == "context"
    assert world.parallel.sequence.kind == "s4d"
    assert (world.latents.num, world.latents.classes) == (32, 32)
    # Other memories need no settings of S4D taken back.
    assert S4WMWorldConfig(core="rssm").core == "rssm"


@pytest.mark.parametrize(
    ("core", "sampling"),
    [("rssm", "episodes"), ("s5", "packed"), ("s4d", "episodes"), ("mamba", "stream")],
)
def test_two_updates_and_two_after_a_restore_are_four(core: str, sampling: str) -> None:
    whole = learner(core, sampling=sampling)
    before = {name: p.detach().clone() for name, p in whole.world.named_parameters()}
    four = batches(whole, 4)
    losses = [whole.update(one) for one in four]
    part = learner(core, sampling=sampling)
    for one in four[:2]:
        part.update(one)
    resumed = learner(core, sampling=sampling, seed=9)
    resumed.load_state_dict(part.state_dict())
    assert resumed.updates_made == 2
    assert [resumed.update(one) for one in four[2:]] == losses[2:]
    after = dict(resumed.world.named_parameters())
    for name, p in whole.world.named_parameters():
        assert torch.equal(p, after[name]), name
        assert not torch.equal(p, before[name]), f"{name} has not moved"
    assert all(name.startswith("world_model/") for name in losses[0])
    assert all(np.isfinite(value) for one in losses for value in one.values())


def test_a_cosine_takes_the_learning_rate_to_zero_over_the_updates_of_the_run() -> None:
    settings = config()
    cosine = dataclasses.replace(settings.optimizer, warmup_updates=2, schedule="cosine")
    made = made_of(dataclasses.replace(settings, optimizer=cosine), total_updates=4)
    (batch,) = batches(made, 1)
    rates = [made.update(batch)["world_model/learning_rate"] for _ in range(4)]
    shares = [0.5, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert rates == pytest.approx([1e-2 * share for share in shares])
    kept = {name: p.clone() for name, p in made.world.state_dict().items()}
    assert made.update(batch)["world_model/learning_rate"] == 0
    assert all(torch.equal(p, kept[name]) for name, p in made.world.state_dict().items())
    made.end_at(10)
    assert made.update(batch)["world_model/learning_rate"] == pytest.approx(1e-2 / 2)
    assert made_of(settings).update(batch)["world_model/learning_rate"] == 1e-2


def pieces(batch: SampledBatch) -> list[tuple[int, int, int]]:
    """Return line, first column and number of the whole episodes of a batch."""
    is_new = batch.step.is_first & batch.step.valid
    return [
        (line, column, number)
        for (line, column), number in zip(
            is_new.nonzero().tolist(), batch.episode.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize(("first_rows", "sampling"), [("context", "episodes"), ("count", "packed")])
def test_the_loss_is_the_mean_over_observations_of_its_weighted_terms(
    first_rows: str, sampling: str
) -> None:
    scale = S4WMLossScale(reward=3.0)
    made = learner("s5", sampling=sampling, first_rows=first_rows, free_nats=0.0, loss_scale=scale)
    # Of three episodes; packed, two share a line.
    batch = next(b for b in batches(made, 20) if (len(b.step.valid) == 3) == (sampling != "packed"))
    world, arrival = made.world, to_arrival(batch.step)
    noise = world.noise(*arrival.counts.shape, generator=torch.Generator().manual_seed(0))
    sums: dict[str, float] = dict.fromkeys(("decoder", "reward", "cont", "dyn", "rep"), 0.0)
    num = 0
    with torch.no_grad():
        for line, column, number in pieces(batch):
            episode = dataset().episode(number)
            state = world.initial_state(1)
            for t in range(len(episode) + 1):
                obs = {"obs": torch.from_numpy(episode.observations["obs"][t : t + 1])}
                action = torch.zeros(1, 3)
                if t:
                    action[0, episode.actions[t - 1]] = 1
                one = noise[line, column + t][None]
                embed = world.encoder(obs)
                state, log_q = world.dynamics.observe_step(embed, action, state, None, one)
                log_p = world.dynamics.prior(state["deter"])
                if t == 0 and first_rows == "context":
                    continue
                num += 1
                z, h = state["stoch"], state["deter"]
                sums["decoder"] += float(world.decoder_loss(z, h, obs)["obs"])
                reward = torch.tensor([episode.rewards[t - 1] if t else 0.0])
                logits = world.reward(torch.cat((h, z.flatten(1)), -1))
                sums["reward"] += float(world.two_hot.loss(logits, reward))
                ends = t == len(episode) and episode.terminated
                logit = world.continue_logit(z, h)
                sums["cont"] += float(torch.nn.functional.softplus(logit if ends else -logit))
                kl = float(kl_divergence(log_q, log_p))
                sums["dyn"] += kl
                sums["rep"] += kl
    seen = world.observe(batch.step.obs, world.action_in(arrival), None, batch.step.reset, noise)
    total = world.loss(batch.step.obs, arrival, seen)[0]
    weights = {"decoder": 1.0, "reward": 3.0, "cont": 1.0, "dyn": 0.8, "rep": 0.2}
    expected = sum(weights[name] * value / num for name, value in sums.items())
    assert float(total.detach()) == pytest.approx(expected, rel=2e-4)
    made.generator.manual_seed(0)
    reported = made.update(batch)
    for name, value in sums.items():
        assert reported[f"world_model/{name}_loss"] == pytest.approx(value / num, rel=2e-4), name


def test_a_line_that_begins_inside_an_episode_is_conditioned_by_its_first_row() -> None:
    made = learner("s5", sampling="stream", first_rows="count")
    step = batches(made, 1)[0].step
    later = step._replace(
        obs={"obs": step.obs["obs"].clone()},
        is_first=torch.zeros_like(step.is_first),
        terminated=torch.zeros_like(step.terminated),
        truncated=torch.zeros_like(step.truncated),
        valid=torch.ones_like(step.valid),
    )
    arrival = to_arrival(later)
    assert not arrival.counts[:, 0].any()
    assert arrival.counts[:, 1:].all()
    assert not made.world.action_in(arrival)[:, 0].any()


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    made = learner()
    batch = batches(made, 1)[0]
    batch.step.obs["obs"][0, 2] = torch.nan
    before = {name: p.detach().clone() for name, p in made.world.named_parameters()}
    with pytest.raises(NonFiniteLossError, match="decoder"):
        made.update(batch)
    assert all(torch.equal(p, before[name]) for name, p in made.world.named_parameters())
    assert made.updates_made == 0


def test_batches_are_drawn_as_the_settings_say() -> None:
    for sampling, packing in (("episodes", "none"), ("packed", "rows")):
        drawn = S4WMConfig(batch_size=5, sampling=sampling, buckets=3).batches()  # type: ignore[arg-type]
        assert drawn == TrajectoryConfig(batch_size=5, buckets=3, packing=packing, final="include")  # type: ignore[arg-type]
    stream = S4WMConfig(batch_size=5, sampling="stream", length=9, starts="episode").batches()
    assert stream == StreamConfig(batch_size=5, length=9, starts="episode", final="include")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"sampling": "stream", "length": 1}, "length: expected at least 2, got 1"),
        ({"length": 9}, "length: would be ignored with sampling 'episodes'"),
        ({"starts": "episode"}, "starts: would be ignored with sampling 'episodes'"),
        ({"sampling": "stream", "buckets": 2}, "buckets: would be ignored with sampling 'stream'"),
    ],
)
def test_settings_that_are_wrong_or_ignored_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S4WMConfig(**changes)


def test_a_state_of_another_model_is_refused_in_one_line() -> None:
    made = learner("s5")
    state = made.state_dict()
    with pytest.raises(ValueError, match=r"weights do not fit: .*: expected .*, got ") as caught:
        learner("rssm").load_state_dict(state)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="expected the keys"):
        made.load_state_dict(state | {"more": 1})
