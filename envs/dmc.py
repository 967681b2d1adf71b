"""The DeepMind Control Suite through dm_control, ids `dmc:walker-walk` or `dm_control/walker-walk`.

Paper: Tassa et al. 2018, "DeepMind Control Suite". What is observed are positions and velocities,
or pictures. Both ids mean the same; gymnasium knows the second.

Deviations: numbers become float32; the task's generator is seeded from `np_random` for each
episode, so that an episode can be resumed; what `lqr` draws when it is loaded is always the same.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Collection
from typing import Any

import gymnasium

from statewise.envs import mujoco_log, opengl
from statewise.envs.dm_env import DmEnv
from statewise.envs.protocol import EnvError

PREFIX, SHORT_PREFIX = "dm_control/", "dmc:"
MIN_SIDE = 8  # pixels
RENDERED = (240, 320)  # pixels (Y, X) of what `render` returns


def missing() -> str:
    """Return "" if dm_control can be imported, else the line that installs it."""
    if importlib.util.find_spec("dm_control") is not None:
        return ""
    # labmaze 1.0.6, which it needs, cannot be installed on newer ones.
    where = "" if sys.version_info < (3, 13) else " with Python 3.12 or older"
    return f"pip install 'statewise[dmc]'{where}"


def load_library(name: str) -> Any:
    """Import a module of, or on, dm_control, after a way to draw is chosen for it."""
    opengl.choose_for_mujoco()
    opengl.load_triton_first()
    with warnings.catch_warnings():
        # dm_control 1.0.50 looks for a screen when it is imported
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")
        module = importlib.import_module(name)
    mujoco_log.tell_each_once()
    return module


def ids() -> Collection[str]:
    """Return the ids that begin with `dmc:`."""
    tasks = load_library("dm_control.suite").ALL_TASKS
    return [f"{SHORT_PREFIX}{domain}-{task}" for domain, task in tasks]


def register() -> None:
    """Make the ids known to gymnasium; calling it again changes nothing."""
    for short in ids():
        name = short.removeprefix(SHORT_PREFIX)
        if PREFIX + name not in gymnasium.registry:
            kwargs = {"env_id": PREFIX + name}
            gymnasium.register(PREFIX + name, entry_point=f"{__name__}:make", kwargs=kwargs)


def make(
    env_id: str,
    *,
    action_repeat: int = 1,
    time_limit: float | None = None,
    pixels: int = 0,
    camera: int = 0,
    render_mode: str | None = None,
) -> DmEnv:
    """Make one task. Observations: a dict of float32 arrays, as the task names them, or pictures.

    Args:
        env_id: with one of the prefixes.
        action_repeat: steps of the task that an action lasts, at least 1; their rewards are added.
        time_limit: simulated seconds of an episode, positive; None is that of the task.
        pixels: each side of a picture "pixels" (Y, X, 3), at least 8; 0: numbers, no picture.
        camera: which of the task's draws it, at least 0; the papers take 2 for the quadruped.
        render_mode: None or "rgb_array", for `render`.

    Raises:
        EnvError: a value out of range, or there is no library to draw with.
    """
    if time_limit is not None and not time_limit > 0:
        raise EnvError(f"expected a positive time_limit, got {time_limit} for {env_id}")
    if pixels and pixels < MIN_SIDE:
        raise EnvError(f"expected pixels 0 or at least {MIN_SIDE}, got {pixels} for {env_id}")
    if camera < 0:
        raise EnvError(f"expected camera at least 0, got {camera} for {env_id}")
    suite = load_library("dm_control.suite")
    limit = {} if time_limit is None else {"time_limit": time_limit}
    domain, _, task = env_id.removeprefix(PREFIX).removeprefix(SHORT_PREFIX).partition("-")
    plain = suite.load(domain, task, task_kwargs={"random": 0, **limit})
    env = plain
    if render_mode not in (None, "rgb_array"):
        raise EnvError(f"expected render_mode rgb_array, got {render_mode!r} for {env_id}")
    if pixels or render_mode:
        opengl.check_mujoco(env_id)
    if pixels:
        wrappers = load_library("dm_control.suite.wrappers.pixels")
        size = {"height": pixels, "width": pixels, "camera_id": camera}
        env = wrappers.Wrapper(plain, pixels_only=True, render_kwargs=size)

    def begin(seed: int) -> Any:
        plain.task.random.seed(seed)
        return env

    def draw() -> Any:
        return plain.physics.render(*RENDERED, camera_id=camera)

    return DmEnv(env_id, begin, action_repeat=action_repeat, draw=draw)
