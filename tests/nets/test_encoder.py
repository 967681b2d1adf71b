"""Encoder: what each kind of space turns into, leading axes, pictures, errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.encoder import Encoder, EncoderConfig, is_image

CONFIG = EncoderConfig(hidden=(16, 8), channels=(4, 6, 6))
BLIND = EncoderConfig(hidden=(16, 8))  # of observations without pictures
MIXED = spaces.Dict(
    number=spaces.Discrete(4),
    grid=spaces.MultiDiscrete([[2, 3], [4, 1]]),
    bits=spaces.MultiBinary([2, 2]),
    vector=spaces.Box(-1.0, 1.0, (3,), np.float32),
    matrix=spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    scalar=spaces.Box(-1.0, 1.0, (), np.float32),
    picture=spaces.Box(0, 255, (9, 12, 3), np.uint8),
)


def sample(space: spaces.Dict, lead: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Draw observations with these leading axes."""
    space.seed(seed)
    draws = [space.sample() for _ in range(math.prod(lead))]
    return {
        key: torch.as_tensor(np.stack([draw[key] for draw in draws])).reshape(
            *lead, *(space[key].shape or ())
        )
        for key in space.spaces
    }


def joined(encoder: Encoder, obs: dict[str, Tensor]) -> Tensor:
    """Return what enters the fully connected network."""
    seen: list[Tensor] = []
    handle = encoder.layers.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(obs)
    handle.remove()
    return seen[0]


def convolutions(encoder: Encoder) -> list[nn.Conv2d]:
    return [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]


def picture_encoder(shape: tuple[int, ...], config: EncoderConfig = CONFIG) -> Encoder:
    torch.manual_seed(0)
    return Encoder(spaces.Dict(picture=spaces.Box(0, 255, shape, np.uint8)), config)


def test_indices_become_one_hot_and_numbers_stay() -> None:
    space = spaces.Dict(
        a=spaces.Discrete(3, start=5),
        b=spaces.MultiDiscrete([2, 3]),
        c=spaces.Box(-9.0, 9.0, (2, 1), np.float32),
        d=spaces.MultiBinary(2),
        e=spaces.Box(0, 255, (1,), np.uint8),
    )
    obs = {
        "a": torch.tensor([2, 0]),
        "b": torch.tensor([[1, 0], [0, 2]]),
        "c": torch.tensor([[[0.5], [-3.0]], [[7.0], [0.0]]]),
        "d": torch.tensor([[1, 0], [1, 1]], dtype=torch.int8),
        "e": torch.tensor([[200], [3]], dtype=torch.uint8),
    }
    # c, d, e as numbers, then a (3 categories), b (2 + 3 categories)
    expected = torch.tensor(
        [
            [0.5, -3.0, 1.0, 0.0, 200.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0],
            [7.0, 0.0, 1.0, 1.0, 3.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        ]
    )
    torch.testing.assert_close(joined(Encoder(space, BLIND), obs), expected)


def test_leading_axes_do_not_change_the_features() -> None:
    encoder = Encoder(MIXED, CONFIG)
    obs = sample(MIXED, (6,))
    window = {key: x.reshape(2, 3, *x.shape[1:]) for key, x in obs.items()}
    flat = encoder(obs)
    assert flat.shape == (6, encoder.d_out)
    assert flat.dtype == torch.float32
    torch.testing.assert_close(encoder(window).flatten(0, 1), flat)
    single = encoder({key: x[4] for key, x in obs.items()})
    torch.testing.assert_close(single, flat[4])


@pytest.mark.parametrize("key", sorted(MIXED.spaces))
def test_every_entry_reaches_the_features(key: str) -> None:
    encoder = Encoder(MIXED, CONFIG)
    obs = sample(MIXED, (8,))
    other = {**obs, key: sample(MIXED, (8,), seed=1)[key]}
    assert not torch.equal(encoder(obs), encoder(other))


def test_an_index_outside_its_space_is_an_error() -> None:
    encoder = Encoder(spaces.Dict(number=spaces.Discrete(3)), BLIND)
    with pytest.raises(RuntimeError, match="index 3 is out of bounds"):
        encoder({"number": torch.tensor([3])})


def test_both_picture_layouts_give_the_same_features() -> None:
    last, first = picture_encoder((12, 10, 3)), picture_encoder((3, 12, 10))
    picture = torch.randint(0, 256, (4, 12, 10, 3), dtype=torch.uint8)
    torch.testing.assert_close(
        last({"picture": picture}), first({"picture": picture.permute(0, 3, 1, 2)})
    )


def test_pictures_are_scaled_to_the_unit_interval() -> None:
    encoder = picture_encoder((8, 8, 1))
    seen: list[Tensor] = []
    convolutions(encoder)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    picture = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    picture[0, 3, 5, 0] = 255
    encoder({"picture": picture})
    expected = torch.zeros(1, 1, 8, 8)
    expected[0, 0, 3, 5] = 1.0
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    ("shape", "used"),
    [((8, 8, 3), 1), ((15, 40, 1), 2), ((16, 16, 3), 2), ((84, 84, 4), 3), ((12, 84, 84), 3)],
)
def test_small_pictures_use_fewer_convolutions(shape: tuple[int, ...], used: int) -> None:
    encoder = picture_encoder(shape)
    assert [c.out_channels for c in convolutions(encoder)] == [4, 6, 6][:used]
    picture = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    assert encoder({"picture": picture}).shape == (2, 8)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(0, 255, (84, 84, 3), np.uint8), True),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), True),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), False),
        (spaces.Box(0.0, 1.0, (84, 84, 3), np.float32), False),
        (spaces.Box(0, 255, (84, 84), np.uint8), False),
        (spaces.Discrete(3), False),
    ],
)
def test_only_byte_boxes_of_picture_size_are_pictures(space: Any, expected: bool) -> None:
    assert is_image(space) is expected


def test_other_boxes_with_three_axes_are_flattened() -> None:
    space = spaces.Dict(
        floats=spaces.Box(0.0, 1.0, (9, 9, 3), np.float32),
        tiles=spaces.Box(0, 255, (7, 7, 3), np.uint8),
    )
    encoder = Encoder(space, BLIND)
    obs = sample(space, (2,))
    expected = torch.cat([obs["floats"].flatten(1), obs["tiles"].flatten(1).float()], -1)
    torch.testing.assert_close(joined(encoder, obs), expected)
    assert convolutions(encoder) == []


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "silu"])
def test_the_activation_follows_the_last_layer_too(activation: str) -> None:
    config = EncoderConfig(hidden=(16, 8), activation=activation)  # type: ignore[arg-type]
    encoder = Encoder(spaces.Dict(x=spaces.Box(-1.0, 1.0, (3,))), config)
    obs = {"x": torch.randn(5, 3)}
    function = {"leaky_relu": nn.LeakyReLU(0.01), "tanh": nn.Tanh(), "silu": nn.SiLU()}[activation]
    torch.testing.assert_close(encoder(obs), function(encoder.layers(obs["x"])))


def test_weights_start_orthogonal_with_gain_sqrt_two() -> None:
    for module in Encoder(MIXED, CONFIG).modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            rows = module.weight.detach().flatten(1)
            rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
            torch.testing.assert_close(rows @ rows.T, 2.0 * torch.eye(rows.shape[0]))
            assert module.bias is not None
            assert not module.bias.any()


def test_a_float64_encoder_takes_float32_observations_and_back() -> None:
    encoder = Encoder(MIXED, CONFIG)
    obs = sample(MIXED, (3,))
    low = encoder(obs)
    high = encoder.double()(obs)
    assert (low.dtype, high.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(low.double(), high, atol=1e-5, rtol=1e-5)


def test_the_weights_do_not_depend_on_the_order_of_the_entries() -> None:
    a, b = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))
    forward = Encoder(spaces.Dict([("a", a), ("b", b)]), BLIND)
    backward = Encoder(spaces.Dict([("b", b), ("a", a)]), BLIND)
    backward.load_state_dict(forward.state_dict())
    obs = {"a": torch.tensor([0, 2]), "b": torch.randn(2, 2)}
    assert torch.equal(forward(obs), backward(obs))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(4),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict(inner=spaces.Discrete(2)),
        spaces.Box(0.0, 1.0, (0,), np.float32),
    ],
    ids=["text", "tuple", "dict", "empty"],
)
def test_an_entry_that_cannot_be_read_is_named_in_the_error(space: Any) -> None:
    with pytest.raises(ValueError, match=r"obs_space\['bad'\]: expected") as error:
        Encoder(spaces.Dict(bad=space), CONFIG)
    assert str(space) in str(error.value)


@pytest.mark.parametrize("space", [spaces.Dict(), spaces.Discrete(3)], ids=["no-entry", "leaf"])
def test_only_a_dictionary_with_entries_is_an_observation_space(space: Any) -> None:
    with pytest.raises(ValueError, match="obs_space: expected a Dict with entries"):
        Encoder(space, CONFIG)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", ()), ("hidden", (8, 0)), ("channels", ()), ("activation", "relu6")],
)
def test_a_config_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected"):
        EncoderConfig(**{field: value})


def test_channels_without_a_picture_are_refused() -> None:
    vectors = spaces.Dict(x=spaces.Box(-1.0, 1.0, (3,)), y=spaces.Discrete(2))
    words = (
        r"encoder.channels: would be ignored without pictures .*\(x, y\), got \(4, 6, 6\): leave"
    )
    with pytest.raises(ValueError, match=words):
        Encoder(vectors, CONFIG)
    Encoder(vectors, EncoderConfig(hidden=(16, 8), channels=(16, 32, 32)))  # the defaults, spelled
