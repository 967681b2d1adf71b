"""Atari games through ale-py, ids `ALE/<Game>-v5`, with the usual preprocessing.

Papers: Bellemare et al. 2013, "The Arcade Learning Environment"; Machado et al. 2018,
"Revisiting the Arcade Learning Environment", whose protocol the ids have: an action is repeated
by the console with probability 0.25, and an episode is cut off after 108,000 frames.

The preprocessing is gymnasium's `AtariPreprocessing`: up to 30 frames without an action at the
start, each action for 4 frames, the brighter of the last two frames pixel by pixel, resized by
area. The frame in which an episode ends is not drawn: the picture before is shown once more, with
the third frame over it where the end came in the fourth.

Deviations: pictures have 64 x 64 pixels, not 84 x 84; the console is seeded anew for each
episode, so that an episode follows from `np_random` and its actions, and can be resumed.
"""

import importlib
import importlib.util
from typing import Any

import gymnasium
from gymnasium.wrappers import AtariPreprocessing

from statewise.envs.protocol import EnvError

_INSTEAD = {
    "frameskip": "set frame_skip",
    "obs_type": "set grayscale_obs",
    "sound_obs": "pictures alone are read",
    "continuous": "choices alone are made",
}


def missing() -> str:
    """Return "" if ale-py and OpenCV can be imported, else the line that installs them."""
    found = all(importlib.util.find_spec(name) is not None for name in ("ale_py", "cv2"))
    return "" if found else "pip install 'statewise[atari]'"


def register() -> None:
    """Make the ids known to gymnasium, which importing the package does."""
    ale_py = importlib.import_module("ale_py")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else it greets on stderr


def check_options(
    env_id: str, kwargs: dict[str, Any], screen_size: int, frame_skip: int, noop_max: int
) -> None:
    """Raise EnvError for a value out of range, or an argument the preprocessing has taken over."""
    if taken := sorted(_INSTEAD.keys() & kwargs.keys()):
        raise EnvError(
            f"expected arguments beside those of the preprocessing, got {taken[0]} for {env_id}: "
            f"{_INSTEAD[taken[0]]}"
        )
    limits = {"screen_size": (screen_size, 8), "frame_skip": (frame_skip, 1)}
    limits["noop_max"] = (noop_max, 0)
    for name, (value, least) in limits.items():
        if value < least:
            raise EnvError(f"expected {name} at least {least}, got {value} for {env_id}")


class SeededEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Seeds the console at each reset; without a seed from `np_random`.

    The console draws from a generator of its own, whose state it does not tell.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is None:
            seed = int(self.unwrapped.np_random.integers(2**31))
        return self.env.reset(seed=seed, options=options)


def make(
    env_id: str,
    *,
    screen_size: int = 64,
    grayscale_obs: bool = True,
    frame_skip: int = 4,
    noop_max: int = 30,
    terminal_on_life_loss: bool = False,
    **kwargs: Any,
) -> gymnasium.Env[Any, Any]:
    """Make one game; pictures (screen_size, screen_size, 1 or 3) uint8.

    Args:
        env_id: of a registered game.
        screen_size: pixels of each side, at least 8.
        grayscale_obs: one channel, else red, green and blue.
        frame_skip: frames an action lasts, at least 1; frames are pooled from 2 on.
        noop_max: most frames without an action at the start, at least 0.
        terminal_on_life_loss: a lost life ends the episode, and a new game begins.
        **kwargs: of ale-py, for example `repeat_action_probability` or `full_action_space`.

    Raises:
        EnvError: a value out of range, or an argument that the preprocessing has taken over.
    """
    check_options(env_id, kwargs, screen_size, frame_skip, noop_max)
    game = gymnasium.make(env_id, frameskip=1, disable_env_checker=True, **kwargs)
    return AtariPreprocessing(
        SeededEpisodes(game),
        noop_max=noop_max,
        frame_skip=frame_skip,
        screen_size=screen_size,
        terminal_on_life_loss=terminal_on_life_loss,
        grayscale_obs=grayscale_obs,
        grayscale_newaxis=True,
    )
