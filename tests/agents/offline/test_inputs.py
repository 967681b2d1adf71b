"""Observations and actions as numbers: statistics, one-hot vectors, bounds, losses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces

from statewise.agents.offline.inputs import STD_FLOOR, ActionCode, ObsNormalizer
from statewise.agents.offline.protocol import ObsStatistics
from statewise.nets.encoder import EncoderConfig

SPACE = spaces.Dict(
    {
        "b": spaces.Box(-1, 1, (2, 2)),
        "a": spaces.MultiBinary(2),
        "d": spaces.Discrete(3),
        "m": spaces.MultiDiscrete([2, 3]),
    }
)
STATISTICS = ObsStatistics(
    {"a": np.array([0.5, 0.0]), "b": np.array([[1.0, 2], [3, 4]])},
    {"a": np.array([0.5, 0.0]), "b": np.array([[1.0, 2], [4, 8]])},
)


def observation() -> dict[str, torch.Tensor]:
    return {
        "a": torch.tensor([[1, 0], [0, 0]], dtype=torch.int8),
        "b": torch.arange(8.0).view(2, 2, 2),
        "d": torch.tensor([2, 0]),
        "m": torch.tensor([[1, 2], [0, 1]]),
    }


def test_entries_are_shifted_and_scaled_in_the_order_of_their_names() -> None:
    inputs = ObsNormalizer(SPACE, STATISTICS).double()
    y = inputs(observation())
    assert inputs.d_out == 14 == y.shape[-1]
    assert y[0, 0].item() == pytest.approx(0.5 / (0.5 + STD_FLOOR), rel=1e-6)
    assert y[:, 1].tolist() == [0, 0]  # never changed in the data: mean 0, deviation 0
    expected = (np.arange(8.0).reshape(2, 4) - [1, 2, 3, 4]) / (np.array([1.0, 2, 4, 8]) + 1e-6)
    assert np.allclose(y[:, 2:6].numpy(), expected, rtol=1e-6)
    assert y[:, 6:9].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert y[:, 9:].tolist() == [[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]]


def test_any_leading_axes_are_kept() -> None:
    inputs = ObsNormalizer(SPACE, STATISTICS)
    once = inputs(observation())
    twice = inputs({key: torch.stack((x, x)) for key, x in observation().items()})
    assert torch.equal(twice, torch.stack((once, once)))


def test_statistics_are_saved_with_the_weights() -> None:
    made, loaded = ObsNormalizer(SPACE, STATISTICS), ObsNormalizer(SPACE, None)
    assert not torch.equal(made(observation()), loaded(observation()))
    loaded.load_state_dict(made.state_dict())
    assert torch.equal(made(observation()), loaded(observation()))


def test_pictures_go_through_the_encoder_without_statistics() -> None:
    space = spaces.Dict(
        {"eye": spaces.Box(0, 255, (8, 8, 3), np.uint8), "x": spaces.Box(-1, 1, (1,))}
    )
    statistics = ObsStatistics({"x": np.zeros(1)}, {"x": np.ones(1)})
    inputs = ObsNormalizer(space, statistics, EncoderConfig(hidden=(5,), channels=(2,)))
    eye = torch.randint(256, (4, 8, 8, 3), dtype=torch.uint8)
    y = inputs({"eye": eye, "x": torch.ones(4, 1)})
    assert inputs.d_out == 6
    assert y.shape == (4, 6)
    assert inputs.images is not None
    assert torch.equal(y[:, 1:], inputs.images({"eye": eye}))


def test_an_encoder_without_pictures_to_read_is_refused() -> None:
    ObsNormalizer(SPACE, STATISTICS, EncoderConfig())
    with pytest.raises(ValueError, match=r"^encoder: expected the defaults, as there are no pict"):
        ObsNormalizer(SPACE, STATISTICS, EncoderConfig(hidden=(5,)))


@pytest.mark.parametrize(
    ("space", "statistics", "message"),
    [
        (SPACE, ObsStatistics({"a": np.zeros(2)}, {"a": np.zeros(2)}), "statistics\\['b'\\].*noth"),
        (SPACE, STATISTICS._replace(std=STATISTICS.mean | {"a": np.zeros(3)}), "'a'.*\\(2,\\)"),
        (spaces.Dict({}), None, "Dict with entries"),
        (spaces.Dict({"t": spaces.Text(3)}), None, "obs_space\\['t'\\]"),
        (spaces.Dict({"e": spaces.Box(0, 1, (0,))}), None, "obs_space\\['e'\\].*non-empty"),
    ],
)
def test_what_cannot_be_read_is_named(space: Any, statistics: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ObsNormalizer(space, statistics)
    assert "\n" not in str(error.value)


HALF_BOUNDED = spaces.Box(np.array([-1, 2, -np.inf], np.float32), np.array([3, 4, 9], np.float32))


def test_bounds_become_minus_one_and_one_and_back() -> None:
    code = ActionCode(HALF_BOUNDED)
    action = torch.tensor([[-1.0, 2, -7], [3, 4, 9], [1, 3, 0]])
    coded = torch.tensor([[-1.0, -1, -7], [1, 1, 9], [0, 0, 0]])
    assert code.width == 3
    assert torch.equal(code.encode(action), coded)
    assert torch.equal(code.from_previous(action), coded)
    assert torch.equal(code.choose(coded, None), action)
    beyond = torch.tensor([-3.0, 1.5, -80])
    assert code.choose(beyond, None).tolist() == [-1, 4, -80]


def test_only_bounded_axes_are_bent() -> None:
    code, x = ActionCode(HALF_BOUNDED), torch.tensor([0.5, 2.0, 3.0])
    assert torch.equal(code.squash(x, "tanh"), torch.tensor([math.tanh(0.5), math.tanh(2.0), 3.0]))
    assert torch.equal(code.squash(x, "clip"), x)
    assert torch.equal(ActionCode(spaces.Discrete(3)).squash(x, "tanh"), x)


def test_the_loss_of_a_box_is_the_mean_square_over_its_axes() -> None:
    loss = ActionCode(HALF_BOUNDED).loss(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 0, 0]))
    assert loss.item() == pytest.approx((4 + 9) / 3)


def test_the_loss_of_choices_is_the_cross_entropy() -> None:
    logits, action = torch.randn(4, 5), torch.tensor([[0, 2], [1, 0], [1, 1], [0, 0]])
    code = ActionCode(spaces.MultiDiscrete([2, 3]))
    expected = F.cross_entropy(logits[:, :2], action[:, 0], reduction="none")
    expected = expected + F.cross_entropy(logits[:, 2:], action[:, 1], reduction="none")
    assert torch.allclose(code.loss(logits, code.encode(action)), expected)
    single = ActionCode(spaces.Discrete(5))
    mixed = 0.25 * single.encode(torch.tensor(1)) + 0.75 * single.encode(torch.tensor(4))
    log_p = logits[0].log_softmax(-1)
    assert torch.allclose(single.loss(logits[0], mixed), -0.25 * log_p[1] - 0.75 * log_p[4])


def test_choices_are_most_probable_or_drawn_as_often_as_they_are_probable() -> None:
    code, generator = ActionCode(spaces.Discrete(2)), torch.Generator().manual_seed(0)
    logits = torch.tensor([math.log(0.8), math.log(0.2)]).expand(4000, 2)
    assert code.choose(logits, None).tolist() == [0] * 4000
    drawn = code.choose(logits, generator)
    assert drawn.dtype == torch.int64
    assert drawn.shape == (4000,)
    assert abs(drawn.double().mean().item() - 0.2) < 4 * math.sqrt(0.16 / 4000)
    both = ActionCode(spaces.MultiDiscrete([2, 3])).choose(torch.tensor([[0.0, 1, 5, 0, 0]]), None)
    assert both.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    "space", [spaces.Text(3), spaces.Box(-1, 1, (2, 2)), spaces.Box(0, 9, (2,), np.int64)]
)
def test_an_action_without_a_code_is_named(space: Any) -> None:
    with pytest.raises(ValueError, match="action_space: expected Discrete") as error:
        ActionCode(space)
    assert "\n" not in str(error.value)
