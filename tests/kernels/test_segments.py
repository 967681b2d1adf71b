"""Stretches between resets, worked by hand."""

import torch

from statewise.kernels.segments import broken, poisoned, starts

RESET = torch.tensor([[False, True, False, True, False], [False] * 5, [True] + [False] * 4])


def test_a_stretch_begins_at_the_last_reset():
    like = torch.zeros(3, 5, 2)
    expected = [[-1, 1, 1, 3, 3], [-1] * 5, [0] * 5]
    assert starts(RESET, like).tolist() == expected
    assert starts(None, like).tolist() == [[-1] * 5] * 3
    assert starts(torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0)).shape == (2, 0)


def test_a_number_that_is_not_finite_breaks_its_row():
    x = torch.tensor([[1.0, -3e38], [float("nan"), 0.0], [0.0, -float("inf")]])
    assert broken(x).tolist() == [False, True, True]
    assert broken(torch.zeros(2, 0)).tolist() == [False, False]


def test_a_broken_step_reaches_the_end_of_its_stretch():
    bad = torch.zeros(3, 5, 1, dtype=torch.bool)
    bad[:, 2] = True
    fine = torch.zeros(3, 1, dtype=torch.bool)
    reached = poisoned(bad, fine, starts(RESET, bad))[..., 0]
    expected = [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert reached.int().tolist() == expected


def test_a_broken_state_reaches_the_first_reset():
    bad = torch.zeros(3, 5, 1, dtype=torch.bool)
    reached = poisoned(bad, ~bad[:, 0], starts(RESET, bad))[..., 0]
    assert reached.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]
