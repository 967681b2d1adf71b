"""An agent that learns in its environment, with its configuration."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from statewise.agents.build import AGENTS
from statewise.agents.recurrent_ppo import EncoderFactory, RecurrentPPO
from statewise.envs.build import EnvConfig, make_env, make_single, steps_together, wrap_like
from statewise.envs.protocol import EnvError, VectorEnv
from statewise.training.config import ConfigError, TrainConfig
from statewise.training.distributed import share
from statewise.training.evaluate import AS_THE_RUN, EvalOptions, Returns, changed, evaluate
from statewise.training.evaluate_trials import evaluate_trials
from statewise.training.online import OnlineTraining
from statewise.training.own_env import NotGiven, Spaces, given, note, spaces_in
from statewise.training.playing import EnvFactory, PlayingAgent, find_device
from statewise.training.process import prepare_process
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory, build_manifest
from statewise.training.seeding import Seeds


class TrainedAgent(PlayingAgent):
    """An agent that learns in its environment.

    Args:
        config: the run's settings.
        env: makes one environment, for tasks that are not registered; None uses config.env.id.
        encoder: see `RecurrentPPO`; must be given again at `load`.
        preset: the name the settings came from.
    """

    config: TrainConfig
    agent: RecurrentPPO
    goes_on_with, unit = "learn(total_timesteps)", OnlineTraining.unit

    def __init__(
        self,
        config: TrainConfig,
        *,
        env: EnvFactory | None = None,
        encoder: EncoderFactory | None = None,
        preset: str = "",
    ):
        self.config, self.preset, self.env_id = config, preset, config.env.id
        self._factory = env
        seeds = Seeds(config.seed)
        self.eval_seed = seeds.integer("eval")
        known = env.spaces if isinstance(env, NotGiven) else spaces_in(self.make_env())
        self.obs_space, self.action_space = known
        device = find_device(config.device)
        try:
            self.agent = AGENTS[config.system].make(
                config.agent,
                self.obs_space,
                self.action_space,
                seed=seeds.integer("policy"),
                device=device,
                encoder=encoder,
                **self._schedule(),
            )
        except EnvError:
            raise
        except ValueError as error:  # of an agent, which knows no settings of commands
            raise ConfigError(f"agent: {error}") from error

    def _schedule(self) -> dict[str, Any]:
        """Return what the agent is told about the length of its training."""
        return {"total_steps": self.config.total_steps}

    @classmethod
    def opened(cls, config: TrainConfig, run: RunDirectory, **makers: Any) -> "TrainedAgent":
        """Return the agent of a run before its weights are restored; see the class."""
        return cls(config, preset=run.read_preset(), **makers)

    @property
    def step(self) -> int:
        """Environment steps the agent has learned from."""
        return self.agent.steps_seen

    def make_env(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Return one environment of the run, wrapped for `predict`; kwargs go to its maker."""
        return make_single(self.config.env, self.factory, **kwargs)

    def make_vector_env(self, num_envs: int) -> VectorEnv:
        """Return the run's environments for loops."""
        config = dataclasses.replace(self.config.env, num_envs=num_envs)
        return make_env(config, self.factory)

    def make_eval_env(self, num_envs: int) -> VectorEnv:
        """Return the environments of an evaluation: each on a seed of its own."""
        config = dataclasses.replace(self._eval_env_config(), num_envs=num_envs)
        together = self.factory is None and steps_together(config)
        if config.vectorization in ("auto", "vector_entry_point") and not together:
            # A vector environment of its own kind may draw all episodes from one generator.
            config = dataclasses.replace(config, vectorization="sync")
        return make_env(config, self.factory)

    def make_single_eval_env(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Return one environment of an evaluation, wrapped for `predict`."""
        return make_single(self._eval_env_config(), self.factory, **kwargs)

    def _eval_env_config(self) -> EnvConfig:
        env = self.config.env
        return dataclasses.replace(env, kwargs=env.kwargs | self.config.eval.kwargs)

    def wrap(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """Return `env` in the form the agent expects: flat observations, and its own inputs.

        Raises:
            RunError: the run was loaded without the environment of one's own.
        """
        given(self._factory)
        return wrap_like(self.config.env, env)

    def evaluate(
        self, options: EvalOptions = AS_THE_RUN, **changes: Any
    ) -> tuple[Returns, dict[str, Any]]:
        """Play complete episodes, or trials; return what they gave, and the same for eval.json.

        Args:
            options: None in a field takes the run's own setting.
            **changes: fields of the options, laid over them: `episodes=20`.

        Raises:
            ConfigError: targets are given, or a change that is none.
            RunError: the run was loaded without the environment of one's own.
        """
        options = changed(options, changes)
        if options.targets is not None:
            raise ConfigError(
                f"eval: expected no targets for {self.config.system}, which is not told a return, "
                f"got {list(options.targets)}"
            )
        config = self.config.eval
        episodes = options.episodes or config.episodes
        actions = options.actions or config.actions
        env = options.watched(
            self.make_eval_env(min(options.num_envs or config.num_envs, episodes))
        )
        how: dict[str, Any] = {
            "seed": self.eval_seed if options.seed is None else options.seed,
            "explore": actions == "sample",
            "device": self.config.device,
        }
        result: Returns
        try:
            if self.config.env.trial.is_on:
                result = evaluate_trials(self.agent, env, trials=episodes, **how)
            else:
                result = evaluate(self.agent, env, episodes=episodes, **how)
        finally:
            env.close()
        return result, {"actions": actions, **result.as_json()}

    def _evaluate_on_the_way(self) -> Returns:
        return self.evaluate(EvalOptions())[0]

    def manifest(self, command: Sequence[str], source: VectorEnv | None = None) -> dict[str, Any]:
        """Describe a run of this agent in the environments `source`."""
        resume = "episode" if source is None else source.resume
        manifest = build_manifest(command, self.config.seed, self.config.device, resume)
        return manifest | note(self._factory, Spaces(self.obs_space, self.action_space))

    @contextmanager
    def source(self) -> Iterator[VectorEnv]:
        """Return the environments of a run in this process, closed afterwards."""
        env = self.make_vector_env(share(self.config.env.num_envs))
        try:
            yield env
        finally:
            env.close()

    def loop(self, source: VectorEnv, run: RunDirectory) -> OnlineTraining:
        """Return the training of a run."""
        return OnlineTraining(self.config, self.agent, source, run, self._evaluate_on_the_way)

    def learn(self, total_timesteps: int) -> "TrainedAgent":
        """Train for `total_timesteps` more environment steps, in memory, and return the agent."""
        config = dataclasses.replace(self.config, total_steps=total_timesteps)
        prepare_process(config)
        with self.source() as env:
            self.agent.total_steps = self.agent.steps_seen + total_timesteps
            training = OnlineTraining(config, self.agent, env, None, self._evaluate_on_the_way)
            training.start()
            with Progress(total_timesteps, console=None) as progress:
                training.train(progress)
        return self

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
