"""Values of the linear scan: every backend against the loop, the loop against numbers by hand."""

import pytest
import torch
from torch import Tensor

from statewise.kernels import linear_scan, linear_scan_pairs
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS, Case, decay, loop, make, wide
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close

NAN, INF = float("nan"), float("inf")

# Pairwise cover of kind x coefficients x reset x h0 x h_init x hold x T x D x B.
CASES = [
    Case(3, 1, 1, reset="none"),
    Case(1, 1, 3, is_complex=True, reset="first", h_init=True),
    Case(3, 2, 16, varying=False, reset="last"),
    Case(2, 3, 63, is_complex=True, varying=False, reset="all", h_init=True),
    Case(1, 7, 64, reset="adjacent", h0=False, hold=True),
    Case(3, 7, 3, is_complex=True, reset="staggered", h_init=True, hold=True),
    Case(3, 63, 65, reset="random", h_init=True),
    Case(1, 63, 16, is_complex=True, varying=False, reset="none", h0=False),
    Case(3, 64, 1, varying=False, reset="staggered", h0=False, h_init=True),
    Case(2, 64, 3, is_complex=True, reset="adjacent"),
    Case(1, 65, 256, reset="random"),
    Case(3, 65, 64, is_complex=True, varying=False, reset="last", hold=True),
    Case(2, 127, 5, varying=False, reset="first", hold=True),
    Case(3, 127, 16, is_complex=True, reset="random", h0=False),
    Case(2, 100, 600, reset="staggered", h_init=True),
    Case(2, 20, 600, is_complex=True, reset="staggered", h_init=True),
    Case(3, 1000, 16, reset="random", h_init=True),
    Case(2, 1000, 3, is_complex=True, varying=False, reset="staggered"),
    Case(4, 257, 130, is_complex=True, reset="all_false", h_init=True),
]
EMPTY_SHAPES = [(0, 4, 3), (2, 0, 3), (0, 0, 3)]


def _oracle(a: Tensor, b: Tensor, options: dict) -> tuple[Tensor, Tensor]:
    """Run the reference backend in double precision on the same numbers."""
    double = {
        key: value.to(torch.complex128 if value.is_complex() else torch.float64)
        if value is not None and (value.is_floating_point() or value.is_complex())
        else value
        for key, value in {"a": a, "b": b, **options}.items()
    }
    return linear_scan(double.pop("a"), double.pop("b"), **double, backend="reference")


def test_the_reference_gives_the_hand_worked_states_of_three_steps():
    # h0 = 10, a = 0.5, b = 1, 2, 3: h = 0.5*10 + 1 = 6; 0.5*6 + 2 = 5; 0.5*5 + 3 = 5.5.
    a = torch.full((1, 3, 1), 0.5, dtype=torch.float64)
    b = torch.tensor([[[1.0], [2.0], [3.0]]], dtype=torch.float64)
    h, h_last = linear_scan(a, b, h0=torch.tensor([[10.0]]).double(), backend="reference")
    assert h.flatten().tolist() == [6.0, 5.0, 5.5]
    assert h_last.tolist() == [[5.5]]


def test_the_reference_resets_before_the_input_of_the_same_step():
    # Reset at t = 1 to h_init = 4: h = 0.5*10 + 1 = 6; 0.5*4 + 2 = 4; 0.5*4 + 3 = 5.
    a = torch.full((1, 3, 1), 0.5, dtype=torch.float64)
    b = torch.tensor([[[1.0], [2.0], [3.0]]], dtype=torch.float64)
    reset = torch.tensor([[False, True, False]])
    h0 = torch.tensor([[10.0]], dtype=torch.float64)
    h, _ = linear_scan(
        a, b, h0=h0, reset=reset, h_init=torch.tensor([4.0]).double(), backend="reference"
    )
    assert h.flatten().tolist() == [6.0, 4.0, 5.0]
    h, _ = linear_scan(a, b, h0=h0, reset=reset, backend="reference")
    assert h.flatten().tolist() == [6.0, 2.0, 4.0]


def test_the_reference_multiplies_complex_numbers_by_hand():
    # h0 = 1, a = i, b = 1, 1, 0: h = i + 1; i(1 + i) + 1 = i; i * i = -1.
    a = torch.full((1, 3, 1), 1j, dtype=torch.complex128)
    b = torch.tensor([[[1.0], [1.0], [0.0]]], dtype=torch.complex128)
    h, h_last = linear_scan(a, b, h0=torch.ones(1, 1, dtype=a.dtype), backend="reference")
    assert h.flatten().tolist() == [1 + 1j, 1j, -1 + 0j]
    assert h_last.item() == -1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_held_step_keeps_the_state_and_a_reset_comes_before_the_hold(backend):
    # a = 1, b = 1, h0 = 5, h_init = 2. t = 0 held: 5. t = 1: 6. t = 2 reset and held: 2. t = 3: 3.
    ones = torch.ones(1, 4, 1, dtype=torch.float64)
    h, h_last = linear_scan(
        ones,
        ones,
        h0=torch.tensor([[5.0]]).double(),
        h_init=torch.tensor([2.0]).double(),
        reset=torch.tensor([[False, False, True, False]]),
        hold=torch.tensor([[True, False, True, False]]),
        backend=backend,
    )
    assert h.flatten().tolist() == [5.0, 6.0, 2.0, 3.0]
    assert h_last.item() == 3.0


@pytest.mark.parametrize("case", [c for c in CASES if c.T <= 127], ids=str)
def test_the_reference_equals_a_loop_with_an_if(case):
    a, b, options = make(case)
    h, h_last = linear_scan(a, b, **options, backend="reference")
    expected, expected_last = loop(a, b, **options)
    assert_close(h, expected, torch.float64, case.T)
    assert_close(h_last, expected_last, torch.float64, case.T)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case}-{str(dtype).removeprefix('torch.')}")
        for case in CASES
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
        if not (case.is_complex and dtype == torch.bfloat16)  # pairs of those are tested below
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_equals_the_reference_in_double(backend, case, dtype):
    a, b, options = make(case, dtype)
    h, h_last = linear_scan(a, b, **options, backend=backend)
    expected, expected_last = _oracle(a, b, options)
    assert h.dtype == b.dtype
    assert h_last.dtype == (wide(dtype) if not case.is_complex else b.dtype)
    assert h.is_contiguous()
    assert_close(h, expected, dtype, case.T)
    assert_close(h_last, expected_last, wide(dtype), case.T)


@pytest.mark.parametrize("position", range(9))
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_a_single_reset_at_any_position_equals_the_reference(backend, is_complex, position):
    a, b, options = make(Case(3, 9, 5, is_complex=is_complex, h_init=True))
    reset = torch.zeros(3, 9, dtype=torch.bool)
    reset[1, position] = True
    options["reset"] = reset
    h, h_last = linear_scan(a, b, **options, backend=backend)
    expected, expected_last = loop(a, b, **options)
    assert_close(h, expected, torch.float64, 9)
    assert_close(h_last, expected_last, torch.float64, 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [2, 3, 8, 65])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_every_reset_pattern_equals_the_reference(backend, T, kind):
    a, b, options = make(Case(4, T, 3, is_complex=True, reset=kind, h_init=True))
    h, _ = linear_scan(a, b, **options, backend=backend)
    assert_close(h, loop(a, b, **options)[0], torch.float64, T)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_give_what_complex_numbers_give(backend):
    a, b, options = make(Case(3, 33, 5, is_complex=True, reset="staggered", h_init=True))
    expected, expected_last = linear_scan(a, b, **options, backend=backend)
    pairs = {
        key: torch.view_as_real(value) if value.is_complex() else value
        for key, value in options.items()
    }
    h, h_last = linear_scan_pairs(
        torch.view_as_real(a), torch.view_as_real(b), **pairs, backend=backend
    )
    assert torch.equal(torch.view_as_complex(h), expected)
    assert torch.equal(torch.view_as_complex(h_last), expected_last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_pairs_accumulate_in_float32(backend):
    a, b, options = make(
        Case(2, 200, 7, is_complex=True, varying=False, reset="random"), torch.float32
    )
    h, h_last = linear_scan_pairs(
        torch.view_as_real(a),
        torch.view_as_real(b).bfloat16(),
        h0=torch.view_as_real(options["h0"]),
        reset=options["reset"],
        backend=backend,
    )
    assert (h.dtype, h_last.dtype) == (torch.bfloat16, torch.float32)
    rounded = torch.view_as_complex(torch.view_as_real(b).bfloat16().double())
    expected, expected_last = _oracle(a, rounded, options)
    assert_close(torch.view_as_complex(h.float()), expected, torch.bfloat16, 200)
    # The state itself was never rounded: it agrees as float32 does.
    assert_close(torch.view_as_complex(h_last), expected_last, torch.float32, 200)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_inputs_do_not_lose_small_steps(backend):
    # 1024 steps of +1: a bfloat16 sum would stop at 256, the float32 one ends at 1024.
    b = torch.ones(1, 1024, 1, dtype=torch.bfloat16)
    _, h_last = linear_scan(torch.ones(1), b, backend=backend)
    assert h_last.item() == 1024.0


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("reverse_of", ["none", "staggered"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_is_the_mirrored_scan(backend, reverse_of, is_complex):
    a, b, options = make(Case(3, 20, 4, is_complex=is_complex, reset=reverse_of, h_init=True))
    mirrored = {
        key: value.flip(1) if key == "reset" and value is not None else value
        for key, value in options.items()
    }
    expected, expected_last = loop(a.flip(1), b.flip(1), **mirrored)
    h, h_last = linear_scan(a, b, **options, reverse=True, backend=backend)
    assert_close(h, expected.flip(1), torch.float64, 20)
    assert_close(h_last, expected_last, torch.float64, 20)


@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("varying", [True, False], ids=["varying", "constant"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_scan_returns_nothing_and_the_state_it_was_given(
    backend, varying, is_complex, shape
):
    B, T, D = shape
    a, b, options = make(Case(B, T, D, is_complex=is_complex, varying=varying, reset="all_false"))
    h, h_last = linear_scan(a, b, **options, backend=backend)
    assert h.shape == shape
    assert torch.equal(h_last, options["h0"])
    assert h_last.data_ptr() != options["h0"].data_ptr() or h_last.numel() == 0


def _layouts(x: Tensor) -> dict[str, Tensor]:
    """Return tensors equal to x (B, T, D) that lie differently in memory."""
    B, T, D = x.shape
    sliced_time = x.new_zeros(B, 2 * T, D)
    sliced_time[:, ::2] = x
    sliced_width = x.new_zeros(B, T, 3 * D)
    sliced_width[..., 1::3] = x
    offset = x.new_zeros(x.numel() + 1)
    offset[1:] = x.flatten()
    return {
        "contiguous": x,
        "time-first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "width-first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced-time": sliced_time[:, ::2],
        "sliced-width": sliced_width[..., 1::3],
        "odd-offset": offset[1:].view(B, T, D),
    }


@pytest.mark.parametrize("layout", list(_layouts(torch.zeros(1, 1, 1))))
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layout_of_the_inputs_does_not_change_the_result(backend, is_complex, layout):
    a, b, options = make(Case(3, 21, 5, is_complex=is_complex, reset="random", h_init=True))
    expected, expected_last = linear_scan(a, b, **options, backend=backend)
    reset = _layouts(options.pop("reset")[..., None])[layout][..., 0]
    a, b = _layouts(a)[layout], _layouts(b)[layout]
    h, h_last = linear_scan(a, b, reset=reset, **options, backend=backend)
    assert torch.equal(h, expected)
    assert torch.equal(h_last, expected_last)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_stride_zero_inputs_equal_their_copies(backend, is_complex):
    a, b, options = make(Case(3, 21, 5, is_complex=is_complex, reset="random"))
    a_shared = a[:1].expand(3, -1, -1)
    b_shared = b[:, :1].expand(-1, 21, -1)
    h0_shared = options.pop("h0")[:1].expand(3, -1)
    actual = linear_scan(a_shared, b_shared, h0=h0_shared, **options, backend=backend)
    expected = linear_scan(
        a_shared.contiguous(),
        b_shared.contiguous(),
        h0=h0_shared.contiguous(),
        **options,
        backend=backend,
    )
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_coefficients_equal_their_expansion(backend, is_complex):
    a, b, options = make(
        Case(3, 40, 5, is_complex=is_complex, varying=False, reset="random", h_init=True)
    )
    h, h_last = linear_scan(a, b, **options, backend=backend)
    expected, expected_last = linear_scan(a.expand(3, 40, 5), b, **options, backend=backend)
    assert_close(h, expected, torch.float64, 40)
    assert_close(h_last, expected_last, torch.float64, 40)


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_hides_a_broken_state(backend, is_complex, bad):
    a, b, options = make(Case(2, 37, 5, is_complex=is_complex, h_init=True))
    reset = torch.zeros(2, 37, dtype=torch.bool)
    reset[0, 20] = True
    options["reset"] = reset
    expected, expected_last = loop(a, b, **options)
    b[0, 3:19] = bad
    h, h_last = linear_scan(a, b, **options, backend=backend)
    assert_close(h[0, 20:], expected[0, 20:], torch.float64, 37)
    assert_close(h_last, expected_last, torch.float64, 37)
    assert_close(h[1], expected[1], torch.float64, 37)
    assert not torch.isfinite(torch.view_as_real(h) if is_complex else h)[0, 3:20].all()


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_at_the_first_step_hides_a_broken_initial_state(backend, is_complex):
    a, b, options = make(Case(2, 17, 3, is_complex=is_complex, reset="first"))
    expected, _ = loop(a, b, **options)
    options["h0"] = torch.full_like(options["h0"], NAN)
    h, h_last = linear_scan(a, b, **options, backend=backend)
    assert_close(h, expected, torch.float64, 17)
    assert torch.equal(h_last, h[:, -1])


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1.0 - 1e-6])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_extreme_coefficients_over_many_steps_follow_the_loop(backend, value):
    T = 16384
    a = torch.full((2,), value, dtype=torch.float64)
    b = torch.randn(1, T, 2, dtype=torch.float64)
    h, _ = linear_scan(a, b, backend=backend)
    expected, _ = linear_scan(a, b, backend="reference")
    assert_close(h, expected, torch.float64, T)
    a, b = a.float(), b.float()  # 1 - 1e-6 is another number in float32: the oracle gets that one
    single, _ = linear_scan(a, b, backend=backend)
    assert_close(single, _oracle(a, b, {})[0], torch.float32, T)


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_inputs_and_denormal_decay_stay_exact(backend):
    b = torch.full((1, 50, 3), 1e30)
    h, _ = linear_scan(torch.full((3,), 0.5), b, backend=backend)
    assert_close(h[0, -1], torch.full((3,), 2e30), torch.float32, 50)
    # 0.5^200 underflows float32: the state dies out to (almost) nothing and stays finite.
    h, _ = linear_scan(
        torch.full((3,), 0.5), torch.zeros(1, 200, 3), h0=torch.ones(1, 3), backend=backend
    )
    assert_close(h[0, :, 0], 0.5 ** torch.arange(1, 201).double(), torch.float32, 200)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bitwise_equal(backend, is_complex):
    a, b, options = make(
        Case(3, 300, 70, is_complex=is_complex, reset="random", h_init=True), torch.float32
    )
    first = linear_scan(a, b, **options, backend=backend)
    second = linear_scan(a, b, **options, backend=backend)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_number_of_threads_does_not_change_a_bit_on_the_cpu():
    a, b, options = make(Case(2, 500, 700, reset="random"), torch.float32)
    one = linear_scan(a, b, **options, backend="cpu")
    torch.set_num_threads(3)
    try:
        three = linear_scan(a, b, **options, backend="cpu")
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], three[0])
    assert torch.equal(one[1], three[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_inputs_are_left_as_they_were_and_the_outputs_own_their_memory(backend):
    a, b, options = make(Case(2, 12, 3, reset="random", h_init=True))
    given = [a, b, *options.values()]
    before = [x.clone() for x in given]
    h, h_last = linear_scan(a, b, **options, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
    h_last.fill_(7.0)
    assert not (h == 7.0).any()
    assert h.data_ptr() != b.data_ptr()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_initial_state_means_the_state_a_reset_restores_or_zero(backend):
    a, b, _ = make(Case(2, 6, 3))
    h, _ = linear_scan(a, b, backend=backend)
    expected, _ = linear_scan(a, b, h0=torch.zeros(2, 3, dtype=b.dtype), backend=backend)
    assert torch.equal(h, expected)


def _bad_calls() -> dict[str, dict]:
    a, b = torch.ones(2, 4, 3), torch.ones(2, 4, 3)
    return {
        "b has no time axis": {"a": a, "b": torch.ones(2, 3)},
        "a has another length": {"a": torch.ones(2, 5, 3), "b": b},
        "a has another width": {"a": torch.ones(4), "b": b},
        "h0 has another batch": {"a": a, "b": b, "h0": torch.ones(3, 3)},
        "h_init has a batch": {"a": a, "b": b, "h_init": torch.ones(2, 3)},
        "reset is not bool": {"a": a, "b": b, "reset": torch.zeros(2, 4)},
        "reset has another shape": {"a": a, "b": b, "reset": torch.zeros(4, 2, dtype=torch.bool)},
        "hold has another shape": {"a": a, "b": b, "hold": torch.zeros(2, 3, dtype=torch.bool)},
        "b holds integers": {"a": a, "b": torch.ones(2, 4, 3, dtype=torch.int64)},
        "a is complex and b is not": {"a": a + 0j, "b": b},
    }


@pytest.mark.parametrize("call", _bad_calls().values(), ids=list(_bad_calls()))
def test_a_wrong_argument_is_refused_in_one_line(call):
    with pytest.raises((ValueError, TypeError)) as raised:
        linear_scan(**call)
    assert "\n" not in str(raised.value)


def test_reset_patterns_cover_both_ends_and_differ_between_rows():
    staggered = pattern("staggered", 4, 9)
    assert len({tuple(row.tolist()) for row in staggered}) == 4
    assert pattern("first", 2, 5)[:, 0].all()
    assert pattern("last", 2, 5)[:, -1].all()
    assert decay(3, dtype=torch.float64, is_complex=True).abs().max() < 1
