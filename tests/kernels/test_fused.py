"""One call with its own adjoint equals the composition of operations it stands for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels import (
    add_scaled,
    gated_sum,
    gelu,
    norm_silu,
    s5_system_runs,
    two_hot_loss,
)
from statewise.kernels.dispatch import trains_in_cpp
from statewise.kernels.fused import op
from statewise.ssm.s5 import S5Config, S5Layer
from tests.tolerance import assert_close, assert_within

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
# Rows are taken in chunks of 256.
SHAPES = pytest.mark.parametrize("lead", [(1,), (3, 5), (255,), (256,), (2, 257), (1000,)], ids=str)
WIDTHS = pytest.mark.parametrize("H", [1, 7, 64])


def _draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=draw).to(dtype).requires_grad_()


def _compare(fast, slow, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Compare values and gradients with the composition in float64."""
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    y, expected = fast(*inputs), slow(*wide)
    assert_close(y, expected, dtype, 1)
    cotangent = torch.randn(expected.shape, dtype=torch.float64)
    ours = torch.autograd.grad(y, [x for x in inputs if x.requires_grad], cotangent.to(dtype))
    theirs = torch.autograd.grad(expected, [x for x in wide if x.requires_grad], cotangent)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        assert_close(a, b, dtype, 1, gradient=True)


def _normed(x, norm, weight=None, bias=None):
    """Return x, or its norm by definition with eps 1e-3."""
    if norm == "none":
        return x
    if norm == "rms":
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight + bias


def _gate_shapes(lead, H):
    return (*lead, H), (*lead, 2 * H), (2 * H,)


def _gated_composition(x, ab, ab_bias, weight=None, bias=None):
    a, b = (ab + ab_bias).chunk(2, -1)
    y = x + a / (1 + (-b).exp())
    return y if weight is None else _normed(y, "layer", weight, bias)


@SHAPES
@DTYPES
def test_a_gelu_equals_its_definition(lead, dtype):
    x = (3 * _draw(*lead, 5, dtype=dtype)).detach().requires_grad_()

    def slow(v):
        return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    _compare(gelu, slow, [x], dtype)


@DTYPES
def test_a_gelu_far_from_zero_is_the_identity_or_zero(dtype):
    x = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4, math.nan], dtype=dtype, requires_grad=True)
    y = gelu(x)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y[:5].abs(), x[:5].clamp(min=0))
    assert torch.equal(g[:5], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0], dtype=dtype))
    assert y[5].isnan()
    assert g[5].isnan()


@SHAPES
@pytest.mark.parametrize("H", [7, 64])  # the gradients of norms of one or two numbers cancel
@DTYPES
@pytest.mark.parametrize(("norm", "count"), [("layer", 3), ("rms", 2), ("none", 1)])
def test_a_norm_with_silu_equals_its_definition(lead, H, dtype, norm, count):
    shapes = [(*lead, H), (H,), (H,)][:count]
    inputs = [_draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]

    def fast(x, weight=None, bias=None):
        return norm_silu(x, norm, weight, bias, 1e-3)

    def slow(x, weight=None, bias=None):
        normed = _normed(x, norm, weight, bias)
        return normed * normed.sigmoid()

    _compare(fast, slow, inputs, dtype)


@DTYPES
def test_silu_is_finite_far_out_and_nan_of_nan(dtype):
    numbers = [-1e4, -200.0, -100.0, -30.0, 0.0, 30.0, 1e4, math.nan]
    x = torch.tensor(numbers, dtype=dtype, requires_grad=True)
    y = norm_silu(x, "none")
    (g,) = torch.autograd.grad(y.sum(), x)
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.silu(wide).sum(), wide)
    assert_close(y[:-1], F.silu(wide)[:-1], dtype, 1)
    assert_close(g[:-1], expected[:-1], dtype, 1, gradient=True)
    assert y[-1].isnan()
    assert g[-1].isnan()


@SHAPES
@WIDTHS
@DTYPES
def test_a_scaled_sum_equals_its_definition(lead, H, dtype):
    x, u = (_draw(*lead, H, dtype=dtype, seed=i) for i in range(2))
    _compare(add_scaled, lambda x, u, d: x + u * d, [x, u, _draw(H, dtype=dtype, seed=2)], dtype)


@SHAPES
@WIDTHS
@DTYPES
def test_a_gated_sum_equals_its_definition(lead, H, dtype):
    x, ab, c = (_draw(*s, dtype=dtype, seed=i) for i, s in enumerate(_gate_shapes(lead, H)))
    _compare(gated_sum, _gated_composition, [x, ab, c], dtype)


@SHAPES
@pytest.mark.parametrize("H", [7, 64])
@DTYPES
def test_a_gated_sum_with_a_norm_equals_its_definition(lead, H, dtype):
    x, ab, c = (_draw(*s, dtype=dtype, seed=i) for i, s in enumerate(_gate_shapes(lead, H)))
    weight, bias = (_draw(H, dtype=dtype, seed=i) for i in (3, 4))

    def fast(*inputs):
        return gated_sum(*inputs, 1e-3)

    _compare(fast, _gated_composition, [x, ab, c, weight, bias], dtype)


@pytest.mark.parametrize("K", [2, 9, 255])
@SHAPES
@DTYPES
def test_a_two_hot_loss_equals_its_definition(lead, K, dtype):
    logits = (4 * _draw(*lead, K, dtype=dtype)).detach().requires_grad_()
    below = torch.randint(K - 1, lead, generator=torch.Generator().manual_seed(1))
    share = torch.rand(lead, generator=torch.Generator().manual_seed(2)).to(dtype)

    def slow(logits):
        target = torch.zeros_like(logits).scatter(
            -1, below[..., None], 1 - share[..., None].double()
        )
        target = target.scatter(-1, below[..., None] + 1, share[..., None].double())
        return -(target * logits.log_softmax(-1)).sum(-1)

    _compare(lambda x: two_hot_loss(x, below, share), slow, [logits], dtype)


@DTYPES
def test_a_two_hot_loss_knows_large_logits_and_unknown_targets(dtype):
    logits = torch.tensor([[0.0, 1e4, 0.0], [1.0, 1.0, 1.0]], dtype=dtype, requires_grad=True)
    share = torch.tensor([1.0, math.nan], dtype=dtype)
    loss = two_hot_loss(logits, torch.tensor([1, 0]), share)
    assert loss[0] == 1e4
    assert loss[1].isnan()
    (g,) = torch.autograd.grad(loss[0], logits)
    assert_within(g[0], torch.tensor([0.0, 1.0, -1.0]), 1e-30)


@pytest.mark.parametrize("conj_sym", [True, False])
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("dt_scale", [1.0, 0.3])
@DTYPES
def test_the_system_of_s5_equals_its_composition(rule, conj_sym, dt_scale, dtype, monkeypatch):
    torch.manual_seed(0)
    config = S5Config(
        state_size=8, conj_sym=conj_sym, discretization=rule, dt_scale=dt_scale, re_param="exp"
    )
    fast = S5Layer(6, config).to(dtype)
    slow = S5Layer(6, config).double()
    slow.load_state_dict(fast.state_dict())
    parts = (*fast.eigenvalues(), fast.log_step, fast.B, fast.C)
    assert s5_system_runs(*parts, backend="auto")
    ours = fast.discretize()
    monkeypatch.setattr(op, "trains_in_cpp", lambda *tensors, **settings: False)
    theirs = slow.discretize()
    cotangents = [torch.randn(x.shape, dtype=torch.float64) for x in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, dtype, 1)
    names = [name for name, _ in fast.named_parameters() if name != "D"]
    gradients = [
        torch.autograd.grad(
            system, [layer.get_parameter(name) for name in names], [c.to(like) for c in cotangents]
        )
        for system, layer, like in ((ours, fast, dtype), (theirs, slow, torch.float64))
    ]
    assert sorted(names) == ["B", "C", "Lambda_im", "log_neg_re", "log_step"]
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, dtype, 1, gradient=True)


def test_gradients_are_finite_differences():
    draw = {"dtype": torch.float64}
    x, ab = _draw(3, 4, **draw), _draw(3, 8, **draw, seed=1)
    d, weight, bias = (_draw(4, **draw, seed=i) for i in (2, 3, 4))
    c = _draw(8, **draw, seed=5)
    below, share = torch.tensor([0, 2, 1]), torch.rand(3, **draw)
    layer = S5Layer(3, S5Config(state_size=4)).double()
    parts = [x.detach().requires_grad_() for x in (*layer.eigenvalues(), layer.log_step)]
    parts += [x.detach().requires_grad_() for x in (layer.B, layer.C)]
    for rule in ("zoh", "bilinear"):
        torch.autograd.gradcheck(
            lambda *p, rule=rule: op.s5_system(*p, dt_scale=0.7, c_scale=2.0, rule=rule), parts
        )
    torch.autograd.gradcheck(gelu, x)
    torch.autograd.gradcheck(add_scaled, (x, ab[:, :4].detach().requires_grad_(), d))
    torch.autograd.gradcheck(gated_sum, (x, ab, c))
    torch.autograd.gradcheck(gated_sum, (x, ab, c, weight, bias))
    torch.autograd.gradcheck(lambda *p: norm_silu(p[0], "layer", *p[1:]), (x, weight, bias))
    torch.autograd.gradcheck(lambda *p: norm_silu(p[0], "rms", p[1]), (x, weight))
    torch.autograd.gradcheck(lambda logits: two_hot_loss(logits, below, share), x)


def test_a_small_step_loses_no_digits_in_float32():
    re, im = torch.tensor([-0.5]), torch.tensor([0.01])
    inputs = (re, im, torch.tensor([-12.0]), torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    settings = {"dt_scale": 1.0, "c_scale": 2.0, "rule": "zoh"}
    _, w_in, _ = op.s5_system(*inputs, **settings)
    _, expected, _ = op.s5_system(*(x.double() for x in inputs), **settings)
    assert_within(w_in, expected, 2e-7)


@pytest.mark.parametrize("steps", [slice(None, None, 2), slice(1, 40)], ids=["strided", "part"])
def test_arrays_that_are_not_dense_give_the_same(steps):
    x, ab = _draw(80, 6, dtype=torch.float32), _draw(80, 12, dtype=torch.float32, seed=1)
    a, b = x[steps], ab[steps]
    for function, inputs in (
        (gelu, (a,)),
        (add_scaled, (a, b[:, 6:], torch.ones(12)[::2])),
        (gated_sum, (a, b, torch.ones(24)[::2])),
        (lambda x, w: norm_silu(x, "rms", w), (a, torch.ones(12)[::2])),
    ):
        y = function(*inputs)
        assert torch.equal(y, function(*(i.contiguous() for i in inputs)))
        strided = torch.randn(6, len(y)).t()
        ours = torch.autograd.grad(y, x, strided, retain_graph=True)[0]
        assert torch.equal(ours, torch.autograd.grad(y, x, strided.contiguous())[0])


def test_sums_over_rows_do_not_depend_on_the_number_of_threads():
    x, ab = _draw(5000, 16, dtype=torch.float32), _draw(5000, 32, dtype=torch.float32, seed=1)
    weight, bias, d = (_draw(16, dtype=torch.float32, seed=i) for i in (2, 3, 4))
    c = _draw(32, dtype=torch.float32, seed=5)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = gated_sum(x, ab, c, weight, bias) + add_scaled(x, x, d)
            y = y * norm_silu(x, "layer", weight, bias)
            found.append(torch.autograd.grad(y.square().sum(), (x, ab, c, weight, bias, d)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_no_second_derivative_is_an_error_not_a_zero():
    x, d = _draw(2, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    loss = two_hot_loss(x, torch.tensor([0, 1]), d[:2])
    ab = torch.cat((x, x), -1)
    for y in (gelu(x), add_scaled(x, x, d), gated_sum(x, ab, ab[0]), norm_silu(x, "none"), loss):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(y.sum(), x, create_graph=True)


def test_what_one_call_does_not_serve_is_the_composition(monkeypatch):
    x = torch.randn(3, 4)
    assert trains_in_cpp("fused", x, x)
    assert trains_in_cpp("fused", x, None, backend="cpu")
    assert not trains_in_cpp("fused", x, backend="torch")
    assert not trains_in_cpp("fused", x, x.double())
    assert not trains_in_cpp("fused", x.bfloat16())
    assert not trains_in_cpp("fused", x[:0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not trains_in_cpp("fused", x)
    assert torch.equal(gelu(x.bfloat16()), F.gelu(x.bfloat16(), approximate="tanh"))
    ab, share = torch.randn(3, 8), torch.rand(3)
    below = torch.tensor([0, 1, 2])
    calls = [
        lambda: gelu(x),
        lambda: add_scaled(x, x, x[0]),
        lambda: gated_sum(x, ab, ab[0]),
        lambda: gated_sum(x, ab, ab[0], x[0], x[1], 1e-3),
        lambda: norm_silu(x, "none"),
        lambda: norm_silu(x, "layer", x[0], x[1], 1e-3),
        lambda: norm_silu(x, "rms", x[0], None, 1e-3),
        lambda: two_hot_loss(x, below, share),
    ]
    fast = [call() for call in calls]
    monkeypatch.setattr(op, "trains_in_cpp", lambda *tensors, **settings: False)
    for y, call in zip(fast, calls, strict=True):
        assert_close(y, call(), torch.float32, 1)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_layer_whose_backend_is_named_calls_no_cpp(backend, monkeypatch):
    def refuse(*args, **settings):
        raise AssertionError("called")

    gelu(torch.ones(1))  # loads the library
    x = torch.randn(2, 5, 6)
    for name in ("s5_system", "add_scaled"):
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops.statewise_cpu, name, refuse)
            S5Layer(6, S5Config(state_size=4), backend)(x)
            with pytest.raises(AssertionError, match="called"):
                S5Layer(6, S5Config(state_size=4), "cpu")(x)


def test_shapes_that_do_not_fit_are_refused():
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="ab"):
        gated_sum(x, torch.randn(3, 4), torch.randn(4))
    with pytest.raises(RuntimeError, match="ab_bias"):
        gated_sum(x, torch.randn(3, 8), torch.randn(4))
    with pytest.raises(RuntimeError, match="index"):
        two_hot_loss(x, torch.tensor([0, 3, 0]), torch.rand(3))
