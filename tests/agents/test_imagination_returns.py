"""Returns, weights and the return normaliser of imagination: authors' arrays, slow sums."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from statewise.agents.imagination import ReturnNormalizer, imagined_lambda_return, weights
from tests.golden_files import load
from tests.tolerance import GOLDEN_VALUE, assert_close, assert_within

DOUBLE = torch.float64
GOLDEN, _ = load("dreamer_math")


def rows_first(x: Tensor) -> Tensor:
    """Turn (T, B, 1) into (B, T)."""
    return x.squeeze(-1).T.contiguous()


def imagined(K: int = 4, H: int = 7) -> dict[str, Tensor]:
    """Draw imagined rows; row 0 ends half-way (discount 0)."""
    discount = 0.5 + 0.5 * torch.rand(K, H, dtype=DOUBLE)
    discount[0, H // 2] = 0.0
    return {
        "reward": torch.randn(K, H, dtype=DOUBLE),
        "discount": discount,
        "value": torch.randn(K, H + 1, dtype=DOUBLE),
    }


def slow_returns(rows: dict[str, Tensor], trace: float) -> Tensor:
    """Mix all n-step returns of each entry, O(H^2), without the recursion."""
    reward, discount, value = rows["reward"], rows["discount"], rows["value"]
    K, H = reward.shape
    columns = []
    for i in range(H):
        rewards, factor = reward.new_zeros(K), reward.new_ones(K)
        mixed = reward.new_zeros(K)
        for n, j in enumerate(range(i, H), start=1):
            rewards = rewards + factor * reward[:, j]
            factor = factor * discount[:, j]
            n_step = rewards + factor * value[:, j + 1]
            weight = trace ** (n - 1) * (1.0 if j == H - 1 else 1.0 - trace)
            mixed = mixed + weight * n_step
        columns.append(mixed)
    return torch.stack(columns, 1)


# lambda-returns


@pytest.mark.parametrize("case", "abc")
def test_returns_are_the_authors(case: str) -> None:
    arrays = {
        key: GOLDEN[f"lamret_{case}_{key}"] for key in ("reward", "pcont", "value", "bootstrap")
    }
    value = torch.cat([arrays["value"], arrays["bootstrap"][None]])
    out = imagined_lambda_return(
        rows_first(arrays["reward"]),
        rows_first(arrays["pcont"]),
        rows_first(value),
        GOLDEN[f"lamret_{case}_lambda"].item(),
    )
    assert_within(out, rows_first(GOLDEN[f"lamret_{case}_out"]), GOLDEN_VALUE)


@pytest.mark.parametrize("trace", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("H", [1, 2, 7])
def test_returns_and_gradients_are_those_of_the_mixture_of_n_step_returns(
    H: int, trace: float
) -> None:
    rows = {key: x.requires_grad_() for key, x in imagined(H=H).items()}
    actual = imagined_lambda_return(**rows, trace=trace)
    expected = slow_returns(rows, trace)
    assert_close(actual, expected, DOUBLE, H)
    weight = torch.randn_like(actual)
    grads = torch.autograd.grad((actual * weight).sum(), tuple(rows.values()))
    wanted = torch.autograd.grad((expected * weight).sum(), tuple(rows.values()))
    for grad, want in zip(grads, wanted, strict=True):
        assert_close(grad, want, DOUBLE, H, gradient=True)


def test_three_steps_worked_by_hand() -> None:
    # R_2 = 3 + .5*8 = 7; R_1 = 2 + .5*(.5*4 + .5*7) = 4.75; R_0 = 1 + .5*(.5*2 + .5*4.75) = 2.6875
    out = imagined_lambda_return(
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.full((1, 3), 0.5),
        torch.tensor([[100.0, 2.0, 4.0, 8.0]]),
        0.5,
    )
    assert out.tolist() == [[2.6875, 4.75, 7.0]]


def test_nothing_after_an_end_counts() -> None:
    rows = imagined()
    end = 7 // 2
    expected = imagined_lambda_return(**rows, trace=0.95)[0, : end + 1]
    rows["reward"][0, end + 1 :] = 1e6
    rows["value"][0, end + 1 :] = -1e6
    actual = imagined_lambda_return(**rows, trace=0.95)[0, : end + 1]
    assert torch.equal(actual, expected)
    assert actual[end] == rows["reward"][0, end]


def test_float32_stays_float32() -> None:
    rows = imagined()
    single = {key: x.float() for key, x in rows.items()}
    out = imagined_lambda_return(**single, trace=0.95)
    assert out.dtype == torch.float32
    assert_close(out, slow_returns(rows, 0.95), torch.float32, 7)


@pytest.mark.parametrize("broken", [{"value": (4, 7)}, {"discount": (4, 8)}, {"value": (1, 8)}])
def test_shapes_that_do_not_fit_are_refused(broken: dict[str, tuple[int, ...]]) -> None:
    rows = imagined() | {key: torch.zeros(shape) for key, shape in broken.items()}
    with pytest.raises(ValueError, match=r"expected reward \(K, H\)") as error:
        imagined_lambda_return(**rows, trace=0.95)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trace", [-0.1, 1.1, math.nan])
def test_a_trace_out_of_range_is_refused(trace: float) -> None:
    with pytest.raises(ValueError, match="trace: expected lambda in"):
        imagined_lambda_return(**imagined(), trace=trace)


# weights


def test_weights_are_the_authors() -> None:
    out = weights(rows_first(GOLDEN["weights_discount"]))
    assert_within(out, rows_first(GOLDEN["weights_out"]), GOLDEN_VALUE)


def test_a_weight_is_the_product_of_the_discounts_before_it() -> None:
    discount = imagined()["discount"]
    expected = torch.stack([discount[:, :i].prod(1) for i in range(7)], 1)
    assert_close(weights(discount), expected, DOUBLE, 7)
    assert not weights(discount)[0, 7 // 2 + 1 :].any()
    assert weights(discount)[:, :1].tolist() == [[1.0]] * 4


def test_a_row_that_starts_at_a_terminal_observation_weighs_nothing() -> None:
    discount = imagined()["discount"]
    start = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=DOUBLE)
    out = weights(discount, start=start)
    assert not out[[1, 3]].any()
    assert torch.equal(out[[0, 2]], weights(discount)[[0, 2]])
    # As world-models 2.4 has it: prod_{j <= i} (gamma cont_j) / gamma, with cont_0 = start.
    gamma, cont = 1.0 - 1.0 / 333.0, torch.rand(4, 8, dtype=DOUBLE)
    out = weights(gamma * cont[:, 1:], start=cont[:, 0])
    assert_close(out, (gamma * cont).cumprod(1)[:, :-1] / gamma, DOUBLE, 7)


# the normaliser


def test_offset_and_scale_are_the_authors() -> None:
    normalizer = ReturnNormalizer().double()
    for x, ema, offset, scale in zip(
        *(GOLDEN[f"retnorm_{key}"] for key in ("x", "ema", "offset", "scale")), strict=True
    ):
        normalizer.update(x)
        assert_within(normalizer.ema, ema, GOLDEN_VALUE)
        assert_within(normalizer.offset, offset, GOLDEN_VALUE)
        assert_within(normalizer.scale, scale, GOLDEN_VALUE)


@pytest.mark.parametrize(
    "settings",
    [{}, {"decay": 0.5}, {"low": 0.2}, {"high": 0.6}, {"floor": 0.1}, {"low": 0.0, "high": 1.0}],
    ids=str,
)
def test_it_is_an_average_of_numpys_percentiles(settings: dict[str, float]) -> None:
    chosen = {"decay": 0.99, "low": 0.05, "high": 0.95, "floor": 1.0} | settings
    normalizer = ReturnNormalizer(**settings).double()
    ema = np.zeros(2)
    for step in range(5):
        x = 3.0 * torch.randn(4, 7, dtype=DOUBLE) + step
        normalizer.update(x)
        now = np.percentile(x.numpy(), [100.0 * chosen["low"], 100.0 * chosen["high"]])
        ema = chosen["decay"] * ema + (1.0 - chosen["decay"]) * now
        assert_close(normalizer.offset, torch.tensor(ema[0]), DOUBLE, 1)
        scale = max(chosen["floor"], ema[1] - ema[0])
        assert_close(normalizer.scale, torch.tensor(scale), DOUBLE, 1)


def test_small_returns_are_not_blown_up() -> None:
    normalizer = ReturnNormalizer(decay=0.0)
    normalizer.update(torch.linspace(0.0, 0.1, 101))
    assert normalizer.scale.item() == 1.0
    assert abs(normalizer.offset.item() - 0.005) < 1e-6
    normalizer.update(torch.linspace(0.0, 100.0, 101))
    assert abs(normalizer.scale.item() - 90.0) < 1e-4


def test_a_saved_normaliser_goes_on_exactly() -> None:
    updates = [torch.randn(5) * 10 for _ in range(4)]
    whole = ReturnNormalizer()
    for x in updates:
        whole.update(x)
    first, second = ReturnNormalizer(), ReturnNormalizer()
    for x in updates[:2]:
        first.update(x)
    second.load_state_dict(first.state_dict())
    for x in updates[2:]:
        second.update(x)
    assert torch.equal(second.ema, whole.ema)
    assert first.ema.any()
    assert not torch.equal(first.ema, whole.ema)


def test_offset_and_scale_are_snapshots_without_gradient() -> None:
    normalizer = ReturnNormalizer(decay=0.0)
    x = torch.linspace(0.0, 100.0, 101, requires_grad=True)
    normalizer.update(x)
    offset, scale = normalizer.offset, normalizer.scale
    assert not offset.requires_grad
    assert not scale.requires_grad
    before = offset.item(), scale.item()
    normalizer.update(torch.linspace(1.0, 5000.0, 101))
    assert (offset.item(), scale.item()) == before


def test_bfloat16_returns_are_taken() -> None:
    normalizer = ReturnNormalizer(decay=0.0)
    normalizer.update(torch.arange(0.0, 101.0).bfloat16())
    assert normalizer.offset.item() == 5.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.5}, "decay: expected"),
        ({"decay": math.nan}, "decay: expected"),
        ({"low": 0.9, "high": 0.1}, "low, high: expected"),
        ({"high": 1.1}, "low, high: expected"),
        ({"floor": 0.0}, "floor: expected"),
        ({"floor": math.nan}, "floor: expected"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReturnNormalizer(**settings)


def test_every_case_of_the_authors_has_its_own_trace_and_length() -> None:
    traces = [GOLDEN[f"lamret_{case}_lambda"].item() for case in "abc"]
    lengths = [len(GOLDEN[f"lamret_{case}_reward"]) for case in "abc"]
    assert all(a != b for a, b in itertools.combinations(lengths, 2))
    assert len(set(traces)) > 1
