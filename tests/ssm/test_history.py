"""Sliding windows as states, worked by hand."""

import pytest
import torch

from statewise.kernels.segments import starts
from statewise.ssm.history import windows_after

# Entries -2, -1 came before the window of steps 1 ... 5; row 1 is reset at its third step.
VALUES = torch.tensor([[-2.0, -1, 1, 2, 3, 4, 5]] * 2)
RESET = torch.tensor([[False] * 5, [False, False, True, False, False]])


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1, [[[-1, 1], [1, 2], [2, 3], [3, 4], [4, 5]], [[-1, 1], [1, 2], [0, 3], [3, 4], [4, 5]]]),
        (2, [[[1, 2], [3, 4]], [[1, 2], [3, 4]]]),
        (3, [[[2, 3]], [[0, 3]]]),
        (5, [[[4, 5]], [[4, 5]]]),
        (6, [[], []]),
    ],
)
def test_the_last_entries_after_each_step_hide_what_lies_before_a_reset(every, expected):
    windows = windows_after(VALUES, starts(RESET, VALUES[:, 2:]), 2, every)
    assert windows.tolist() == expected


def test_entries_keep_their_shape_and_broken_ones_do_not_pass_a_reset():
    values = VALUES[..., None, None].expand(2, 7, 3, 4).clone()
    values[:, 3] = float("nan")
    windows = windows_after(values, starts(RESET, values[:, 2:]), 2, 3)
    assert windows.shape == (2, 1, 2, 3, 4)
    assert windows[0].isnan().any()
    assert windows[1].isfinite().all()


def test_a_window_without_entries_is_empty():
    windows = windows_after(VALUES[:, 2:], starts(RESET, VALUES[:, 2:]), 0, 1)
    assert windows.shape == (2, 5, 0)
