"""Parallel, acting and imagination modes are one function (tests T10-T13, T15 of the contract)."""

import pytest
import torch
from torch import Tensor

from statewise.ssm.protocol import State
from statewise.ssm.state import flatten_time
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.state import CORE, Observed, policy_features
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close
from tests.worldmodels.cases import CORES, Window, model

B, T = 3, 33  # two states of layers that give one every 16 steps
TRACED = 16


def trace_of(made: WorldModel) -> int:
    return made.dynamics.trace_from


def step_by_step(
    made: WorldModel, window: Window, state: State, reset: Tensor | None, steps: range
) -> list[tuple[State, Tensor, Tensor]]:
    rows = []
    for t in steps:
        obs, action = window.at(t)
        embed = made.encoder(obs)
        flag = None if reset is None else reset[:, t]
        noise = window.noise[:, t]
        state, log_q = made.dynamics.observe_step(embed, action, state, flag, noise)
        rows.append((state, log_q, made.dynamics.prior(state["deter"])))
    return rows


def close(actual: Tensor, expected: Tensor, *, gradient: bool = False) -> None:
    assert_close(actual, expected, torch.float64, T, gradient=gradient)


def traced_state(seen: Observed, i: int) -> State:
    return {key: x[:, i] for key, x in seen.states().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("core", CORES)
def test_a_window_is_its_steps_with_the_same_noise(core: str, kind: str) -> None:
    made = model(core)
    window, reset = Window(made, B, T), pattern(kind, B, T)
    every = trace_of(made)
    seen = made.observe(window.obs, window.action, window.state, reset, window.noise, trace=every)
    rows = step_by_step(made, window, window.state, reset, range(T))
    stepped = [state for state, _, _ in rows]
    assert torch.equal(seen.stoch, torch.stack([s["stoch"] for s in stepped], 1))
    close(seen.deter, torch.stack([s["deter"] for s in stepped], 1))
    close(seen.log_q, torch.stack([log_q for _, log_q, _ in rows], 1))
    close(seen.log_p, torch.stack([log_p for _, _, log_p in rows], 1))
    assert seen.last.keys() == stepped[-1].keys()
    for key, x in seen.last.items():
        close(x, stepped[-1][key])
    for i, t in enumerate(range(every - 1, T, every)):
        here = traced_state(seen, i)
        assert here.keys() == stepped[t].keys()
        for key, x in here.items():
            close(x, stepped[t][key])


@pytest.mark.parametrize("core", CORES)
def test_gradients_of_a_window_are_those_of_its_steps(core: str) -> None:
    made = model(core)
    window, reset = Window(made, 2, 7), pattern("staggered", 2, 7)
    seen = made.observe(window.obs, window.action, window.state, reset, window.noise)
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(seen.log_p.shape, dtype=torch.float64, generator=draw)
    (seen.log_p * weight).sum().backward()
    parameters = list(made.dynamics.parameters())  # type: ignore[attr-defined]
    parallel = [None if p.grad is None else p.grad.clone() for p in parameters]
    made.zero_grad(set_to_none=True)
    rows = step_by_step(made, window, window.state, reset, range(7))
    (torch.stack([log_p for _, _, log_p in rows], 1) * weight).sum().backward()
    assert any(gradient is not None for gradient in parallel)
    for gradient, parameter in zip(parallel, parameters, strict=True):
        assert (gradient is None) == (parameter.grad is None)
        if gradient is not None and parameter.grad is not None:
            close(gradient, parameter.grad, gradient=True)


@pytest.mark.parametrize("core", CORES)
def test_a_window_may_be_cut_anywhere(core: str) -> None:
    made = model(core)
    window, reset = Window(made, B, 9), pattern("random", B, 9)
    assert reset is not None
    whole = made.observe(window.obs, window.action, window.state, reset, window.noise)
    for cut in (1, 4, 8):
        parts, state = [], window.state
        for rows in (slice(0, cut), slice(cut, 9)):
            obs = {key: x[:, rows] for key, x in window.obs.items()}
            seen = made.observe(
                obs, window.action[:, rows], state, reset[:, rows], window.noise[:, rows]
            )
            parts.append(seen.deter)
            state = seen.last
        close(torch.cat(parts, 1), whole.deter)
        for key, x in state.items():
            close(x, whole.last[key])


@pytest.mark.parametrize("core", CORES)
def test_imagination_that_is_told_the_samples_follows_the_window(core: str) -> None:
    made = model(core)
    window = Window(made, B, 8)
    seen = made.observe(window.obs, window.action, window.state, None, window.noise)
    state = window.state
    for t in range(8):
        state, log_p = made.dynamics.imagine_step(window.action[:, t], state, window.noise[:, t])
        close(state["deter"], seen.deter[:, t])
        close(log_p, seen.log_p[:, t])
        state = state | {"stoch": seen.stoch[:, t]}


@pytest.mark.parametrize("core", CORES)
def test_a_traced_state_goes_on_as_the_window_does(core: str) -> None:
    made = model(core)
    window, reset = Window(made, B, T), pattern("staggered", B, T)
    every = max(trace_of(made), TRACED)
    seen = made.observe(window.obs, window.action, window.state, reset, window.noise, trace=every)
    rows = step_by_step(made, window, traced_state(seen, 0), reset, range(every, T))
    for t, (state, _, log_p) in zip(range(every, T), rows, strict=True):
        close(state["deter"], seen.deter[:, t])
        close(log_p, seen.log_p[:, t])


@pytest.mark.parametrize("spec", ["output", "hidden", "full"])
@pytest.mark.parametrize("core", ["rssm", "s5", "lru"])
def test_a_policy_reads_the_same_in_a_window_and_in_a_step(core: str, spec: str) -> None:
    made = model(core)
    window, reset = Window(made, B, 6), pattern("staggered", B, 6)
    seen = made.observe(window.obs, window.action, window.state, reset, window.noise, trace=1)
    at_once = policy_features(seen.states(), spec, "layer")  # type: ignore[arg-type]
    rows = step_by_step(made, window, window.state, reset, range(6))
    stepped = [policy_features(state, spec, "layer") for state, _, _ in rows]  # type: ignore[arg-type]
    close(at_once, torch.stack(stepped, 1))
    flat = policy_features(flatten_time(seen.states()), spec, "layer")  # type: ignore[arg-type]
    assert torch.equal(flat, at_once.flatten(0, 1))
    d_stoch = 12
    widths = {
        "output": made.dynamics.d_deter + d_stoch,
        "hidden": d_stoch + made.dynamics.d_hidden,
        "full": made.dynamics.d_deter + d_stoch + made.dynamics.d_hidden,
    }
    assert at_once.shape[-1] == widths[spec]


@pytest.mark.parametrize("core", CORES)
def test_a_reset_forgets_everything_before_it_and_the_action_with_it(core: str) -> None:
    made = model(core)
    window, other = Window(made, B, 6), Window(made, B, 6, seed=5)
    reset = torch.zeros(B, 6, dtype=torch.bool)
    reset[:, 3] = True
    for x, y in ((window.obs["obs"], other.obs["obs"]), (window.noise, other.noise)):
        y[:, 3:] = x[:, 3:]
    other.action[:, 4:] = window.action[:, 4:]  # that of step 3 led out of the old episode
    one, two = (made.observe(w.obs, w.action, w.state, reset, w.noise) for w in (window, other))
    assert torch.equal(one.deter[:, 3:], two.deter[:, 3:])
    assert torch.equal(one.stoch[:, 3:], two.stoch[:, 3:])
    assert not torch.equal(one.deter[:, 2], two.deter[:, 2])
    fresh = made.observe(
        {key: x[:, 3:] for key, x in window.obs.items()},
        torch.cat((torch.zeros_like(window.action[:, 3:4]), window.action[:, 4:]), 1),
        None,
        None,
        window.noise[:, 3:],
    )
    close(one.deter[:, 3:], fresh.deter)


@pytest.mark.parametrize("core", CORES)
def test_no_gradient_passes_a_reset(core: str) -> None:
    made = model(core)
    window = Window(made, 1, 6)
    reset = torch.zeros(1, 6, dtype=torch.bool)
    reset[:, 3] = True
    window.obs["obs"].requires_grad_()
    window.action.requires_grad_()
    seen = made.observe(window.obs, window.action, window.state, reset, window.noise)
    seen.deter[:, 3:].sum().backward()
    for x in (window.obs["obs"].grad, window.action.grad):
        assert x is not None
        assert not x[:, :3].any()
        assert x[:, 4:5].any()
    assert not window.action.grad[:, 3].any()  # type: ignore[index]


@pytest.mark.parametrize("core", ["rssm", "s5"])
def test_a_learned_start_learns_through_resets_and_only_through_them(core: str) -> None:
    made = model(core)
    window = Window(made, 2, 5)
    starts = [p for name, p in made.named_parameters() if "h_init" in name or "initial." in name]
    assert starts
    for reset, is_used in ((None, False), (pattern("staggered", 2, 5), True)):
        made.zero_grad(set_to_none=True)
        seen = made.observe(window.obs, window.action, window.state, reset, window.noise)
        seen.deter.sum().backward()
        for parameter in starts:
            assert (parameter.grad is not None and bool(parameter.grad.any())) == is_used


@pytest.mark.parametrize("core", ["s5", "mamba", "rssm", "rssm_observation"])
@torch.no_grad()
def test_steps_with_prepared_parameters_are_the_same(core: str) -> None:
    made = model(core)
    window = Window(made, B, 2)
    cache = made.dynamics.prepare_step()
    (obs, action), noise = window.at(0), window.noise[:, 0]
    for reset in (None, torch.tensor([True, False, True])):
        plain, cached = (
            made.observe_step(obs, action, window.state, reset, noise, cache=c)
            for c in (None, cache)
        )
        assert any(key.startswith(CORE) for key in plain)
        for key, x in plain.items():
            close(cached[key], x)


@pytest.mark.parametrize("core", ["s5", "rssm"])
def test_acting_does_not_ask_the_prior_and_a_window_twice(core: str) -> None:
    made = model(core)
    window = Window(made, B, 2)
    cache = made.dynamics.prepare_step()
    calls = []
    hook = made.dynamics.prior.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    (obs, action), reset = window.at(0), torch.tensor([True, False, True])
    made.observe_step(obs, action, window.state, reset, window.noise[:, 0], cache=cache)
    assert not calls
    flags = torch.stack((reset, reset), 1)
    made.observe(window.obs, window.action, None, flags, window.noise)
    assert len(calls) == 2  # all steps at once, and what a reset restores
    hook.remove()
