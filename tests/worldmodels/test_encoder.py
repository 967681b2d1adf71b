"""The observation encoder: what each entry turns into, leading axes, pictures, errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.dreamer_layers import EPS
from statewise.worldmodels.encoder import ObsEncoder, ObsEncoderConfig
from statewise.worldmodels.entries import read_space
from tests.tolerance import assert_close

DOUBLE = torch.float64
CONFIG = ObsEncoderConfig(hidden=(16, 8), depth=2)
MIXED = spaces.Dict(
    number=spaces.Discrete(4),
    grid=spaces.MultiDiscrete([[2, 3], [4, 1]]),
    bits=spaces.MultiBinary([2, 2]),
    vector=spaces.Box(-1.0, 1.0, (3,), np.float32),
    matrix=spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    scalar=spaces.Box(-1.0, 1.0, (), np.float32),
    picture=spaces.Box(0, 255, (64, 64, 3), np.uint8),
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


def joined(encoder: ObsEncoder, obs: dict[str, Tensor]) -> Tensor:
    """Return what enters the hidden layers."""
    seen: list[Tensor] = []
    assert encoder.layers is not None
    handle = encoder.layers.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(obs)
    handle.remove()
    return seen[0]


def picture_encoder(shape: tuple[int, ...], config: ObsEncoderConfig = CONFIG) -> ObsEncoder:
    torch.manual_seed(0)
    return ObsEncoder(spaces.Dict(picture=spaces.Box(0, 255, shape, np.uint8)), config)


def convolutions(encoder: ObsEncoder) -> list[nn.Conv2d]:
    return [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]


# numbers and indices


def test_numbers_become_symlog_and_indices_one_hot_from_their_start() -> None:
    space = spaces.Dict(
        a=spaces.Discrete(3, start=5),
        b=spaces.MultiDiscrete([2, 3], start=[0, -1]),
        c=spaces.Box(-9.0, 9.0, (2, 1), np.float32),
        d=spaces.MultiBinary(2),
        e=spaces.Box(0, 255, (1,), np.uint8),
    )
    obs = {
        "a": torch.tensor([7, 5]),
        "b": torch.tensor([[1, -1], [0, 1]]),
        "c": torch.tensor([[[0.5], [-3.0]], [[7.0], [0.0]]]),
        "d": torch.tensor([[1, 0], [1, 1]], dtype=torch.int8),
        "e": torch.tensor([[200], [3]], dtype=torch.uint8),
    }
    log = math.log
    first = [0, 0, 1, 0, 1, 1, 0, 0, log(1.5), -log(4.0), 0, 1, 1, 0, log(201.0)]
    second = [1, 0, 0, 1, 0, 0, 0, 1, log(8.0), 0, 0, 1, 0, 1, log(4.0)]
    torch.testing.assert_close(
        joined(ObsEncoder(space, CONFIG), obs), torch.tensor([first, second])
    )


def test_raw_numbers_stay_what_they_are() -> None:
    space = spaces.Dict(x=spaces.Box(-9.0, 9.0, (2,)), y=spaces.Discrete(2))
    config = ObsEncoderConfig(hidden=(4,), numbers="raw")
    obs = {"x": torch.tensor([[5.0, -300.0]]), "y": torch.tensor([1])}
    assert joined(ObsEncoder(space, config), obs).tolist() == [[5.0, -300.0, 0.0, 1.0]]


def test_other_boxes_than_pictures_are_flattened_numbers() -> None:
    space = spaces.Dict(
        floats=spaces.Box(0.0, 1.0, (64, 64, 3), np.float32),
        tiles=spaces.Box(0, 255, (7, 7, 3), np.uint8),
        flat=spaces.Box(0, 255, (64, 64), np.uint8),
    )
    encoder = ObsEncoder(space, CONFIG)
    obs = sample(space, (2,))
    parts = [obs[key].flatten(1).float() for key in ("flat", "floats", "tiles")]
    torch.testing.assert_close(joined(encoder, obs), torch.cat(parts, -1).log1p())
    assert convolutions(encoder) == []


def test_an_index_outside_its_space_is_an_error() -> None:
    encoder = ObsEncoder(spaces.Dict(number=spaces.Discrete(3)), CONFIG)
    with pytest.raises(RuntimeError, match="index 3 is out of bounds"):
        encoder({"number": torch.tensor([3])})


def test_a_nan_reaches_the_features_of_its_row_only() -> None:
    encoder = ObsEncoder(spaces.Dict(x=spaces.Box(-1.0, 1.0, (3,))), CONFIG)
    x = torch.randn(2, 3)
    x[0, 1] = math.nan
    features = encoder({"x": x})
    assert features[0].isnan().any()
    assert features[1].isfinite().all()


# pictures


def by_hand(encoder: ObsEncoder, picture: Tensor, norm: str) -> Tensor:
    """Encode one channel-first picture (C, 64, 64) with explicit windows of 4 x 4 pixels."""
    x = picture.double() / 255.0 - 0.5
    for convolution in convolutions(encoder):
        padded = F.pad(x, (1, 1, 1, 1))
        side = x.shape[-1] // 2
        y = torch.stack(
            [
                torch.stack(
                    [
                        (convolution.weight * padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]).sum(
                            (1, 2, 3)
                        )
                        for j in range(side)
                    ],
                    -1,
                )
                for i in range(side)
            ],
            -2,
        )
        y = y - y.mean(0) if norm == "layer" else y
        y = y / (y.square().mean(0) + EPS).sqrt()
        x = y / (1.0 + torch.exp(-y))
    return x.flatten()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_picture_goes_through_four_halvings_each_with_a_norm_over_the_channels(
    norm: Any,
) -> None:
    encoder = picture_encoder((1, 64, 64), ObsEncoderConfig(depth=2, norm=norm)).double()
    picture = torch.randint(0, 256, (1, 64, 64), dtype=torch.uint8)
    features = encoder({"picture": picture})
    assert [c.out_channels for c in convolutions(encoder)] == [2, 4, 8, 16]
    assert all(c.bias is None for c in convolutions(encoder))
    assert features.shape == (encoder.d_out,) == (4 * 4 * 16,)
    with torch.no_grad():
        assert_close(features, by_hand(encoder, picture, norm), DOUBLE, 64)


def test_both_picture_layouts_give_the_same_features() -> None:
    last, first = picture_encoder((64, 64, 3)), picture_encoder((3, 64, 64))
    picture = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(
        last({"picture": picture}), first({"picture": picture.permute(0, 3, 1, 2)})
    )


def test_the_first_convolution_sees_bytes_between_minus_and_plus_a_half() -> None:
    encoder = picture_encoder((64, 64, 1))
    seen: list[Tensor] = []
    convolutions(encoder)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    picture = torch.zeros(1, 64, 64, 1, dtype=torch.uint8)
    picture[0, 3, 5, 0] = 255
    encoder({"picture": picture})
    expected = torch.full((1, 1, 64, 64), -0.5)
    expected[0, 0, 3, 5] = 0.5
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("shape", [(84, 84, 3), (3, 48, 48), (64, 63, 1), (256, 256, 1)])
def test_a_picture_of_another_size_is_refused_and_names_the_setting(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match=r"obs_space\['picture'\]: expected a square picture"):
        picture_encoder(shape)
    with pytest.raises(ValueError, match=r"set env\.picture_size 64"):
        picture_encoder(shape)


def test_the_size_in_the_error_is_height_by_width_in_both_layouts() -> None:
    for shape in ((40, 50, 3), (3, 40, 50)):
        with pytest.raises(ValueError, match="got 40 x 50: "):
            picture_encoder(shape)


def test_under_autocast_the_norms_stay_in_float32() -> None:
    encoder = picture_encoder((64, 64, 3))
    obs = {"picture": torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)}
    expected = encoder(obs)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(obs)
    assert features.dtype == torch.float32
    assert 0.0 < (features - expected).abs().max() < 0.15


# dictionaries


def test_features_stand_side_by_side_and_have_the_promised_width() -> None:
    space = spaces.Dict(
        b=spaces.Box(0, 255, (64, 64, 1), np.uint8),
        a=spaces.Box(0, 255, (2, 64, 64), np.uint8),
        v=spaces.Box(-1.0, 1.0, (3,)),
    )
    encoder = ObsEncoder(space, CONFIG)
    obs = sample(space, (2,))
    features = encoder(obs)
    assert features.shape == (2, encoder.d_out) == (2, 8 + 2 * 256)
    other = encoder({**obs, "a": sample(space, (2,), seed=1)["a"]})
    changed = (other != features).any(0)
    assert changed[8 : 8 + 256].any()
    assert not changed[:8].any()
    assert not changed[8 + 256 :].any()


def test_leading_axes_do_not_change_the_features() -> None:
    encoder = ObsEncoder(MIXED, CONFIG)
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
    encoder = ObsEncoder(MIXED, CONFIG)
    obs = sample(MIXED, (8,))
    other = {**obs, key: sample(MIXED, (8,), seed=1)[key]}
    assert not torch.equal(encoder(obs), encoder(other))


def test_the_norm_of_2024_changes_the_features() -> None:
    space = spaces.Dict(x=spaces.Box(-1.0, 1.0, (3,)))
    obs = {"x": torch.randn(4, 3)}
    both = []
    for norm in ("layer", "rms"):
        torch.manual_seed(0)
        both.append(ObsEncoder(space, ObsEncoderConfig(hidden=(8,), norm=norm))(obs))  # type: ignore[arg-type]
    assert (both[0] - both[1]).abs().max() > 0.01


def test_the_features_do_not_depend_on_the_order_of_the_entries() -> None:
    a, b = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))
    forward = ObsEncoder(spaces.Dict([("a", a), ("b", b)]), CONFIG)
    backward = ObsEncoder(spaces.Dict([("b", b), ("a", a)]), CONFIG)
    backward.load_state_dict(forward.state_dict())
    obs = {"a": torch.tensor([0, 2]), "b": torch.randn(2, 2)}
    assert torch.equal(forward(obs), backward(obs))


def test_a_float64_encoder_takes_float32_observations_and_back() -> None:
    encoder = ObsEncoder(MIXED, CONFIG)
    obs = sample(MIXED, (3,))
    low = encoder(obs)
    high = encoder.double()(obs)
    assert (low.dtype, high.dtype) == (torch.float32, DOUBLE)
    torch.testing.assert_close(low.double(), high, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    encoder = ObsEncoder(MIXED, CONFIG)
    encoder(sample(MIXED, (2,))).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


# errors


def test_a_missing_entry_is_named() -> None:
    encoder = ObsEncoder(MIXED, CONFIG)
    obs = sample(MIXED, (2,))
    del obs["grid"]
    with pytest.raises(ValueError, match="obs: expected an entry 'grid', got "):
        encoder(obs)


@pytest.mark.parametrize(
    ("key", "shape"), [("vector", (2, 4)), ("picture", (2, 3, 64, 64)), ("grid", (2, 4))]
)
def test_an_observation_of_another_shape_is_refused(key: str, shape: tuple[int, ...]) -> None:
    encoder = ObsEncoder(MIXED, CONFIG)
    obs = {**sample(MIXED, (2,)), key: torch.zeros(shape)}
    with pytest.raises(ValueError, match=rf"obs\['{key}'\]: expected \(\.\.\., ") as error:
        encoder(obs)
    assert "\n" not in str(error.value)


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
        ObsEncoder(spaces.Dict(bad=space), CONFIG)
    assert str(space) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("space", [spaces.Dict(), spaces.Discrete(3)], ids=["no-entry", "leaf"])
def test_only_a_dictionary_with_entries_is_an_observation_space(space: Any) -> None:
    with pytest.raises(ValueError, match="obs_space: expected a Dict with entries"):
        read_space(space)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", ()), ("hidden", (8, 0)), ("depth", 0), ("norm", "batch"), ("numbers", "log")],
)
def test_a_config_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected"):
        ObsEncoderConfig(**{field: value})
