"""The systems of `bench envs`: our adapters, and loops over each backend as its pages show them.

Before ours is timed its rows are checked: as many valid as not resetting, and no reward where an
action was ignored.
"""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from statewise.bench.envs import ALE, DM_ENV, ENVPOOL, GYMNAX, OURS, SYNC, VECTOR
from statewise.bench.measure import time_calls
from statewise.bench.process import Answer, Job
from statewise.envs import bsuite, dmc, envpool, gymnax
from statewise.envs.build import EnvConfig, find_family, make_env
from statewise.envs.protocol import VectorEnv

NUM_CHECKED = 32  # steps
NUM_DRAWN = 16  # action arrays, used in turn

Step = Callable[[Any], object]
"""Steps all environments with actions (N, ...)."""


def draw_actions(space: gymnasium.Space[Any], num_envs: int) -> list[NDArray[Any]]:
    """Return arrays (N, ...) of random actions of one environment's space."""
    batched = batch_space(space, num_envs)
    batched.seed(0)
    return [np.asarray(batched.sample()) for _ in range(NUM_DRAWN)]


def refusal(env: VectorEnv, actions: list[NDArray[Any]]) -> str:
    """Return why an adapter must not be timed; "" where its rows keep their contract."""
    env.reset(0)
    over = np.zeros(env.num_envs, bool)
    for t in range(NUM_CHECKED):
        arrived = env.step(actions[t % NUM_DRAWN])
        if not np.array_equal(arrived.valid, ~over):
            return f"valid is not where the episodes go on, in step {t}"
        if arrived.reward[over].any():
            return f"a reward in a row whose action was ignored, in step {t}"
        over = arrived.terminated | arrived.truncated
    return ""


# ---------------------------------------------------------------- the backends alone


def _gymnasium(job: Job, mode: str) -> tuple[Step, gymnasium.Space[Any]]:
    find_family(job["env"]).register()
    vec = gymnasium.make_vec(job["env"], job["num_envs"], mode)
    vec.reset(seed=0)
    return vec.step, vec.single_action_space


def _sync(job: Job) -> tuple[Step, gymnasium.Space[Any]]:
    return _gymnasium(job, "sync")


def _vector(job: Job) -> tuple[Step, gymnasium.Space[Any]]:
    return _gymnasium(job, "vector_entry_point")


def _envpool(job: Job) -> tuple[Step, gymnasium.Space[Any]]:
    pool = import_module("envpool").make(
        job["env"].removeprefix(envpool.PREFIX),
        env_type="gymnasium",
        num_envs=job["num_envs"],
        num_threads=min(job["num_envs"], job["threads"]),
        seed=0,
    )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of its bounds, once
        pool.reset()
    return pool.step, pool.single_action_space


def _ale(job: Job) -> tuple[Step, gymnasium.Space[Any]]:
    find_family(job["env"]).register()
    games = import_module("ale_py.vector_env").AtariVectorEnv(
        gymnasium.spec(job["env"]).kwargs["game"],
        job["num_envs"],
        num_threads=job["threads"],
        img_height=64,  # as ours
        img_width=64,
        stack_num=1,
        repeat_action_probability=0.25,
    )
    games.reset(seed=0)
    return games.step, games.single_action_space


def _gymnax(job: Job) -> tuple[Step, gymnasium.Space[Any]]:
    """Return the library's own restarting step for all environments, with the wait for it."""
    jax, library = import_module("jax"), import_module("gymnax")
    env, params = library.make(job["env"].removeprefix(gymnax.PREFIX))
    keys = jax.random.split(jax.random.PRNGKey(0), job["num_envs"])
    begin = jax.jit(jax.vmap(env.reset, (0, None)))
    go_on = jax.jit(jax.vmap(env.step, (0, 0, 0, None)))
    split = jax.jit(jax.vmap(jax.random.split))
    state = begin(keys, params)[1]

    def step(action: Any) -> None:
        nonlocal keys, state
        both = split(keys)
        keys = both[:, 0]
        obs, state, *_ = go_on(both[:, 1], state, action, params)
        jax.block_until_ready(obs)

    return step, gymnasium.spaces.Discrete(int(env.num_actions))


def _dm_env(job: Job) -> tuple[Step, gymnasium.Space[Any]]:
    """One environment after the other."""
    name, single = job["env"], make_env(EnvConfig(id=job["env"], num_envs=1)).action_space
    envs: list[Any] = []
    for _ in range(job["num_envs"]):
        if name.startswith(bsuite.PREFIX):
            settings = import_module("bsuite.sweep").SETTINGS[name.removeprefix(bsuite.PREFIX)]
            experiment = name.removeprefix(bsuite.PREFIX).partition("/")[0]
            envs.append(import_module("bsuite").load(experiment, settings))
        else:
            domain, _, task = name.removeprefix(dmc.SHORT_PREFIX).partition("-")
            envs.append(dmc.load_library("dm_control.suite").load(domain, task))

    def step(action: Any) -> None:
        for env, one in zip(envs, action, strict=True):
            env.step(one)

    for env in envs:
        env.reset()
    return step, single


PEERS: dict[str, Callable[[Job], tuple[Step, gymnasium.Space[Any]]]] = {
    SYNC: _sync,
    VECTOR: _vector,
    ENVPOOL: _envpool,
    GYMNAX: _gymnax,
    ALE: _ale,
    DM_ENV: _dm_env,
}


def _ours(job: Job) -> tuple[Step, gymnasium.Space[Any], str]:
    threads = {}
    if job["env"].startswith(envpool.PREFIX):
        threads = {"num_threads": min(job["num_envs"], job["threads"])}
    elif job["vectorization"] == "vector_entry_point" and job["env"].startswith("ALE/"):
        threads = {"num_threads": job["threads"]}
    config = EnvConfig(
        id=job["env"],
        num_envs=job["num_envs"],
        vectorization=job["vectorization"],
        kwargs=threads,
    )
    env = make_env(config)
    actions = draw_actions(env.action_space, env.num_envs)
    refused = refusal(env, actions) if job["check"] else ""
    env.reset(0)
    return env.step, env.action_space, refused


def run_job(job: Job) -> Answer:
    """Check and time one system.

    Args:
        job: system, env, num_envs, vectorization, threads, check, reps, seconds, steps.

    Returns:
        {"missing": text} where a package is not installed, {"refused": text} for wrong rows; else
        also "timing": [wall, cpu], seconds of `steps` steps.
    """
    if line := find_family(job["env"]).missing():
        return {"missing": line}
    if job["system"] == OURS:
        step, space, refused = _ours(job)
        if refused:
            return {"refused": refused}
    else:
        step, space = PEERS[job["system"]](job)
    actions = draw_actions(space, job["num_envs"])

    def call() -> None:
        for t in range(job["steps"]):
            step(actions[t % NUM_DRAWN])

    call()
    timing = time_calls(call, reps=job["reps"], seconds=job["seconds"])
    return {"refused": "", "timing": timing, "parameters": 0}
