"""The observation decoder: losses against the authors and by hand, predictions, errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.dreamer_layers import EPS
from statewise.worldmodels.decoder import (
    ObsDecoder,
    ObsDecoderConfig,
    class_probabilities,
    symlog_squares,
)
from tests.golden_files import load
from tests.tolerance import GOLDEN_VALUE, assert_close, assert_within
from tests.worldmodels.test_encoder import MIXED, sample

DOUBLE = torch.float64
CONFIG = ObsDecoderConfig(hidden=(16, 8), depth=2)
D_IN = 5
GOLDEN, _ = load("dreamer_math")


def decoder_of(space: spaces.Space[Any], config: ObsDecoderConfig = CONFIG) -> ObsDecoder:
    torch.manual_seed(0)
    return ObsDecoder(D_IN, spaces.Dict(x=space), config)


def fixed(decoder: ObsDecoder, **raw: Tensor) -> ObsDecoder:
    """Make the decoder's raw outputs these, whatever the features."""
    decoder.forward = lambda features: raw  # type: ignore[method-assign]
    return decoder


def picture_space(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


# the authors' arrays


def test_the_loss_of_numbers_is_the_authors() -> None:
    mode, value = GOLDEN["symlogmse_mode"], GOLDEN["symlogmse_value"]
    expected = GOLDEN["symlogmse_neglogprob"]
    assert_within(symlog_squares(mode, value), expected, GOLDEN_VALUE)
    decoder = fixed(decoder_of(spaces.Box(-1.0, 1.0, (6,))), x=mode)
    loss = decoder.loss(torch.zeros(3, 4, D_IN), {"x": value})["x"]
    assert_within(loss, expected, GOLDEN_VALUE)


def test_small_squares_are_among_what_is_compared() -> None:
    mode, value = GOLDEN["symlogmse_mode"], GOLDEN["symlogmse_value"]
    squares = (mode - value.sign() * value.abs().log1p()).square()
    assert ((squares > 0) & (squares < 1e-8)).any()


def test_a_bit_of_two_classes_is_the_authors_bernoulli() -> None:
    # The log-odds of two logits is their difference.
    logit = GOLDEN["cont_logit"]
    raw = torch.cat([torch.zeros_like(logit), logit], -1)
    decoder = fixed(decoder_of(spaces.MultiBinary(1)), x=raw)
    loss = decoder.loss(torch.zeros(4, 5, D_IN), {"x": GOLDEN["cont_target"].long()})["x"]
    assert_within(-loss, GOLDEN["cont_logprob"], GOLDEN_VALUE)


# losses by hand


def test_squares_under_the_bar_count_as_zero_and_have_no_gradient() -> None:
    output = torch.tensor([[0.9e-4, 1.1e-4, -1.0]], dtype=DOUBLE, requires_grad=True)
    loss = symlog_squares(output, torch.zeros(1, 3, dtype=DOUBLE))
    assert_close(loss, torch.tensor([1.21e-8 + 1.0], dtype=DOUBLE), DOUBLE, 1)
    (grad,) = torch.autograd.grad(loss.sum(), output)
    assert_close(grad, torch.tensor([[0.0, 2.2e-4, -2.0]], dtype=DOUBLE), DOUBLE, 1)


def test_a_nan_number_is_not_a_small_square() -> None:
    assert symlog_squares(torch.zeros(2), torch.tensor([math.nan, 0.0])).isnan()


@pytest.mark.parametrize("shape", [(64, 64, 3), (3, 64, 64)])
def test_the_loss_of_a_picture_is_its_sum_of_squares(shape: tuple[int, ...]) -> None:
    raw, y = torch.randn(2, *shape), torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    decoder = fixed(decoder_of(picture_space(*shape)), x=raw)
    loss = decoder.loss(torch.zeros(2, D_IN), {"x": y})["x"]
    expected = (raw.double() + 0.5 - y.double() / 255.0).square().flatten(1).sum(-1)
    assert_close(loss, expected, torch.float32, 1)


def test_the_loss_of_indices_is_the_sum_of_their_cross_entropies() -> None:
    space = spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 5], [-1, 0]])
    raw = torch.randn(3, 11, dtype=DOUBLE)
    y = torch.tensor([[[1, 7], [2, 0]], [[0, 5], [-1, 1]], [[1, 6], [0, 1]]])
    decoder = fixed(decoder_of(space), x=raw)
    expected = torch.zeros(3, dtype=DOUBLE)
    counted = y.flatten(1) - torch.tensor([0, 5, -1, 0])
    for column, part in enumerate(raw.split([2, 3, 4, 2], -1)):
        expected += F.cross_entropy(part, counted[:, column], reduction="none")
    assert_close(decoder.loss(torch.zeros(3, D_IN), {"x": y})["x"], expected, DOUBLE, 1)


def test_the_loss_of_one_index_counts_from_its_start() -> None:
    raw = torch.tensor([[0.0, 1.0, 2.0]], dtype=DOUBLE)
    decoder = fixed(decoder_of(spaces.Discrete(3, start=4)), x=raw)
    loss = decoder.loss(torch.zeros(1, D_IN), {"x": torch.tensor([6])})["x"]
    assert_close(loss, -raw.log_softmax(-1)[:, 2], DOUBLE, 1)


def test_a_true_value_decoded_without_error_costs_nothing() -> None:
    y = torch.tensor([[-500.0, 0.0, 3.0]])
    exact = fixed(decoder_of(spaces.Box(-9.0, 9.0, (3,))), x=y.sign() * y.abs().log1p())
    assert exact.loss(torch.zeros(1, D_IN), {"x": y})["x"].item() == 0.0
    torch.testing.assert_close(exact.predict(torch.zeros(1, D_IN))["x"], y)


# predictions


def test_predictions_have_the_units_and_shapes_of_the_observation() -> None:
    decoder = ObsDecoder(D_IN, MIXED, CONFIG)
    out = decoder.predict(torch.randn(2, 3, D_IN))
    assert {key: tuple(x.shape[2:]) for key, x in out.items()} == {
        "number": (4,),
        "grid": (2 + 3 + 4 + 1,),
        "bits": (4 * 2,),
        "vector": (3,),
        "matrix": (2, 2),
        "scalar": (),
        "picture": (64, 64, 3),
    }
    assert all(x.shape[:2] == (2, 3) for x in out.values())


def test_pictures_are_clipped_to_the_unit_interval() -> None:
    raw = torch.zeros(1, 64, 64, 1)
    raw[0, 0, :3, 0] = torch.tensor([-0.7, 0.25, 0.7])
    decoder = fixed(decoder_of(picture_space(64, 64, 1)), x=raw)
    out = decoder.predict(torch.zeros(1, D_IN))["x"]
    assert out[0, 0, :4, 0].tolist() == [0.0, 0.75, 1.0, 0.5]


def test_numbers_come_back_from_their_symlog() -> None:
    raw = torch.tensor([[math.log(4.0), -math.log(11.0), 0.0, 20.0]])
    decoder = fixed(decoder_of(spaces.Box(-9.0, 9.0, (2, 2))), x=raw)
    expected = torch.tensor([[[3.0, -10.0], [0.0, math.expm1(20.0)]]])
    torch.testing.assert_close(decoder.predict(torch.zeros(1, D_IN))["x"], expected)


def test_probabilities_of_each_index_sum_to_one() -> None:
    raw = torch.randn(4, 6, dtype=DOUBLE)
    p = class_probabilities(raw, (2, 1, 3))
    assert_close(p[:, :2], raw[:, :2].softmax(-1), DOUBLE, 1)
    assert_close(p[:, 2], torch.ones(4, dtype=DOUBLE), DOUBLE, 1)
    assert_close(p[:, 3:], raw[:, 3:].softmax(-1), DOUBLE, 1)


# layers


def by_hand(decoder: nn.Module, features: Tensor, norm: str) -> Tensor:
    """Paint one picture (C, 64, 64): each pixel adds a stamp of 4 x 4 to a plane twice as wide."""
    layers = dict(decoder.named_modules())
    x = layers["linear"](features).reshape(-1, 4, 4)
    stages = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    for number, layer in enumerate(stages):
        side = x.shape[-1]
        plane = x.new_zeros(layer.out_channels, 2 * side + 2, 2 * side + 2)
        stamps = torch.einsum("cij,cdkl->ijdkl", x, layer.weight)
        for i in range(side):
            for j in range(side):
                plane[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += stamps[i, j]
        x = plane[:, 1:-1, 1:-1]
        if number < len(stages) - 1:
            assert layer.bias is None
            x = x - x.mean(0) if norm == "layer" else x
            x = x / (x.square().mean(0) + EPS).sqrt()
            x = x / (1.0 + torch.exp(-x))
        else:
            assert layer.bias is not None
            x = x + layer.bias[:, None, None]
    return x


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_picture_is_painted_by_four_doublings(norm: Any) -> None:
    config = ObsDecoderConfig(depth=1, norm=norm)
    decoder = decoder_of(picture_space(64, 64, 2), config).double()
    picture = decoder.pictures[0]
    with torch.no_grad():
        picture.last.bias.add_(torch.randn(2))  # type: ignore[operator, union-attr]
        picture.linear.bias.add_(torch.randn(128))  # type: ignore[operator, union-attr]
        features = torch.randn(D_IN, dtype=DOUBLE)
        raw = decoder(features)["x"]
        assert raw.shape == (64, 64, 2)
        assert_close(raw, by_hand(picture, features, norm).permute(1, 2, 0), DOUBLE, 64)
    stages = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [c.out_channels for c in stages] == [4, 2, 1, 2]


def test_both_picture_layouts_paint_the_same() -> None:
    last, first = decoder_of(picture_space(64, 64, 3)), decoder_of(picture_space(3, 64, 64))
    features = torch.randn(2, D_IN)
    torch.testing.assert_close(last(features)["x"], first(features)["x"].permute(0, 2, 3, 1))


def test_a_picture_is_painted_from_the_features_and_numbers_from_the_hidden_layers() -> None:
    space = spaces.Dict(n=spaces.Box(-1.0, 1.0, (2,)), p=picture_space(64, 64, 1))
    decoder = ObsDecoder(D_IN, space, CONFIG)
    raw = decoder(torch.randn(2, D_IN))
    assert decoder.layers is not None
    with torch.no_grad():
        for parameter in decoder.layers.parameters():
            parameter.zero_()
    assert not decoder(torch.randn(2, D_IN))["n"].any()
    assert raw["n"].any()
    assert raw["p"].any()


def test_without_hidden_layers_the_outputs_are_linear() -> None:
    decoder = decoder_of(spaces.Box(-1.0, 1.0, (2,)), ObsDecoderConfig(hidden=()))
    one, two = torch.randn(D_IN), torch.randn(D_IN)
    total = decoder(one + two)["x"]
    torch.testing.assert_close(total, decoder(one)["x"] + decoder(two)["x"])


def test_the_norm_of_2024_changes_the_outputs() -> None:
    features = torch.randn(3, D_IN)
    both = [
        decoder_of(spaces.Box(-1.0, 1.0, (2,)), ObsDecoderConfig(hidden=(8,), norm=norm))(features)
        for norm in ("layer", "rms")  # type: ignore[arg-type]
    ]
    assert (both[0]["x"] - both[1]["x"]).abs().max() > 0.01


def test_leading_axes_do_not_change_losses_or_predictions() -> None:
    decoder = ObsDecoder(D_IN, MIXED, CONFIG)
    obs, features = sample(MIXED, (6,)), torch.randn(6, D_IN)
    window = {key: x.reshape(2, 3, *x.shape[1:]) for key, x in obs.items()}
    flat = decoder.loss(features, obs)
    for key, loss in decoder.loss(features.reshape(2, 3, -1), window).items():
        assert loss.shape == (2, 3)
        torch.testing.assert_close(loss.flatten(), flat[key])
    single = decoder.loss(features[4], {key: x[4] for key, x in obs.items()})
    for key, loss in single.items():
        assert loss.shape == ()
        torch.testing.assert_close(loss, flat[key][4])


def test_gradients_reach_every_parameter_and_the_features() -> None:
    decoder = ObsDecoder(D_IN, MIXED, CONFIG)
    features = torch.randn(2, D_IN, requires_grad=True)
    losses = decoder.loss(features, sample(MIXED, (2,)))
    torch.stack(list(losses.values())).sum().backward()
    assert features.grad is not None
    assert features.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in decoder.parameters())


def test_a_few_steps_teach_it_one_observation() -> None:
    space = spaces.Dict(n=spaces.Box(-9.0, 9.0, (2,)), i=spaces.Discrete(3, start=1))
    decoder = ObsDecoder(D_IN, space, CONFIG)
    obs = {"n": torch.tensor([[5.0, -2.0]]), "i": torch.tensor([3])}
    features = torch.randn(1, D_IN)
    parameters = list(decoder.parameters())
    for _ in range(150):
        loss = torch.stack(list(decoder.loss(features, obs).values())).sum()
        with torch.no_grad():
            for p, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.sub_(0.03 * grad)
    out = decoder.predict(features)
    assert (out["n"] - obs["n"]).abs().max() < 0.1
    assert out["i"][0, 2] > 0.95


def test_under_autocast_the_losses_are_float32() -> None:
    decoder = ObsDecoder(D_IN, MIXED, CONFIG)
    obs, features = sample(MIXED, (2,)), torch.randn(2, D_IN)
    expected = decoder.loss(features, obs)
    with torch.autocast("cpu", torch.bfloat16):
        losses = decoder.loss(features, obs)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[key], rtol=0.1, atol=0.1)


# errors


def test_a_missing_entry_is_named() -> None:
    decoder = ObsDecoder(D_IN, MIXED, CONFIG)
    obs = sample(MIXED, (2,))
    del obs["bits"]
    with pytest.raises(ValueError, match="obs: expected an entry 'bits', got "):
        decoder.loss(torch.zeros(2, D_IN), obs)


@pytest.mark.parametrize("lead", [(3,), (1, 2), ()])
def test_observations_with_other_leading_axes_are_refused(lead: tuple[int, ...]) -> None:
    decoder = decoder_of(spaces.Box(-1.0, 1.0, (4,)))
    with pytest.raises(ValueError, match=r"expected the leading axes \(2,\)") as error:
        decoder.loss(torch.zeros(2, D_IN), {"x": torch.zeros(*lead, 4)})
    assert "\n" not in str(error.value)


def test_a_picture_of_another_shape_is_refused() -> None:
    decoder = decoder_of(picture_space(64, 64, 3))
    with pytest.raises(ValueError, match=r"obs\['x'\]: expected \(..., 64, 64, 3\)"):
        decoder.loss(torch.zeros(2, D_IN), {"x": torch.zeros(2, 3, 64, 64)})


def test_a_space_that_cannot_be_modelled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"obs_space\['x'\]: expected a square picture"):
        decoder_of(picture_space(48, 48, 3))
    with pytest.raises(ValueError, match=r"obs_space\['x'\]: expected a Box"):
        decoder_of(spaces.Text(3))


@pytest.mark.parametrize(("field", "value"), [("hidden", (8, 0)), ("depth", 0), ("norm", "batch")])
def test_a_config_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected"):
        ObsDecoderConfig(**{field: value})
