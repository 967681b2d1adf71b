"""Flat observation spaces, action codes, and what is refused."""

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from statewise.envs.protocol import UnsupportedSpaceError
from statewise.envs.spaces import (
    action_width,
    check_action_space,
    encode_action,
    flatten_action_space,
    flatten_list,
    flatten_obs,
    flatten_space,
    restore_action,
)

TREE = spaces.Dict(
    {
        "a": spaces.Dict({"b": spaces.Box(-1, 1, (2, 3), dtype=np.float64)}),
        "image": spaces.Box(0, 255, (3, 4, 4), dtype=np.uint8),
        "t": spaces.Tuple(
            (
                spaces.Discrete(4, start=-2),
                spaces.Dict({"x": spaces.MultiDiscrete([[2, 3]], start=[[5, 0]])}),
                spaces.MultiBinary((2, 2)),
                spaces.Box(0, 1, (), dtype=np.float32),
            )
        ),
    }
)


def test_leaves_are_named_by_their_path() -> None:
    flat = flatten_space(TREE)
    assert set(flat) == {"a.b", "image", "t.0", "t.1.x", "t.2", "t.3"}
    assert list(flatten_space(spaces.Discrete(3))) == ["obs"]
    assert list(flatten_space(spaces.Tuple((spaces.Discrete(3), spaces.Discrete(2))))) == ["0", "1"]


def test_the_order_of_the_tree_is_kept() -> None:
    pair = [(name, spaces.Discrete(2)) for name in "zab"]
    assert list(flatten_space(spaces.Dict(pair))) == ["z", "a", "b"]


def test_leaves_keep_their_meaning_and_start_at_zero() -> None:
    flat = flatten_space(TREE)
    assert flat["a.b"] == spaces.Box(-1, 1, (2, 3), dtype=np.float32)
    assert flat["image"] == spaces.Box(0, 255, (3, 4, 4), dtype=np.uint8)
    assert flat["t.0"] == spaces.Discrete(4)
    assert flat["t.1.x"] == spaces.MultiDiscrete([2, 3])
    assert flat["t.2"] == spaces.MultiBinary(4)
    assert flat["t.3"] == spaces.Box(0, 1, (1,), dtype=np.float32)


def test_bounds_beyond_float32_become_infinite() -> None:
    widest = np.finfo(np.float64).max
    flat = flatten_space(spaces.Box(-widest, widest, (1,), dtype=np.float64))
    assert isinstance(flat["obs"], spaces.Box)
    assert not flat["obs"].is_bounded("both")


@pytest.mark.parametrize("seed", range(3))
def test_flat_observations_lie_in_the_flat_space(seed: int) -> None:
    batched = batch_space(TREE, 5)
    batched.seed(seed)
    sample = batched.sample()
    flat = flatten_obs(TREE, sample)
    space = flatten_space(TREE)
    assert list(flat) == list(space)
    for key, leaf in space.items():
        for row in range(5):
            assert leaf.contains(flat[key][row]), (key, flat[key][row])
    assert np.array_equal(flat["t.0"], sample["t"][0] + 2)
    assert np.array_equal(flat["t.1.x"], sample["t"][1]["x"][:, 0] - [5, 0])
    assert np.allclose(flat["a.b"], sample["a"]["b"])


@pytest.mark.parametrize(
    ("space", "values"),
    [
        (spaces.MultiBinary(2), np.array([[True, False]])),
        (spaces.Discrete(4, start=1), np.array([3], dtype=np.uint8)),
        (spaces.MultiDiscrete([3, 4], dtype=np.int32), np.array([[1, 3]], dtype=np.int32)),
        (spaces.Box(0, 9, (2,), np.uint8), np.array([[4, 5]])),
    ],
    ids=["bits", "choice", "choices", "bytes"],
)
def test_values_of_another_dtype_than_declared_get_that_of_the_flat_space(
    space: spaces.Space, values: np.ndarray
) -> None:
    flat, leaf = flatten_obs(space, values)["obs"], flatten_space(space)["obs"]
    assert flat.dtype == leaf.dtype
    assert leaf.contains(flat[0])


def test_flat_observations_do_not_alias_the_environment() -> None:
    image = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    space = spaces.Box(0, 255, (3, 4, 4), dtype=np.uint8)
    flat = flatten_obs(space, image)
    image[:] = 7
    assert not flat["obs"].any()


def test_single_observations_stack_to_the_batched_ones() -> None:
    TREE.seed(1)
    singles = [TREE.sample() for _ in range(3)]
    flat = flatten_list(TREE, singles)
    assert flat["t.2"].shape == (3, 4)
    assert flat["t.0"].tolist() == [one["t"][0] + 2 for one in singles]


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Text(5)})}), "'a.b'"),
        (spaces.Sequence(spaces.Discrete(2)), "'obs'"),
        (spaces.Dict({"a.b": spaces.Discrete(2), "a": spaces.Dict(b=spaces.Discrete(2))}), "'a.b'"),
        (spaces.Dict({}), "at least one"),
    ],
    ids=["text", "sequence", "clash", "empty"],
)
def test_other_observation_spaces_are_refused_by_name(space: spaces.Space, named: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=named) as error:
        flatten_space(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiBinary(3),
        spaces.MultiDiscrete([[2, 2]]),
        spaces.Box(0, 1, (2, 2)),
        spaces.Box(0, 3, (2,), dtype=np.int64),
        spaces.Dict(a=spaces.Discrete(2)),
    ],
    ids=str,
)
def test_action_spaces_without_a_head_are_refused(space: spaces.Space) -> None:
    with pytest.raises(UnsupportedSpaceError, match="action space"):
        check_action_space(space)


def test_action_codes_worked_by_hand() -> None:
    discrete = spaces.Discrete(3, start=1)
    assert encode_action(discrete, np.array([1, 3])).tolist() == [[1, 0, 0], [0, 0, 1]]
    several = spaces.MultiDiscrete([2, 3])
    codes = encode_action(several, np.array([[0, 0], [1, 2]]))
    assert codes.tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]
    box = spaces.Box(-2, 2, (2,), dtype=np.float64)
    assert encode_action(box, np.array([[0.5, -1.0]])).tolist() == [[0.5, -1.0]]
    assert [action_width(space) for space in (discrete, several, box)] == [3, 5, 2]
    assert codes.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_agents_act_in_float32_and_environments_in_what_they_declare(dtype: type) -> None:
    theirs = spaces.Box(*np.array([[-0.1, -2.0], [0.1, 3.0]], dtype), dtype=dtype)
    ours = flatten_action_space(theirs)
    assert isinstance(ours, spaces.Box)
    assert ours.dtype == np.float32
    assert np.allclose(ours.low, theirs.low)
    assert np.allclose(ours.high, theirs.high)
    taken = restore_action(theirs, ours.high)
    assert taken.dtype == dtype
    assert theirs.contains(taken)


def test_agents_count_from_zero_and_environments_from_start() -> None:
    space = spaces.MultiDiscrete([2, 3], start=[4, -1])
    assert flatten_action_space(space) == spaces.MultiDiscrete([2, 3])
    assert restore_action(space, np.array([[0, 2], [1, 0]])).tolist() == [[4, 1], [5, -1]]
    assert flatten_action_space(spaces.Discrete(2, start=7)) == spaces.Discrete(2)


def test_restored_box_actions_are_clipped_copies() -> None:
    space = spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, np.inf], np.float32))
    action = np.array([[5.0, 5.0], [-3.0, 0.0]])
    restored = restore_action(space, action)
    assert restored.tolist() == [[1, 5], [-1, 0]]
    assert restored.dtype == np.float32
    inside = np.zeros((1, 2), dtype=np.float32)
    assert not np.shares_memory(inside, restore_action(space, inside))
