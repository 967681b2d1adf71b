"""The analytic sets for world models: closed forms, and their environments play them back."""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from statewise.data import ArraySpec, EpisodeDataset, toys
from statewise.data.errors import DataConfigError
from statewise.data.toy_offer import delayed_offer
from statewise.envs.tasks.delayed_offer import DelayedOfferVector
from statewise.envs.tasks.distracting_hallway import DistractingHallwayVector
from statewise.envs.tasks.multi_doors_keys import DOOR, MultiDoorsKeysVector

HALLWAY: Any = partial(toys.distracting_hallway, length=5)
MIXED: Any = partial(toys.distracting_hallway, length=6, low=2)
DOORS: Any = partial(toys.multi_doors_keys, num_keys=3, length=24)


def kinds(data: EpisodeDataset) -> Any:
    """Return (E,) 0 or 1: the channel of the kind in the first view."""
    first = np.stack([episode.observations["obs"][0] for episode in data.episodes()])
    return first.reshape(-1, 5, 5, 3)[:, 0, 2, 1].astype(np.int64)


def widths(data: EpisodeDataset) -> Any:
    """Return (E,) columns of each hallway: its end, an A above a B, is seen 3 columns behind."""
    views = [episode.observations["obs"].reshape(-1, 5, 5, 3) for episode in data.episodes()]
    return np.array([(v[:, 0, 2, 0] * v[:, 4, 2, 1]).argmax() - 3 for v in views])


def binomial_chances(trials: int) -> Any:
    """Return (trials + 1,) the chances of 0, 1, ... successes of 1/3, by convolution."""
    chances = np.ones(1)
    for _ in range(trials):
        chances = np.convolve(chances, [2 / 3, 1 / 3])
    return chances


def prepared(data: EpisodeDataset, name: str) -> Any:
    """Return the environment of a data set before the first step of all its episodes."""
    count, first = len(data), [episode.observations["obs"] for episode in data.episodes()]
    env: Any
    if name == "doors":
        env = MultiDoorsKeysVector(count, num_keys=3, length=24)
        env.reset(seed=0)
        for n, obs in enumerate(first):
            env.arrays["keys"][n] = obs[[0, 1, 2], 4:].argmax(1)  # the first walk, to the end
        return env
    env = DistractingHallwayVector(count, width=int(max(data.lengths)) - 4)
    env.reset(seed=0)
    env.arrays["kind"][:] = kinds(data)
    env.arrays["width"][:], env.arrays["time"][:] = widths(data), data.lengths - 4
    for n, (obs, width) in enumerate(zip(first, env.arrays["width"], strict=True)):
        inner = obs[3 : 3 + width].reshape(-1, 5, 5, 3)[:, 3, 2, 2]  # below the walker
        env.arrays["sides"][n, :width] = inner
    return env


@pytest.mark.parametrize(
    ("name", "make"), [("hallway", HALLWAY), ("widths", MIXED), ("doors", DOORS)]
)
def test_an_environment_plays_its_data_set_back_to_the_last_bit(name: str, make: Any) -> None:
    data = make(30)
    env = prepared(data, name)
    episodes = list(data.episodes())
    obs = env.observe()
    for t in range(max(data.lengths)):
        going = np.flatnonzero(data.lengths > t)
        action = np.zeros(len(data), np.int64)
        for n in going:
            assert np.array_equal(obs[n], episodes[n].observations["obs"][t])
            action[n] = episodes[n].actions[t]
        obs, reward, terminated, truncated, _ = env.step(action)
        for n in going:
            last = t == data.lengths[n] - 1
            assert reward[n] == episodes[n].rewards[t]
            assert terminated[n] == (data.terminated[n] and last)
            assert truncated[n] == (data.truncated[n] and last)
            if last:
                assert np.array_equal(obs[n], episodes[n].observations["obs"][t + 1])
    assert data.has_final.all()
    if name == "widths":
        assert len(set(data.lengths)) == 5


@pytest.mark.parametrize("make", [HALLWAY, MIXED])
def test_the_walker_of_the_hallway_takes_either_side_whatever_the_kind(make: Any) -> None:
    data = make(1200)
    kind, actions = kinds(data), [episode.actions for episode in data.episodes()]
    last = np.array([a[-1] for a in actions])
    assert not any(a[:-1].any() for a in actions)  # it walks
    table = [[((kind == k) & (last == side)).sum() for side in (1, 2)] for k in (0, 1)]
    assert np.square((np.array(table) - 300) / np.sqrt(300)).sum() < 22  # chi^2, 3: P < 1e-4
    assert np.array_equal(data.returns, last == 1 + kind)


def test_times_of_a_mixed_set_are_uniform_and_widths_up_to_them() -> None:
    data = MIXED(1500)
    counts = np.zeros((7, 7))
    np.add.at(counts, (data.lengths - 4, widths(data)), 1)
    n, w = np.indices((7, 7))
    expected = np.where((w >= 2) & (w <= n), 300 / np.maximum(n - 1, 1), 0)
    assert not counts[expected == 0].any()
    chi = ((counts - expected) ** 2)[expected > 0] / expected[expected > 0]
    assert chi.sum() < 43  # 14 degrees: P < 1e-4
    assert (widths(HALLWAY(20)) == 5).all()


def test_the_references_of_the_hallway_are_those_of_random_and_best_actions() -> None:
    # n = w = 2: 5 times walking and the right one of three; one step to spare, 13 of 3^7: all
    # sequences of both are tested on the environment
    assert toys.distracting_hallway(1, length=2).info.ref_min == pytest.approx(3.0**-6)
    mixed = toys.distracting_hallway(1, length=3, low=2).info
    assert mixed.ref_min == pytest.approx((3.0**-6 + (3.0**-7 + 13 * 3.0**-7) / 2) / 2)
    assert mixed.ref_max == 1
    chances = binomial_chances(53 + 3)
    long = [chances[w + 3 :].sum() / 3 for w in range(2, 54)]
    total = toys.random_hallway(2, 53) * 52 - toys.random_hallway(2, 52) * 51
    assert total == pytest.approx(np.mean(long))


def test_the_reference_of_the_doors_is_the_mean_over_all_action_sequences() -> None:
    length = 6  # of two doors and keys: enough to take and use a key twice
    actions = np.array(list(product(range(4), repeat=length))).T
    total = []
    for keys in ((0, 1), (1, 0)):
        env = MultiDoorsKeysVector(4**length, num_keys=2, length=length)
        env.reset(seed=0)
        env.arrays["keys"][:] = keys
        total.append(sum(env.step(row)[1].astype(np.float64) for row in actions).mean())
    assert toys.random_doors(2, length) == pytest.approx(np.mean(total), rel=1e-6)


def test_the_reference_of_more_doors_is_the_mean_of_what_random_actions_return() -> None:
    count, length = 1500, 30
    env = MultiDoorsKeysVector(count, num_keys=5, length=length)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    returns = sum(env.step(rng.integers(4, size=count))[1] for _ in range(length))
    error = np.std(returns) / np.sqrt(count)
    assert toys.random_doors(5, length) == pytest.approx(np.mean(returns), abs=4 * error)


@pytest.mark.parametrize("num_keys", [3, 7])
def test_the_walker_sees_all_rooms_then_takes_and_tries_alike(num_keys: int) -> None:
    data = toys.multi_doors_keys(300, num_keys=num_keys)
    actions = np.stack([episode.actions for episode in data.episodes()])
    obs = np.stack([episode.observations["obs"] for episode in data.episodes()])
    assert (actions[:, : num_keys - 1] == toys.NEXT).all()
    keys = obs[:, :num_keys, num_keys + 1 :].argmax(2)
    assert (np.sort(keys, 1) == np.arange(num_keys)).all()
    deeds = actions[actions >= toys.TAKE]
    assert abs((deeds == toys.TRY).mean() - 0.5) < 4 * 0.5 / np.sqrt(deeds.size)
    # in every room alike; the errands of one episode are independent
    rooms = obs[:, :-1, 1 : num_keys + 1].argmax(2)[:, num_keys:]
    busy = rooms[actions[:, num_keys:] >= toys.TAKE]
    shares = np.bincount(busy, minlength=num_keys) / busy.size
    assert np.abs(shares - 1 / num_keys).max() < 0.03


@pytest.mark.parametrize("num_keys", [3, 5, 7])
def test_half_of_the_doors_that_are_tried_in_the_second_half_open_and_one_row_tells_little(
    num_keys: int,
) -> None:
    data = toys.multi_doors_keys(400, num_keys=num_keys)
    obs = np.stack([episode.observations["obs"] for episode in data.episodes()])
    actions = np.stack([episode.actions for episode in data.episodes()])
    door = obs[:, 1:, DOOR]
    assert np.array_equal(door != 0, actions == toys.TRY)
    half = np.arange(100) >= 50
    tried = (actions == toys.TRY) & half
    assert abs((door[tried] > 0).mean() - 0.5) < 0.05
    # the best guess from the row in which a door is tried: where the hook of the room belongs
    # to its own door, 1 of n, the row says it; elsewhere about half are right
    rows = obs[:, :-1, 1:][tried]
    patterns, group = np.unique(rows, axis=0, return_inverse=True)
    opens = np.bincount(group.ravel(), door[tried] > 0, minlength=len(patterns))
    count = np.bincount(group.ravel(), minlength=len(patterns))
    right = np.maximum(opens, count - opens).sum() / count.sum()
    assert right < 1 / num_keys + (1 - 1 / num_keys) * 0.6


def test_specs_limits_and_ids_are_those_of_the_environments() -> None:
    cases: list[tuple[EpisodeDataset, Any]] = [
        (toys.distracting_hallway(1), DistractingHallwayVector()),
        *((toys.multi_doors_keys(1, num_keys=n), MultiDoorsKeysVector(num_keys=n)) for n in (3, 7)),
    ]
    for data, env in cases:
        assert data.info.env_id == f"statewise/{type(env).__name__.removesuffix('Vector')}-v0"
        spec, space = data.info.obs_specs["obs"], env.single_observation_space
        assert isinstance(spec, ArraySpec)
        assert spec.low is not None
        assert spec.high is not None
        assert np.array_equal(spec.low, space.low)
        assert np.array_equal(spec.high, space.high)
        assert data.info.action_spec is not None
        assert data.info.action_spec.num_choices == (env.single_action_space.n,)
        assert data.info.max_episode_steps == data.lengths[0]
        assert data.episode(0).observations["obs"].dtype == space.dtype
    assert MIXED(1).info.max_episode_steps == 10


@pytest.mark.parametrize("make", [HALLWAY, MIXED, DOORS])
def test_equal_seeds_give_equal_data_and_others_do_not(make: Any) -> None:
    first, same, other = (make(40, seed=seed) for seed in (3, 3, 4))
    for name in ("observations/obs", "actions", "rewards"):
        arrays = [data.source.arrays[name] for data in (first, same, other)]
        assert np.array_equal(arrays[0], arrays[1])
        assert not np.array_equal(arrays[0], arrays[2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: toys.distracting_hallway(0),
        lambda: toys.distracting_hallway(length=1),
        lambda: toys.distracting_hallway(length=4, low=1),
        lambda: toys.distracting_hallway(length=4, low=5),
        lambda: toys.multi_doors_keys(0),
        lambda: toys.multi_doors_keys(num_keys=1),
        lambda: toys.multi_doors_keys(num_keys=7, length=25),
    ],
)
def test_sizes_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(DataConfigError, match=r"expected .*, got"):
        make()


@pytest.mark.parametrize("level", [{}, {"low": 2, "amp": 20.0}, {"takes": 1.0}])
def test_offers_pay_what_the_cue_says_and_nothing_else_depends_on_it(level: Any) -> None:
    data = delayed_offer(1500, length=6, **level)
    mode: Any = "mixed" if "low" in level else "fixed"
    env = DelayedOfferVector(len(data), delay=6, mode=mode, amp=level.get("amp", 4.0))
    env.reset(seed=0)
    episodes = list(data.episodes())
    cue = np.array([int(e.observations["obs"][0, 1] > 0) for e in episodes])
    env.arrays["cue"][:], env.arrays["delay"][:] = cue, data.lengths - 1
    for n, episode in enumerate(episodes):
        env.arrays["noise"][n, : data.lengths[n]] = episode.observations["obs"][:-1, 2]
    obs = env.observe()
    for t in range(max(data.lengths)):
        going = np.flatnonzero(data.lengths > t)
        action = np.ones(len(data), np.int64)
        for n in going:
            assert np.array_equal(obs[n], episodes[n].observations["obs"][t])
            action[n] = episodes[n].actions[t]
        obs, reward, terminated, _, _ = env.step(action)
        for n in going:
            assert reward[n] == episodes[n].rewards[t]
            assert terminated[n] == (t == data.lengths[n] - 1)
    taken = np.array([e.actions[-1] == 0 for e in episodes])
    if "takes" in level:
        assert taken.all()
    else:
        table = [[((cue == c) & (taken == t)).sum() for t in (False, True)] for c in (0, 1)]
        assert np.square((np.array(table) - 375) / np.sqrt(375)).sum() < 22  # chi^2, 3: P < 1e-4
    assert len(set(data.lengths)) == (5 if "low" in level else 1)


@pytest.mark.parametrize("changes", [{"low": 1}, {"low": 11}, {"takes": 1.5}, {"amp": 0}])
def test_offers_out_of_range_are_refused(changes: Any) -> None:
    with pytest.raises(DataConfigError, match="expected 2 <= low"):
        delayed_offer(2, **changes)
