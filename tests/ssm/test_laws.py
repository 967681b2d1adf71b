"""The laws L1-L10 that every sequence layer and every stack obeys.

They are checked in float64 on every row of the table, on the layers' options and backends, and
on stacks of two.
"""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from statewise.ssm import SEQUENCES, SequenceModel, State
from statewise.ssm.state import take
from tests.resets import KINDS, pattern
from tests.ssm.variants import MODELS, WIDTH, make, random_state, step_loop
from tests.tolerance import assert_close

B, T = 4, 9
DOUBLE = torch.float64
every_model = pytest.mark.parametrize("name", list(MODELS))


def _pruned(names: str, full: list[tuple], few: list[tuple]) -> pytest.MarkDecorator:
    """Give every row of the table and its stack all combinations, and options a few of them."""
    whole = {*SEQUENCES, *(f"stack-{kind}" for kind in SEQUENCES)}
    return pytest.mark.parametrize(
        f"name,{names}",
        [(name, *case) for name in MODELS for case in (full if name in whole else few)],
        ids=lambda value: str(value),
    )


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, dtype=DOUBLE)


def _assert_states_close(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert_close(actual[key], expected[key], DOUBLE, T)


def _cut_at(s: int) -> Tensor:
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[:, s] = True
    return reset


def _initial(model: SequenceModel, rows: int) -> State:
    return {key: value.detach() for key, value in model.initial_state(rows).items()}


def test_every_row_of_the_table_is_under_the_laws():
    assert set(SEQUENCES) | {f"stack-{kind}" for kind in SEQUENCES} <= set(MODELS)


@every_model
def test_a_model_has_the_members_of_the_contract(name):
    model = make(name)
    assert isinstance(model, SequenceModel)
    assert (model.d_in, model.d_out) == (WIDTH, WIDTH)
    assert not any(p.is_complex() for p in model.state_dict().values())


# L1: modes agree


@_pruned(
    "kind,length",
    list(itertools.product(KINDS, [1, 2, T])),
    [("first", 1), ("last", 2), ("none", T), ("adjacent", T), ("staggered", T)],
)
def test_the_parallel_mode_equals_the_steps(name, kind, length):
    model = make(name)
    x, state, reset = _x(B, length), random_state(model, B), pattern(kind, B, length)
    y, last = model(x, state, reset)
    expected, expected_last, _ = step_loop(model, x, state, reset)
    assert_close(y, expected, DOUBLE, length)
    _assert_states_close(last, expected_last)


@every_model
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    reset=st.integers(1, 5).flatmap(
        lambda rows: st.integers(1, 40).flatmap(
            lambda steps: st.lists(
                st.lists(st.booleans(), min_size=steps, max_size=steps),
                min_size=rows,
                max_size=rows,
            )
        )
    )
)
def test_the_parallel_mode_equals_the_steps_for_any_resets(name, reset):
    torch.manual_seed(0)
    model, flags = make(name), torch.tensor(reset)
    rows, steps = flags.shape
    x, state = _x(rows, steps), random_state(model, rows)
    y, last = model(x, state, flags)
    expected, expected_last, _ = step_loop(model, x, state, flags)
    assert_close(y, expected, DOUBLE, steps)
    _assert_states_close(last, expected_last)


@every_model
def test_no_state_means_the_initial_state(name):
    model = make(name)
    x, reset = _x(B, T), pattern("staggered", B, T)
    y, last = model(x, None, reset)
    expected, expected_last = model(x, model.initial_state(B), reset)
    assert torch.equal(y, expected)
    _assert_states_close(last, expected_last)


# L2: windows compose


@_pruned("kind", [("none",), ("staggered",), ("adjacent",)], [("staggered",)])
def test_windows_compose_at_every_cut(name, kind):
    model = make(name)
    x, state, reset = _x(B, T), random_state(model, B), pattern(kind, B, T)
    whole, whole_last = model(x, state, reset)
    for k in range(1, T):
        first, between = model(x[:, :k], state, None if reset is None else reset[:, :k])
        second, last = model(x[:, k:], between, None if reset is None else reset[:, k:])
        assert_close(torch.cat([first, second], 1), whole, DOUBLE, T)
        _assert_states_close(last, whole_last)


# L3: resets cut


@_pruned("s", [(0,), (1,), (4,), (T - 1,)], [(0,), (4,)])
def test_from_a_reset_on_the_model_is_as_fresh(name, s):
    model = make(name)
    x = _x(B, T)
    y, last = model(x, random_state(model, B), _cut_at(s))
    fresh, fresh_last = model(x[:, s:])
    assert_close(y[:, s:], fresh, DOUBLE, T)
    _assert_states_close(last, fresh_last)


@every_model
def test_concatenated_episodes_equal_the_episodes_run_apart(name):
    # Every row has its own borders, as parallel environments do.
    model = make(name)
    x, reset = _x(B, T), pattern("staggered", B, T)
    state = random_state(model, B)
    y, _ = model(x, state, reset)
    for row in range(B):
        borders = [0, *[t for t in range(1, T) if reset[row, t]], T]
        for begin, end in itertools.pairwise(borders):
            kept = begin == 0 and not reset[row, 0]
            own = take(state, torch.tensor([row])) if kept else model.initial_state(1)
            alone, _ = model(x[row : row + 1, begin:end], own)
            assert_close(y[row : row + 1, begin:end], alone, DOUBLE, T)


@every_model
@pytest.mark.parametrize("mode", ["parallel", "steps"])
def test_a_reset_hides_a_broken_state(name, mode):
    model = make(name)
    x, reset = _x(B, T), _cut_at(0)
    broken = {key: torch.full_like(v, float("nan")) for key, v in _initial(model, B).items()}
    expected, _ = model(x, None, reset)
    if mode == "parallel":
        y, last = model(x, broken, reset)
    else:
        y, last, _ = step_loop(model, x, broken, reset)
    assert_close(y, expected, DOUBLE, T)
    assert all(value.isfinite().all() for value in last.values())


@every_model
def test_a_reset_hides_a_broken_past(name):
    model = make(name)
    x, reset = _x(B, T), _cut_at(5)
    expected, _ = model(x, None, reset)
    x = x.clone()
    x[:, 2] = float("inf")
    y, last = model(x, None, reset)
    assert_close(y[:, 5:], expected[:, 5:], DOUBLE, T)
    assert all(value.isfinite().all() for value in last.values())


# L4, L5: gradients cut, causality


@_pruned("s", [(0,), (4,), (T - 1,)], [(4,)])
def test_a_reset_hides_the_past_from_gradients(name, s):
    model = make(name)
    x = _x(B, T).requires_grad_()
    state = {key: v.requires_grad_() for key, v in random_state(model, B).items()}
    y, last = model(x, state, _cut_at(s))
    loss = y[:, s:].square().sum() + sum(value.square().sum() for value in last.values())
    past, *states = torch.autograd.grad(
        loss, [x, *state.values()], allow_unused=True, materialize_grads=True
    )
    assert (past[:, :s] == 0).all()
    assert (past[:, s:] != 0).any(-1).all()
    assert all((gradient == 0).all() for gradient in states)


@every_model
def test_an_output_has_no_gradient_in_later_inputs(name):
    model = make(name)
    x, reset = _x(B, T).requires_grad_(), pattern("staggered", B, T)
    y, _ = model(x, random_state(model, B), reset)
    for t in range(T - 1):
        (gradient,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        assert (gradient[:, t + 1 :] == 0).all()
        assert (gradient[:, t] != 0).any(-1).all()


# L6: rows are independent


@every_model
def test_rows_are_independent(name):
    model = make(name)
    x, state, reset = _x(B, T), random_state(model, B), pattern("staggered", B, T)
    y, last = model(x, state, reset)
    order = torch.tensor([2, 0, 3, 1])
    permuted, permuted_last = model(x[order], take(state, order), reset[order])
    assert_close(permuted, y[order], DOUBLE, T)
    _assert_states_close(permuted_last, take(last, order))
    for row in range(B):
        alone, _ = model(x[row : row + 1], take(state, torch.tensor([row])), reset[row : row + 1])
        assert_close(alone, y[row : row + 1], DOUBLE, T)


# L7: gradients agree


def _gradients(
    model: SequenceModel, x: Tensor, state: State | None, reset: Tensor | None, parallel: bool
) -> dict[str, Tensor]:
    """Gradients for random cotangents on the outputs and on the final state."""
    assert isinstance(model, nn.Module)
    x = x.clone().requires_grad_()
    leaves = {} if state is None else {k: v.clone().requires_grad_() for k, v in state.items()}
    begin = leaves if state is not None else model.initial_state(len(x))
    if parallel:
        y, last = model(x, begin if state is not None else None, reset)
    else:
        y, last, _ = step_loop(model, x, begin, reset)
    generator = torch.Generator().manual_seed(5)
    outputs = [y, *(last[key] for key in sorted(last))]
    cotangents = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in outputs]
    parameters = dict(model.named_parameters())
    inputs = {"x": x} | {f"state.{k}": v for k, v in leaves.items()} | parameters
    gradients = torch.autograd.grad(
        outputs, list(inputs.values()), cotangents, allow_unused=True, materialize_grads=True
    )
    return dict(zip(inputs, gradients, strict=True))


@_pruned("kind", [(kind,) for kind in KINDS], [("none",), ("adjacent",), ("staggered",)])
def test_the_gradients_of_both_modes_agree(name, kind):
    model = make(name)
    x, state, reset = _x(B, T), random_state(model, B), pattern(kind, B, T)
    actual = _gradients(model, x, state, reset, parallel=True)
    expected = _gradients(model, x, state, reset, parallel=False)
    for key in expected:
        assert_close(actual[key], expected[key], DOUBLE, T, gradient=True)


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith(("s5-", "lru-"))])
def test_the_learned_initial_state_gets_gradient_from_the_start_and_from_resets(name):
    model = make(name)
    x, reset = _x(B, T), pattern("staggered", B, T)
    actual = _gradients(model, x, None, reset, parallel=True)
    expected = _gradients(model, x, None, reset, parallel=False)
    for key in expected:
        assert_close(actual[key], expected[key], DOUBLE, T, gradient=True)
    if "h_init" in actual:
        assert (actual["h_init"] != 0).all()


@pytest.mark.parametrize("name", ["s5", "s5-cpu", "s5-torch", "s5-bilinear", "lru", "lru-cpu"])
def test_gradients_equal_finite_differences(name):
    model = make(name)
    assert isinstance(model, nn.Module)
    names = [key for key, _ in model.named_parameters()]
    reset = torch.tensor([[False, True, False], [False, False, False]])

    def function(x: Tensor, h: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        y, last = torch.func.functional_call(
            model, dict(zip(names, values, strict=True)), (x, {"h": h}, reset)
        )
        return y, last["h"]

    inputs = [_x(2, 3), random_state(model, 2)["h"], *model.parameters()]
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6)


# L8: reset=None


@every_model
def test_no_reset_argument_equals_all_false_bitwise(name):
    model = make(name)
    x, state = _x(B, T), random_state(model, B)
    y, last = model(x, state, None)
    expected, expected_last = model(x, state, pattern("all_false", B, T))
    assert torch.equal(y, expected)
    assert all(torch.equal(last[key], expected_last[key]) for key in last)
    one, after = model.step(x[:, 0], state, None)
    expected, expected_after = model.step(x[:, 0], state, torch.zeros(B, dtype=torch.bool))
    assert torch.equal(one, expected)
    assert all(torch.equal(after[key], expected_after[key]) for key in after)


# L9: state is inert


@every_model
def test_a_state_is_never_changed_and_still_gives_the_same_result_later(name):
    model = make(name)
    x, state, reset = _x(B, T), random_state(model, B), pattern("staggered", B, T)
    given = [x, reset, *state.values()]
    before = [value.clone() for value in given]
    y, last = model(x, state, reset)
    y_step, after = model.step(x[:, 0], state, reset[:, 0])
    kept = {key: value.clone() for key, value in (last | after).items()}
    model.step(x[:, 1], after, reset[:, 1])
    model.trace(x, last, reset)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert all(torch.equal((last | after)[key], kept[key]) for key in kept)
    again, _ = model(x, state, reset)
    assert torch.equal(again, y)
    assert torch.equal(model.step(x[:, 0], state, reset[:, 0])[0], y_step)


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_state_is_a_flat_dictionary_with_the_batch_first_in_the_dtype_of_the_module(name, dtype):
    model = make(name, dtype)
    assert isinstance(model, nn.Module)
    initial = model.initial_state(3)
    _, last = model(torch.randn(3, T, WIDTH, dtype=dtype))
    _, after = model.step(torch.randn(3, WIDTH, dtype=dtype), initial)
    for state in (initial, last, after):
        assert state.keys() == initial.keys()
        assert all(v.shape == initial[key].shape for key, v in state.items())
        assert all(v.shape[0] == 3 and v.dtype == dtype for v in state.values())
    if name.startswith("stack-"):
        assert {key.split(".")[0] for key in initial} == {"0", "1"}


# L10: empty memory


@every_model
def test_resetting_everywhere_equals_independent_single_steps(name):
    model = make(name)
    x = _x(B, T)
    y, last = model(x, random_state(model, B), pattern("all", B, T))
    singles = []
    for t in range(T):
        one, after = model.step(x[:, t], model.initial_state(B))
        singles.append(one)
    assert_close(y, torch.stack(singles, 1), DOUBLE, T)
    _assert_states_close(last, after)


# trace and prepare_step


@_pruned(
    "every,kind",
    list(itertools.product([1, 2, 3], ["none", "staggered", "last"])),
    [(1, "staggered"), (2, "none"), (3, "last")],
)
def test_a_trace_holds_the_states_of_the_steps(name, every, kind):
    model = make(name)
    length = 8  # a multiple of 1 and 2, not of 3
    x, state, reset = _x(B, length), random_state(model, B), pattern(kind, B, length)
    y, last, traced = model.trace(x, state, reset, every)
    expected, expected_last, states = step_loop(model, x, state, reset)
    assert_close(y, expected, DOUBLE, length)
    _assert_states_close(last, expected_last)
    for key, value in traced.items():
        kept = torch.stack([s[key] for s in states[every - 1 :: every]], 1)
        assert value.shape[:2] == (B, length // every)
        assert_close(value, kept, DOUBLE, length)
    assert traced.keys() == last.keys()


@every_model
def test_gradients_pass_through_a_trace(name):
    model = make(name)
    x, state, reset = _x(B, T), random_state(model, B), pattern("staggered", B, T)
    gradients = []
    for parallel in (True, False):
        leaf = x.clone().requires_grad_()
        if parallel:
            _, _, traced = model.trace(leaf, state, reset, 2)
        else:
            _, _, states = step_loop(model, leaf, state, reset)
            traced = {k: torch.stack([s[k] for s in states[1::2]], 1) for k in state}
        loss = sum((value**3).sum() for value in traced.values())
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    assert_close(gradients[0], gradients[1], DOUBLE, T, gradient=True)


@every_model
def test_a_prepared_step_gives_what_the_unprepared_one_gives(name):
    model = make(name)
    x, state, reset = _x(B, T), random_state(model, B), pattern("staggered", B, T)
    cache = model.prepare_step()
    assert not any(value.requires_grad for value in cache.values())
    prepared, plain = state, state
    for t in range(T):
        y, prepared = model.step(x[:, t], prepared, reset[:, t], cache=cache)
        expected, plain = model.step(x[:, t], plain, reset[:, t])
        assert_close(y, expected, DOUBLE, T)
        _assert_states_close(prepared, plain)


@pytest.mark.parametrize("name", ["s5", "lru", "stack-s5", "stack-lru"])
def test_a_prepared_step_reads_the_cache_and_not_the_parameters(name):
    model = make(name)
    assert isinstance(model, nn.Module)
    x, state = _x(B, 1)[:, 0], random_state(model, B)
    cache = model.prepare_step()
    expected, _ = model.step(x, state, cache=cache)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("log_step", "nu_log", "C", "C_re")):
                parameter.add_(1.0)
    stale, _ = model.step(x, state, cache=cache)
    assert torch.equal(stale, expected)
    fresh, _ = model.step(x, state, cache=model.prepare_step())
    assert not torch.allclose(fresh, expected)


# shapes without steps or rows, and saving


@every_model
@pytest.mark.parametrize("shape", [(3, 0), (0, 4)], ids=str)
def test_an_empty_window_returns_the_state_it_was_given(name, shape):
    model = make(name)
    state = random_state(model, shape[0])
    y, last = model(_x(*shape), state, torch.zeros(shape, dtype=torch.bool))
    assert y.shape == (*shape, WIDTH)
    assert all(torch.equal(last[key], state[key]) for key in state)


@every_model
def test_a_saved_model_gives_the_same_outputs(name):
    model, other = make(name), MODELS[name]()
    assert isinstance(model, nn.Module)
    assert isinstance(other, nn.Module)
    other.double().load_state_dict(model.state_dict())
    x, reset = _x(B, T), pattern("staggered", B, T)
    assert torch.equal(other(x, None, reset)[0], model(x, None, reset)[0])
