"""Videos of evaluations: their first episodes, played once more where they can be drawn.

An evaluation steps many environments that draw nothing. What is done in them is recorded; the
same actions then lead a single environment, which renders, from the same seed through the same
episodes. So a video shows what `eval.json` counts, however actions were chosen, and frames are
written one by one.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs import opengl
from statewise.envs.pictures import is_picture
from statewise.envs.protocol import Arrived, Bools, EnvError, Obs, VectorEnv
from statewise.training.evaluate import EvalOptions, Evaluation, evaluate_trained
from statewise.training.playing import PlayingAgent
from statewise.training.run import RunDirectory, read_json
from statewise.training.schema import ConfigError
from statewise.training.trained_world_model import TrainedWorldModel
from statewise.training.video_file import Frame, check_ending, write_video

MODE = "rgb_array"
DEFAULT_FPS = 30.0
RENDER = "those of gymnasium, ALE/, MiniGrid-, dmc:, dm_control/ and envpool: render"

Camera = Callable[[dict[str, NDArray[Any]]], Frame]
"""From an observation of a single environment to a frame."""


class VideoOptions(NamedTuple):
    """Which video is made."""

    out: Path | None = None
    """Ends in .mp4 or .gif; None is videos/<step>.mp4 in the run."""
    episodes: int = 1
    """At least 1: the first ones of eval.json; whole trials where there are trials."""


class Row(NamedTuple):
    """What was done in one environment in one step."""

    action: NDArray[Any]
    reward: np.float32
    valid: bool
    """False where the action only led to the next episode."""
    over: bool
    """The episode ended, or the trial."""


class Recorder:
    """`VectorEnv` that keeps what is done in its first environments.

    Args:
        env: the environments.
        count: how many are recorded, at least 1.
    """

    def __init__(self, env: VectorEnv, count: int) -> None:
        self._env = env
        self.num_envs, self.resume = env.num_envs, env.resume
        self.obs_space, self.action_space = env.obs_space, env.action_space
        self.rows: list[list[Row]] = [[] for _ in range(min(count, env.num_envs))]

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Start N episodes, as `VectorEnv.reset`."""
        return self._env.reset(seed)

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments, as `VectorEnv.step`."""
        arrived = self._env.step(action)
        over = arrived.terminated | arrived.truncated
        over = over if arrived.trial is None else arrived.trial.over
        for i, kept in enumerate(self.rows):
            taken = np.array(action[i])
            kept.append(Row(taken, arrived.reward[i], bool(arrived.valid[i]), bool(over[i])))
        return arrived

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken, as `VectorEnv.load_state_dict`."""
        return self._env.load_state_dict(state)

    def close(self) -> None:
        """Close the environments."""
        self._env.close()


def film_run(
    path: Path,
    options: EvalOptions,
    video: VideoOptions,
    *,
    checkpoint: int | None = None,
    device: str | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate a run as `evaluate_run` does, and write a video of its first episodes.

    Returns:
        What the evaluation gave, and the file.

    Raises:
        ConfigError: the ending of the file, more episodes than are played, or a run of a world
            model alone.
        EnvError: the environment cannot be drawn, or does not repeat its episodes.
        RunError: the file cannot be written, or the environment was one's own.
    """
    from statewise.training.api import load

    if video.out is not None:
        check_ending(video.out)
    trained = load(path, checkpoint=checkpoint, device=device)
    check_plays(trained, path)
    env, camera = open_camera(trained)  # before anything is played
    try:
        played = options.episodes or trained.config.eval.episodes
        if video.episodes > played:
            raise ConfigError(
                f"--video-episodes: expected at most the {played} episodes of the evaluation, got "
                f"{video.episodes}: raise --episodes"
            )
        recorders: list[Recorder] = []

        def watch(envs: VectorEnv) -> VectorEnv:
            recorders.append(Recorder(envs, video.episodes))
            return recorders[-1]

        result = evaluate_trained(trained, path, options._replace(watch=watch))
        run = RunDirectory.open(path)
        shown = read_json(run.eval_path)["episodes"][: video.episodes]
        frames = film(env, camera, recorders[0].rows, [entry["seed"] for entry in shown])
        out = video.out or run.videos_dir / f"{trained.step}.mp4"
        write_video(out, frames, float(env.metadata.get("render_fps") or DEFAULT_FPS))
    finally:
        env.close()
    return result, out


def check_plays(trained: PlayingAgent, path: Path) -> None:
    """Raise ConfigError if there is no policy in the run at `path`."""
    if isinstance(trained, TrainedWorldModel):
        raise ConfigError(
            f"--video: expected a run with a policy, got {trained.config.system} in {path}, a "
            f"world model alone: use statewise imagine {path}"
        )


def film(
    env: gymnasium.Env[Any, Any],
    camera: Camera,
    recorded: Sequence[Sequence[Row]],
    seeds: Sequence[int],
) -> Iterator[Frame]:
    """Yield a frame per observation of episodes that were played.

    Args:
        env: plays them again.
        camera: draws it.
        recorded: rows of environments 0, 1, ...
        seeds: of the environment of each episode, in the order of `eval.json`: as often as
            episodes of that environment are filmed, the first one that of environment 0.

    Raises:
        EnvError: an episode does not come out as it was.
    """
    for seed, count in Counter(seeds).items():
        yield from _film_one(env, camera, recorded[seed - seeds[0]], seed, count)


def _film_one(
    env: gymnasium.Env[Any, Any], camera: Camera, rows: Sequence[Row], seed: int, count: int
) -> Iterator[Frame]:
    """Yield the frames of the first `count` episodes or trials of an environment."""
    obs, _ = env.reset(seed=seed)
    yield camera(obs)
    ended, left = False, count
    for t, row in enumerate(rows):
        if ended:
            obs, _ = env.reset()
            yield camera(obs)
            ended = False
            if not row.valid:  # the row that led there
                continue
        obs, reward, terminated, truncated, _ = env.step(row.action)
        if np.float32(reward) != row.reward:
            raise EnvError(
                f"--video: expected reward {row.reward:g} when the actions of the evaluation are "
                f"played again, got {float(reward):g} in step {t} from seed {seed}: the environment"
                " draws randomness from elsewhere than self.np_random"
            )
        yield camera(obs)
        ended = bool(terminated or truncated)
        left -= row.over
        if not left:
            return


def open_camera(trained: PlayingAgent) -> tuple[gymnasium.Env[Any, Any], Camera]:
    """Return one environment of an evaluation that can be drawn, and what draws it.

    That is `render`, or where there is none the picture that the agent sees.

    Raises:
        EnvError: it does not render and has no pictures, or something is missing for it.
    """
    env_id = trained.env_id
    # Nobody listens, and where there is no sound ALSA would complain about that.
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    plain = trained.make_single_eval_env()
    if MODE not in plain.metadata.get("render_modes", ()):
        return plain, _seen_picture(plain, env_id)
    uses_mujoco = hasattr(plain.unwrapped, "mujoco_renderer")
    plain.close()
    if uses_mujoco:
        opengl.choose_for_mujoco()
        opengl.check_mujoco(env_id)
    env = trained.make_single_eval_env(render_mode=MODE)

    def render(obs: dict[str, NDArray[Any]]) -> Frame:
        try:
            frame: Any = env.render()
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            reason = " ".join(str(error).split())
            raise EnvError(f"expected what draws {env_id}, got none: {reason}") from error
        return frame

    return env, render


def _seen_picture(env: gymnasium.Env[Any, Any], env_id: str) -> Camera:
    """Return the newest channels of the first picture among the observations.

    Raises:
        EnvError: there is none.
    """
    space = env.observation_space
    assert isinstance(space, spaces.Dict), space
    found = [(key, one.shape) for key, one in space.spaces.items() if is_picture(one)]
    if not found:
        modes = env.metadata.get("render_modes") or "none"
        env.close()
        raise EnvError(
            f"--video: expected an environment with the render mode {MODE} or with pictures to "
            f"observe, got {env_id} with the modes {modes}: {RENDER}"
        )
    key, shape = found[0]
    assert shape is not None, key
    is_last = shape[0] >= shape[-1]

    def look(obs: dict[str, NDArray[Any]]) -> Frame:
        picture = obs[key] if is_last else np.moveaxis(obs[key], 0, -1)
        return picture if picture.shape[-1] == 3 else np.repeat(picture[..., -1:], 3, -1)

    return look
