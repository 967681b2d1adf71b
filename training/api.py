"""The Python interface: train a preset, load a run, act, go on learning, save.

agent = statewise.load("runs/first-light")
env = agent.make_env()
agent.predict(env.reset()[0])
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.agents.build import AGENTS
from statewise.agents.recurrent_ppo import EncoderFactory, RecurrentPPO
from statewise.envs.build import make_env, make_single, wrap_single
from statewise.envs.protocol import VectorEnv
from statewise.envs.spaces import restore_action
from statewise.ssm.protocol import State
from statewise.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from statewise.training.config import (
    ConfigError,
    TrainConfig,
    apply_overrides,
    dump_config,
    load_config,
    load_preset,
)
from statewise.training.online import OnlineTraining
from statewise.training.process import prepare_process
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory, RunError, build_manifest, note_resume
from statewise.training.seeding import Seeds

EnvFactory = Callable[..., gymnasium.Env[Any, Any]]


class TrainedAgent:
    """An agent with its configuration: what `statewise.make`, `train` and `load` return.

    Args:
        config: the run's settings.
        env: makes one environment, for tasks that are not registered; None uses config.env.id.
        encoder: see `RecurrentPPO`; must be given again at `load`.
        preset: the name the settings came from.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        env: EnvFactory | None = None,
        encoder: EncoderFactory | None = None,
        preset: str = "",
    ):
        self.config, self.preset = config, preset
        self._factory = env
        self._warned = False
        seeds = Seeds(config.seed)
        self.eval_seed = seeds.integer("eval")
        single = self.make_env()
        assert isinstance(single.observation_space, spaces.Dict)
        self.obs_space = single.observation_space
        self.action_space = single.action_space
        single.close()
        self.agent: RecurrentPPO = AGENTS[config.system].make(
            config.agent,
            self.obs_space,
            self.action_space,
            total_steps=config.total_steps,
            seed=seeds.integer("policy"),
            device=_device(config.device),
            encoder=encoder,
        )

    @property
    def step(self) -> int:
        """Environment steps the agent has learned from."""
        return self.agent.steps_seen

    def make_env(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Return one environment of the run, wrapped for `predict`; kwargs go to its maker."""
        return make_single(self.config.env, self._factory, **kwargs)

    def make_vector_env(self, num_envs: int) -> VectorEnv:
        """Return the run's environments for loops."""
        config = dataclasses.replace(self.config.env, num_envs=num_envs)
        return make_env(config, self._factory)

    def make_eval_env(self, num_envs: int) -> VectorEnv:
        """Return the run's environments for evaluation: each on a seed of its own."""
        config = dataclasses.replace(self.config.env, num_envs=num_envs)
        if config.vectorization != "async":
            # A vector environment of its own kind may draw all episodes from one generator.
            config = dataclasses.replace(config, vectorization="sync")
        return make_env(config, self._factory)

    def wrap(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """Return `env` in the form the agent expects: flat observations, and its own inputs."""
        return wrap_single(env, self.config.env.inputs)

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """Choose actions, as Stable-Baselines3's policies do.

        Args:
            observation: of an environment from `wrap` or `make_env`, one or a batch of N.
            state: what the call before returned; None at the start.
            episode_start: (N,) bool, True where a new episode begins; None means only where
                `state` is None, and warns once, because memory then runs on over episodes.
            deterministic: take the mode instead of sampling.

        Returns:
            The action, or N of them, as the environment takes them, and the next state.

        Raises:
            ValueError: an entry of the observation is missing or has another shape.
        """
        obs, single = self._batched(observation)
        num = len(next(iter(obs.values())))
        fresh = state is None
        if state is None:
            state = self.agent.initial_state(num)
        if episode_start is None:
            if not fresh and not self._warned:
                self._warned = True
                warnings.warn(
                    "predict: got a state without episode_start: the memory is never cleared; "
                    "pass episode_start (N,) bool",
                    stacklevel=2,
                )
            episode_start = np.full(num, fresh)
        flag = torch.as_tensor(np.asarray(episode_start, bool).reshape(num)).to(self.agent.device)
        action, _, state = self.agent.act(obs, state, flag, flag, explore=not deterministic)
        chosen = restore_action(self.action_space, action.cpu().numpy())
        return (chosen[0] if single else chosen), state

    def _batched(self, observation: Any) -> tuple[dict[str, torch.Tensor], bool]:
        if not isinstance(observation, dict):
            observation = {"obs": observation}
        arrays: dict[str, torch.Tensor] = {}
        single = False
        for key, space in self.obs_space.spaces.items():
            if key not in observation:
                raise ValueError(
                    f"predict: expected the entry {key!r} in the observation, got "
                    f"{sorted(observation)}: take it from agent.wrap(env)"
                )
            shape = space.shape or ()
            array = np.asarray(observation[key], dtype=space.dtype)
            if array.shape[array.ndim - len(shape) :] != shape or array.ndim > len(shape) + 1:
                raise ValueError(
                    f"predict: expected {key!r} to be {shape} or (N, *{shape}), got {array.shape}"
                )
            single = array.ndim == len(shape)
            array = array[None] if single else array
            arrays[key] = torch.as_tensor(array).to(self.agent.device)
        return arrays, single

    def learn(self, total_timesteps: int) -> "TrainedAgent":
        """Train for `total_timesteps` more environment steps, in memory, and return the agent."""
        config = dataclasses.replace(self.config, total_steps=total_timesteps)
        prepare_process(config)
        self.agent.total_steps = self.agent.steps_seen + total_timesteps
        env = self.make_vector_env(config.env.num_envs)
        try:
            training = OnlineTraining(config, self.agent, env, None)
            training.start()
            with Progress(total_timesteps, console=None) as progress:
                training.train(progress)
        finally:
            env.close()
        return self

    def save(self, path: str | Path) -> Path:
        """Write the agent where `load` finds it, in place of one that was saved there before.

        Raises:
            RunError: the folder is a training run, holds an agent with other settings, or
                something else.
        """
        path = Path(path)
        config_text = dump_config(self.config)
        if path.is_dir() and any(path.iterdir()):
            run = RunDirectory.open(path)
            if run.metrics_path.exists():
                raise RunError(f"{path} is a training run, which resumes: save to another folder")
            if run.config_path.read_text(encoding="utf-8") != config_text:
                raise RunError(f"{path} holds an agent with other settings: save to another folder")
        else:
            manifest = build_manifest(
                ["statewise", "train", self.preset], self.config.seed, self.config.device, "episode"
            )
            run = RunDirectory.create(path, config_text, manifest)
        state = {"agent": self.agent.state_dict()}
        save_checkpoint(run.checkpoints_dir, self.step, state, config_text, keep=1)
        return path

    def export(self, path: str | Path, *, batch_size: int = 1) -> Path:
        """Write the greedy policy as one program of `torch.export`; see `agents.export`.

        Args:
            path: the file, ending in .pt2; an older one is replaced.
            batch_size: how many environments a call takes, fixed in the program.

        Raises:
            ConfigError: another ending.
        """
        from statewise.agents.export import export_policy

        path = Path(path)
        if path.suffix != ".pt2":
            raise ConfigError(f"export: expected a file that ends in .pt2, got {path}")
        obs = {
            key: torch.as_tensor(np.asarray(space.sample()))
            for key, space in self.obs_space.spaces.items()
        }
        export_policy(self.agent.network, obs, path, batch_size=batch_size)
        return path


def _device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device: expected a device of this machine, got {name!r}, but torch finds no CUDA "
            "device: pass --device cpu, or install a CUDA build of torch"
        )
    return torch.device(name)


def make(
    preset: str,
    *,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    **overrides: Any,
) -> TrainedAgent:
    """Return an untrained agent for a preset.

    Args:
        preset: a name from `statewise list presets`, or the path of a YAML file.
        env: makes one environment of your own.
        encoder: makes the encoder from the observation space.
        **overrides: settings by dotted path, with `__` for the dot: `agent__learning_rate`.
    """
    config = apply_overrides(load_preset(preset), _dotted(overrides))
    return TrainedAgent(config, env=env, encoder=encoder, preset=preset)


def train(
    preset: str,
    *,
    run: str | Path | None = None,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    **overrides: Any,
) -> TrainedAgent:
    """Train a preset as `statewise train` does, and return the agent; see `make`.

    `run` is the run directory, by default `runs/<preset>-<n>`.
    """
    from statewise.training.cli import default_run

    config = apply_overrides(load_preset(preset), _dotted(overrides))
    words = [f"--{key}={value}" for key, value in _dotted(overrides).items()]
    path = default_run(preset) if run is None else Path(run)
    run_training(config, path, ["statewise", "train", preset, *words], env=env, encoder=encoder)
    return load(path, env=env, encoder=encoder)


def load(
    path: str | Path,
    *,
    checkpoint: int | None = None,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
) -> TrainedAgent:
    """Load the agent of a run directory, or of a folder that `save` wrote.

    Args:
        path: the folder.
        checkpoint: a step; None takes the newest valid checkpoint.
        env: as given to `train`.
        encoder: as given to `train`.

    Raises:
        RunError: the folder is no run.
        CheckpointError: it holds no such checkpoint, or one that does not fit.
    """
    run = RunDirectory.open(Path(path))
    config = load_config(run.config_path)
    trained = TrainedAgent(config, env=env, encoder=encoder, preset=run.read_preset())
    _restore(trained, _read(run, checkpoint), run)
    return trained


def _read(run: RunDirectory, checkpoint: int | None) -> dict[str, Any]:
    if checkpoint is not None:
        return load_checkpoint(run.checkpoints_dir / str(checkpoint))
    newest = newest_checkpoint(run.checkpoints_dir)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints_dir} holds no valid checkpoint: train first")
    return load_checkpoint(newest)


def _restore(trained: TrainedAgent, state: dict[str, Any], run: RunDirectory) -> None:
    try:
        trained.agent.load_state_dict(state["agent"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint in {run.path} is of another agent or environment: {error}"
        ) from error


def _dotted(overrides: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in overrides.items()}


def run_training(
    config: TrainConfig,
    path: Path,
    command: Sequence[str],
    *,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Train in a new run directory and return it."""
    prepare_process(config)
    trained = TrainedAgent(config, env=env, encoder=encoder)
    vector = trained.make_vector_env(config.env.num_envs)
    try:
        manifest = build_manifest(list(command), config.seed, config.device, vector.resume)
        run = RunDirectory.create(path, dump_config(config), manifest)
        with (
            run.lock(),
            closing(OnlineTraining(config, trained.agent, vector, run)) as training,
        ):
            training.start()
            _go(training, quiet)
    finally:
        vector.close()
    return path


def resume_training(
    path: Path,
    command: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Go on with a run exactly where its newest valid checkpoint is, and return it.

    Raises:
        ConfigError: overrides were given; a resumed run keeps its settings.
        RunError: the folder is no run, or its training is complete.
        CheckpointError: it holds no valid checkpoint, or one that does not fit.
    """
    if overrides:
        raise ConfigError(
            f"train --resume: expected no settings, got {' '.join(overrides)}: a resumed run "
            "keeps its own; start a new run to change them"
        )
    run = RunDirectory.open(path)
    config = load_config(run.config_path)
    prepare_process(config)
    with run.lock():
        state = _read(run, None)
        if "collector" not in state:
            raise RunError(f"{path} holds a saved agent, not a run: use load(...).learn(...)")
        if state["steps"] >= config.total_steps:
            raise RunError(f"{path} is complete at {state['steps']} steps: nothing to resume")
        trained = TrainedAgent(config, env=env, encoder=encoder)
        _restore(trained, state, run)
        note_resume(run, command, state["steps"])
        vector = trained.make_vector_env(config.env.num_envs)
        try:
            with closing(OnlineTraining(config, trained.agent, vector, run)) as training:
                training.resume(state)
                _go(training, quiet)
        finally:
            vector.close()
    return path


def _go(training: OnlineTraining, quiet: bool) -> None:
    from rich.console import Console

    console = None if quiet else Console(stderr=True)
    with Progress(
        training.config.total_steps, console=console, start_step=training.steps
    ) as progress:
        training.train(progress)
