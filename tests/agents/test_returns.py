"""Advantages and returns: hand-worked numbers, ends of episodes, and the authors' arrays."""

import numpy as np
import pytest
import torch
from torch import Tensor

from statewise.agents.returns import generalized_advantage, lambda_return
from tests.golden_files import batch_first, load
from tests.tolerance import GOLDEN_VALUE, assert_close, assert_within

NAN, INF = float("nan"), float("inf")
DOUBLE = torch.float64


def _row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=DOUBLE)


def _flags(*values: int) -> Tensor:
    return torch.tensor([values], dtype=torch.bool)


# hand-worked numbers


def test_three_steps_without_an_end_worked_by_hand():
    # discount 0.5, trace 0.5, so each advantage adds a quarter of the next.
    # delta = 1 + 0.5*2 - 1 = 1;  2 + 0.5*4 - 2 = 2;  3 + 0.5*8 - 4 = 3.
    # adv_2 = 3; adv_1 = 2 + 3/4 = 2.75; adv_0 = 1 + 2.75/4 = 1.6875.
    no_end = _flags(0, 0, 0)
    advantage, target = generalized_advantage(
        _row(1, 2, 3), _row(1, 2, 4), _row(2, 4, 8), no_end, no_end, discount=0.5, trace=0.5
    )
    assert advantage.tolist() == [[1.6875, 2.75, 3.0]]
    assert target.tolist() == [[2.6875, 4.75, 7.0]]  # advantage + value


def test_a_termination_cuts_the_bootstrap_and_the_trace():
    # As above with the episode terminated at t = 1:
    # delta_1 = 2 + 0 - 2 = 0; adv_1 = 0 (nothing from t = 2); adv_0 = 1 + 0/4 = 1.
    advantage, _ = generalized_advantage(
        _row(1, 2, 3), _row(1, 2, 4), _row(2, 4, 8), _flags(0, 1, 0), _flags(0, 0, 0),
        discount=0.5, trace=0.5,
    )  # fmt: skip
    assert advantage.tolist() == [[1.0, 0.0, 3.0]]


def test_a_truncation_keeps_the_bootstrap_and_cuts_the_trace():
    # As above but truncated at t = 1: delta_1 = 2 + 0.5*4 - 2 = 2 = adv_1; adv_0 = 1 + 2/4 = 1.5.
    advantage, _ = generalized_advantage(
        _row(1, 2, 3), _row(1, 2, 4), _row(2, 4, 8), _flags(0, 0, 0), _flags(0, 1, 0),
        discount=0.5, trace=0.5,
    )  # fmt: skip
    assert advantage.tolist() == [[1.5, 2.0, 3.0]]


def test_a_row_that_is_no_step_counts_as_no_time():
    # The three steps above, with rows before the first, after the second, and last.
    none = _flags(0, 0, 0, 0, 0, 0)
    advantage, _ = generalized_advantage(
        _row(NAN, 1, 2, NAN, 3, NAN), _row(5, 1, 2, NAN, 4, NAN), _row(5, 2, 4, 5, 8, 5),
        none, none,
        discount=0.5, trace=0.5, valid=_flags(0, 1, 1, 0, 1, 0),
    )  # fmt: skip
    assert advantage[0, [1, 2, 4]].tolist() == [1.6875, 2.75, 3.0]


def test_termination_wins_where_both_flags_are_set():
    advantage, _ = generalized_advantage(
        _row(2), _row(2), _row(4), _flags(1), _flags(1), discount=0.5, trace=0.5
    )
    assert advantage.tolist() == [[0.0]]
    target = lambda_return(_row(2), _row(4), _flags(1), _flags(1), discount=0.5, trace=0.5)
    assert target.tolist() == [[2.0]]


def test_lambda_returns_of_three_steps_worked_by_hand():
    # discount 0.5, trace 0.5, value_tp1 = 2, 4, 8.
    # R_2 = 3 + 0.5*8 = 7 (the window ends: the full bootstrap).
    # R_1 = 2 + 0.5*(0.5*4 + 0.5*7) = 4.75; R_0 = 1 + 0.5*(0.5*2 + 0.5*4.75) = 2.6875.
    no_end = _flags(0, 0, 0)
    target = lambda_return(_row(1, 2, 3), _row(2, 4, 8), no_end, no_end, discount=0.5, trace=0.5)
    assert target.tolist() == [[2.6875, 4.75, 7.0]]


def test_lambda_returns_at_a_termination_and_at_a_truncation_worked_by_hand():
    # Terminated at t = 1: R_1 = 2; R_0 = 1 + 0.5*(0.5*2 + 0.5*2) = 2.
    reward, value_tp1, none, at_one = _row(1, 2, 3), _row(2, 4, 8), _flags(0, 0, 0), _flags(0, 1, 0)
    target = lambda_return(reward, value_tp1, at_one, none, discount=0.5, trace=0.5)
    assert target.tolist() == [[2.0, 2.0, 7.0]]
    # Truncated at t = 1: R_1 = 2 + 0.5*4 = 4; R_0 = 1 + 0.5*(0.5*2 + 0.5*4) = 2.5.
    target = lambda_return(reward, value_tp1, none, at_one, discount=0.5, trace=0.5)
    assert target.tolist() == [[2.5, 4.0, 7.0]]


# the authors' arrays


@pytest.mark.parametrize("case", "abcd")
def test_advantages_are_those_of_stable_baselines(case):
    arrays, _ = load("gae")
    value, last = arrays[f"{case}_value"], arrays[f"{case}_last_value"]
    value_tp1 = torch.cat([value[1:], last[None]])
    done = batch_first(arrays[f"{case}_done"])
    settings = {
        "discount": arrays[f"{case}_gamma"].item(),
        "trace": arrays[f"{case}_lam"].item(),
    }
    reward = batch_first(arrays[f"{case}_reward"])
    advantage, target = generalized_advantage(
        reward, batch_first(value), batch_first(value_tp1), done, torch.zeros_like(done), **settings
    )
    assert_within(advantage, batch_first(arrays[f"{case}_advantage"]), GOLDEN_VALUE)
    assert_within(target, batch_first(arrays[f"{case}_ret"]), GOLDEN_VALUE)
    # The same target by the other road.
    returns = lambda_return(
        reward, batch_first(value_tp1), done, torch.zeros_like(done), **settings
    )
    if case == "b":  # with trace 1 both sum rewards; value cancels
        assert_within(returns, batch_first(arrays[f"{case}_ret"]), GOLDEN_VALUE)


# unaligned windows


def _window(B: int = 5, T: int = 40) -> dict[str, Tensor]:
    """Draw rollout rows whose episodes of 2 to 9 steps start and end anywhere in each row.

    Rows follow NEXT_STEP auto-reset: after an end comes one invalid row, the terminal observation.
    `value_tp1` is the value of the next row, as a rollout gives it.
    """
    random = np.random.default_rng(3)
    terminated, truncated = np.zeros((B, T), bool), np.zeros((B, T), bool)
    valid = np.ones((B, T), bool)
    for row in range(B):
        t = int(random.integers(0, 8))
        while t < T:
            (terminated if random.random() < 0.5 else truncated)[row, t] = True
            if t + 1 < T:
                valid[row, t + 1] = False
            t += 1 + int(random.integers(2, 10))
    assert terminated.any()
    assert truncated.any()
    assert (~valid).any()
    value = torch.randn(B, T + 1, dtype=DOUBLE)
    return {
        "reward": torch.randn(B, T, dtype=DOUBLE) * torch.from_numpy(valid),
        "value": value[:, :-1].clone(),
        "value_tp1": value[:, 1:].clone(),
        "terminated": torch.from_numpy(terminated),
        "truncated": torch.from_numpy(truncated),
        "valid": torch.from_numpy(valid),
    }


def _episodes(rows: dict[str, Tensor], row: int) -> list[list[int]]:
    """Return the valid steps of a row, one list per episode."""
    episodes: list[list[int]] = [[]]
    for t in range(rows["valid"].shape[1]):
        if rows["valid"][row, t]:
            episodes[-1].append(t)
            if rows["terminated"][row, t] or rows["truncated"][row, t]:
                episodes.append([])
    return [steps for steps in episodes if steps]


def _slow_advantage(rows: dict[str, Tensor], discount: float, trace: float) -> Tensor:
    """Sum (discount trace)^k delta_{t+k} to the end of each episode, one episode at a time."""
    out = torch.zeros_like(rows["reward"])
    for row in range(len(out)):
        for steps in _episodes(rows, row):
            for i, t in enumerate(steps):
                for k, s in enumerate(steps[i:]):
                    bootstrap = 0.0 if rows["terminated"][row, s] else rows["value_tp1"][row, s]
                    delta = rows["reward"][row, s] + discount * bootstrap - rows["value"][row, s]
                    out[row, t] += (discount * trace) ** k * delta
    return out


def _slow_lambda_return(rows: dict[str, Tensor], discount: float, trace: float) -> Tensor:
    """Mix the n-step returns of each episode with weights (1 - trace) trace^(n-1)."""
    out = torch.zeros_like(rows["reward"])
    for row in range(len(out)):
        for steps in _episodes(rows, row):
            for i, t in enumerate(steps):
                rewards, mixed = 0.0, 0.0
                for n, s in enumerate(steps[i:], start=1):
                    rewards = rewards + discount ** (n - 1) * rows["reward"][row, s]
                    bootstrap = 0.0 if rows["terminated"][row, s] else rows["value_tp1"][row, s]
                    n_step = rewards + discount**n * bootstrap
                    is_last = s == steps[-1]
                    weight = trace ** (n - 1) * (1.0 if is_last else 1.0 - trace)
                    mixed = mixed + weight * n_step
                out[row, t] = mixed
    return out


def _advantage(rows: dict[str, Tensor], **settings: float) -> tuple[Tensor, Tensor]:
    return generalized_advantage(
        *(rows[k] for k in ("reward", "value", "value_tp1", "terminated", "truncated")), **settings
    )


def _returns(rows: dict[str, Tensor], **settings: float) -> Tensor:
    return lambda_return(
        *(rows[k] for k in ("reward", "value_tp1", "terminated", "truncated")), **settings
    )


@pytest.mark.parametrize("trace", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_staggered_episodes_equal_the_sum_over_each_episode(discount, trace):
    rows = _window()
    valid = rows["valid"]
    advantage, target = _advantage(rows, discount=discount, trace=trace)
    expected = _slow_advantage(rows, discount, trace)
    assert_close(advantage[valid], expected[valid], DOUBLE, 40)
    assert_close(target[valid], (expected + rows["value"])[valid], DOUBLE, 40)


@pytest.mark.parametrize("trace", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_staggered_lambda_returns_equal_the_mixture_of_n_step_returns(discount, trace):
    rows = _window()
    actual = _returns(rows, discount=discount, trace=trace)
    expected = _slow_lambda_return(rows, discount, trace)
    assert_close(actual[rows["valid"]], expected[rows["valid"]], DOUBLE, 40)


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_the_target_of_the_advantage_is_the_lambda_return(trace):
    rows = _window()
    _, target = _advantage(rows, discount=0.9, trace=trace)
    returns = _returns(rows, discount=0.9, trace=trace)
    assert_close(target[rows["valid"]], returns[rows["valid"]], DOUBLE, 40)


def test_with_trace_zero_the_advantage_is_the_one_step_error():
    rows = _window()
    advantage, _ = _advantage(rows, discount=0.9, trace=0.0)
    bootstrap = torch.where(rows["terminated"], 0.0, rows["value_tp1"])
    assert torch.equal(advantage, rows["reward"] + 0.9 * bootstrap - rows["value"])


def test_with_trace_and_discount_one_the_return_of_an_episode_is_its_sum_of_rewards():
    # One episode of four steps, terminated: what is still to come is 10, 9, 7, 4.
    reward = _row(1, 2, 3, 4)
    terminated, truncated = _flags(0, 0, 0, 1), _flags(0, 0, 0, 0)
    values = torch.randn(1, 5, dtype=DOUBLE)
    _, target = generalized_advantage(
        reward, values[:, :-1], values[:, 1:], terminated, truncated, discount=1.0, trace=1.0
    )
    torch.testing.assert_close(target, _row(10, 9, 7, 4))
    returns = lambda_return(reward, values[:, 1:], terminated, truncated, discount=1.0, trace=1.0)
    torch.testing.assert_close(returns, _row(10, 9, 7, 4))


@pytest.mark.parametrize("kind", ["none", "terminated", "truncated"])
def test_a_window_of_one_step(kind):
    # delta = 3 + 0.5 * 8 - 1 = 6, or 3 - 1 = 2 after a termination.
    terminated, truncated = _flags(kind == "terminated"), _flags(kind == "truncated")
    advantage, target = generalized_advantage(
        _row(3), _row(1), _row(8), terminated, truncated, discount=0.5, trace=0.9
    )
    returns = lambda_return(_row(3), _row(8), terminated, truncated, discount=0.5, trace=0.9)
    expected = 2.0 if kind == "terminated" else 6.0
    assert advantage.item() == expected
    assert target.item() == returns.item() == expected + 1.0


@pytest.mark.parametrize("garbage", [1e9, -1e9, NAN, INF])
@pytest.mark.parametrize("field", ["reward", "value", "value_tp1"])
def test_invalid_rows_reach_no_other_row(field, garbage):
    rows = _window()
    valid = rows["valid"]
    expected, expected_target = _advantage(rows, discount=0.9, trace=0.95)
    expected_returns = _returns(rows, discount=0.9, trace=0.95)
    # Only the invalid row's own entries: value_tp1 of the row before is V(final observation).
    rows[field] = torch.where(valid, rows[field], garbage)
    advantage, target = _advantage(rows, discount=0.9, trace=0.95)
    assert torch.equal(advantage[valid], expected[valid])
    assert torch.equal(target[valid], expected_target[valid])
    if field != "value":
        returns = _returns(rows, discount=0.9, trace=0.95)
        assert torch.equal(returns[valid], expected_returns[valid])


def test_the_value_after_a_termination_is_never_used():
    rows = _window()
    expected, _ = _advantage(rows, discount=0.9, trace=0.95)
    returns = _returns(rows, discount=0.9, trace=0.95)
    rows["value_tp1"] = torch.where(rows["terminated"], NAN, rows["value_tp1"])
    advantage, _ = _advantage(rows, discount=0.9, trace=0.95)
    assert torch.equal(advantage, expected)
    assert torch.equal(_returns(rows, discount=0.9, trace=0.95), returns)


def test_rows_of_the_batch_are_independent():
    rows = _window()
    together, _ = _advantage(rows, discount=0.9, trace=0.95)
    for row in range(5):
        alone, _ = _advantage(
            {key: value[row : row + 1] for key, value in rows.items()}, discount=0.9, trace=0.95
        )
        assert torch.equal(alone[0], together[row])


def test_advantages_and_targets_carry_no_gradient_and_leave_the_inputs_alone():
    rows = _window()
    before = {key: value.clone() for key, value in rows.items()}
    given = {
        key: value.clone().requires_grad_() if value.is_floating_point() else value
        for key, value in rows.items()
    }
    advantage, target = _advantage(given, discount=0.9, trace=0.95)
    returns = _returns(given, discount=0.9, trace=0.95)
    assert not any(value.requires_grad for value in (advantage, target, returns))
    assert all(torch.equal(given[key], before[key]) for key in before)


def test_float32_stays_float32_and_close():
    rows = _window()
    expected, _ = _advantage(rows, discount=0.99, trace=0.95)
    single = {k: v.float() if v.is_floating_point() else v for k, v in rows.items()}
    advantage, target = _advantage(single, discount=0.99, trace=0.95)
    assert advantage.dtype == target.dtype == torch.float32
    assert_close(advantage, expected, torch.float32, 40)
