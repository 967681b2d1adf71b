"""The convolution mode: long convolutions and their kernels against sums written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from statewise.kernels.convolution import fft
from statewise.kernels.convolution.op import (
    cauchy,
    dplr_kernel,
    fft_conv,
    truncated_output,
    vandermonde,
    vandermonde_pairs,
)
from tests import golden_files
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_close, assert_within

DOUBLE, WIDE = torch.float64, torch.complex128
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fast_backend = pytest.mark.parametrize("backend", FAST_BACKENDS)


def _agree(
    function: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    inputs: list[Tensor],
    steps: int = 1,
    dtype: torch.dtype = DOUBLE,
) -> None:
    """Compare values, and gradients of all inputs for one random cotangent, with an oracle.

    The oracle gets the same numbers in double precision.
    """
    exact = [x.detach().to(WIDE if x.is_complex() else DOUBLE).requires_grad_() for x in inputs]
    leaves = [x.detach().requires_grad_() for x in inputs]
    actual, expected = function(*leaves), oracle(*exact)
    weights = torch.randn_like(actual)
    assert_close(actual, expected, dtype, steps)
    # The one power a^0 does not depend on a.
    gradients = torch.autograd.grad(
        actual, leaves, weights, allow_unused=True, materialize_grads=True
    )
    oracles = torch.autograd.grad(expected, exact, weights.to(expected.dtype))
    for left, right in zip(gradients, oracles, strict=True):
        assert_close(left, right, dtype, steps, gradient=True)


def _decays(*shape: int, least: float = 0.3) -> Tensor:
    modulus = least + (0.999 - least) * torch.rand(shape, dtype=DOUBLE)
    return torch.polar(modulus, 6.28 * torch.rand(shape, dtype=DOUBLE))


# the convolution


def _direct(x: Tensor, k: Tensor) -> Tensor:
    """Sum k_l x_{t-l} over all l <= t, one t and l at a time."""
    T, L = x.shape[1], k.shape[1]
    outputs = []
    for t in range(T):
        terms = [k[:, lag] * x[:, t - lag] for lag in range(min(t + 1, L))]
        outputs.append(torch.stack(terms).sum(0))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    ("B", "T", "H", "L"),
    [(1, 1, 1, 1), (2, 7, 3, 7), (2, 9, 3, 4), (3, 5, 2, 12), (1, 33, 1, 31), (2, 64, 2, 65)],
)
def test_a_convolution_is_its_sum_in_values_and_gradients(B, T, H, L):
    x, k = torch.randn(B, T, H, dtype=DOUBLE), torch.randn(H, L, dtype=DOUBLE)
    _agree(fft_conv, _direct, [x, k], T)


def test_a_skip_is_added_to_the_convolution():
    inputs = [torch.randn(2, 9, 3), torch.randn(3, 5), torch.randn(3)]
    inputs = [x.double() for x in inputs]
    _agree(lambda x, k, D: fft_conv(x, k, D=D), lambda x, k, D: _direct(x, k) + D * x, inputs, 9)


def test_a_convolution_in_float32_stays_within_the_limit():
    _agree(fft_conv, _direct, [torch.randn(2, 90, 3), torch.randn(3, 90)], 90, torch.float32)


def test_rows_that_do_not_fit_at_once_give_the_same_result(monkeypatch):
    monkeypatch.setattr(fft, "WORK", 2 * 9 * 3)  # two rows of five at a time
    x, k = torch.randn(5, 9, 3, dtype=DOUBLE), torch.randn(3, 9, dtype=DOUBLE)
    _agree(fft_conv, _direct, [x, k], 9)


def test_nothing_wraps_around():
    # An impulse at the last step meets a long kernel: earlier steps must not see its tail.
    x = torch.zeros(1, 30, 1, dtype=DOUBLE)
    x[:, -1] = 1
    y = fft_conv(x, torch.ones(1, 30, dtype=DOUBLE))
    assert_close(y, x, DOUBLE, 30)


@pytest.mark.parametrize("least", [1, 2, 7, 11, 13, 97, 1000, 2049])
def test_the_size_of_a_transform_is_the_least_product_of_two_three_and_five(least):
    def smooth(size: int) -> bool:
        for prime in (2, 3, 5):
            while size % prime == 0:
                size //= prime
        return size == 1

    assert fft._size(least) == next(size for size in range(least, 2 * least + 1) if smooth(size))


def test_only_the_gradients_that_are_asked_for_are_computed():
    x, k = torch.randn(2, 9, 3, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    _agree(lambda x: fft_conv(x, k), lambda x: _direct(x, k), [x], 9)
    _agree(lambda k: fft_conv(x, k), lambda k: _direct(x, k), [k], 9)


def test_the_strides_of_the_inputs_of_a_convolution_do_not_matter():
    x = torch.randn(9, 2, 6, dtype=DOUBLE).transpose(0, 1)[..., ::2]
    k = torch.randn(4, 3, dtype=DOUBLE).T
    assert not x.is_contiguous()
    assert not k.is_contiguous()
    _agree(fft_conv, _direct, [x, k], 9)


@pytest.mark.parametrize(("B", "T", "H", "L"), [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4)])
def test_an_empty_window_stays_empty(B, T, H, L):
    x = torch.randn(B, T, H, requires_grad=True)
    y = fft_conv(x, torch.randn(H, L))
    assert y.shape == (B, T, H)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_a_kernel_without_taps_answers_nothing():
    x, D = torch.randn(2, 5, 3), torch.randn(3)
    assert torch.equal(fft_conv(x, torch.zeros(3, 0)), torch.zeros_like(x))
    assert torch.equal(fft_conv(x, torch.zeros(3, 0), D=D), D * x)


def test_a_convolution_takes_no_reset_and_no_state():
    x, k = torch.randn(2, 5, 3), torch.randn(3, 5)
    for name in ("reset", "h0", "state"):
        with pytest.raises(TypeError, match=name):
            fft_conv(x, k, **{name: torch.zeros(2, 5, dtype=torch.bool)})


# sums of powers


def _powers(w: Tensor, a: Tensor, L: int) -> Tensor:
    exponents = torch.arange(L)
    return 2 * (w[..., None] * a[..., None] ** exponents).sum(1).real


@every_backend
@pytest.mark.parametrize(
    ("H", "N", "L"), [(1, 1, 1), (3, 4, 7), (2, 5, 32), (2, 3, 33), (1, 9, 64), (3, 2, 131)]
)
def test_a_vandermonde_kernel_is_the_sum_of_powers(backend, H, N, L):
    w, a = torch.randn(H, N, dtype=WIDE), _decays(H, N)
    _agree(lambda w, a: vandermonde(w, a, L, backend), lambda w, a: _powers(w, a, L), [w, a], L)


@every_backend
def test_a_decay_of_zero_has_the_power_zero_alone(backend):
    w = torch.randn(1, 2, dtype=WIDE)
    a = torch.zeros(1, 2, dtype=WIDE, requires_grad=True)
    k = vandermonde(w, a, 40, backend)
    expected = torch.zeros(1, 40, dtype=DOUBLE)
    expected[:, 0] = 2 * w.real.sum(1)
    assert_close(k, expected, DOUBLE, 40)
    weights = torch.randn_like(k)
    # d k_1 / d a = 2 w: all other powers have a derivative of 0 at 0.
    (gradient,) = torch.autograd.grad(k, a, weights)
    assert_close(gradient, 2 * weights[0, 1] * w.conj(), DOUBLE, 40, gradient=True)


@every_fast_backend
def test_slow_modes_keep_their_digits_over_many_powers_in_float32(backend):
    L = 4096
    w = torch.randn(2, 4, dtype=torch.complex64)
    a = _decays(2, 4, least=0.998).to(torch.complex64)
    _agree(lambda w, a: vandermonde(w, a, L, backend), lambda w, a: _powers(w, a, L), [w, a], L,
           torch.float32)  # fmt: skip


@every_backend
def test_pairs_and_any_strides_give_the_same_powers(backend):
    w, a = torch.randn(5, 3, dtype=WIDE), _decays(5, 3)
    expected = vandermonde(w, a, 20, backend)
    pairs = torch.view_as_real(w), torch.view_as_real(a)
    assert torch.equal(vandermonde_pairs(*pairs, 20, backend), expected)
    turned = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (w, a))
    assert torch.equal(vandermonde(*turned, 20, backend), expected)


@every_backend
@pytest.mark.parametrize(("H", "N", "L"), [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_no_channels_states_or_powers_give_zeros(backend, H, N, L):
    w, a = torch.randn(H, N, dtype=WIDE), _decays(H, N)
    assert torch.equal(vandermonde(w, a, L, backend), torch.zeros(H, L, dtype=DOUBLE))


# Cauchy sums


def _sums(v: Tensor, s: Tensor, L: int) -> Tensor:
    """Write the definition out, one node at a time."""
    out = []
    for k in range(L // 2 + 1):
        half = torch.tensor(torch.pi * k / L, dtype=DOUBLE)
        left, right = 4j * half.sin(), 2 * half.cos()
        out.append((v / (left - right * s) + v.conj() / (left - right * s.conj())).sum(-1))
    return torch.stack(out, -1)


@every_backend
@pytest.mark.parametrize(
    ("R", "H", "N", "L"), [(1, 1, 1, 1), (2, 3, 4, 2), (3, 2, 5, 9), (1, 3, 2, 130), (4, 1, 7, 129)]
)
def test_cauchy_sums_are_their_definition(backend, R, H, N, L):
    v = torch.randn(R, H, N, dtype=WIDE)
    s = torch.complex(-0.1 - torch.rand(H, N, dtype=DOUBLE), 3 * torch.randn(H, N, dtype=DOUBLE))
    _agree(lambda v, s: cauchy(v, s, L, backend), lambda v, s: _sums(v, s, L), [v, s], L)


def test_blocks_of_nodes_give_the_sums_of_all_at_once(monkeypatch):
    v, s = torch.randn(2, 3, 4, dtype=WIDE), torch.randn(3, 4, dtype=WIDE) - 2
    expected = cauchy(v, s, 50, "torch")
    monkeypatch.setattr("statewise.kernels.convolution.torch.WORK", 3 * 4 * 7)
    assert torch.equal(cauchy(v, s, 50, "torch"), expected)
    _agree(lambda v, s: cauchy(v, s, 50, "torch"), lambda v, s: _sums(v, s, 50), [v, s], 50)


# S4's kernel


def _dplr(H: int, N: int, R: int) -> list[Tensor]:
    """Return dt, w, P, B, C of a stable system."""
    return [
        0.05 + 0.2 * torch.rand(H, dtype=DOUBLE),
        torch.complex(-0.5 - torch.rand(H, N, dtype=DOUBLE), 3 * torch.randn(H, N, dtype=DOUBLE)),
        torch.randn(R, H, N, dtype=WIDE),
        torch.randn(H, N, dtype=WIDE),
        torch.randn(H, N, dtype=WIDE),
    ]


def _dense_kernel(dt: Tensor, w: Tensor, P: Tensor, B: Tensor, C: Tensor, L: int) -> Tensor:
    """Multiply the completed system out: C A^l B with matrices of 2N x 2N."""
    w, P, B, C = (torch.cat((x, x.conj()), -1) for x in (w, P, B, C))
    M = torch.diag_embed(w) - torch.einsum("rhi,rhj->hij", P, P.conj())
    half = dt[:, None, None] / 2 * M
    eye = torch.eye(M.shape[-1], dtype=WIDE)
    A = torch.linalg.solve(eye - half, eye + half)
    state = torch.linalg.solve(eye - half, (dt[:, None] * B)[..., None])
    taps = []
    for _ in range(L):
        taps.append((C[:, None] @ state)[:, 0, 0].real)
        state = A @ state
    return torch.stack(taps, -1)


@every_backend
@pytest.mark.parametrize(
    ("H", "N", "R", "L"), [(1, 1, 1, 1), (2, 4, 1, 2), (3, 3, 1, 21), (2, 2, 3, 16), (2, 3, 0, 9)]
)
def test_the_kernel_of_s4_is_that_of_the_dense_matrices(backend, H, N, R, L):
    def kernel(dt: Tensor, w: Tensor, P: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return dplr_kernel(dt, w, P, B, truncated_output(dt, w, P, C, L), L, backend)

    inputs = _dplr(H, N, R)
    _agree(kernel, lambda *x: _dense_kernel(*x, L), inputs, L)


@every_backend
def test_several_outputs_share_the_sums_of_one_system(backend):
    dt, w, P, B, _ = _dplr(2, 3, 1)
    C = torch.randn(4, 2, 3, dtype=WIDE)
    truncated = truncated_output(dt, w, P, C, 10)
    k = dplr_kernel(dt, w, P, B, truncated, 10, backend)
    assert k.shape == (4, 2, 10)
    for m in range(4):
        assert_close(k[m], _dense_kernel(dt, w, P, B, C[m], 10), DOUBLE, 10)


@every_backend
@pytest.mark.parametrize("name", golden_files.names("s4_dplr_*"))
def test_the_kernel_and_its_gradients_are_the_authors(backend, name):
    arrays, meta = golden_files.load(name)
    leaves = {
        key: arrays[f"p_{key}"].clone().requires_grad_()
        for key in ("inv_dt", "A_real", "A_imag", "B", "P", "C_tilde")
    }
    repeats = meta["H"] // meta["n_ssm"]  # channel h has the system h mod n_ssm
    w = torch.complex(-leaves["A_real"].exp(), -leaves["A_imag"]).repeat(repeats, 1)
    P, B = leaves["P"].repeat(1, repeats, 1), leaves["B"][0].repeat(repeats, 1)
    dt = leaves["inv_dt"][:, 0].exp()
    k = dplr_kernel(dt, w, P, B, leaves["C_tilde"], meta["L"], backend)
    assert_within(k, arrays["out_K"], GOLDEN_VALUE)
    k.backward(arrays["w_K"])
    for key, leaf in leaves.items():
        pairs = leaf.grad.is_complex()
        gradient = torch.view_as_real(leaf.grad) if pairs else leaf.grad
        stored = arrays[f"grad_{key}_ri" if pairs else f"grad_{key}"]
        assert_within(gradient, stored, GOLDEN_GRADIENT)


# the rules of the package


@every_fast_backend
def test_the_ops_of_the_kernels_obey_the_rules_of_custom_ops(backend):
    w, a = (torch.view_as_real(x).requires_grad_() for x in (_decays(3, 4), _decays(3, 4)))
    ops = torch.ops.statewise
    torch.library.opcheck(ops.vandermonde.default, (w, a, 9, backend))
    plain = (torch.randn(3, 9, dtype=DOUBLE), w.detach(), a.detach(), backend)
    torch.library.opcheck(ops.vandermonde_backward.default, plain)
    v = torch.randn(2, 3, 4, 2, dtype=DOUBLE, requires_grad=True)
    s = (torch.rand(3, 4, 2, dtype=DOUBLE) - 2).requires_grad_()
    torch.library.opcheck(ops.cauchy.default, (v, s, 9, backend))
    grad = torch.randn(2, 3, 5, 2, dtype=DOUBLE)
    plain = (grad, v.detach(), s.detach(), 9, backend)
    torch.library.opcheck(ops.cauchy_backward.default, plain)


def test_the_op_of_the_convolution_obeys_the_rules_of_custom_ops():
    x, k = torch.randn(2, 9, 3, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    ops = torch.ops.statewise
    torch.library.opcheck(ops.fft_conv.default, (x, k))
    for needs in ((True, True), (True, False), (False, True)):
        plain = (torch.randn(2, 9, 3), x.detach(), k.detach(), *needs)
        torch.library.opcheck(ops.fft_conv_backward.default, plain)


@every_fast_backend
def test_the_convolution_mode_compiles_into_one_graph_for_any_length(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def run(x: Tensor, w: Tensor, a: Tensor, D: Tensor) -> Tensor:
        k = vandermonde_pairs(w, a, x.shape[1], backend)
        return fft_conv(x, k, D=D).square().sum()

    compiled = torch.compile(run, backend=counter, fullgraph=True)
    w, a = (torch.view_as_real(x).requires_grad_() for x in (_decays(3, 4), _decays(3, 4)))
    D = torch.randn(3, dtype=DOUBLE, requires_grad=True)
    for T in (5, 40, 70):
        x = torch.randn(2, T, 3, dtype=DOUBLE, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 1)
        expected, actual = run(x, w, a, D), compiled(x, w, a, D)
        assert_close(actual, expected, DOUBLE, T)
        gradients = [torch.autograd.grad(y, (x, w, a, D)) for y in (actual, expected)]
        for left, right in zip(*gradients, strict=True):
            assert_close(left, right, DOUBLE, T, gradient=True)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_does_not_change_a_bit(threads):
    w, a = torch.randn(40, 16, dtype=WIDE), _decays(40, 16)
    s, v = torch.randn(40, 16, dtype=WIDE) - 3, torch.randn(3, 40, 16, dtype=WIDE)

    def run() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (w, a, v, s)]
        k, f = vandermonde(*leaves[:2], 300, "cpu"), cauchy(*leaves[2:], 300, "cpu")
        return [k, f, *torch.autograd.grad((k, f), leaves, (k.detach(), f.detach()))]

    first = run()
    torch.set_num_threads(threads)
    second = run()
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


@every_fast_backend
def test_only_the_reference_is_differentiable_twice(backend):
    w, a = _decays(2, 3).requires_grad_(), _decays(2, 3)
    assert torch.autograd.gradgradcheck(lambda w: vandermonde(w, a, 4, "reference"), w)
    (gradient,) = torch.autograd.grad(
        vandermonde(w, a, 4, backend).square().sum(), w, create_graph=True
    )
    with pytest.raises(RuntimeError):
        gradient.abs().sum().backward()
