"""Latents in one call with an adjoint of their own equal the compositions they stand for."""

import math

import pytest
import torch
from torch import Tensor

from statewise.kernels import draw_one_hot, free_kl, gumbel_, mixed_log_softmax
from statewise.kernels.categorical import op
from tests.tolerance import assert_close, assert_within

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
# Classes with loops of their own, and others; rows of several tasks of a thread.
SHAPES = pytest.mark.parametrize(
    "shape", [(2,), (1, 5), (3, 4, 8), (700, 8), (9, 16), (2, 3, 32), (600, 33)], ids=str
)
UNIMIX = pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])


def _draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, dtype=torch.float64, generator=draw)
    return x.to(dtype).requires_grad_()


def _gradients(y: Tensor, x: Tensor, seed: int = 7) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(y.shape, dtype=torch.float64, generator=draw).to(y.dtype)
    return torch.autograd.grad(y, x, cotangent, retain_graph=True)[0]


@SHAPES
@UNIMIX
@DTYPES
def test_a_mixture_equals_its_definition(shape, unimix, dtype):
    x = _draw(*shape, dtype=dtype)
    wide = x.detach().double().requires_grad_()
    exp = (wide - wide.detach().amax(-1, keepdim=True)).exp()
    expected = ((1 - unimix) * exp / exp.sum(-1, keepdim=True) + unimix / shape[-1]).log()
    y = mixed_log_softmax(x, unimix)
    assert y.dtype == dtype
    assert_close(y, expected, dtype, 1)
    assert_close(_gradients(y, x), _gradients(expected, wide), dtype, 1, gradient=True)
    assert_close(y.exp().sum(-1), torch.ones(shape[:-1], dtype=torch.float64), dtype, 1)


@DTYPES
def test_a_mixture_far_out_is_the_share_of_the_uniform_or_linear(dtype):
    x = torch.tensor([[0.0, -200.0, -1e4, -1e30]], dtype=dtype, requires_grad=True)
    mixed = mixed_log_softmax(x, 0.04)
    floor = math.log(0.01)
    assert_within(mixed, torch.tensor([[math.log(0.97), floor, floor, floor]]), 1e-6)
    assert _gradients(mixed, x).isfinite().all()
    assert torch.equal(mixed_log_softmax(x, 0.0), x)


@pytest.mark.parametrize("classes", [4, 8])
@UNIMIX
def test_a_nan_spoils_its_own_row_alone(classes, unimix):
    x = torch.zeros(2, classes)
    x[1, 2] = math.nan
    y = mixed_log_softmax(x, unimix)
    assert y[1].isnan().all()
    assert_within(y[0], torch.full((classes,), -math.log(classes)), 1e-6)
    q = mixed_log_softmax(torch.zeros(2, classes), unimix)
    dyn, rep = free_kl(y, q, 1.0)
    assert torch.equal(dyn.isnan(), torch.tensor([False, True]))
    assert torch.equal(rep.isnan(), dyn.isnan())


@SHAPES
@pytest.mark.parametrize("free", [0.0, 1.0, 4.0])
@DTYPES
def test_a_divergence_equals_its_definition(shape, free, dtype):
    log_q, log_p = (_draw(*shape, dtype=dtype, seed=i).log_softmax(-1).detach() for i in range(2))
    log_q.requires_grad_(), log_p.requires_grad_()
    wide_q, wide_p = (x.detach().double().requires_grad_() for x in (log_q, log_p))
    value = (wide_q.exp() * (wide_q - wide_p)).sum(-1)
    counts = (value >= free).double()
    halves = free_kl(log_q, log_p, free)
    for half in halves:
        assert half.dtype == dtype
        assert_close(half, value.clamp(min=free), dtype, 1)
    dyn, rep = halves
    # KL(q, p) by the definition's derivatives: -q for log p, q (log q - log p + 1) for log q.
    of_p = _gradients(dyn, log_p)
    assert_close(of_p, _gradients(value * counts, wide_p), dtype, 1, gradient=True)
    of_q = _gradients(rep, log_q)
    assert_close(of_q, _gradients(value * counts, wide_q), dtype, 1, gradient=True)


def test_both_halves_send_their_own_gradients_at_once():
    log_q, log_p = (_draw(5, 8, dtype=torch.float64, seed=i) for i in range(2))
    dyn, rep = free_kl(log_q, log_p, 0.0)
    weight = torch.arange(5.0, dtype=torch.float64)
    of_q, of_p = torch.autograd.grad((3 * dyn + weight * rep).sum(), (log_q, log_p))
    q = log_q.exp()
    over = ((q * (log_q - log_p)).sum(-1, keepdim=True) >= 0).double()
    assert_within(of_p, -3 * q * over, 1e-12)
    assert_within(of_q, weight[:, None] * q * (log_q - log_p + 1) * over, 1e-12)


@SHAPES
@DTYPES
def test_a_draw_is_the_largest_and_has_the_gradient_of_p(shape, dtype):
    log_p = _draw(*shape, dtype=dtype).log_softmax(-1).detach().requires_grad_()
    noise = gumbel_(torch.empty(shape, dtype=dtype), 3)
    one_hot = draw_one_hot(log_p, noise)
    assert torch.equal(one_hot.argmax(-1), (log_p + noise).argmax(-1))
    assert torch.equal(one_hot.sum(-1), torch.ones(shape[:-1], dtype=dtype))
    assert one_hot.count_nonzero() == math.prod(shape[:-1])
    wide = log_p.detach().double().requires_grad_()
    assert_close(_gradients(one_hot, log_p), _gradients(wide.exp(), wide), dtype, 1, gradient=True)
    with torch.no_grad():
        assert torch.equal(draw_one_hot(log_p, noise), one_hot)


@pytest.mark.parametrize("is_composed", [False, True])
def test_a_draw_takes_the_first_of_equals_and_keeps_nan(is_composed, monkeypatch):
    if is_composed:
        monkeypatch.setattr(op, "trains_in_cpp", lambda *tensors, **settings: False)
    nan = float("nan")
    log_p = torch.tensor([[0.0, 1.0, 1.0], [nan, 0.0, 1.0], [0.0, 1.0, nan], [0.0, 2.0, 1.0]])
    noise = torch.zeros_like(log_p)
    noise[3, 0] = nan  # the largest of all, as torch has it
    one_hot = draw_one_hot(log_p, noise)
    expected = torch.tensor([[0.0, 1, 0], [nan, 0, 0], [0, 0, nan], [1, 0, 0]])
    assert torch.equal(one_hot.isnan(), expected.isnan())
    assert torch.equal(one_hot.nan_to_num(7.0), expected.nan_to_num(7.0))


def _splitmix(seed: int, count: int) -> list[int]:
    """Return the words of SplitMix64 as its authors wrote it."""
    words, state = [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        words.append(z ^ (z >> 31))
    return words


def test_the_words_are_those_published():
    assert _splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]


# Around words, tasks of 256 words and vectors.
@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 511, 512, 513, 3000])
@pytest.mark.parametrize("seed", [0, 1234567, 2**63 - 1])
@pytest.mark.parametrize("is_composed", [False, True])
@DTYPES
def test_noise_is_minus_the_logarithm_of_minus_the_logarithm(
    count, seed, is_composed, dtype, monkeypatch
):
    if is_composed:
        monkeypatch.setattr(op, "trains_in_cpp", lambda *tensors, **settings: False)
    if dtype == torch.float64:
        even = [((word >> 12) + 0.5) / 2**52 for word in _splitmix(seed, count)]
    else:
        halves = [half for word in _splitmix(seed, count) for half in (word % 2**32, word >> 32)]
        even = [((half >> 9) + 0.5) / 2**23 for half in halves[:count]]
    noise = gumbel_(torch.empty(count, dtype=dtype), seed)
    expected = torch.tensor([-math.log(-math.log(u)) for u in even], dtype=torch.float64)
    assert_close(noise, expected, dtype, 1)


@DTYPES
def test_noise_is_finite_at_both_ends(dtype, monkeypatch):
    monkeypatch.setattr(op, "trains_in_cpp", lambda *tensors, **settings: False)
    parts = 2.0**52 if dtype == torch.float64 else 2.0**23
    ends = torch.tensor([0.5 / parts, (parts - 0.5) / parts], dtype=dtype)
    assert ends[0] > 0
    assert ends[1] < 1
    monkeypatch.setattr(op, "_even", lambda *args: ends.clone())
    low, high = gumbel_(torch.empty(2, dtype=dtype), 0).tolist()
    assert -4 < low < -2.7
    assert 16 < high < 37


def test_noise_does_not_depend_on_threads_and_fills_every_shape():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gumbel_(torch.empty(9, 70, 33), 5)
        torch.set_num_threads(2)
        assert torch.equal(gumbel_(torch.empty(9, 70, 33), 5), one)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(gumbel_(torch.empty(9 * 70 * 33), 5).view(9, 70, 33), one)
    assert gumbel_(torch.empty(0), 5).shape == (0,)


def test_no_second_derivative_is_an_error_not_a_zero():
    x = _draw(2, 4, dtype=torch.float64)
    noise = torch.zeros_like(x)
    for y in (mixed_log_softmax(x, 0.01), free_kl(x, x, 0.0)[0], draw_one_hot(x, noise)):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("steps", [slice(None, None, 2), slice(1, 40)], ids=["strided", "part"])
def test_arrays_that_are_not_dense_give_the_same(steps):
    x, other = (_draw(80, 12, dtype=torch.float32, seed=i) for i in range(2))
    a, b = x[steps, ::2], other[steps, ::2]
    calls = (
        lambda a, b: mixed_log_softmax(a, 0.01),
        lambda a, b: free_kl(a, b, 0.0)[1].unsqueeze(-1),
        lambda a, b: draw_one_hot(a, b.detach()),
    )
    for call in calls:
        y = call(a, b)
        assert torch.equal(y, call(a.contiguous(), b.contiguous()))
        strided = torch.randn(y.shape[::-1]).t()
        ours = torch.autograd.grad(y, x, strided, retain_graph=True)[0]
        assert torch.equal(ours, torch.autograd.grad(y, x, strided.contiguous())[0])


def test_what_one_call_does_not_serve_is_the_composition(monkeypatch):
    x, y = (_draw(6, 8, dtype=torch.float32, seed=i) for i in range(2))
    calls = [
        lambda: mixed_log_softmax(x, 0.0),
        lambda: mixed_log_softmax(x, 0.01),
        lambda: free_kl(x.log_softmax(-1), y.log_softmax(-1), 1.0)[0],
        lambda: free_kl(x.log_softmax(-1), y.log_softmax(-1), 1.0)[1],
        lambda: draw_one_hot(x, y),
        lambda: gumbel_(torch.empty(6, 8), 4),
    ]
    fast = [call() for call in calls]
    monkeypatch.setattr(op, "trains_in_cpp", lambda *tensors, **settings: False)
    for value, call in zip(fast, calls, strict=True):
        composed = call()
        assert_close(value, composed, torch.float32, 1)
        if composed.requires_grad:
            ours, theirs = (
                torch.autograd.grad(z.sum(), (x, y), allow_unused=True) for z in (value, composed)
            )
            for a, b in zip(ours, theirs, strict=True):
                assert (a is None or a.count_nonzero() == 0) if b is None else True
                if b is not None:
                    assert_close(a, b, torch.float32, 1, gradient=True)
