"""The S4 family: convolution, scan and steps agree; S4 against LSSL; what DSS refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor

from statewise.ssm import chunked, lti
from statewise.ssm.chunked import Dense
from statewise.ssm.dss import DSSConfig, DSSLayer, softmax_kernel
from statewise.ssm.hippo import hippo, nplr
from statewise.ssm.lssl import LSSLConfig, LSSLLayer, generalized_bilinear
from statewise.ssm.protocol import SequenceModel, State
from statewise.ssm.s4 import SMALLEST_DECAY, S4Config, S4Layer
from statewise.ssm.s4d import S4DConfig, S4DLayer
from tests.resets import pattern
from tests.ssm.variants import random_state, step_loop
from tests.tolerance import ORACLE_FLOAT64, assert_close, assert_within

DOUBLE = torch.float64
WIDTH = 6
LAYERS = {
    "s4d": lambda: S4DLayer(WIDTH, S4DConfig(state_size=8)),
    "s4d-bilinear": lambda: S4DLayer(
        WIDTH, S4DConfig(state_size=8, init="inv", discretization="bilinear", num_copies=2)
    ),
    "dss": lambda: DSSLayer(WIDTH, DSSConfig(state_size=8)),
    "s4-legs": lambda: S4Layer(WIDTH, S4Config(state_size=8)),
    "s4-legt": lambda: S4Layer(
        WIDTH, S4Config(state_size=8, measure="legt", num_copies=3, kernel="cauchy")
    ),
    "s4-fourier": lambda: S4Layer(WIDTH, S4Config(state_size=8, measure="fourier")),
    "lssl": lambda: LSSLLayer(WIDTH, LSSLConfig(state_size=8, learn="per_channel")),
}
every_layer = pytest.mark.parametrize("name", list(LAYERS))


def _run(
    model: SequenceModel, x: Tensor, state: State | None, reset: Tensor | None, mode: str
) -> tuple[Tensor, State]:
    if mode == "steps":
        before = model.initial_state(len(x)) if state is None else state
        y, last, _ = step_loop(model, x, before, reset)
        return y, last
    return model(x, state, reset, mode)


@every_layer
@pytest.mark.parametrize(
    ("T", "start"), [(1, "given"), (7, "first"), (64, "none"), (150, "none"), (150, "given")]
)
def test_convolution_scan_and_steps_agree_in_values_and_gradients(name, T, start):
    model, B = LAYERS[name]().double(), 3
    x = torch.randn(B, T, WIDTH, dtype=DOUBLE)
    reset = torch.zeros(B, T, dtype=torch.bool) if start == "first" else None
    if reset is not None:
        reset[1, 0] = True
    given = None if start == "none" else random_state(model, B)
    cotangents = [torch.randn_like(x), torch.randn_like(model.initial_state(B)["h"])]
    results = {}
    for mode in ("steps", "scan", "conv"):
        leaf = x.clone().requires_grad_()
        state = None if given is None else {"h": given["h"].clone().requires_grad_()}
        y, last = _run(model, leaf, state, reset, mode)
        inputs = [leaf, *([] if state is None else state.values()), *model.parameters()]
        gradients = torch.autograd.grad([y, last["h"]], inputs, cotangents)
        results[mode] = (y, last["h"], gradients)
    y, last, gradients = results.pop("steps")
    for actual_y, actual_last, actual_gradients in results.values():
        assert_close(actual_y, y, DOUBLE, T)
        assert_close(actual_last, last, DOUBLE, T)
        for actual, expected in zip(actual_gradients, gradients, strict=True):
            assert_close(actual, expected, DOUBLE, T, gradient=True)


@every_layer
def test_convolution_refuses_a_reset_inside_the_window_and_names_it(name):
    model, x = LAYERS[name](), torch.randn(3, 9, WIDTH)
    reset = torch.zeros(3, 9, dtype=torch.bool)
    reset[:, 0] = True
    model(x, None, reset, "conv")
    reset[2, 5] = True
    with pytest.raises(ValueError, match=r"^mode 'conv' .* in row 2 at step 5: use mode 'scan'.*$"):
        model(x, None, reset, "conv")
    with pytest.raises(ValueError, match="mode: expected auto, scan or conv, got 'fft'"):
        model(x, None, None, "fft")


@every_layer
def test_a_reset_at_the_start_keeps_a_broken_state_out_of_values_and_gradients(name):
    model, x = LAYERS[name](), torch.randn(2, 80, WIDTH)
    broken = {key: v * float("nan") for key, v in random_state(model, 2).items()}
    reset = torch.zeros(2, 80, dtype=torch.bool)
    reset[:, 0] = True
    for mode in ("scan", "conv"):
        y, last = model(x, broken, reset, mode)
        (y.square().sum() + last["h"].square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_layer
def test_the_mode_named_auto_is_the_scan(name):
    model, x = LAYERS[name](), torch.randn(2, 40, WIDTH)
    assert torch.equal(model(x)[0], model(x, None, None, "scan")[0])
    assert not torch.equal(model(x)[0], model(x, None, None, "conv")[0])


@every_layer
def test_the_kernel_is_the_response_to_an_impulse(name):
    model = LAYERS[name]().double()
    x = torch.zeros(1, 70, WIDTH, dtype=DOUBLE)
    x[:, 0] = 1
    response = step_loop(model, x, model.initial_state(1), None)[0] - x * model.D
    assert_close(model.kernel(70), response[0].T, DOUBLE, 70)


# The dense recurrence in chunks


@pytest.mark.parametrize("length", [1, 2, 8, 32])
@pytest.mark.parametrize("kind", ["none", "random", "staggered", "adjacent", "all", "last"])
def test_every_length_of_a_chunk_gives_the_loop(length, kind):
    B, T, H, N = 3, 45, 2, 5
    Q, _ = torch.linalg.qr(torch.randn(H, N, N, dtype=DOUBLE))
    system = Dense(0.95 * Q, *torch.randn(2, H, N, dtype=DOUBLE))
    x, h0 = torch.randn(B, T, H, dtype=DOUBLE), torch.randn(B, H, N, dtype=DOUBLE)
    reset = pattern(kind, B, T)
    h, outputs = h0, []
    for t in range(T):
        if reset is not None:
            h = torch.where(reset[:, t, None, None], torch.zeros_like(h), h)
        h = torch.einsum("hnm,bhm->bhn", system.A, h) + x[:, t, :, None] * system.B
        outputs.append((h * system.C).sum(-1))
    y, last = chunked.scan(system, x, h0, reset, length=length)
    assert_close(y, torch.stack(outputs, 1), DOUBLE, T)
    assert_close(last, h, DOUBLE, T)


def test_longer_windows_get_longer_chunks_up_to_a_limit():
    lengths = [chunked.chunk_length(16, T, 64) for T in (1, 16, 64, 256, 1024, 16384)]
    assert lengths == [1, 2, 8, 32, 64, 64]


# S4 against the dense layer


@pytest.mark.parametrize("measure", ["legs", "legt", "fourier"])
def test_s4_in_the_eigenbasis_is_lssl_in_the_polynomial_basis(measure):
    N, L = 8, 32
    dense = LSSLLayer(WIDTH, LSSLConfig(state_size=N, measure=measure)).double()
    s4 = S4Layer(WIDTH, S4Config(state_size=N, measure=measure)).double()
    half, system = nplr(measure, N), hippo(measure, N)
    decay = np.maximum(-half.w.real, SMALLEST_DECAY)  # more than HiPPO has for legt and fourier
    with torch.no_grad():
        s4.log_neg_re.copy_(torch.from_numpy(np.log(decay)))
        s4.A_im.copy_(torch.from_numpy(half.w.imag))
        for name in ("P", "B"):  # without the clipping of B
            getattr(s4, name).copy_(torch.view_as_real(torch.from_numpy(getattr(half, name))))
        # y = C x and x = 2 Re(V z)
        s4.C.copy_(torch.view_as_real(dense.C.to(torch.complex128) @ torch.from_numpy(half.V)))
        s4.D.copy_(dense.D)
        s4.log_dt.copy_(dense.log_dt)
        more = decay[0] + half.w.real[0]
        dense.A.copy_(torch.from_numpy(system.A - more * np.eye(N)))
        dense.B.copy_(torch.from_numpy(system.B))
    x, reset = torch.randn(3, L, WIDTH, dtype=DOUBLE), pattern("staggered", 3, L)
    assert_within(s4.kernel(L), dense.kernel(L), ORACLE_FLOAT64)
    assert_within(s4(x, None, reset)[0], dense(x, None, reset)[0], ORACLE_FLOAT64)


def test_the_dense_discretisation_is_the_matrix_exponential_to_second_order():
    system = hippo("legs", 4)
    A, B = torch.from_numpy(system.A)[None], torch.from_numpy(system.B)[None]
    errors = []
    for dt in (0.02, 0.01):
        actual, _ = generalized_bilinear(A, B, torch.tensor([dt], dtype=DOUBLE), 0.5)
        errors.append((actual[0] - torch.matrix_exp(dt * A[0])).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)  # third order per step
    euler, driven = generalized_bilinear(A, B, torch.tensor([0.1], dtype=DOUBLE), 0.0)
    assert_within(euler[0], torch.eye(4, dtype=DOUBLE) + 0.1 * A[0], ORACLE_FLOAT64)
    assert_within(driven[0], 0.1 * B[0], ORACLE_FLOAT64)
    backward, _ = generalized_bilinear(A, B, torch.tensor([0.1], dtype=DOUBLE), 1.0)
    inverse = torch.linalg.inv(torch.eye(4, dtype=DOUBLE) - 0.1 * A[0])
    assert_within(backward[0], inverse, ORACLE_FLOAT64)


@pytest.mark.parametrize("measure", ["legs", "legt", "fourier"])
def test_the_state_matrix_of_s4_never_grows_a_state_whatever_the_parameters(measure):
    layer = S4Layer(WIDTH, S4Config(state_size=8, measure=measure, num_copies=None)).double()
    for _ in range(20):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter))
        norm = torch.linalg.matrix_norm(layer.discretize().A, 2)
        assert (norm <= 1 + 1e-12).all()


# Parameters


@pytest.mark.parametrize("make", [S4Layer, S4DLayer, DSSLayer, LSSLLayer])
def test_outputs_start_at_the_scale_of_the_inputs(make):
    # wide enough that the draw of D, of deviation 1 per channel, is averaged over
    layer = make(64)
    y, _ = layer(torch.randn(4, 1024, 64))
    assert 0.3 < y.std().item() < 3


@pytest.mark.parametrize("init", ["lin", "inv", "legs", "real", "quad"])
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_every_start_of_s4d_decays_and_has_the_scale_of_the_inputs(init, discretization):
    layer = S4DLayer(32, S4DConfig(init=init, discretization=discretization))
    assert (torch.view_as_complex(layer.discretize().a.detach()).abs() < 1).all()
    y, _ = layer(torch.randn(2, 512, 32))
    assert 0.3 < y.std().item() < 3


@pytest.mark.parametrize("kind", ["zoh", "bilinear"])
def test_the_discretisations_are_those_of_complex_arithmetic(kind):
    re, im = -torch.rand(20, dtype=DOUBLE), 5 * torch.randn(20, dtype=DOUBLE)
    dt = torch.logspace(-9, 0, 20, dtype=DOUBLE)
    a, gain = (torch.view_as_complex(v) for v in lti.discretize(kind, re, im, dt))
    z = torch.complex(re, im) * dt
    if kind == "zoh":
        assert_within(a, z.exp(), ORACLE_FLOAT64)
        # (exp(z) - 1) / z by its series, where the plain formula cancels
        series = dt * (1 + z / 2 + z**2 / 6 + z**3 / 24)
        small = z.abs() < 1e-3
        assert small.sum() > 5
        assert ((gain / series)[small] - 1).abs().max() < ORACLE_FLOAT64
        plain = (z.exp() - 1) / torch.complex(re, im)
        assert ((gain / plain)[~small] - 1).abs().max() < ORACLE_FLOAT64
    else:
        assert_within(a, (1 + z / 2) / (1 - z / 2), ORACLE_FLOAT64)
        assert ((gain * (1 - z / 2) / dt) - 1).abs().max() < ORACLE_FLOAT64


def test_channels_share_the_copies_in_turn():
    few = S4DLayer(WIDTH, S4DConfig(state_size=4, num_copies=2))
    with torch.no_grad():
        few.A_im[1] += 1
    a = few.discretize().a / few.log_dt.exp()[..., None]  # angles differ by copy alone
    angle = torch.atan2(few.discretize().a[..., 1], few.discretize().a[..., 0])
    turned = (angle / few.log_dt.exp()).detach()
    assert a.shape == (WIDTH, 2, 2)
    assert_within(turned[0::2], turned[:1].expand(3, -1), 1e-4)
    assert_within(turned[1::2], turned[:1].expand(3, -1) + 1, 1e-4)


def test_a_band_limit_silences_exactly_the_states_above_it():
    config = S4DConfig(state_size=16, init="lin", dt_min=0.5, dt_max=0.5, bandlimit=0.8)
    layer = S4DLayer(WIDTH, config)
    # a state turns by pi n / 2 per step; the limit is 0.8 pi
    silent = (layer.discretize().c == 0).all(-1)
    assert silent.tolist() == [[n / 2 >= 0.8 for n in range(8)]] * WIDTH


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S4DConfig(state_size=7), "state_size: expected an even number .* got 7"),
        (lambda: S4Config(dt_min=0.2), "dt_min: expected 0 < dt_min <= dt_max, got 0.2 and 0.1"),
        (lambda: S4DConfig(bandlimit=0.0), "bandlimit: expected a positive number, got 0.0"),
        (lambda: DSSConfig(num_copies=0), "num_copies: expected at least 1, got 0"),
        (lambda: DSSConfig(kernel="softmax"), "length: expected a number .* got None"),
        (lambda: DSSConfig(length=9), "length: .* None with exp, got 9"),
        (lambda: LSSLConfig(state_size=65), "state_size: expected 2 to 64, .* got 65: use S4"),
        (lambda: LSSLConfig(alpha=1.5), "alpha: expected .* got 1.5"),
        (lambda: S4Layer(4, S4Config(num_copies=3)), "num_copies: expected a divisor .* 4, got 3"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# DSS


def _softmax_layer(length: int) -> DSSLayer:
    layer = DSSLayer(WIDTH, DSSConfig(state_size=8, kernel="softmax", length=length)).double()
    with torch.no_grad():
        layer.A_re[:, ::2] *= -0.7  # the softmax also takes states that grow
    return layer


def test_the_softmax_kernel_is_the_softmax_over_the_window():
    L, layer = 40, _softmax_layer(40)
    re, im = layer.eigenvalues()
    A, dt = torch.complex(re, im), layer.log_dt.exp()
    weights = (dt * A)[..., None] * torch.arange(L)
    weights = weights.exp() / weights.exp().sum(-1, keepdim=True)
    C = torch.view_as_complex(layer.C)
    expected = 2 * ((C / A)[..., None] * weights).sum(1).real
    assert (re > 0).any()
    assert (re < 0).any()
    # the guard of the release, 1e-7 in the denominator, is all that differs
    assert_within(layer.kernel(L), expected, 1e-4)
    x = torch.randn(2, 25, WIDTH, dtype=DOUBLE)
    y, last = layer(x)
    direct = [
        sum(layer.kernel(L)[:, j] * x[:, t - j] for j in range(t + 1)) + layer.D * x[:, t]
        for t in range(25)
    ]
    assert_close(y, torch.stack(direct, 1), DOUBLE, 25)
    assert last == {}


def test_the_softmax_kernel_stays_finite_where_exponents_are_large():
    re = torch.tensor([[30.0, -30.0]], requires_grad=True)
    K = softmax_kernel(re, torch.zeros(1, 2), torch.ones(1, 1), torch.ones(1, 2, 2), 50)
    assert K.isfinite().all()
    (gradient,) = torch.autograd.grad(K.square().sum(), re)
    assert gradient.isfinite().all()


def test_the_softmax_kernel_refuses_what_needs_a_recurrence():
    layer, x = _softmax_layer(8), torch.randn(2, 8, WIDTH, dtype=DOUBLE)
    reset = torch.zeros(2, 8, dtype=torch.bool)
    reset[:, 0] = True
    layer(x, {}, reset)
    reset[0, 3] = True
    refused = {
        "be stepped": lambda: layer.step(x[:, 0], {}),
        "start from a state": lambda: layer(x, {"h": torch.zeros(2, WIDTH, 4, 2)}),
        "scan": lambda: layer(x, None, None, "scan"),
        "run 16 steps with length 8": lambda: layer(torch.cat([x, x], 1)),
        "return states": lambda: layer.trace(x),
    }
    for what, call in refused.items():
        with pytest.raises(ValueError, match=f"^dss: kernel 'softmax' .* cannot {what}: use .*$"):
            call()
    with pytest.raises(ValueError, match="got one in row 0 at step 3"):
        layer(x, None, reset)
