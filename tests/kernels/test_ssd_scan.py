"""The scan of Mamba-2: every backend against the loop, the authors' arrays, and its laws."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels import selective_scan, ssd_scan, ssd_step
from tests import golden_files
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS
from tests.kernels.ssd_cases import MATRIX, Case, floats, make, results
from tests.resets import KINDS
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_close, assert_within, limit

DOUBLE = torch.float64
IN_TIME = ("x", "dt", "Bm", "Cm", "reset")
every_case = pytest.mark.parametrize("case", MATRIX, ids=str)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fast_backend = pytest.mark.parametrize("backend", FAST_BACKENDS)


def _same(actual: dict[str, Tensor], expected: dict[str, Tensor], T: int) -> None:
    for name, value in expected.items():
        assert_close(actual[name], value, DOUBLE, T, gradient=name.startswith("grad"))


@every_backend
def test_values_equal_a_loop_over_everything(backend):
    a = make(Case())
    (B, T, H, _), G = a["x"].shape, a["Bm"].shape[2]
    expected, states = torch.zeros_like(a["x"]), a["h0"].clone()
    for b in range(B):
        for k in range(H):
            h, g = a["h0"][b, k], k // (H // G)
            for t in range(T):
                h = torch.zeros_like(h) if a["reset"][b, t] else h
                d = a["dt"][b, t, k]
                h = (d * a["A"][k]).exp() * h + d * torch.outer(a["x"][b, t, k], a["Bm"][b, t, g])
                expected[b, t, k] = h @ a["Cm"][b, t, g] + a["D"][k] * a["x"][b, t, k]
            states[b, k] = h
    y, last = ssd_scan(**a, backend=backend)
    assert_close(y, expected, DOUBLE, T)
    assert_close(last, states, DOUBLE, T)


@every_backend
def test_with_one_number_per_head_it_is_the_selective_scan(backend):
    """Every channel of a head has the same step and decay there."""
    a = make(Case(G=1, skip=2))
    _, T, H, P = a["x"].shape
    N = a["Bm"].shape[3]
    y, last = ssd_scan(**a, backend=backend)
    expected, expected_last = selective_scan(
        a["x"].flatten(2),
        a["dt"].repeat_interleave(P, 2),
        a["A"].repeat_interleave(P)[:, None].expand(H * P, N),
        a["Bm"],
        a["Cm"],
        D=a["D"].flatten(),
        dt_softplus=False,
        h0=a["h0"].flatten(1, 2),
        reset=a["reset"],
    )
    assert_close(y.flatten(2), expected, DOUBLE, T)
    assert_close(last.flatten(1, 2), expected_last, DOUBLE, T)


@every_fast_backend
@every_case
def test_a_backend_equals_the_reference_in_double(backend, case):
    arguments = make(case)
    expected, weights = results(arguments, "reference")
    actual, _ = results(arguments, backend, weights)
    _same(actual, expected, case.T)


@every_fast_backend
@every_case
def test_float32_stays_within_the_limit(backend, case):
    arguments = make(case, torch.float32)
    actual, weights = results(arguments, backend)
    exact = arguments | {name: value.to(DOUBLE) for name, value in floats(arguments).items()}
    expected, _ = results(exact, "reference", (weights[0].to(DOUBLE), weights[1].to(DOUBLE)))
    for name, value in expected.items():
        gradient = name.startswith("grad")
        assert_close(actual[name], value, torch.float32, max(case.T, 8), gradient=gradient)


@pytest.mark.parametrize("rate", [20.0, 200.0])
def test_large_decays_do_not_swallow_small_ones(rate):
    """The sum of log-decays of a chunk is large there; what matters are differences."""
    arguments = make(Case(T=64, chunk=64, reset="none"), torch.float32)
    arguments["dt"][:, :32] *= rate
    arguments["dt"][:, 32:] *= 1e-3
    exact = arguments | {name: value.to(DOUBLE) for name, value in floats(arguments).items()}
    expected, _ = ssd_scan(**exact, backend="reference")
    actual, _ = ssd_scan(**arguments, backend="cpu")
    assert_close(actual, expected, torch.float32, 64)


@every_fast_backend
@pytest.mark.parametrize("case", [MATRIX[0], MATRIX[5]], ids=str)
def test_bfloat16_inputs_keep_a_float32_state(backend, case):
    arguments = make(case, torch.bfloat16)
    actual, weights = results(arguments, backend)
    exact = arguments | {name: value.to(DOUBLE) for name, value in floats(arguments).items()}
    expected, _ = results(exact, "reference", (weights[0].to(DOUBLE), weights[1].to(DOUBLE)))
    assert (actual["y"].dtype, actual["last"].dtype) == (torch.bfloat16, torch.float32)
    for name, value in expected.items():
        assert_within(actual[name], value, limit(torch.bfloat16, case.T))
        source = arguments.get(name.removeprefix("grad "))
        assert source is None or actual[name].dtype == source.dtype


@every_fast_backend
@pytest.mark.parametrize("reset", KINDS)
def test_every_reset_pattern_equals_the_reference(backend, reset):
    arguments = make(Case(B=3, T=35, chunk=8, reset=reset))
    expected, weights = results(arguments, "reference")
    actual, _ = results(arguments, backend, weights)
    _same(actual, expected, 35)


def test_the_gradients_of_the_loop_are_those_of_finite_differences():
    arguments = make(Case(B=1, T=3, H=2, P=2, N=2))
    leaves = {name: value.requires_grad_() for name, value in floats(arguments).items()}

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(leaves, values, strict=True))
        return ssd_scan(**(arguments | named), backend="reference")

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


@every_backend
@pytest.mark.parametrize("name", golden_files.names("ssd_*"))
def test_the_arrays_of_the_authors_are_reproduced(backend, name):
    stored, meta = golden_files.load(name)
    leaves = {
        key.removeprefix("in_"): value.clone().requires_grad_(value.is_floating_point())
        for key, value in stored.items()
        if key.startswith("in_")
    }
    dt = leaves["dt"]
    if "dt_bias" in leaves:
        dt = F.softplus(dt + leaves["dt_bias"])
    y, last = ssd_scan(
        leaves["x"],
        dt,
        leaves["A"],
        leaves["B"],
        leaves["C"],
        chunk=meta["chunk"],
        D=leaves.get("D"),
        h0=leaves.get("state0"),
        reset=leaves.get("reset"),
        backend=backend,
    )
    y = y * F.silu(leaves["z"]) if "z" in leaves else y
    assert_within(y, stored["out_y"], GOLDEN_VALUE)
    if "out_last_state" in stored:
        assert_within(last, stored["out_last_state"], GOLDEN_VALUE)
    gradients = [key for key in stored if key.startswith("grad_")]
    if not gradients:
        return
    loss = (y * stored["w_y"]).sum()
    if "w_last" in stored:
        loss = loss + (last * stored["w_last"]).sum()
    loss.backward()
    for key in gradients:
        assert_within(leaves[key.removeprefix("grad_")].grad, stored[key], GOLDEN_GRADIENT)


@every_backend
@pytest.mark.parametrize("source", ["h0", "x", "Bm", "Cm"])
def test_what_is_not_finite_does_not_pass_a_reset(backend, source):
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[:, 35] = True
    arguments = make(Case(T=40, chunk=16)) | {"reset": reset}
    if source == "h0":
        arguments["h0"] = torch.full_like(arguments["h0"], float("nan"))
    else:
        arguments[source][:, 33] = float("inf")
    leaves = {k: v.requires_grad_() for k, v in floats(arguments).items() if k in ("x", "h0")}
    y, last = ssd_scan(**arguments, backend=backend)
    loss = y[:, 35:].square().sum() + last.square().sum()
    dx, dh0 = torch.autograd.grad(loss, [leaves["x"], leaves["h0"]])
    assert not y[:, 33].isfinite().any()
    assert source == "h0" or y[:, :33].isfinite().all()
    assert loss.isfinite()
    assert dx[:, 35:].isfinite().all()
    if source in ("h0", "x"):  # else the loop, too, has 0 * inf before the reset
        assert (dh0 == 0).all()
        assert (dx[:, :35] == 0).all()


@every_fast_backend
def test_the_chunk_does_not_change_the_result(backend):
    arguments = make(Case(T=33, reset="random"))
    expected, weights = results(arguments | {"chunk": 64}, backend)
    for chunk in (1, 2, 7, 33):
        actual, _ = results(arguments | {"chunk": chunk}, backend, weights)
        _same(actual, expected, 33)


@every_backend
def test_windows_compose_at_every_cut(backend):
    arguments = make(Case())
    whole, whole_last = ssd_scan(**arguments, backend=backend)
    for cut in range(10):
        first = {k: v[:, :cut] if k in IN_TIME else v for k, v in arguments.items()}
        y, between = ssd_scan(**first, backend=backend)
        second = {k: v[:, cut:] if k in IN_TIME else v for k, v in arguments.items()}
        y_, last = ssd_scan(**(second | {"h0": between}), backend=backend)
        assert_close(torch.cat([y, y_], 1), whole, DOUBLE, 9)
        assert_close(last, whole_last, DOUBLE, 9)


@every_backend
@pytest.mark.parametrize("grad", [True, False])
def test_steps_equal_the_scan(backend, grad):
    arguments = make(Case(T=7, skip=2))
    expected, h_last = ssd_scan(**arguments, backend=backend)
    h, reset, _ = (arguments.pop(name) for name in ("h0", "reset", "chunk"))
    with torch.set_grad_enabled(grad):
        for t in range(7):
            now = {k: v[:, t] if k in IN_TIME else v for k, v in arguments.items()}
            y, h = ssd_step(**now, h=h, reset=reset[:, t], backend=backend)
            assert_close(y, expected[:, t], DOUBLE, 7)
    assert_close(h, h_last, DOUBLE, 7)


@pytest.mark.parametrize("B", [1, 3])
def test_the_number_of_threads_does_not_change_a_bit(B):
    arguments = make(Case(B=B, T=70, H=9, P=16, G=1, N=16, chunk=32), torch.float32)
    first, weights = results(arguments, "cpu")
    torch.set_num_threads(2)
    second, _ = results(arguments, "cpu", weights)
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@every_fast_backend
def test_slices_of_a_projection_are_read_as_they_are(backend):
    packed = torch.randn(2, 9, 8 + 5 + 5 + 2, dtype=DOUBLE)
    x, Bm, Cm, dt = packed.split([8, 5, 5, 2], -1)
    views = (x.unflatten(-1, (2, 4)), dt.abs(), -torch.rand(2, dtype=DOUBLE))
    mixing = (Bm.unflatten(-1, (1, 5)), Cm.unflatten(-1, (1, 5)))
    y, last = ssd_scan(*views, *mixing, backend=backend)
    dense = (v.contiguous() for v in (*views, *mixing))
    expected, expected_last = ssd_scan(*dense, backend="reference")
    assert_close(y, expected, DOUBLE, 9)
    assert_close(last, expected_last, DOUBLE, 9)


@pytest.mark.parametrize("T", [0, 1])
@pytest.mark.parametrize("B", [0, 2])
@every_backend
def test_empty_and_short_windows_are_allowed(backend, T, B):
    arguments = make(Case(B=B, T=T, reset="none"))
    y, last = ssd_scan(**arguments, backend=backend)
    assert y.shape == (B, T, 4, 3)
    if T == 0:
        assert torch.equal(last, arguments["h0"])


@every_fast_backend
def test_it_compiles_into_one_graph_for_any_length(backend):
    torch._dynamo.reset()

    def run(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, reset: Tensor) -> Tensor:
        y, last = ssd_scan(x, dt, A, Bm, Cm, reset=reset, chunk=16, backend=backend)
        return y.square().sum() + last.square().sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for T in (5, 40):
        arguments = make(Case(T=T))
        inputs: list[Any] = [arguments[k] for k in ("x", "dt", "A", "Bm", "Cm", "reset")]
        x = inputs[0].requires_grad_()
        if backend == "cpu":
            for value in (*inputs[:2], *inputs[3:]):
                torch._dynamo.mark_dynamic(value, 1)
        got, want = compiled(*inputs), run(*inputs)
        assert_close(got, want, DOUBLE, T)
        (grad,), (expected,) = torch.autograd.grad(got, x), torch.autograd.grad(want, x)
        assert_close(grad, expected, DOUBLE, T, gradient=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dt": torch.zeros(2, 9, 5)}, r"dt must be \(2, 9, 4\), got \(2, 9, 5\)"),
        ({"A": torch.zeros(4, 5)}, r"A must be \(4,\), got \(4, 5\)"),
        ({"Bm": torch.zeros(2, 9, 3, 5)}, "must divide the 4 heads of x, got 3"),
        ({"Cm": torch.zeros(2, 9, 1, 5)}, r"Cm must be \(2, 9, 2, 5\)"),
        ({"h0": torch.zeros(2, 4, 5, 3)}, r"h0 must be \(2, 4, 3, 5\)"),
        ({"D": torch.zeros(3)}, r"D must be \(4,\) or \(4, 3\), got \(3,\)"),
        ({"reset": torch.zeros(2, 9)}, "reset must be bool, got torch.float32"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"x": torch.zeros(2, 9, 4)}, r"x must be \(B, T, H, P\)"),
        ({"x": torch.zeros(2, 9, 4, 3, dtype=torch.float16)}, "float32, float64, bfloat16, got"),
        ({"D": torch.zeros(4, device="meta")}, "one device"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        ssd_scan(**(make(Case(), torch.float32) | changes))
    assert "\n" not in str(caught.value)
