"""symlog, symexp and two-hot distributions: the authors' arrays, closed forms, precision."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.nets.symlog import TwoHot, symexp, symlog
from tests.golden_files import load
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_close, assert_within, limit

DOUBLE = torch.float64
NAN, INF = float("nan"), float("inf")
SPACINGS = ["symlog", "symexp"]
GOLDEN, _ = load("dreamer_math")


def numbers(exponent: int) -> Tensor:
    """Return 0 and numbers of both signs, from 1e-12 to 10^exponent."""
    sizes = torch.logspace(-12, exponent, 150, dtype=DOUBLE)
    return torch.cat([-sizes, torch.zeros(1, dtype=DOUBLE), sizes])


def slow_target(two_hot: TwoHot, x: float) -> list[float]:
    """Place one number on the bins with comparisons alone, as world-models 2.1 words it."""
    y = math.copysign(math.log1p(abs(x)), x) if two_hot.spacing == "symlog" else x
    bins = two_hot.bins.tolist()
    below = min(max(sum(b <= y for b in bins) - 1, 0), len(bins) - 1)
    above = min(max(len(bins) - sum(b > y for b in bins), 0), len(bins) - 1)
    to_below, to_above = (abs(bins[below] - y), abs(bins[above] - y)) if below != above else (1, 1)
    target = [0.0] * len(bins)
    target[below] += to_above / (to_below + to_above)
    target[above] += to_below / (to_below + to_above)
    return target


# symlog and symexp


def test_symlog_and_symexp_are_the_authors() -> None:
    for name, function in (("symlog", symlog), ("symexp", symexp)):
        actual, y = function(GOLDEN[f"{name}_x"]), GOLDEN[f"{name}_y"]
        assert_within(actual, y, GOLDEN_VALUE)
        # The arrays span 12 orders of magnitude. The authors round ln(1 + |x|) to 1e-16 absolute.
        assert ((actual - y).abs() <= GOLDEN_VALUE * y.abs().clamp(min=1e-6)).all()


def test_symexp_inverts_symlog_and_both_are_odd() -> None:
    x = numbers(12)
    back = symexp(symlog(x))
    assert ((back - x).abs() <= limit(DOUBLE, 1) * x.abs()).all()
    assert torch.equal(symlog(-x), -symlog(x))
    assert torch.equal(symexp(-symlog(x)), -back)


def test_both_have_slope_one_at_zero_and_the_closed_form_elsewhere() -> None:
    x = torch.tensor([-3.0, -1e-9, 0.0, 1e-9, 3.0], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(symlog(x).sum(), x)
    assert_close(slope, 1.0 / (1.0 + x.abs()), DOUBLE, 1)
    (slope,) = torch.autograd.grad(symexp(x).sum(), x)
    assert_close(slope, x.abs().exp(), DOUBLE, 1)


def test_large_numbers_and_nan_stay_what_they_are() -> None:
    x = torch.tensor([1e30, -1e30, INF, -INF, NAN], requires_grad=True)
    y = symlog(x)
    (slope,) = torch.autograd.grad(y[:2].sum(), x)
    assert slope[:4].isfinite().all()
    assert y.tolist()[2:4] == [INF, -INF]
    assert y[4].isnan()
    big = torch.tensor([-80.0, 80.0], requires_grad=True)
    (slope,) = torch.autograd.grad(symexp(big).sum(), big)
    assert slope.isfinite().all()


# two-hot: the authors' arrays


def test_the_bins_are_the_authors() -> None:
    assert_within(TwoHot().double().bins, GOLDEN["twohot_bins"], GOLDEN_VALUE)


def test_targets_losses_and_means_are_the_authors() -> None:
    two_hot = TwoHot().double()
    value = GOLDEN["twohot_value"].squeeze(-1)
    logits = GOLDEN["twohot_logits"].clone().requires_grad_()
    assert_within(two_hot.encode(value), GOLDEN["twohot_target"], GOLDEN_VALUE)
    loss = two_hot.loss(logits, value)
    assert_within(-loss, GOLDEN["twohot_logprob"], GOLDEN_VALUE)
    (grad,) = torch.autograd.grad(-loss.sum(), logits)
    assert_within(grad, GOLDEN["twohot_grad_logprob"], GOLDEN_GRADIENT)
    mean, decoded = two_hot.mean(logits).detach(), GOLDEN["twohot_decode"].squeeze(-1)
    assert_within(mean, decoded, GOLDEN_VALUE)
    assert ((mean - decoded).abs() <= GOLDEN_VALUE * decoded.abs().clamp(min=1e-3)).all()


# two-hot: properties of both spacings


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_bins", [255, 8, 2])
def test_a_target_is_what_comparisons_say(spacing: Any, num_bins: int) -> None:
    two_hot = TwoHot(num_bins, -3.0, 3.0, spacing).double()
    edges = (symexp(two_hot.bins) if spacing == "symlog" else two_hot.bins).tolist()
    for x in [*edges[:3], *edges[-2:], 0.0, 0.3, -1.7, 5.0, 1e3, -1e3, INF, -INF]:
        target = two_hot.encode(torch.tensor(x, dtype=DOUBLE))
        finite = max(min(x, 1e6), -1e6)
        expected = torch.tensor(slow_target(two_hot, finite), dtype=DOUBLE)
        assert (target - expected).abs().max() < 1e-9, x


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_number_survives_encoding_and_taking_the_mean(spacing: Any) -> None:
    two_hot, x = TwoHot(spacing=spacing).double(), numbers(8)
    target = two_hot.encode(x)
    assert ((target > 0).sum(-1) <= 2).all()
    assert (target >= 0).all()
    assert_close(target.sum(-1), torch.ones_like(x), DOUBLE, 1)
    mean = two_hot.mean(target.log())
    assert ((mean - x).abs() <= limit(DOUBLE, 1) * x.abs().clamp(min=1e-3)).all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("num_bins", [255, 8])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_equal_logits_mean_exactly_zero(spacing: Any, num_bins: int, dtype: torch.dtype) -> None:
    two_hot = TwoHot(num_bins, spacing=spacing).to(dtype)
    for logit in (0.0, 1.3, -40.0):
        logits = torch.full((3, num_bins), logit, dtype=dtype, requires_grad=True)
        mean = two_hot.mean(logits)
        assert mean.tolist() == [0.0] * 3
        (grad,) = torch.autograd.grad(mean.sum(), logits)
        # d/d logit_k = p_k (b_k - 0): symexp has slope 1 at 0.
        assert_close(grad, two_hot.bins.expand(3, -1) / num_bins, dtype, 1, gradient=True)


@pytest.mark.parametrize("num_bins", [2, 5, 8])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_bins_that_are_not_symmetric_all_count_in_the_mean(spacing: Any, num_bins: int) -> None:
    two_hot = TwoHot(num_bins, -1.0, 3.0, spacing).double()
    even = torch.linspace(-1.0, 3.0, num_bins, dtype=DOUBLE)
    logits = torch.randn(3, num_bins, dtype=DOUBLE)
    p = logits.softmax(-1)
    expected = symexp(p @ even) if spacing == "symlog" else p @ symexp(even)
    assert_close(two_hot.mean(logits), expected, DOUBLE, num_bins)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_loss_is_the_cross_entropy_with_the_target(spacing: Any) -> None:
    two_hot = TwoHot(9, -2.0, 2.0, spacing).double()
    x = 3.0 * torch.randn(2, 4, dtype=DOUBLE)
    logits = torch.randn(2, 4, 9, dtype=DOUBLE, requires_grad=True)
    loss = two_hot.loss(logits, x)
    expected = -(two_hot.encode(x) * logits.log_softmax(-1)).sum(-1)
    assert_close(loss, expected, DOUBLE, 1)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert_close(grad, logits.softmax(-1) - two_hot.encode(x), DOUBLE, 1, gradient=True)


def test_the_two_spacings_have_the_outer_bins_in_common_and_differ_between() -> None:
    old, new = TwoHot().double(), TwoHot(spacing="symexp").double()
    assert_close(symexp(old.bins), new.bins, DOUBLE, 1)
    assert torch.equal(new.bins, -new.bins.flip(0))
    half = symexp(torch.linspace(-20.0, 0.0, 128, dtype=DOUBLE))  # as the code of 2024 has them
    assert_within(new.bins[:128], half, GOLDEN_VALUE)
    # Between two bins the middle is another number: the means of half and half differ.
    logits = torch.full((255,), -INF, dtype=DOUBLE)
    logits[150:152] = 0.0
    assert abs(old.mean(logits).item() / symexp(old.bins[150:152].mean()).item() - 1.0) < 1e-12
    assert abs(new.mean(logits).item() / new.bins[150:152].mean().item() - 1.0) < 1e-12
    assert new.mean(logits) > old.mean(logits)


def test_a_target_carries_no_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    two_hot = TwoHot(9)
    assert not two_hot.encode(x).requires_grad
    loss = two_hot.loss(torch.randn(3, 9, requires_grad=True), x)
    assert torch.autograd.grad(loss.sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_nan_is_not_hidden_and_stays_in_its_row(spacing: Any) -> None:
    two_hot = TwoHot(9, spacing=spacing)
    loss = two_hot.loss(torch.zeros(2, 9), torch.tensor([NAN, 1.0]))
    assert loss[0].isnan()
    assert loss[1].isfinite()
    assert two_hot.encode(torch.tensor(NAN)).isnan().any()


# precision and shapes


def test_a_float64_module_has_float64_bins_and_a_bfloat16_one_float32() -> None:
    two_hot = TwoHot(spacing="symexp")
    assert two_hot.bins.dtype == torch.float32
    assert_within(two_hot.double().bins, symexp(torch.linspace(-20, 20, 255, dtype=DOUBLE)), 1e-14)
    assert two_hot.bfloat16().bins.dtype == torch.float32
    assert_within(two_hot.bins, symexp(torch.linspace(-20, 20, 255, dtype=DOUBLE)), 1e-6)
    assert two_hot.to("meta").bins.device.type == "meta"


def test_bins_are_not_in_checkpoints() -> None:
    assert TwoHot().state_dict() == {}


def test_bfloat16_logits_are_widened() -> None:
    two_hot = TwoHot()
    logits = torch.randn(3, 255).bfloat16()
    assert two_hot.mean(logits).dtype == two_hot.loss(logits, torch.zeros(3)).dtype == torch.float32
    assert_close(two_hot.mean(logits), two_hot.double().mean(logits.double()), torch.float32, 255)


def test_any_leading_axes_and_strides_will_do() -> None:
    two_hot = TwoHot(9)
    x, logits = torch.randn(4, 3), torch.randn(4, 3, 9)
    assert two_hot.loss(logits[0, 0], x[0, 0]).shape == ()
    turned = two_hot.loss(logits.transpose(0, 1), x.T)
    assert torch.equal(turned, two_hot.loss(logits, x).T)
    assert two_hot.encode(x.T).shape == (3, 4, 9)


@pytest.mark.parametrize("shape", [(2, 3, 1), (3,), (1, 3), (2, 1)])
def test_numbers_that_do_not_fit_the_logits_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two-hot loss: expected logits") as error:
        TwoHot(9).loss(torch.zeros(2, 3, 9), torch.zeros(shape))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_bins": 1}, "num_bins: expected at least 2"),
        ({"low": 1.0, "high": 1.0}, "low, high: expected finite low < high"),
        ({"low": NAN}, "low, high"),
        ({"high": INF}, "low, high"),
        ({"spacing": "linear"}, "spacing: expected one of symlog, symexp"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoHot(**arguments)
