"""The bandit of `tasks.bandit` in JAX."""

import importlib
from typing import Any, NamedTuple

from statewise.envs.jax_tasks.task import JaxTask
from statewise.envs.tasks.bandit import BanditVector


class Arms(NamedTuple):
    """What they pay with: (arms,) float32 in [0, 1)."""

    chance: Any


class Pulls(NamedTuple):
    """The pulls of an episode."""

    luck: Any
    """(steps,) float32 in [0, 1): a pull wins where it is below the chance of the arm."""
    paid: Any
    """() float32, by the last pull of the trial."""
    steps: Any
    """() int32."""


def make(*, arms: int = 10, steps: int = 100) -> JaxTask:
    """Return the task; arguments and errors are those of `BanditVector`."""
    like = BanditVector(1, arms=arms, steps=steps)  # checks the arguments
    jax = importlib.import_module("jax")
    jnp = jax.numpy

    def draw(key: Any) -> Arms:
        return Arms(jax.random.uniform(key, (arms,), jnp.float32))

    def start(key: Any, task: Arms) -> Pulls:
        luck = jax.random.uniform(key, (steps,), jnp.float32)
        return Pulls(luck, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def advance(task: Arms, state: Pulls, action: Any) -> tuple[Pulls, Any, Any]:
        won = state.luck[state.steps] < task.chance[action]
        paid = jnp.where(won, 1.0, -1.0).astype(jnp.float32)
        now = Pulls(state.luck, paid, state.steps + 1)
        return now, paid / steps, now.steps >= steps

    def observe(task: Arms, state: Pulls) -> Any:
        return state.paid[None]

    def keep(before: Pulls, started: Pulls) -> Pulls:
        return started._replace(paid=before.paid)

    return JaxTask(
        like.single_observation_space, like.single_action_space, draw, start, advance, observe, keep
    )
