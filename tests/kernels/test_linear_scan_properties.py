"""What must hold for every linear scan, whatever the numbers: shapes and resets are drawn."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from statewise.kernels import linear_scan
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS, Case, leaves, loop, make
from tests.resets import KINDS
from tests.tolerance import assert_close, relative_error

DRAWN = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CASES = st.builds(
    Case,
    B=st.integers(1, 4),
    T=st.integers(1, 70),
    D=st.integers(1, 9),
    is_complex=st.booleans(),
    varying=st.booleans(),
    reset=st.sampled_from(KINDS),
    h0=st.booleans(),
    h_init=st.booleans(),
    hold=st.booleans(),
)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@DRAWN
@given(case=CASES, seed=st.integers(0, 2**16))
def test_any_scan_equals_the_loop(backend, case, seed):
    torch.manual_seed(seed)
    a, b, options = make(case)
    h, h_last = linear_scan(a, b, **options, backend=backend)
    expected, expected_last = loop(a, b, **options)
    assert_close(h, expected, torch.float64, case.T)
    assert_close(h_last, expected_last, torch.float64, case.T)


@pytest.mark.parametrize("backend", BACKENDS)
@DRAWN
@given(case=CASES, at=st.integers(0, 70), seed=st.integers(0, 2**16))
def test_two_windows_compose(backend, case, at, seed):
    torch.manual_seed(seed)
    a, b, options = make(case)
    whole, whole_last = linear_scan(a, b, **options, backend=backend)
    k = min(at, case.T)
    state, parts = options.pop("h0", None), []
    for window in (slice(0, k), slice(k, case.T)):
        rest = {
            name: value[:, window] if name in ("reset", "hold") and value is not None else value
            for name, value in options.items()
        }
        part, state = linear_scan(
            a[:, window] if case.varying else a, b[:, window], h0=state, **rest, backend=backend
        )
        parts.append(part)
    assert_close(torch.cat(parts, 1), whole, torch.float64, case.T)
    assert_close(state, whole_last, torch.float64, case.T)


@pytest.mark.parametrize("backend", BACKENDS)
@DRAWN
@given(case=CASES, at=st.integers(0, 69), seed=st.integers(0, 2**16))
def test_a_reset_equals_a_fresh_scan_started_there(backend, case, at, seed):
    torch.manual_seed(seed)
    a, b, options = make(case._replace(reset="none", hold=False))
    s = min(at, case.T - 1)
    reset = torch.zeros(case.B, case.T, dtype=torch.bool)
    reset[:, s] = True
    options["reset"] = reset
    h, _ = linear_scan(a, b, **options, backend=backend)
    init = options.get("h_init")
    fresh, _ = linear_scan(
        a[:, s:] if case.varying else a,
        b[:, s:],
        h0=None if init is None else init.expand(case.B, -1),
        backend=backend,
    )
    assert_close(h[:, s:], fresh, torch.float64, case.T)


@pytest.mark.parametrize("backend", BACKENDS)
@DRAWN
@given(case=CASES, seed=st.integers(0, 2**16))
def test_the_scan_is_linear_in_inputs_and_states(backend, case, seed):
    torch.manual_seed(seed)
    a, b, options = make(case)
    _, b_other, other = make(case)
    rest = {k: v for k, v in options.items() if k in ("reset", "hold")}
    states = [k for k in ("h0", "h_init") if k in options]

    def scan(b: Tensor, given: dict[str, Tensor]) -> Tensor:
        return linear_scan(a, b, **given, **rest, backend=backend)[0]

    together = scan(2.0 * b - 3.0 * b_other, {k: 2.0 * options[k] - 3.0 * other[k] for k in states})
    apart = 2.0 * scan(b, {k: options[k] for k in states}) - 3.0 * scan(
        b_other, {k: other[k] for k in states}
    )
    assert_close(together, apart, torch.float64, case.T)


@pytest.mark.parametrize("backend", BACKENDS)
@DRAWN
@given(case=CASES, seed=st.integers(0, 2**16))
def test_the_adjoint_satisfies_the_dot_product_identity(backend, case, seed):
    torch.manual_seed(seed)
    a, b, options = make(case)
    inputs = leaves(a, b, options)
    rest = {k: options[k] for k in ("reset", "hold") if k in options}
    linear = [k for k in inputs if k != "a"]

    def scan(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        named = {k: v for k, v in given.items() if k != "b"}
        return linear_scan(a, given["b"], **named, **rest, backend=backend)

    h, h_last = scan({k: inputs[k] for k in linear})
    v, v_last = torch.randn_like(h), torch.randn_like(h_last)
    adjoint = torch.autograd.grad([h, h_last], [inputs[k] for k in linear], [v, v_last],
                                  materialize_grads=True)  # fmt: skip
    direction = {k: torch.randn_like(inputs[k]) for k in linear}
    image, image_last = scan(direction)

    def dot(x: Tensor, y: Tensor) -> float:
        return (x.conj() * y).sum().real.item()

    left = dot(v, image) + dot(v_last, image_last)
    right = sum(dot(g, direction[k]) for g, k in zip(adjoint, linear, strict=True))
    size = sum(dot(x, x) for x in (v, v_last, image, image_last))
    assert abs(left - right) <= 1e-12 * size


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scan_without_memory_returns_its_input(backend, is_complex):
    a, b, options = make(Case(3, 19, 4, is_complex=is_complex, reset="random", h_init=True))
    h, h_last = linear_scan(torch.zeros_like(a), b, **options, backend=backend)
    assert torch.equal(h, b)
    assert torch.equal(h_last, b[:, -1])


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scan_that_forgets_nothing_is_a_running_sum(backend, is_complex):
    a, b, _ = make(Case(3, 50, 4, is_complex=is_complex))
    h, _ = linear_scan(torch.ones_like(a), b, backend=backend)
    assert_close(h, b.cumsum(1), torch.float64, 50)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_impulse_decays_as_powers_of_the_coefficient(backend, is_complex):
    a, b, _ = make(Case(2, 30, 4, is_complex=is_complex, varying=False))
    b = torch.zeros_like(b)
    b[:, 0] = 1
    h, _ = linear_scan(a, b, backend=backend)
    powers = a ** torch.arange(30)[:, None]
    assert_close(h, powers.expand(2, -1, -1), torch.float64, 30)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_the_rows_permutes_the_result_bitwise(backend, is_complex):
    a, b, options = make(Case(5, 31, 6, is_complex=is_complex, reset="staggered", h_init=True))
    order = torch.tensor([3, 0, 4, 2, 1])
    h, h_last = linear_scan(a, b, **options, backend=backend)
    options["reset"], options["h0"] = options["reset"][order], options["h0"][order]
    permuted, permuted_last = linear_scan(a[order], b[order], **options, backend=backend)
    assert torch.equal(permuted, h[order])
    assert torch.equal(permuted_last, h_last[order])


@pytest.mark.parametrize("backend", BACKENDS)
def test_holding_the_tail_keeps_the_last_real_state(backend):
    # Rows of 5, 3 and 0 real steps, padded to 8 with garbage: the state is that of the real steps.
    a, b, options = make(Case(3, 8, 4, is_complex=True))
    b[torch.arange(8) >= torch.tensor([[5], [3], [0]])] = 1e6
    options["hold"] = torch.arange(8) >= torch.tensor([[5], [3], [0]])
    _, h_last = linear_scan(a, b, **options, backend=backend)
    for row, length in enumerate((5, 3, 0)):
        _, expected = linear_scan(
            a[row : row + 1, :length],
            b[row : row + 1, :length],
            h0=options["h0"][row : row + 1],
            backend=backend,
        )
        assert_close(h_last[row : row + 1], expected, torch.float64, 8)


def test_the_closeness_measure_sees_a_single_wrong_entry_and_not_a_number():
    expected = torch.ones(4, 5)
    wrong = expected.clone()
    wrong[2, 3] += 1e-3
    assert relative_error(wrong, expected) == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(AssertionError):
        assert_close(wrong, expected, torch.float32, 5)
    wrong[2, 3] = float("nan")
    with pytest.raises(AssertionError):
        assert_close(wrong, expected, torch.bfloat16, 5)
