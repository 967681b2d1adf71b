"""What every trained agent offers, wherever it learned: predict, wrap, evaluate, save."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.agents.build import AGENTS
from statewise.agents.protocol import ActingAgent
from statewise.envs.spaces import restore_action
from statewise.ssm.protocol import State
from statewise.training.checkpoint import save_checkpoint
from statewise.training.config import ConfigError, RunConfig, dump_config
from statewise.training.evaluate import AS_THE_RUN, EvalOptions, Evaluation
from statewise.training.loop import Loop
from statewise.training.own_env import given
from statewise.training.run import RunDirectory, RunError
from statewise.training.schema import check_device

EnvFactory = Callable[..., gymnasium.Env[Any, Any]]


def find_device(name: str) -> torch.device:
    """Return a device of this machine.

    Raises:
        ConfigError: it has none of that kind, or there is no such kind.
    """
    try:
        check_device(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device: expected a device of this machine, got {name!r}, but torch finds no CUDA "
            "device: pass --device cpu, or install a CUDA build of torch"
        )
    return torch.device(name)


class PlayingAgent(ABC):
    """An agent with its configuration: what `statewise.make`, `train` and `load` return."""

    config: RunConfig
    preset: str
    """The name the settings came from."""
    env_id: str
    """Of the environment it plays in, or the label of one's own."""
    eval_seed: int
    agent: Any
    """As `agents.build` has it."""
    obs_space: spaces.Dict
    """Flat; what `predict` reads."""
    action_space: spaces.Space[Any]
    goes_on_with: str
    """The method that goes on with its training in memory."""
    unit: str
    """What `step` counts."""

    _factory: EnvFactory | None = None
    _warned = False

    @property
    @abstractmethod
    def step(self) -> int:
        """What the agent has learned from: environment steps, or updates on data."""

    @property
    def factory(self) -> EnvFactory | None:
        """What makes one environment of one's own; None where settings name the environment.

        Raises:
            RunError: the run was loaded without it.
        """
        return given(self._factory)

    @factory.setter
    def factory(self, factory: EnvFactory) -> None:
        self._factory = factory

    @abstractmethod
    def make_env(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Return one environment of the run, wrapped for `predict`; kwargs go to its maker."""

    def make_single_eval_env(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Return one environment of an evaluation; where that has no settings of its own, any."""
        return self.make_env(**kwargs)

    @abstractmethod
    def wrap(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """Return `env` in the form the agent expects: flat observations, and its own inputs."""

    @abstractmethod
    def evaluate(
        self, options: EvalOptions = AS_THE_RUN, **changes: Any
    ) -> tuple[Evaluation, dict[str, Any]]:
        """Play complete episodes; return what they gave, and the same for eval.json.

        Args:
            options: None in a field takes the run's own setting.
            **changes: fields of the options, laid over them: `episodes=20`.

        Raises:
            ConfigError: an option that this agent does not have.
            RunError: the run was loaded without the environment of one's own.
        """

    @abstractmethod
    def manifest(self, command: Sequence[str], source: Any = None) -> dict[str, Any]:
        """Describe a run of this agent; `source` is what it learns from, if it is about to."""

    @abstractmethod
    def source(self) -> AbstractContextManager[Any]:
        """Return what a run learns from: environments, or batches of data."""

    @abstractmethod
    def loop(self, source: Any, run: RunDirectory) -> Loop:
        """Return the training of a run."""

    def learn(self, total_timesteps: int) -> "PlayingAgent":
        """Train in the environment; of agents that learn there.

        Raises:
            ConfigError: this one does not.
        """
        raise ConfigError(self._other_way("learn", "from data"))

    def fit(self, dataset: Any = None, n_steps: int | None = None) -> "PlayingAgent":
        """Train on a data set; of agents that learn from data.

        Raises:
            ConfigError: this one does not.
        """
        raise ConfigError(self._other_way("fit", "in its environment"))

    def export(self, path: str | Path, *, batch_size: int = 1) -> Path:
        """Write the policy as one program of `torch.export`; of agents that can.

        Raises:
            ConfigError: this one cannot.
        """
        raise ConfigError(
            f"export: expected an agent of {_systems('online')}, got {self.config.system}: "
            "load the run and call predict"
        )

    def _other_way(self, method: str, where: str) -> str:
        return (
            f"{method}: expected another system, got {self.config.system}, which learns {where}: "
            f"call {self.goes_on_with}"
        )

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
        agent: ActingAgent = self.agent
        obs, single = self._batched(observation)
        num = len(next(iter(obs.values())))
        fresh = state is None
        if state is None:
            state = agent.initial_state(num)
        if episode_start is None:
            if not fresh and not self._warned:
                self._warned = True
                warnings.warn(
                    "predict: got a state without episode_start: the memory is never cleared; "
                    "pass episode_start (N,) bool",
                    stacklevel=2,
                )
            episode_start = np.full(num, fresh)
        flag = torch.as_tensor(np.asarray(episode_start, bool).reshape(num))
        flag = flag.to(self.config.device)
        action, _, state = agent.act(obs, state, flag, flag, explore=not deterministic)
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
            arrays[key] = torch.as_tensor(array).to(self.config.device)
        return arrays, single

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
            manifest = self.manifest(["statewise", "train", self.preset])
            run = RunDirectory.create(path, config_text, manifest)
        state = {"agent": self.agent.state_dict()}
        save_checkpoint(run.checkpoints_dir, self.step, state, config_text, keep=1)
        return path


def _systems(loop: str) -> str:
    return ", ".join(name for name, row in AGENTS.items() if row.loop == loop)
