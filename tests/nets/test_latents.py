"""Categorical latents: the authors' arrays, closed forms, counted samples, gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from statewise.nets.latents import (
    LatentConfig,
    free_kl,
    gumbel,
    kl_divergence,
    mixed_log_p,
    mode_one_hot,
    sample_one_hot,
)
from tests.golden_files import load
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_close, assert_within

DOUBLE = torch.float64
GOLDEN, META = load("dreamer_math")
SHAPE = (2, 3, 4, 5)


def logits(*shape: int) -> Tensor:
    return 2.0 * torch.randn(*(shape or SHAPE), dtype=DOUBLE)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the authors' arrays


def test_the_mixture_and_its_entropy_are_the_authors() -> None:
    log_p = mixed_log_p(GOLDEN["kl_post_logit"], META["unimix"])
    assert_within(log_p, GOLDEN["unimix_logits"], GOLDEN_VALUE)  # after mixing, normalised
    assert_within(log_p.exp(), GOLDEN["unimix_probs"], GOLDEN_VALUE)
    entropy = -(log_p.exp() * log_p).sum(-1)
    assert_within(entropy, GOLDEN["unimix_entropy"], GOLDEN_VALUE)


@pytest.mark.parametrize("free", [1.0, 0.3])
def test_the_divergences_and_their_gradients_are_the_authors(free: float) -> None:
    posterior = GOLDEN["kl_post_logit"].clone().requires_grad_()
    prior = GOLDEN["kl_prior_logit"].clone().requires_grad_()
    log_q, log_p = (mixed_log_p(x, META["unimix"]) for x in (posterior, prior))
    case = {key: GOLDEN[f"kl{free}_{key}"] for key in ("value", "dyn", "rep", "loss", "w")}
    assert_within(kl_divergence(log_q, log_p), case["value"], GOLDEN_VALUE)
    dyn, rep = free_kl(log_q, log_p, free)
    assert_within(dyn, case["dyn"], GOLDEN_VALUE)
    assert_within(rep, case["rep"], GOLDEN_VALUE)
    loss = META["dyn_scale"] * dyn + META["rep_scale"] * rep
    assert_within(loss, case["loss"], GOLDEN_VALUE)
    grads = torch.autograd.grad((loss * case["w"]).sum(), (posterior, prior))
    assert_within(grads[0], GOLDEN[f"kl{free}_grad_post"], GOLDEN_GRADIENT)
    assert_within(grads[1], GOLDEN[f"kl{free}_grad_prior"], GOLDEN_GRADIENT)


def test_both_sides_of_the_bar_are_among_what_is_compared() -> None:
    below = (GOLDEN["kl1.0_value"] < 1.0).sum().item()
    assert 0 < below < GOLDEN["kl1.0_value"].numel()


# the mixture


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("classes", [2, 32])
def test_no_probability_is_under_its_share_of_the_uniform_one(
    classes: int, dtype: torch.dtype
) -> None:
    x = torch.zeros(3, 2, classes, dtype=dtype)
    x[..., 0] = 1e4
    p = mixed_log_p(x, 0.01).exp()
    floor = torch.full((3, 2, classes - 1), 0.01 / classes, dtype=dtype)
    assert_close(p[..., 1:], floor, dtype, 1)
    assert_close(p[..., 0], torch.full((3, 2), 0.99 + 0.01 / classes, dtype=dtype), dtype, 1)
    assert_close(p.sum(-1), torch.ones(3, 2, dtype=dtype), dtype, 1)


def test_without_a_mixture_it_is_the_log_softmax_of_any_logits() -> None:
    x = logits()
    assert_within(mixed_log_p(x, 0.0), x.log_softmax(-1), 1e-14)
    extreme = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    log_p = mixed_log_p(extreme, 0.0)
    assert log_p.tolist() == [[0.0, -1e4, -2e4]]


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
def test_the_mixture_has_the_gradient_of_finite_differences(unimix: float) -> None:
    assert torch.autograd.gradcheck(lambda x: mixed_log_p(x, unimix), logits(2, 3).requires_grad_())


def test_extreme_logits_have_finite_gradients() -> None:
    extreme = torch.tensor([[1e30, 0.0, -1e30]], requires_grad=True)
    mixed_log_p(extreme, 0.01).sum().backward()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_bfloat16_logits_make_float32_probabilities() -> None:
    x = torch.randn(3, 4, 5).bfloat16()
    log_p = mixed_log_p(x, 0.01)
    assert log_p.dtype == torch.float32
    assert_close(log_p, mixed_log_p(x.double(), 0.01), torch.float32, 1)


# samples


def test_samples_are_exactly_one_hot_and_follow_the_noise() -> None:
    log_p = mixed_log_p(logits().float(), 0.01).requires_grad_()
    noise = gumbel(SHAPE, seeded())
    sample = sample_one_hot(log_p, noise)
    assert set(sample.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(sample.sum(-1), torch.ones(SHAPE[:-1]))
    assert torch.equal(sample.argmax(-1), (log_p + noise).argmax(-1))
    assert torch.equal(sample, sample_one_hot(log_p, noise))


def test_a_sample_has_the_gradient_of_its_probabilities() -> None:
    x, weight = logits().requires_grad_(), torch.randn(SHAPE, dtype=DOUBLE)
    noise = gumbel(SHAPE, seeded(), dtype=DOUBLE)
    sample = sample_one_hot(mixed_log_p(x, 0.01), noise)
    (grad,) = torch.autograd.grad((sample * weight).sum(), x)
    p = 0.99 * x.softmax(-1) + 0.01 / SHAPE[-1]
    (expected,) = torch.autograd.grad((p * weight).sum(), x)
    assert_close(grad, expected, DOUBLE, 1, gradient=True)
    assert expected.abs().max() > 0.01


def test_samples_are_distributed_as_p() -> None:
    # chi^2 of 20000 draws against p. The probability of more than 29.9 with 7 degrees of
    # freedom is 1e-4; draws are fixed by the generator.
    log_p = mixed_log_p(torch.randn(2, 8), 0.01)
    draws = 20_000
    many = log_p.expand(draws, 2, 8)
    counts = sample_one_hot(many, gumbel((draws, 2, 8), seeded(5))).sum(0)
    expected = draws * log_p.exp()
    chi2 = ((counts - expected).square() / expected).sum(-1)
    assert (chi2 < 29.9).all(), chi2
    wrong = draws * mixed_log_p(2.0 * log_p, 0.01).exp()  # the test would see another distribution
    assert (((counts - wrong).square() / wrong).sum(-1) > 200.0).all()


def test_variables_of_one_latent_are_drawn_independently() -> None:
    draws = 20_000
    sample = sample_one_hot(
        torch.zeros(draws, 2, 2).log_softmax(-1), gumbel((draws, 2, 2), seeded())
    )
    joint = torch.einsum("nk,nl->kl", sample[:, 0], sample[:, 1]) / draws
    assert (joint - 0.25).abs().max() < 0.016  # five standard errors


def test_gumbel_noise_has_its_mean_and_variance_and_comes_from_the_generator() -> None:
    noise = gumbel((100_000,), seeded(1), dtype=DOUBLE)
    assert abs(noise.mean().item() - 0.5772156649) < 5 * math.pi / math.sqrt(6.0 * 100_000)
    assert abs(noise.var().item() / (math.pi**2 / 6.0) - 1.0) < 0.05
    assert noise.isfinite().all()
    torch.manual_seed(99)
    assert torch.equal(noise, gumbel((100_000,), seeded(1), dtype=DOUBLE))
    assert gumbel((2,), None).dtype == torch.float32
    assert gumbel((2, 3), None, device="meta").shape == (2, 3)


def test_the_mode_is_one_hot_at_the_largest_and_has_no_gradient() -> None:
    log_p = mixed_log_p(logits(), 0.01).requires_grad_()
    mode = mode_one_hot(log_p)
    assert torch.equal(mode.argmax(-1), log_p.argmax(-1))
    assert torch.equal(mode.sum(-1), torch.ones(SHAPE[:-1], dtype=DOUBLE))
    assert not mode.requires_grad


def test_a_nan_in_the_logits_shows_in_the_sample() -> None:
    x = torch.zeros(2, 3, 4)
    x[1, 2, 0] = math.nan
    sample = sample_one_hot(mixed_log_p(x, 0.01), gumbel((2, 3, 4), seeded()))
    assert sample[1, 2].isnan().all()
    assert sample[0].isfinite().all()


@pytest.mark.parametrize("shape", [(4, 5), (2, 1, 4, 5), (2, 3, 4, 1)])
def test_noise_shared_by_several_latents_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected noise") as error:
        sample_one_hot(torch.zeros(SHAPE), torch.zeros(shape))
    assert "\n" not in str(error.value)


# divergences


def test_the_divergence_is_that_of_torch_summed_over_the_variables() -> None:
    q, p = logits(), logits()
    expected = torch_kl(Categorical(logits=q), Categorical(logits=p)).sum(-1)
    log_q, log_p = mixed_log_p(q, 0.0), mixed_log_p(p, 0.0)
    assert_close(kl_divergence(log_q, log_p), expected, DOUBLE, 1)
    assert kl_divergence(log_q, log_q).tolist() == torch.zeros(SHAPE[:2]).tolist()


def test_the_divergence_from_a_sure_thing_to_the_uniform_is_the_log_of_the_classes() -> None:
    sure = torch.tensor([[1e4, 0.0, 0.0]] * 4, dtype=DOUBLE)
    kl = kl_divergence(mixed_log_p(sure, 0.0), mixed_log_p(torch.zeros_like(sure), 0.0))
    assert abs(kl.item() - 4 * math.log(3.0)) < 1e-12


def test_each_half_moves_one_side_only() -> None:
    q, p = logits().requires_grad_(), logits().requires_grad_()
    dyn, rep = free_kl(mixed_log_p(q, 0.01), mixed_log_p(p, 0.01), 0.0)
    assert torch.equal(dyn, rep)
    kl = kl_divergence(mixed_log_p(q, 0.01), mixed_log_p(p, 0.01))
    for_q, for_p = torch.autograd.grad(kl.sum(), (q, p))
    settings = {"materialize_grads": True, "retain_graph": True}
    grads = torch.autograd.grad(dyn.sum(), (q, p), **settings)
    assert not grads[0].any()
    assert_within(grads[1], for_p, 1e-14)
    grads = torch.autograd.grad(rep.sum(), (q, p), **settings)
    assert_within(grads[0], for_q, 1e-14)
    assert not grads[1].any()


def test_below_the_bar_the_value_is_the_bar_and_the_gradient_exactly_zero() -> None:
    q = torch.randn(50, 2, 4, dtype=DOUBLE, requires_grad=True)
    p = torch.randn(50, 2, 4, dtype=DOUBLE, requires_grad=True)
    log_q, log_p = mixed_log_p(q, 0.01), mixed_log_p(p, 0.01)
    is_below = kl_divergence(log_q, log_p) < 1.0
    assert 5 < is_below.sum() < 45
    dyn, rep = free_kl(log_q, log_p, 1.0)
    assert (dyn[is_below] == 1.0).all()
    assert (rep[is_below] == 1.0).all()
    assert (dyn[~is_below] > 1.0).all()
    for_q, for_p = torch.autograd.grad((dyn + rep).sum(), (q, p))
    for grad in (for_q, for_p):
        assert not grad[is_below].any()
        assert grad[~is_below].flatten(1).any(-1).all()


# settings


@pytest.mark.parametrize(
    ("field", "value"),
    [("num", 0), ("classes", 1), ("unimix", 1.0), ("unimix", -0.1), ("unimix", math.nan)],
)
def test_a_config_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected"):
        LatentConfig(**{field: value})
