"""What the tasks in JAX share: a task as pure functions, its trials, and its compiled loop.

A task is written for one environment. The loop draws it, starts its episodes and counts its trials
for N of them. The key of an environment is split where an episode begins and nowhere else, so that
what is drawn does not depend on the others.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from gymnasium import spaces

from statewise.envs.jax_vector import Carry, Compiled, Outcome
from statewise.envs.trials import TrialConfig


def _nothing_kept(before: Any, started: Any) -> Any:
    return started


class JaxTask(NamedTuple):
    """Spaces and pure functions of one environment; numbers are float32 and int32 arrays.

    `task` is what a trial is about, `state` how an episode stands, each a named tuple of arrays.
    """

    obs_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    draw: Callable[[Any], Any]
    """(key) -> task."""
    start: Callable[[Any, Any], Any]
    """(key, task) -> state of an episode that begins."""
    advance: Callable[[Any, Any, Any], Any]
    """(task, state, action) -> (state, reward, terminated); any result after an episode's end."""
    observe: Callable[[Any, Any], Any]
    """(task, state) -> obs."""
    keep: Callable[[Any, Any], Any] = _nothing_kept
    """(state before, started state) -> state: what goes on between two episodes of a trial."""


class Clock(NamedTuple):
    """Where an environment stands in its trial, as in `trials.TrialClock`."""

    place: Any
    """Episodes of the trial that are over."""
    steps: Any


class InTask(NamedTuple):
    """How a task stands in one environment."""

    task: Any
    state: Any
    new_trial: Any
    """The next episode begins a trial; always, where each episode is one."""
    clock: Clock


def _numpy() -> Any:
    return importlib.import_module("jax.numpy")


def _pick(condition: Any, yes: Any, no: Any) -> Any:
    """Choose between two equal trees of arrays by one flag."""
    jax = importlib.import_module("jax")
    return jax.tree.map(lambda a, b: _numpy().where(condition, a, b), yes, no)


def _runs_out(trial: TrialConfig, clock: Clock) -> Any:
    """Return whether the next step is the last of its trial, however it goes."""
    return clock.steps + 1 >= trial.steps if trial.steps else False


def _count(trial: TrialConfig, clock: Clock, valid: Any, ended: Any) -> tuple[Clock, Any]:
    """Count a step; return the clock and whether it ended the trial."""
    if not trial.is_on:
        return clock, False
    clock = Clock(clock.place + ended, clock.steps + valid)
    over = clock.steps >= trial.steps if trial.steps else clock.place >= trial.episodes
    return _pick(over, Clock(0, 0), clock), over


def _start_one(task: JaxTask, trial: TrialConfig, key: Any, before: InTask | None = None) -> Carry:
    """Begin an episode, the first of a trial unless `before` says that its trial goes on."""
    random, jnp = importlib.import_module("jax.random"), _numpy()
    key, draw, fresh = random.split(key, 3)
    drawn = task.draw(draw)
    if before is not None:
        drawn = _pick(before.new_trial, drawn, before.task)
    state = task.start(fresh, drawn)
    if before is not None:
        state = _pick(before.new_trial, state, task.keep(before.state, state))
    clock = Clock(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    now = InTask(drawn, state, jnp.array(not trial.is_on), clock)
    return Carry(key, now, jnp.zeros((), bool))


def _restart_one(task: JaxTask, trial: TrialConfig, carry: Carry, moved: Carry) -> Carry:
    """Begin an episode where the last one had ended before the step that led to `moved`."""
    started = _start_one(task, trial, carry.keys, carry.state)
    started = started._replace(state=started.state._replace(clock=moved.state.clock))
    picked: Carry = _pick(carry.ended, started, moved)
    return picked


def _step_one(
    task: JaxTask, trial: TrialConfig, carry: Carry, action: Any
) -> tuple[tuple[Any, Any, Any], Carry]:
    """Act; return (reward, terminated, truncated), nothing of which where there is no step."""
    now, valid, jnp = carry.state, ~carry.ended, _numpy()
    state, reward, terminated = task.advance(now.task, now.state, action)
    terminated = valid & terminated
    truncated = valid & ~terminated & _runs_out(trial, now.clock)
    ended = terminated | truncated
    clock, over = _count(trial, now.clock, valid, ended)
    moved = InTask(now.task, state, now.new_trial | over, clock)
    reward = jnp.where(valid, reward, 0.0)
    return (reward, terminated, truncated), Carry(carry.keys, moved, ended)


def compile_task(task: JaxTask, trial: TrialConfig) -> Compiled:
    """Return the functions of any number of environments, which are compiled when called.

    `begin` also takes the carry before and (N,) flags: False keeps the task, and what else goes on
    within a trial.

    Args:
        task: what is played.
        trial: what its trials are; without them each episode is one.
    """
    jax = importlib.import_module("jax")

    def observe(carry: Carry) -> Any:
        return jax.vmap(task.observe)(carry.state.task, carry.state.state)

    def begin(keys: Any, before: Carry | None = None, new_trial: Any = None) -> tuple[Any, Carry]:
        last = () if before is None else (before.state._replace(new_trial=new_trial),)
        carry = jax.vmap(partial(_start_one, task, trial))(keys, *last)
        return observe(carry), carry

    def go_on(carry: Carry, action: Any) -> tuple[Outcome, Carry]:
        ends, moved = jax.vmap(partial(_step_one, task, trial))(carry, action)
        restart = jax.vmap(partial(_restart_one, task, trial))
        # Most steps restart none, and drawing takes longer than stepping.
        after = jax.lax.cond(carry.ended.any(), restart, lambda _, moved: moved, carry, moved)
        return Outcome(observe(after), *ends), after

    return Compiled(task.obs_space, task.action_space, jax.jit(begin), jax.jit(go_on))
