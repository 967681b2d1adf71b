"""The selective scan: every backend against the loop, the authors' arrays, and its laws."""

from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.kernels import BackendError, selective_scan, selective_scan_pairs, selective_step
from tests import golden_files
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS
from tests.kernels.selective_cases import MATRIX, Case, floats, make, results
from tests.resets import KINDS, pattern
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_close, assert_within, limit

DOUBLE = torch.float64
every_case = pytest.mark.parametrize("case", MATRIX, ids=str)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fast_backend = pytest.mark.parametrize("backend", FAST_BACKENDS)


def _loop(a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Run the recursion one row, channel and step at a time, for a real A and one group."""
    B, T, E = a["u"].shape
    N = a["A"].shape[1]
    y, last = torch.zeros(B, T, E, dtype=DOUBLE), torch.zeros(B, E, N, dtype=DOUBLE)
    for b in range(B):
        for e in range(E):
            h = a["h0"][b, e].clone()
            for t in range(T):
                if a["reset"][b, t]:
                    h = torch.zeros(N, dtype=DOUBLE)
                d = (1 + (a["dt"][b, t, e] + a["dt_bias"][e]).exp()).log()
                h = (d * a["A"][e]).exp() * h + d * a["u"][b, t, e] * a["Bm"][b, t, 0]
                out = (a["Cm"][b, t, 0] * h).sum() + a["D"][e] * a["u"][b, t, e]
                y[b, t, e] = out * a["z"][b, t, e] / (1 + (-a["z"][b, t, e]).exp())
            last[b, e] = h
    return y, last


@every_backend
def test_values_equal_a_loop_over_everything(backend):
    arguments = make(Case())
    y, last = selective_scan(**arguments, backend=backend)
    expected, expected_last = _loop(arguments)
    assert_close(y, expected, DOUBLE, 9)
    assert_close(last, expected_last, DOUBLE, 9)


@every_fast_backend
@every_case
def test_a_backend_equals_the_reference_in_double(backend, case):
    arguments = make(case)
    expected, weights = results(arguments, "reference")
    actual, _ = results(arguments, backend, weights)
    for name, value in expected.items():
        assert_close(actual[name], value, DOUBLE, case.T, gradient=name.startswith("grad"))


@every_fast_backend
@every_case
def test_float32_stays_within_the_limit(backend, case):
    arguments = make(case, torch.float32)
    exact = {
        name: value.to(torch.complex128 if value.is_complex() else DOUBLE)
        if isinstance(value, Tensor) and value.dtype != torch.bool
        else value
        for name, value in arguments.items()
    }
    actual, weights = results(arguments, backend)
    double = tuple(w.to(torch.complex128 if w.is_complex() else DOUBLE) for w in weights)
    expected, _ = results(exact, "reference", (double[0], double[1]))
    for name, value in expected.items():
        gradient = name.startswith("grad")
        assert_close(actual[name], value, torch.float32, max(case.T, 8), gradient=gradient)


@every_fast_backend
@pytest.mark.parametrize("case", [MATRIX[0], MATRIX[8], MATRIX[9]], ids=str)
def test_bfloat16_inputs_keep_a_float32_state(backend, case):
    arguments = make(case, torch.bfloat16)
    actual, weights = results(arguments, backend)
    exact = {
        name: value.to(DOUBLE) if name in floats(arguments) or name == "a_override" else value
        for name, value in arguments.items()
    }
    expected, _ = results(exact, "reference", (weights[0].to(DOUBLE), weights[1].to(DOUBLE)))
    assert (actual["y"].dtype, actual["last"].dtype) == (torch.bfloat16, torch.float32)
    for name, value in expected.items():
        assert_within(actual[name], value, limit(torch.bfloat16, case.T))
        source = arguments.get(name.removeprefix("grad "))
        assert source is None or actual[name].dtype == source.dtype


@every_fast_backend
@pytest.mark.parametrize("kind", ["real", "signed", "complex"])
@pytest.mark.parametrize("reset", KINDS)
def test_every_reset_pattern_equals_the_reference(backend, kind, reset):
    arguments = make(Case(B=3, T=35, kind=kind, reset=reset))
    expected, weights = results(arguments, "reference")
    actual, _ = results(arguments, backend, weights)
    for name, value in expected.items():
        assert_close(actual[name], value, DOUBLE, 35, gradient=name.startswith("grad"))


@pytest.mark.parametrize("kind", ["real", "signed", "complex"])
def test_the_gradients_of_the_loop_are_those_of_finite_differences(kind):
    arguments = make(Case(B=1, T=3, E=2, N=2, kind=kind))
    leaves = {name: value.requires_grad_() for name, value in floats(arguments).items()}

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(leaves, values, strict=True))
        return selective_scan(**(arguments | named), backend="reference")

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


@every_backend
@pytest.mark.parametrize("name", golden_files.names("selective_scan*"))
def test_the_arrays_of_the_authors_are_reproduced(backend, name):
    stored, meta = golden_files.load(name)
    T, E = stored["in_u"].shape[2], stored["in_u"].shape[1]
    leaves = {k.removeprefix("in_"): v.clone().requires_grad_() for k, v in stored.items()
              if k.startswith("in_") and k != "in_reset"}  # fmt: skip
    time_first = {key: leaves[key].transpose(1, 2) for key in ("u", "delta")}

    def matrix(x: Tensor) -> Tensor:
        if x.dim() == 2:  # constant: every channel is a group of its own
            return x.expand(len(stored["in_u"]), T, E, x.shape[1])
        return (x[:, None] if x.dim() == 3 else x).permute(0, 3, 1, 2)

    y, last = selective_scan(
        time_first["u"],
        time_first["delta"],
        leaves["A"],
        matrix(leaves["B"]),
        matrix(leaves["C"]),
        D=leaves.get("D"),
        z=leaves["z"].transpose(1, 2) if "z" in leaves else None,
        dt_bias=leaves.get("delta_bias"),
        dt_softplus=meta["softplus"],
        h0=leaves.get("state0"),
        reset=stored.get("in_reset"),
        backend=backend,
    )
    assert_within(y, stored["out_y"].transpose(1, 2), GOLDEN_VALUE)
    assert_within(last, stored["out_last_state"], GOLDEN_VALUE)
    if "w_y" in stored:
        loss = (y.transpose(1, 2) * stored["w_y"]).sum() + (last * stored["w_last"]).sum()
        loss.backward()
        compared = [key for key in stored if key.startswith("grad_")]
        assert len(compared) >= 5
        for key in compared:
            assert_within(leaves[key.removeprefix("grad_")].grad, stored[key], GOLDEN_GRADIENT)


@every_backend
@pytest.mark.parametrize("kind", ["real", "signed", "complex"])
def test_a_state_that_is_not_finite_does_not_pass_a_reset(backend, kind):
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[:, 35] = True
    arguments = make(Case(T=40, kind=kind)) | {"reset": reset}
    arguments["h0"] = torch.full_like(arguments["h0"], float("nan"))
    leaves = {k: v.requires_grad_() for k, v in floats(arguments).items() if k in ("u", "h0")}
    y, last = selective_scan(**arguments, backend=backend)
    assert y[:, :35].isnan().all()
    loss = y[:, 35:].square().sum() + last.abs().square().sum()
    du, dh0 = torch.autograd.grad(loss, list(leaves.values()))
    assert loss.isfinite()
    assert (dh0 == 0).all()
    assert (du[:, :35] == 0).all()
    assert du[:, 35:].isfinite().all()


@every_backend
@pytest.mark.parametrize("kind", ["real", "signed", "complex"])
def test_windows_compose_at_every_cut(backend, kind):
    arguments = make(Case(T=9, kind=kind))
    whole, whole_last = selective_scan(**arguments, backend=backend)
    in_time = ("u", "dt", "Bm", "Cm", "z", "reset")
    for cut in range(10):
        first = {k: v[:, :cut] if k in in_time else v for k, v in arguments.items()}
        y, between = selective_scan(**first, backend=backend)
        second = {k: v[:, cut:] if k in in_time else v for k, v in arguments.items()}
        y_, last = selective_scan(**(second | {"h0": between}), backend=backend)
        assert_close(torch.cat([y, y_], 1), whole, DOUBLE, 9)
        assert_close(last, whole_last, DOUBLE, 9)


@every_backend
def test_polarised_channels_keep_everything_and_nothing(backend):
    T = 70
    arguments = make(Case(B=1, T=T, E=2, N=2, options="so", reset="none"))  # decays 0 and 1
    _, last = selective_scan(**arguments, backend=backend)
    d = torch.nn.functional.softplus(arguments["dt"])
    driven = (d * arguments["u"])[..., None] * arguments["Bm"]
    assert_close(last[..., 0], driven[:, -1, :, 0], DOUBLE, T)
    assert_close(last[..., 1], driven[..., 1].sum(1), DOUBLE, T)


@every_backend
@pytest.mark.parametrize("kind", ["real", "signed", "complex"])
@pytest.mark.parametrize("grad", [True, False])
def test_steps_equal_the_scan(backend, kind, grad):
    arguments = make(Case(T=7, G=2, kind=kind))
    expected, expected_last = selective_scan(**arguments, backend=backend)
    h, reset = arguments.pop("h0"), arguments.pop("reset")
    in_time = ("u", "dt", "Bm", "Cm", "z")
    with torch.set_grad_enabled(grad):
        for t in range(7):
            now = {k: v[:, t] if k in in_time else v for k, v in arguments.items()}
            y, h = selective_step(**now, h=h, reset=reset[:, t], backend=backend)
            assert_close(y, expected[:, t], DOUBLE, 7)
    assert_close(h, expected_last, DOUBLE, 7)


@pytest.mark.parametrize("B", [1, 3])
def test_the_number_of_threads_does_not_change_a_bit(B):
    arguments = make(Case(B=B, T=70, E=200, N=4, G=2), torch.float32)
    first, weights = results(arguments, "cpu")
    torch.set_num_threads(2)
    second, _ = results(arguments, "cpu", weights)
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@every_fast_backend
def test_strides_and_slices_of_a_projection_are_read_as_they_are(backend):
    packed = torch.randn(2, 9, 6 + 6 + 3 + 3, dtype=DOUBLE)
    u, dt, Bm, Cm = packed.split([6, 6, 3, 3], -1)
    A = -torch.rand(6, 3, dtype=DOUBLE)
    y, last = selective_scan(u, dt, A, Bm, Cm, backend=backend)
    dense = (x.contiguous() for x in (u, dt, A, Bm, Cm))
    expected, expected_last = selective_scan(*dense, backend="reference")
    assert_close(y, expected, DOUBLE, 9)
    assert_close(last, expected_last, DOUBLE, 9)


@pytest.mark.parametrize("T", [0, 1])
@pytest.mark.parametrize("B", [0, 2])
@every_backend
def test_empty_and_short_windows_are_allowed(backend, T, B):
    arguments = make(Case(B=B, T=T, reset="none"))
    y, last = selective_scan(**arguments, backend=backend)
    assert y.shape == (B, T, 6)
    if T == 0:
        assert torch.equal(last, arguments["h0"])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_the_custom_op_is_well_formed_and_compiles_for_any_length(backend, kind):
    torch._dynamo.reset()

    def run(u: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, reset: Tensor) -> Tensor:
        pairs = {"real": selective_scan, "complex": selective_scan_pairs}[kind]
        y, last = pairs(u, dt, A, Bm, Cm, reset=reset, backend=backend)
        return y.square().sum() + last.square().sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for T in (5, 40, 70):
        arguments = make(Case(T=T, kind=kind, options="s"))
        state = [arguments[k] for k in ("A", "Bm", "Cm")]
        if kind == "complex":
            state = [torch.view_as_real(x) for x in state]
        u, dt = arguments["u"].requires_grad_(), arguments["dt"]
        for x in (u, dt, *state[1:], arguments["reset"]):
            torch._dynamo.mark_dynamic(x, 1)
        got = compiled(u, dt, *state, arguments["reset"])
        (grad,) = torch.autograd.grad(got, u)
        want = run(u, dt, *state, arguments["reset"])
        assert_close(got, want, DOUBLE, T)
        assert_close(grad, torch.autograd.grad(want, u)[0], DOUBLE, T, gradient=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dt": torch.zeros(2, 9, 5)}, r"dt must be \(2, 9, 6\), got \(2, 9, 5\)"),
        ({"Bm": torch.zeros(2, 9, 4, 3)}, "must divide the 6 channels of u, got 4"),
        ({"h0": torch.zeros(2, 6, 4)}, r"h0 must be \(2, 6, 3\)"),
        ({"reset": torch.zeros(2, 9)}, "reset must be bool, got torch.float32"),
        ({"decay": "both"}, "'exp' or 'signed', got 'both'"),
        ({"u": torch.zeros(2, 9, 6, dtype=torch.float16)}, "float32, float64, bfloat16, got"),
        ({"D": torch.zeros(6, device="meta")}, "one device"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        selective_scan(**(make(Case(), torch.float32) | changes))
    assert "\n" not in str(caught.value)


def test_signed_decays_need_a_real_matrix():
    with pytest.raises(ValueError, match="real A"):
        selective_scan(**(make(Case(kind="complex")) | {"decay": "signed"}))


def test_second_derivatives_are_refused_except_by_the_reference():
    arguments = make(Case(options="s"))
    u = arguments["u"].requires_grad_()
    y, _ = selective_scan(**arguments, backend="cpu")
    (grad,) = torch.autograd.grad(y.sum(), u, create_graph=True)
    with pytest.raises((RuntimeError, BackendError)):
        torch.autograd.grad(grad.sum(), u)


def test_every_single_reset_position_is_honoured():
    for t in range(9):
        arguments = make(Case())
        arguments["reset"] = torch.zeros(2, 9, dtype=torch.bool)
        arguments["reset"][:, t] = True
        expected, _ = selective_scan(**arguments, backend="reference")
        for backend in FAST_BACKENDS:
            assert_close(selective_scan(**arguments, backend=backend)[0], expected, DOUBLE, 9)
    assert pattern("none", 2, 9) is None


def test_decays_at_the_ends_of_float32_are_nothing_everything_and_not_a_number():
    one = torch.ones(1, 1, 4)
    dt = torch.tensor([1e30, 200.0, 0.0, float("nan")]).view(1, 1, 4)
    _, h = selective_scan(
        torch.zeros(1, 1, 4), dt, -torch.ones(4, 1), one[..., :1], one[..., :1],
        h0=torch.ones(1, 4, 1), dt_softplus=False, backend="cpu",
    )  # fmt: skip
    assert (h[0, :2, 0] <= 2.0**-126).all()
    assert h[0, 2, 0] == 1
    assert h[0, 3, 0].isnan()
    grown, _ = selective_scan(
        torch.zeros(1, 1, 1), torch.full((1, 1, 1), -200.0), -torch.ones(1, 1), one[..., :1],
        one[..., :1], h0=torch.ones(1, 1, 1), dt_softplus=False, backend="cpu",
    )  # fmt: skip
    assert grown.isinf().all()
