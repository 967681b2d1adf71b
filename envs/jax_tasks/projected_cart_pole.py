"""The projected cart-pole of `tasks.projected_cart_pole` in JAX.

Deviations: states are float32.
"""

import importlib
import math
from typing import Any, NamedTuple

from statewise.envs.jax_tasks.task import JaxTask
from statewise.envs.tasks.projected_cart_pole import (
    CART,
    DT,
    FORCE,
    GRAVITY,
    HALF_LENGTH,
    MAX_ANGLE,
    MAX_X,
    POLE,
    SCALE,
    Maps,
    ProjectedCartPoleVector,
)


class Projection(NamedTuple):
    """What a trial draws."""

    origin: Any
    """(4,) float32, the state that its episodes start from."""
    map: Any
    """(O, 2) float32."""


class Motion(NamedTuple):
    """How the pole stands."""

    state: Any
    """(4,) float32: position, its speed, angle, its speed."""
    steps: Any
    """() int32."""


def draw_map(maps: Maps, key: Any) -> Any:
    """Return a map W (O, 2) float32, as `tasks.projected_cart_pole.draw_map`."""
    jax = importlib.import_module("jax")
    jnp = jax.numpy
    if maps == "fixed":
        return jnp.eye(2, dtype=jnp.float32)
    if maps == "signs":
        return jnp.diag(jax.random.rademacher(key, (2,), jnp.float32))
    # Gram and Schmidt: Q of QR with a positive diagonal of R.
    first, second = jax.random.normal(key, (2, 4), jnp.float32)
    first = first / jnp.linalg.norm(first)
    second = second - (first @ second) * first
    second = second / jnp.linalg.norm(second)
    return math.sqrt(2) * jnp.stack([first, second], 1)


def pushed(state: Any, action: Any) -> Any:
    """Return the state (4,) after an explicit Euler step; action 0 pushes left, 1 right."""
    jnp = importlib.import_module("jax.numpy")
    x, speed, angle, turn = state
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    total = CART + POLE
    push = (jnp.where(action == 1, FORCE, -FORCE) + POLE * HALF_LENGTH * turn**2 * sine) / total
    bend = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE * cosine**2 / total))
    drive = push - POLE * HALF_LENGTH * bend * cosine / total
    return jnp.stack([x + DT * speed, speed + DT * drive, angle + DT * turn, turn + DT * bend])


def make(*, maps: Maps = "orthogonal", steps: int = 200) -> JaxTask:
    """Return the task; arguments and errors are those of `ProjectedCartPoleVector`."""
    like = ProjectedCartPoleVector(1, maps=maps, steps=steps)  # checks the arguments
    jax = importlib.import_module("jax")
    jnp = jax.numpy

    def draw(key: Any) -> Projection:
        origin, mixing = jax.random.split(key)
        start = jax.random.uniform(origin, (4,), jnp.float32, -0.05, 0.05)
        return Projection(start, draw_map(maps, mixing))

    def start(key: Any, task: Projection) -> Motion:
        return Motion(task.origin, jnp.zeros((), jnp.int32))

    def advance(task: Projection, state: Motion, action: Any) -> tuple[Motion, Any, Any]:
        now = Motion(pushed(state.state, action), state.steps + 1)
        falls = (jnp.abs(now.state[0]) > MAX_X) | (jnp.abs(now.state[2]) > MAX_ANGLE)
        return now, jnp.array(1 / steps, jnp.float32), falls | (now.steps >= steps)

    def observe(task: Projection, state: Motion) -> Any:
        return task.map @ (SCALE * jnp.stack([state.state[0], state.state[2]]))

    return JaxTask(
        like.single_observation_space, like.single_action_space, draw, start, advance, observe
    )
