"""Open-loop evaluation: states handed over exactly, errors by hand, rewards told apart."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.data.shift import to_arrival
from statewise.data.step import Step
from statewise.worldmodels.entries import read_space
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.open_loop import (
    Errors,
    OpenLoop,
    as_numbers,
    half,
    hand_over,
    mean_square,
    rows_from,
    summarize,
    summarize_errors,
    summarize_rewards,
)
from tests.tolerance import assert_close
from tests.worldmodels import cases

CORES = ("rssm", "rssm_observation", "s5", "mamba", "s4d")
ROWS = (9, 4, 7)  # observations of the episodes


def episodes(rows: tuple[int, ...] = ROWS) -> Step:
    """Return episodes with final observations, padded on the right, float64."""
    draw = torch.Generator().manual_seed(3)
    B, T = len(rows), max(rows)
    count = torch.tensor(rows)[:, None]
    t = torch.arange(T)[None]
    valid, last = t < count - 1, t == count - 2
    obs = torch.randn(B, T, 3, generator=draw, dtype=torch.float64)
    return Step(
        obs={"obs": torch.where((t < count)[..., None], obs, 0.0)},
        is_first=(t == 0).expand(B, T),
        reset=(t == 0).expand(B, T),
        action=torch.randint(3, (B, T), generator=draw),
        reward=torch.where(valid, torch.randn(B, T, generator=draw, dtype=torch.float64), 0.0),
        terminated=last & (torch.arange(B)[:, None] % 2 == 0),
        truncated=last & (torch.arange(B)[:, None] % 2 == 1),
        valid=valid,
    )


def loop(made: WorldModel, context: tuple[int, ...] | None = None, **given: Any) -> OpenLoop:
    seen = None if context is None else torch.tensor(context)
    return OpenLoop(made, episodes(), seen, torch.Generator().manual_seed(0), **given)


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, torch.float64, max(ROWS))


def test_rows_are_taken_from_where_each_line_begins() -> None:
    x = torch.arange(12).reshape(2, 6)
    assert rows_from(x, torch.tensor([1, 4]), 3).tolist() == [[1, 2, 3], [10, 11, 11]]
    assert rows_from(x, torch.tensor([-2, 0]), 3).tolist() == [[0, 0, 0], [6, 7, 8]]


@pytest.mark.parametrize("core", CORES)
def test_one_imagined_step_after_all_but_one_row_is_the_prior_of_that_row(core: str) -> None:
    made, step = cases.model(core), episodes((8,))
    arrival = to_arrival(step)
    with torch.no_grad():
        noise = made.noise(1, 8, generator=torch.Generator().manual_seed(1))
        action = made.action_in(arrival)
        seen = made.observe(step.obs, action, None, step.reset, noise)
        start = hand_over(made, step, arrival, torch.tensor([7]), noise)
        after, log_p = made.dynamics.imagine_step(action[:, 7], start, noise[:, 7])
    close(log_p, seen.log_p[:, 7])
    close(after["deter"], seen.deter[:, 7])


@pytest.mark.parametrize("core", CORES)
def test_contexts_of_different_lengths_are_handed_over_as_each_alone(core: str) -> None:
    made, step = cases.model(core), episodes()
    arrival, context = to_arrival(step), (5, 1, 3)
    with torch.no_grad():
        noise = made.noise(3, max(ROWS), generator=torch.Generator().manual_seed(1))
        action = made.action_in(arrival)
        together = hand_over(made, step, arrival, torch.tensor(context), noise)
        for b, C in enumerate(context):
            state = made.initial_state(1)
            for t in range(C):
                obs = {"obs": step.obs["obs"][b : b + 1, t]}
                one = noise[b : b + 1, t]
                state = made.observe_step(obs, action[b : b + 1, t], state, None, one)
            assert together.keys() == state.keys()
            for key, x in state.items():
                close(together[key][b : b + 1], x)


def test_a_rollout_is_the_loop_of_imagined_steps_with_the_recorded_actions() -> None:
    made = cases.model("s5")
    one = loop(made, (5, 1, 3))
    assert one.rest.mask.sum(1).tolist() == [4, 3, 4]
    before = one.generator.get_state()
    rollout = one.imagine()
    one.generator.set_state(before)
    noise = made.noise(4, 3, generator=one.generator)
    action = made.action_in(one.arrival)
    for b, C in enumerate((5, 1, 3)):
        state = {key: x[b : b + 1] for key, x in one._start.items()}
        for i in range(ROWS[b] - C):
            with torch.no_grad():
                state, _ = made.dynamics.imagine_step(
                    action[b : b + 1, C + i], state, noise[i, b : b + 1]
                )
            close(rollout.deter[b, i], state["deter"][0])
            assert torch.equal(rollout.stoch[b, i], state["stoch"][0])


def test_errors_are_those_of_each_row_alone_and_0_behind_the_end() -> None:
    made = cases.model("rssm")
    one = loop(made)
    assert one.context.tolist() == [4, 2, 3]
    rollout = one.imagine()
    errors = one.errors(rollout)
    for b in range(3):
        for i in range(5):
            t = int(one.context[b]) + i
            if t >= ROWS[b]:
                assert errors.loss["obs"][b, i] == errors.mse["obs"][b, i] == 0
                assert not errors.numbers["obs"][b, i].any()
                continue
            truth = one.step.obs["obs"][b, t]
            with torch.no_grad():
                z, h = rollout.stoch[b, i], rollout.deter[b, i]
                loss = made.decoder_loss(z, h, {"obs": truth})["obs"]
                predicted = made.decode(z, h)["obs"]
            close(errors.loss["obs"][b, i], loss)
            close(errors.mse["obs"][b, i], (predicted - truth).square().mean())
            close(errors.numbers["obs"][b, i], (predicted - truth).square())


def test_a_measure_has_the_means_of_its_rollouts_and_the_reward_of_the_last_row() -> None:
    made = cases.model("s5")
    measured = loop(made, (5, 1, 3)).measure(2)
    again = loop(made, (5, 1, 3))
    rollouts = [again.imagine(), again.imagine()]
    means = torch.stack([again.errors(one).loss["obs"] for one in rollouts]).mean(0)
    close(measured.generation.loss["obs"], means)
    assert not torch.equal(*(again.errors(one).loss["obs"] for one in rollouts))
    with torch.no_grad():
        for b, n in enumerate(ROWS):
            last = n - 1 - (5, 1, 3)[b]
            assert measured.reward[b] == again.step.reward[b, n - 2]
            for i, one in enumerate(rollouts):
                reward = made.predict_reward(one.stoch[b, last], one.deter[b, last])
                close(measured.imagined[b, i], reward)
            reward = made.predict_reward(again.seen.stoch[b, n - 1], again.seen.deter[b, n - 1])
            close(measured.inferred[b], reward)
    seen = again.errors(type(again.seen)(*map(again.rest.take, again.seen)))
    close(measured.reconstruction.mse["obs"], seen.mse["obs"])


def test_a_horizon_cuts_the_rest() -> None:
    made = cases.model("rssm")
    one = loop(made, (5, 1, 3), horizon=2)
    assert one.rest.mask.tolist() == [[True, True]] * 3
    assert one.imagine().deter.shape[1] == 2


@pytest.mark.parametrize("context", [(9, 1, 1), (1, 0, 1), (1, 1, 8)])
def test_a_context_that_leaves_nothing_is_refused_in_one_line(context: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"context: expected .* of episode \d, got") as caught:
        loop(cases.model("rssm"), context)
    assert "\n" not in str(caught.value)


def test_half_of_an_episode_is_at_least_one_row() -> None:
    assert half(torch.tensor([2, 3, 4, 9])).tolist() == [1, 1, 2, 4]


def test_mean_squares_are_in_the_units_of_the_observation() -> None:
    space = spaces.Dict(
        {
            "cell": spaces.MultiDiscrete([2, 3], start=[1, 0]),
            "eye": spaces.Box(0, 255, (64, 64, 1), np.uint8),
            "x": spaces.Box(-1, 1, (2,), np.float32),
        }
    )
    entries = {entry.key: entry for entry in read_space(space)}
    x = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    assert mean_square(entries["x"], x + torch.tensor([1.0, 3.0]), x).tolist() == [5.0, 5.0]
    eye = torch.full((2, 64, 64, 1), 51, dtype=torch.uint8)
    assert (
        mean_square(entries["eye"], torch.full((2, 64, 64, 1), 0.7), eye).tolist()
        == [pytest.approx(0.25)] * 2
    )
    cell = torch.tensor([[2, 0], [1, 2]])
    assert as_numbers(entries["cell"], cell).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    uniform = torch.tensor([0.5, 0.5, 0.0, 1.0, 0.0]).expand(2, 5)
    found = mean_square(entries["cell"], uniform, cell)
    assert found.tolist() == pytest.approx([2.5 / 5, 2.5 / 5])


def test_summaries_weigh_rows_and_not_episodes() -> None:
    masks = [torch.tensor([[True, True, False]]), torch.tensor([[True], [True]])]
    both = torch.tensor([[[0.5, 1.5], [2.0, 0.0]]])
    parts = [
        Errors(
            {"a": torch.tensor([[3.0, 5.0, 0.0]])},
            {"a": torch.tensor([[1.0, 1.0, 0.0]])},
            {"a": both},
        ),
        Errors(
            {"a": torch.tensor([[1.0], [2.0]])},
            {"a": torch.tensor([[0.0], [2.0]])},
            {"a": torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]])},
        ),
    ]
    masks[0] = masks[0][:, :2]
    parts[0] = Errors(*({"a": x["a"][:, :2]} for x in parts[0]))
    found = summarize_errors(parts, masks)
    assert found["loss"] == (3 + 5 + 1 + 2) / 4
    entry = found["entries"]["a"]
    assert entry["loss_per_step"] == [2.0, 5.0]
    assert entry["mse"] == 1.0
    assert entry["mse_per_step"] == [1.0, 1.0]
    assert entry["mse_per_number"] == [5.5 / 4, 2.5 / 4]


def test_rewards_are_told_apart_by_the_nearest_value() -> None:
    reward = torch.tensor([1.0, 0.0, 0.0, -1.0])
    inferred = torch.tensor([0.6, 0.4, -0.6, -5.0])
    imagined = torch.tensor([[0.4, 0.9], [0.0, 0.1], [0.6, 0.6], [-0.1, 0.1]])
    found = summarize_rewards(reward, inferred, imagined)
    assert found["chance"] == 0.5
    assert found["accuracy_inference"] == 0.75
    assert found["accuracy_imagination"] == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert found["sign_inference"] == 1.0
    assert found["sign_imagination"] == pytest.approx((1 + 1 + 1 + 0) / 4)
    assert [(row["reward"], row["episodes"]) for row in found["values"]] == [
        (-1.0, 1),
        (0.0, 2),
        (1.0, 1),
    ]
    assert [row["imagination"] for row in found["values"]] == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("reward", [torch.zeros(5), torch.arange(20.0)])
def test_equal_and_continuous_rewards_have_no_accuracy(reward: Tensor) -> None:
    found = summarize_rewards(reward, reward, reward[:, None])
    assert found["chance"] is found["accuracy_inference"] is found["accuracy_imagination"] is None
    assert (found["sign_inference"] is None) == (not reward.any())


def test_a_summary_of_parts_is_that_of_all_episodes() -> None:
    made = cases.model("rssm")
    parts = [loop(made, (5, 1, 3)).measure(2), loop(made).measure(2)]
    found = summarize(parts)
    assert found["episodes"] == 6
    assert found["rows"] == (4 + 3 + 4) + (5 + 2 + 4)
    total = sum(float(part.generation.loss["obs"].sum()) for part in parts)
    assert found["generation"]["loss"] == pytest.approx(total / found["rows"])
    assert len(found["generation"]["entries"]["obs"]["mse_per_step"]) == 5
