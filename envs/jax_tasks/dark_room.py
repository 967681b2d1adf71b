"""The dark room of `tasks.dark_room` in JAX."""

import importlib
from typing import Any, NamedTuple

from statewise.envs.jax_tasks.task import JaxTask
from statewise.envs.tasks.dark_room import (
    MOVE_X,
    MOVE_Y,
    DarkRoomVector,
    Goals,
    Shown,
    choose_goals,
    show_places,
)


class Goal(NamedTuple):
    """A cell, () int32 each."""

    goal_x: Any
    goal_y: Any


class Walk(NamedTuple):
    """Where the walker is, () int32 each."""

    x: Any
    y: Any
    steps: Any


def make(
    *, size: int = 5, steps: int = 10, goals: Goals = "all", shown: Shown = "one_hot"
) -> JaxTask:
    """Return the task; arguments, all but `novelty`, and errors are those of `DarkRoomVector`."""
    like = DarkRoomVector(1, size=size, steps=steps, goals=goals, shown=shown)  # checks them
    cells, places = choose_goals(size**2, goals), show_places(size, shown)
    jax = importlib.import_module("jax")
    jnp = jax.numpy

    def draw(key: Any) -> Goal:
        number = jax.random.randint(key, (), 0, len(cells), jnp.int32)
        cell = jnp.asarray(cells, jnp.int32)[number]
        return Goal(cell // size, cell % size)

    def start(key: Any, task: Goal) -> Walk:
        middle = jnp.array(size // 2, jnp.int32)
        return Walk(middle, middle, jnp.zeros((), jnp.int32))

    def advance(task: Goal, state: Walk, action: Any) -> tuple[Walk, Any, Any]:
        moves = (jnp.asarray(move, jnp.int32)[action] for move in (MOVE_X, MOVE_Y))
        x, y = (
            jnp.clip(at + move, 0, size - 1)
            for at, move in zip((state.x, state.y), moves, strict=True)
        )
        found = (x == task.goal_x) & (y == task.goal_y)
        now = Walk(x, y, state.steps + 1)
        return now, found.astype(jnp.float32), now.steps >= steps

    def observe(task: Goal, state: Walk) -> Any:
        seen = jnp.asarray(places)
        return jnp.concatenate([seen[state.x], seen[state.y]])

    return JaxTask(
        like.single_observation_space, like.single_action_space, draw, start, advance, observe
    )
