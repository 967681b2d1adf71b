"""Every backend gives the same valid transitions: none dropped, none doubled, no stale reward.

CartPole is played through all that have it, and every transition is held against the equations
of motion; where a backend's generator can be had a second time, against a plain loop as well.
"""

import importlib
import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import envpool
import gymnasium
import numpy as np
import pytest
from gymnasium.utils.seeding import np_random

from statewise.envs.build import EnvConfig, make_env
from statewise.envs.dmc import load_library
from statewise.envs.jax_tasks import projected_cart_pole
from statewise.envs.protocol import VectorEnv
from tests.envs.toys import transitions

NUM_ENVS, NUM_ROWS, SEED = 3, 90, 7
LIMIT = 14  # steps; a random policy falls in half of the episodes before
ONE_STEP = 1e-6  # float32 rounding of one step of the equations
TENTH = 10 * ONE_STEP  # of positions in units of a tenth

CART_POLES = {
    "sync": {"id": "CartPole-v1", "vectorization": "sync"},
    "sync same_step": {"id": "CartPole-v1", "vectorization": "sync", "autoreset": "same_step"},
    "async": {"id": "CartPole-v1", "vectorization": "async"},
    "vector entry point": {"id": "CartPole-v1", "vectorization": "vector_entry_point"},
    "envpool": {"id": "envpool:CartPole-v1"},
    "gymnax": {"id": "gymnax:CartPole-v1"},
}
GROUPS = {"gymnax": pytest.mark.xdist_group("jax")}  # imported and compiled once
LIMIT_NAMES = {"gymnax": "max_steps_in_episode"}


def random_actions(env: VectorEnv, seed: int = 0) -> Callable[[], Any]:
    """Return a function that draws actions (N, ...), boxes beyond their bounds."""
    rng, space = np.random.default_rng(seed), env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return lambda: rng.integers(0, space.n, env.num_envs)
    return lambda: rng.uniform(-1.5, 1.5, (env.num_envs, *space.shape)).astype(np.float32)


def play(config: EnvConfig, rows: int = NUM_ROWS) -> list[list[dict[str, Any]]]:
    """Return the valid transitions of each environment, played with random actions."""
    env = make_env(config)
    draw = random_actions(env)
    obs, is_first = env.reset(SEED)
    played = []
    for _ in range(rows):
        action = draw()
        arrived = env.step(action)
        played.append((obs, is_first, action, arrived))
        obs, is_first = arrived.obs, arrived.is_first
    env.close()
    return [transitions(played, index) for index in range(env.num_envs)]


def check_chain(found: list[dict[str, Any]]) -> None:
    """Assert that each transition begins where the last one led, and episodes anew."""
    assert found[0]["is_first"]
    for one, after in itertools.pairwise(found):
        ended = one["terminated"] or one["truncated"]
        assert after["is_first"] == ended
        assert ended or after["obs"] == one["next"]


def lengths(found: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    """Return (length, was it truncated alone) of each finished episode."""
    starts = [t for t, one in enumerate(found) if one["is_first"]]
    ends = [t for t, one in enumerate(found) if one["terminated"] or one["truncated"]]
    pairs = zip(starts, ends, strict=False)
    return [(end - start + 1, not found[end]["terminated"]) for start, end in pairs]


def cart_pole_step(x: float, v: float, angle: float, spin: float, action: int) -> list[float]:
    """Return the next state: Barto, Sutton and Anderson 1983, Euler steps of 0.02 s."""
    force = 10.0 if action == 1 else -10.0
    push = (force + 0.05 * spin**2 * np.sin(angle)) / 1.1
    pole = (9.8 * np.sin(angle) - np.cos(angle) * push) / (
        0.5 * (4.0 / 3.0 - 0.1 * np.cos(angle) ** 2 / 1.1)
    )
    cart = push - 0.05 * pole * np.cos(angle) / 1.1
    return [x + 0.02 * v, v + 0.02 * cart, angle + 0.02 * spin, spin + 0.02 * pole]


@cache
def cart_poles(name: str) -> list[list[dict[str, Any]]]:
    """Return the transitions of a backend of CartPole."""
    limit = LIMIT_NAMES.get(name, "max_episode_steps")
    return play(EnvConfig(num_envs=NUM_ENVS, kwargs={limit: LIMIT}, **CART_POLES[name]))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=GROUPS.get(name, ())) for name in CART_POLES]
)
def test_cart_poles_obey_the_equations_and_end_where_they_must(name: str) -> None:
    kinds = set()
    for found in cart_poles(name):
        check_chain(found)
        for one in found:
            here, there = one["obs"]["obs"], one["next"]["obs"]
            assert there == pytest.approx(cart_pole_step(*here, one["action"]), abs=ONE_STEP)
            fell = abs(there[0]) > 2.4 or abs(there[2]) > np.deg2rad(12)
            assert one["reward"] == 1
            assert (one["terminated"] or one["truncated"]) >= fell
            assert one["truncated"] or one["terminated"] == fell
            assert not one["is_first"] or np.abs(here).max() <= 0.05
        episodes = lengths(found)
        # A row that was dropped or doubled would change these, and the number of all rows.
        assert all(length == LIMIT for length, cut in episodes if cut)
        assert all(length <= LIMIT for length, _ in episodes)
        num_open = len(found) - sum(length for length, _ in episodes)
        finals = NUM_ROWS - len(found)  # rows of final observations, none under SAME_STEP
        assert finals in (0, len(episodes), len(episodes) - (num_open == 0))
        kinds |= {cut for _, cut in episodes}
    assert kinds == {True, False}


def plain_cart_pole(index: int, actions: list[int]) -> list[dict[str, Any]]:
    """Play gymnasium's single environment in a loop."""
    env = gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)
    obs, is_first, found = env.reset(seed=SEED + index)[0], True, []
    for action in actions:
        after, reward, terminated, truncated, _ = env.step(action)
        one = {"obs": {"obs": obs.tolist()}, "is_first": is_first, "action": action}
        one |= {"reward": reward, "terminated": terminated, "truncated": truncated}
        found.append({**one, "next": {"obs": after.tolist()}})
        is_first = terminated or truncated
        obs = env.reset()[0] if is_first else after
    return found


@pytest.mark.parametrize("name", ["sync", "sync same_step", "async"])
def test_gymnasium_backends_equal_the_plain_loop(name: str) -> None:
    for index, found in enumerate(cart_poles(name)):
        assert found == plain_cart_pole(index, [one["action"] for one in found])


def raw_envpool(name: str, index: int, rows: int, **kwargs: Any) -> list[dict[str, Any]]:
    """Play envpool itself, one environment; `elapsed_step` 0 says which rows only reset.

    Actions are drawn like those of `play`, so that the ones of row t are the same.
    """
    with np.errstate(all="ignore"):
        pool = envpool.make(
            name, env_type="gymnasium", num_envs=1, num_threads=1, seed=SEED + index, **kwargs
        )
    rng, found = np.random.default_rng(0), []
    space = pool.single_action_space
    obs, info = pool.reset()
    is_first = True
    for _ in range(rows):
        if isinstance(space, gymnasium.spaces.Discrete):
            action = rng.integers(0, space.n, NUM_ENVS)[index]
        else:
            action = rng.uniform(-1.5, 1.5, (NUM_ENVS, *space.shape)).astype(np.float32)[index]
        legal = np.asarray(action) if np.ndim(action) == 0 else np.clip(action, -1, 1)
        after, reward, terminated, truncated, info = pool.step(legal[None])
        if info["elapsed_step"][0] == 0:
            is_first = True
        else:
            one = {"obs": flat(obs), "is_first": is_first, "action": np.asarray(action).tolist()}
            one |= {"reward": float(np.float32(reward[0]))}
            one |= {"terminated": bool(terminated[0]), "truncated": bool(truncated[0])}
            found.append({**one, "next": flat(after)})
            is_first = False
        obs = after
    pool.close()
    return found


def flat(obs: Any) -> dict[str, Any]:
    """Return one row as float32 or bytes, in the form of the flat observations."""
    rows = obs if isinstance(obs, dict) else {"obs": obs}
    kept = {k: x[0] if x.dtype == np.uint8 else np.float32(x[0]) for k, x in rows.items()}
    return {k: np.atleast_1d(x).tolist() for k, x in kept.items()}


@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("CartPole-v1", {"max_episode_steps": LIMIT}),
        ("WalkerWalk-v1", {"max_episode_steps": 4}),  # repeats the reward where it resets
        ("HalfCheetah-v5", {"max_episode_steps": 4}),
        ("Pong-v5", {"max_episode_steps": 3, "stack_num": 2, "img_height": 16, "img_width": 16}),
    ],
)
def test_envpool_equals_a_loop_over_envpool(name: str, kwargs: dict[str, Any]) -> None:
    rows = NUM_ROWS if name == "CartPole-v1" else 10
    config = EnvConfig(id=f"envpool:{name}", num_envs=NUM_ENVS, kwargs=kwargs)
    index = 1
    found = play(config, rows)[index]
    assert found == raw_envpool(name, index, rows, **kwargs)
    assert any(one["truncated"] for one in found)


def test_ale_vector_equals_gymnasiums_preprocessing() -> None:
    kwargs = {"noop_max": 0, "repeat_action_probability": 0.0, "screen_size": 16}
    kwargs |= {"max_num_frames_per_episode": 48}
    make = partial(EnvConfig, id="ALE/Asterix-v5", num_envs=2, kwargs=kwargs)
    ours, theirs = (play(make(vectorization=how), 16) for how in ("vector_entry_point", "sync"))
    assert ours == theirs
    assert any(one["reward"] > 1 for one in [*ours[0], *ours[1]])  # not clipped
    assert any(one["truncated"] for one in ours[0])


def plain_dm_env(index: int, actions: list[Any]) -> list[dict[str, Any]]:
    """Play dm_control's task in a loop of its own kind."""
    draws = np_random(SEED + index)[0]
    env = load_library("dm_control.suite").load(
        "cartpole", "balance", task_kwargs={"random": 0, "time_limit": 0.06}
    )
    found: list[dict[str, Any]] = []
    now = None
    for action in actions:
        is_first = now is None or now.last()
        if is_first:
            env.task.random.seed(int(draws.integers(2**32)))
            now = env.reset()
        before = {k: np.float32(x).tolist() for k, x in now.observation.items()}
        now = env.step(np.clip(np.float32(action), -1, 1).astype(np.float64))
        one = {"obs": before, "is_first": is_first, "action": action}
        one |= {"reward": float(np.float32(now.reward)), "terminated": False}
        after = {k: np.float32(x).tolist() for k, x in now.observation.items()}
        found.append({**one, "truncated": now.last(), "next": after})
    return found


def test_dm_env_equals_a_loop_over_dm_control() -> None:
    config = EnvConfig(id="dm_control/cartpole-balance", num_envs=2, kwargs={"time_limit": 0.06})
    for index, found in enumerate(play(config, 20)):
        assert found == plain_dm_env(index, [one["action"] for one in found])
        assert any(one["truncated"] for one in found)


@GROUPS["gymnax"]
def test_gymnax_equals_a_loop_over_its_own_functions() -> None:
    """One environment by itself, restarted by hand, with the keys split as they come."""
    jax, gymnax = importlib.import_module("jax"), importlib.import_module("gymnax")
    env, params = gymnax.make("CartPole-v1")
    index = 1
    key, draw = jax.random.split(jax.random.PRNGKey(SEED + index))
    obs, state = env.reset_env(draw, params)
    is_first = True
    for one in cart_poles("gymnax")[index][: 2 * LIMIT]:
        key, draw, _ = jax.random.split(key, 3)
        after, state, reward, terminated, _ = env.step_env(draw, state, one["action"], params)
        truncated = int(state.time) >= LIMIT
        assert one["obs"]["obs"] == pytest.approx(obs.tolist(), abs=ONE_STEP)
        assert one["next"]["obs"] == pytest.approx(after.tolist(), abs=ONE_STEP)
        assert one["is_first"] == is_first
        assert (one["reward"], one["terminated"]) == (float(reward), bool(terminated))
        assert one["truncated"] == truncated
        obs, is_first = after, bool(terminated) or truncated
        if is_first:  # the row of the final observation
            key, _, draw = jax.random.split(key, 3)
            obs, state = env.reset_env(draw, params)


@GROUPS["gymnax"]
def test_jax_tasks_equal_a_loop_over_their_own_functions() -> None:
    """One environment by itself, restarted by hand, with the key split where episodes begin."""
    jax = importlib.import_module("jax")
    kwargs = {"maps": "fixed", "steps": LIMIT}
    task, index = projected_cart_pole.make(**kwargs), 1
    config = EnvConfig(id="jax:ProjectedCartPole", num_envs=NUM_ENVS, kwargs=kwargs)
    found = play(config)[index]
    check_chain(found)
    key, is_first = jax.random.PRNGKey(SEED + index), True
    for one in found[: 2 * LIMIT]:
        if is_first:
            key, draw, fresh = jax.random.split(key, 3)
            drawn = task.draw(draw)
            state = task.start(fresh, drawn)
        here = cart_pole_step(*np.float64(state.state), one["action"])
        assert one["obs"]["obs"] == pytest.approx(task.observe(drawn, state).tolist(), abs=TENTH)
        state, reward, terminated = task.advance(drawn, state, one["action"])
        assert state.state.tolist() == pytest.approx(here, abs=ONE_STEP)
        assert one["next"]["obs"] == pytest.approx(task.observe(drawn, state).tolist(), abs=TENTH)
        assert one["is_first"] == is_first
        assert (one["reward"], one["terminated"]) == (float(reward), bool(terminated))
        assert not one["truncated"]
        is_first = bool(terminated)
    lasting = {length for length, _ in lengths(found)}
    assert max(lasting) == LIMIT > min(lasting)
