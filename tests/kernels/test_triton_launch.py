"""The rules by which Triton kernels are launched; they need no triton."""

import itertools

import pytest
import torch

from statewise.kernels import triton_launch as rules
from statewise.kernels.triton_launch import (
    Split,
    ceil_div,
    channel_block,
    dense_rows,
    flags,
    power_of_two,
    split_time,
)

LENGTHS = (1, 2, 64, 127, 128, 129, 191, 192, 193, 1000, 4096, 16385)
LANES = (1, 3, 100, 4096, 32767)


@pytest.mark.parametrize("multiple", [1, 32, 64])
def test_chunks_cover_time_once_and_none_is_empty(multiple):
    for lanes, T in itertools.product(LANES, LENGTHS):
        chunks, length = split_time(lanes, T, multiple)
        assert (chunks - 1) * length < T <= chunks * length, (lanes, T)
        if chunks > 1:
            assert length % multiple == 0, (lanes, T)
            assert length >= rules.SHORTEST_CHUNK, (lanes, T)
        else:
            assert length == T


@pytest.mark.parametrize("lanes", [rules.SERIAL_LANES, 10 * rules.SERIAL_LANES])
def test_many_lanes_are_one_loop_over_time(lanes):
    assert all(split_time(lanes, T) == Split(1, T) for T in LENGTHS)


@pytest.mark.parametrize("lanes", LANES)
def test_a_few_steps_are_one_loop_over_time(lanes):
    assert split_time(lanes, rules.SERIAL_STEPS) == Split(1, rules.SERIAL_STEPS)
    assert split_time(lanes, rules.SERIAL_STEPS + 1).chunks > 1


def test_a_split_makes_as_many_recurrences_as_it_aims_at():
    assert split_time(4096, 4096) == Split(16, 256)
    assert rules.SPLIT_LANES == 4096 * 16
    # With fewer steps the shortest chunk limits it.
    assert split_time(4096, 512) == Split(8, rules.SHORTEST_CHUNK)
    # One step more is one more chunk, of one step.
    assert split_time(4096, 513) == Split(9, rules.SHORTEST_CHUNK)


def test_a_chunk_is_rounded_up_to_its_multiple():
    assert split_time(30000, 200, 1) == Split(3, 67)
    assert split_time(30000, 200, 32) == Split(3, 96)
    assert split_time(30000, 190, 192) == Split(1, 190)


def test_a_lane_takes_16_bytes_once_lanes_abound():
    many = 4 * rules.SERIAL_LANES
    assert channel_block(256, many - 1) == 32
    assert channel_block(256, many) == 128
    assert channel_block(256, many, pairs=True) == 64


@pytest.mark.parametrize(("width", "expected"), [(1, 1), (3, 4), (31, 32), (32, 32), (33, 32)])
def test_a_block_is_no_wider_than_the_next_power_of_two(width, expected):
    assert channel_block(width, 1) == expected


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 63, 64, 65, 1000])
def test_the_next_power_of_two_is_the_smallest_that_is_not_below(number):
    power = power_of_two(number)
    assert power in {2**k for k in range(11)}
    assert power // 2 < number <= power


@pytest.mark.parametrize(("number", "by", "expected"), [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2)])
def test_division_rounds_up(number, by, expected):
    assert ceil_div(number, by) == expected


def test_rows_whose_last_axes_are_dense_are_not_copied():
    x = torch.zeros(2, 5, 12)
    views = {
        "whole": (x, 1),
        "slice of a projection": (x[..., 3:7], 1),
        "other order of rows and steps": (x.transpose(0, 1), 1),
        "expanded": (x[:1, :1].expand(4, 5, 12), 1),
        "pairs in a slice": (x.unflatten(2, (6, 2))[:, :, 1:4], 2),
        "every other step": (x[:, ::2], 1),
        "one channel": (x[..., ::12], 1),
        "groups": (x.unflatten(2, (3, 4)), 2),
    }
    for name, (view, trailing) in views.items():
        assert dense_rows(view, trailing) is view, name


def test_rows_with_gaps_are_copied():
    x = torch.arange(48.0).reshape(2, 2, 12)
    views = {
        "every other channel": (x[..., ::2], 1),
        "channels before steps": (x.transpose(1, 2), 1),
        "broadcast channels": (x[..., :1].expand(2, 2, 5), 1),
        "groups of a wider row": (x.unflatten(2, (3, 4))[..., :2], 2),
        "real parts": (x.unflatten(2, (6, 2)).transpose(2, 3), 2),
    }
    for name, (view, trailing) in views.items():
        copy = dense_rows(view, trailing)
        assert copy.is_contiguous(), name
        assert torch.equal(copy, view), name


def test_flags_are_dense_bytes():
    reset = torch.tensor([[True, False], [False, True]]).T
    assert flags(None) is None
    assert torch.equal(flags(reset), torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8))
    assert flags(reset).is_contiguous()
