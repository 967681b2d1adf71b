"""DelayedOffer and Catch, and what all tasks for world models share with gymnasium's rules."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from statewise.envs import tasks
from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import EnvError
from statewise.envs.tasks import catch
from statewise.envs.tasks.catch import Catch, CatchVector
from statewise.envs.tasks.delayed_offer import DelayedOffer, DelayedOfferVector
from statewise.envs.tasks.distracting_hallway import DistractingHallway, DistractingHallwayVector
from statewise.envs.tasks.multi_doors_keys import MultiDoorsKeys, MultiDoorsKeysVector
from statewise.nets.encoder import is_image
from tests.envs.world_model_cases import chance_information, information, most_information, play

CASES: list[Any] = [
    pytest.param(DelayedOffer, DelayedOfferVector, {"delay": 3}, id="offer"),
    pytest.param(
        DelayedOffer, DelayedOfferVector, {"delay": 5, "mode": "mixed", "amp": 20.0}, id="mixed"
    ),
    pytest.param(Catch, CatchVector, {}, id="catch"),
    pytest.param(Catch, CatchVector, {"size": 64}, id="catch-64"),
    pytest.param(DistractingHallway, DistractingHallwayVector, {"width": 3}, id="hallway"),
    pytest.param(DistractingHallway, DistractingHallwayVector, {"width": 4, "low": 2}, id="widths"),
    pytest.param(MultiDoorsKeys, MultiDoorsKeysVector, {"length": 12}, id="doors"),
    pytest.param(
        MultiDoorsKeys, MultiDoorsKeysVector, {"num_keys": 5, "length": 19}, id="five-doors"
    ),
]


@pytest.mark.parametrize(("single", "vector", "kwargs"), CASES)
def test_the_vector_is_gymnasiums_vector_of_single_environments_step_for_step(
    single: Any, vector: Any, kwargs: dict[str, Any]
) -> None:
    several = vector(3, **kwargs)
    mode = AutoresetMode.NEXT_STEP
    alone = SyncVectorEnv([partial(single, **kwargs)] * 3, autoreset_mode=mode)
    pair = [env.reset(seed=7) for env in (several, alone)]
    rng, ends = np.random.default_rng(0), 0
    for _ in range(45):
        assert pair[0][0].dtype == several.single_observation_space.dtype
        assert several.observation_space.contains(pair[0][0])
        for ours, theirs in zip(*pair, strict=True):
            if isinstance(theirs, dict):  # the info
                assert ours.keys() == theirs.keys()
                assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
            else:
                assert np.array_equal(ours, theirs)
        action = rng.integers(several.single_action_space.n, size=3)
        pair = [env.step(action) for env in (several, alone)]
        ends += int((pair[0][2] | pair[0][3]).sum())
    assert ends >= 6


@pytest.mark.parametrize(("single", "vector", "kwargs"), CASES)
def test_a_saved_state_goes_on_exactly(single: Any, vector: Any, kwargs: dict[str, Any]) -> None:
    env, other = vector(3, **kwargs), vector(3, **kwargs)
    env.reset(seed=1)
    rng = np.random.default_rng(3)
    actions = rng.integers(env.single_action_space.n, size=(45, 3))
    for action in actions[:8]:
        env.step(action)
    other.load_state_dict(env.state_dict())
    for action in actions[8:]:
        for one, same in zip(env.step(action)[:4], other.step(action)[:4], strict=True):
            assert np.array_equal(one, same)


@pytest.mark.parametrize("name", ["DelayedOffer", "Catch", "DistractingHallway", "MultiDoorsKeys"])
def test_the_ids_reach_the_vector_environments(name: str) -> None:
    assert f"statewise/{name}-v0" in tasks.TASKS
    env = make_env(EnvConfig(id=f"statewise/{name}-v0", num_envs=2))
    obs, is_first = env.reset(seed=0)
    assert len(obs["obs"]) == 2
    assert is_first.all()
    assert env.resume == "exact"
    env.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: DelayedOffer(delay=0),
        lambda: DelayedOffer(delay=1, mode="mixed"),
        lambda: DelayedOffer(mode="random"),  # type: ignore[arg-type]
        lambda: DelayedOffer(pays="cue"),  # type: ignore[arg-type]
        lambda: DelayedOffer(amp=0),
        lambda: DelayedOffer(amp=float("inf")),
        lambda: DelayedOffer(amp=float("nan")),
        lambda: Catch(size=0),
        lambda: Catch(size=40),
        lambda: Catch(ball=2),
        lambda: Catch(ball=17),
        lambda: DistractingHallway(width=1),
        lambda: DistractingHallway(width=5, low=1),
        lambda: DistractingHallway(width=5, low=6),
        lambda: MultiDoorsKeys(num_keys=1),
        lambda: MultiDoorsKeys(num_keys=3, length=9),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(make: Any) -> None:
    with pytest.raises(EnvError, match=r"^expected [^\n]*, got [^\n]* in \w+$"):
        make()


def test_the_rows_of_an_offer_worked_by_hand() -> None:
    env = DelayedOfferVector(2, delay=3, amp=5.0)
    env.reset(seed=0)
    env.arrays["cue"][:] = 0, 1
    env.arrays["noise"][:] = [[1, -1, -1, 1], [-1, 1, -1, -1]]
    seen = [env.observe()] + [env.step(np.zeros(2, np.int64))[0] for _ in range(4)]
    rows = np.stack(seen, 1)
    assert rows[0].tolist() == [[5, 0, 1, 0], [0, 0, -1, 0], [0, 0, -1, 0], [0, 0, 1, 1], [0] * 4]
    assert rows[1].tolist() == [[0, 5, -1, 0], [0, 0, 1, 0], [0, 0, -1, 0], [0, 0, -1, 1], [0] * 4]


@pytest.mark.parametrize("delay", [1, 4])
def test_only_the_action_at_the_question_decides(delay: int) -> None:
    # cue and action in all four combinations; before the question all do the contrary
    cue, action = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    env = DelayedOfferVector(4, delay=delay)
    env.reset(seed=0)
    env.arrays["cue"][:] = cue
    found = play(env, env.observe(), lambda _, t: action if t == delay else 1 - action)
    assert found.ends.tolist() == [delay + 1] * 4
    assert found.reward[:-1].tolist() == [[0] * 4] * delay
    assert found.reward[-1].tolist() == [1, 0, -1, 0]
    assert found.success.tolist() == [True, False, False, True]
    judged = DelayedOfferVector(4, delay=delay, pays="decision")
    judged.reset(seed=0)
    judged.arrays["cue"][:] = cue
    found = play(judged, judged.observe(), lambda _, t: action if t == delay else 1 - action)
    assert found.reward[:-1].tolist() == [[0] * 4] * delay
    assert found.reward[-1].tolist() == found.success.tolist()


@pytest.mark.parametrize("mode", ["fixed", "mixed"])
def test_memory_earns_one_for_each_good_offer_and_is_always_right(mode: Any) -> None:
    env = DelayedOfferVector(400, delay=6, mode=mode)
    first, _ = env.reset(seed=0)
    cue = first[:, 1] > 0
    found = play(env, first, lambda *_: cue.astype(np.int64))
    assert found.success.all()
    assert np.array_equal(found.reward.sum(0), ~cue)
    # the optimum 0.5: half of the cues are 0, four standard errors
    assert found.reward.sum(0).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(400))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_policy_that_does_not_see_the_cue_earns_exactly_nothing_over_both_cues(
    seed: int,
) -> None:
    # two environments with one seed, the cue exchanged in the second: what is seen after row 0
    # is the same, and so are a policy's actions, whatever it makes of noise and question
    pair = []
    for flip in (0, 1):
        env = DelayedOfferVector(50, delay=7, mode="mixed")
        env.reset(seed=seed)
        env.arrays["cue"] ^= flip
        actions = np.random.default_rng(seed).integers(2, size=(8, 50))
        pair.append(play(env, env.observe(), lambda _, t, actions=actions: actions[t]))
    assert np.array_equal(pair[0].ends, pair[1].ends)
    for t in range(1, 9):
        before_the_end = pair[0].ends >= t
        assert np.array_equal(pair[0].obs[t][before_the_end], pair[1].obs[t][before_the_end])
    assert not np.array_equal(pair[0].obs[0], pair[1].obs[0])
    assert not (pair[0].reward + pair[1].reward).any()
    assert (pair[0].success ^ pair[1].success).all()


@pytest.mark.parametrize("mode", ["fixed", "mixed"])
def test_nothing_after_the_first_row_tells_the_cue_of_an_offer(mode: Any) -> None:
    count = 3000
    env = DelayedOfferVector(count, delay=5, mode=mode)
    first, _ = env.reset(seed=0)
    cue = env.arrays["cue"].copy()
    found = play(env, first, lambda *_: np.zeros(count, np.int64))
    rows = found.obs[1:].copy()
    for n, end in enumerate(found.ends):
        rows[end:, n] = 0  # a new episode
    assert information(cue, first[:, 0] > 0) == pytest.approx(1, abs=0.01)
    assert most_information(cue, rows) < chance_information(count, rows[:, 0].size)
    assert information(cue, found.ends) < chance_information(count, 5)
    # all of the noise together: 2^6 patterns, so that 2 n ln(2) bits are chi^2 with 63 degrees
    env.reset(seed=0)
    pattern = (env.arrays["noise"] > 0) @ 2 ** np.arange(6)
    degrees = 63
    limit = (degrees + 6 * np.sqrt(2 * degrees)) / (2 * np.log(2) * count)
    assert information(env.arrays["cue"], pattern) < limit


def test_mixed_delays_are_uniform_from_two_and_cues_and_noise_fair() -> None:
    count = 2000
    env = DelayedOfferVector(count, delay=6, mode="mixed")
    env.reset(seed=0)
    delays = np.bincount(env.arrays["delay"], minlength=7)
    assert delays[:2].tolist() == [0, 0]
    assert ((delays[2:] - 400) ** 2 / 400).sum() < 25  # chi^2, 4 degrees: P < 1e-4
    for name in ("cue", "noise"):
        values = env.arrays[name] > 0
        assert abs(values.mean() - 0.5) < 4 * 0.5 / np.sqrt(values.size)
    assert set(np.unique(env.arrays["noise"])) == {-1, 1}
    fixed = DelayedOfferVector(20, delay=6)
    fixed.reset(seed=0)
    assert set(fixed.arrays["delay"]) == {6}


def test_a_ball_falls_straight_and_the_paddle_moves_one_field() -> None:
    env = CatchVector(1, ball=1)
    env.reset(seed=3)
    env.arrays["column"][:] = 5
    walk = [catch.LEFT] * 9 + [catch.STAY] + [catch.RIGHT] * 5
    middles, picture = [8], env.observe()[0]
    for t, action in enumerate(walk):
        ball = np.argwhere(picture[..., 0])
        assert ball.tolist() == [[t, 5]]
        assert np.array_equal(picture[..., 0], picture[..., 1])
        paddle = np.argwhere(picture[..., 2])
        assert paddle.tolist() == [[15, middles[-1] + offset] for offset in (-1, 0, 1)]
        picture = env.step(np.array([action]))[0][0]
        middles.append(int(np.argwhere(picture[..., 2])[1, 1]))
    assert middles == [8, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1, 2, 3, 4, 5, 6]
    assert picture[15, 5].tolist() == [255, 255, 255]  # caught: the colours add up
    assert np.unique(picture).tolist() == [0, 255]


@pytest.mark.parametrize("reach", [1, 2])
def test_a_larger_ball_is_drawn_around_its_middle_and_cut_off_at_the_edge(reach: int) -> None:
    point, ball = CatchVector(16, ball=1), CatchVector(16, ball=2 * reach + 1)
    for env in (point, ball):
        env.reset(seed=0)
        env.arrays["column"][:] = np.arange(16)
    for row in range(16):
        for env in (point, ball):
            env.arrays["row"][:] = row
        wide = np.pad(point.observe()[..., 0], ((0, 0), (reach, reach), (reach, reach)))
        near = [
            wide[:, i : i + 16, j : j + 16]
            for i in range(2 * reach + 1)
            for j in range(2 * reach + 1)
        ]
        seen = ball.observe()
        assert seen.dtype == np.uint8
        assert np.array_equal(seen[..., 0], np.max(near, 0))
        assert np.array_equal(seen[..., 0], seen[..., 1])
        assert np.array_equal(seen[..., 2], point.observe()[..., 2])


def test_a_larger_picture_shows_the_same_board() -> None:
    boards, large = CatchVector(8), CatchVector(8, size=64)
    for small, big in zip((boards.reset(seed=0)[0],), (large.reset(seed=0)[0],), strict=True):
        assert big.shape == (8, 64, 64, 3)
        assert np.array_equal(big, np.kron(small, np.ones((1, 4, 4, 1), np.uint8)))
    assert all(is_image(env.single_observation_space) for env in (boards, large))


@pytest.mark.parametrize("seed", range(4))
def test_whoever_does_not_look_catches_exactly_three_of_sixteen_columns(seed: int) -> None:
    env = CatchVector(16)
    env.reset(seed=seed)
    env.arrays["column"][:] = np.arange(16)
    actions = np.random.default_rng(seed).integers(3, size=15)
    actions = np.where(np.arange(15) < 4 * seed, 0, actions)  # some run into the wall
    found = play(env, env.observe(), lambda _, t: np.full(16, actions[t]))
    assert found.ends.tolist() == [15] * 16
    assert not found.reward[:-1].any()
    assert found.reward[-1].mean() == -0.625
    assert np.array_equal(found.success, found.reward[-1] > 0)


def test_whoever_follows_the_ball_catches_it_from_every_column() -> None:
    env = CatchVector(16, size=32, ball=1)
    env.reset(seed=0)
    env.arrays["column"][:] = np.arange(16)

    def follow(obs: Any, _: int) -> Any:
        ball = obs[..., 0].any(1).argmax(1) // 2
        middle = obs[..., 2].any(1).argmax(1) // 2 + 1
        return 1 + np.sign(ball - middle)

    found = play(env, env.observe(), follow)
    assert found.success.all()
    assert found.reward[-1].tolist() == [1] * 16


def test_balls_fall_in_every_column_alike() -> None:
    env = CatchVector(1600)
    env.reset(seed=0)
    counts = np.bincount(env.arrays["column"], minlength=16)
    assert len(counts) == 16
    assert ((counts - 100) ** 2 / 100).sum() < 45  # chi^2, 15 degrees: P < 1e-4
