"""A world model that learns from data, with its configuration."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import numpy as np

from statewise.agents.build import AGENTS
from statewise.agents.imagination.world_learner import WorldLearner
from statewise.agents.recurrent_ppo import EncoderFactory
from statewise.data.dataset import EpisodeDataset
from statewise.data.samplers import Sampler
from statewise.training.config import ConfigError, S4WMRun
from statewise.training.evaluate import AS_THE_RUN, EvalOptions, changed
from statewise.training.offline_data import check_same_data, make_sampler
from statewise.training.open_loop_eval import OpenLoopResult, check_episodes, evaluate_open_loop
from statewise.training.playing import EnvFactory, PlayingAgent, find_device
from statewise.training.process import prepare_process
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory, build_manifest
from statewise.training.seeding import Seeds
from statewise.training.trained_offline import RESUME
from statewise.training.world_data import WorldDataTraining
from statewise.training.world_facts import (
    Parts,
    WorldFacts,
    check_rewards,
    facts_of,
    read_parts,
    spaces_of,
)


class TrainedWorldModel(PlayingAgent):
    """A world model that learns from data; it has no policy, and needs no environment.

    Args:
        config: the run's settings.
        data: learned from in place of `config.data.paths`, which may then be empty.
        facts: of the data of a run whose weights will be restored; they are not read then.
        env: None; it needs none.
        encoder: see `WorldLearner`; must be given again at `load`.
        preset: the name the settings came from.

    Raises:
        ConfigError: there are no data, or settings do not fit them.
        DatasetError: the data cannot be read.
    """

    config: S4WMRun
    agent: WorldLearner
    goes_on_with, unit = "fit(dataset, n_steps)", WorldDataTraining.unit

    def __init__(
        self,
        config: S4WMRun,
        *,
        data: EpisodeDataset | None = None,
        facts: WorldFacts | None = None,
        env: EnvFactory | None = None,
        encoder: EncoderFactory | None = None,
        preset: str = "",
    ):
        if env is not None:
            raise ConfigError(
                f"env: expected none for {config.system}, which learns from data, got {env!r}:"
                " leave it out"
            )
        self.config, self.preset = config, preset
        self.eval_seed = Seeds(config.seed).integer("eval")
        self._parts: Parts | None = None
        if facts is None:
            paths = config.data.paths if data is None else ()
            self._parts = self._checked(read_parts(config.data, config.eval, data))
            facts = facts_of(self._parts, paths, config.eval.data)
        self.facts = facts
        self.env_id = facts.learned.env_id or ""
        self.obs_space, self.action_space = spaces_of(facts.info)
        try:
            self.agent = AGENTS[config.system].make(
                config.agent,
                self.obs_space,
                self.action_space,
                total_updates=config.total_updates,
                seed=Seeds(config.seed).integer("policy"),
                device=find_device(config.device),
                encoder=encoder,
            )
        except ValueError as error:  # of a model, which knows no settings of commands
            raise ConfigError(f"data: {error}") from error

    @classmethod
    def opened(cls, config: S4WMRun, run: RunDirectory, **makers: Any) -> "TrainedWorldModel":
        """Return the world model of a run before its weights are restored; see the class."""
        facts = WorldFacts.from_manifest(run.read_manifest(), run.manifest_path)
        return cls(config, facts=facts, preset=run.read_preset(), **makers)

    @property
    def step(self) -> int:
        """Updates the world model has made."""
        return self.agent.updates_made

    @property
    def parts(self) -> Parts:
        """The data of the run, read when they are first asked for.

        Raises:
            RunError: they are not those that the run began with.
        """
        if self._parts is None:
            check_same_data(self.facts.learned)
            check_same_data(self.facts.held_out)
            data = dataclasses.replace(self.config.data, paths=self.facts.learned.paths)
            held_out = self.facts.held_out.paths
            evaluation = dataclasses.replace(self.config.eval, data=held_out[0] if held_out else "")
            self._parts = self._checked(read_parts(data, evaluation))
        return self._parts

    def _checked(self, parts: Parts) -> Parts:
        check_rewards(parts.learned, self.config.agent.world.loss_scale.reward)
        check_episodes(parts.held_out, self.config.eval)
        return parts

    def evaluate(
        self, options: EvalOptions = AS_THE_RUN, **changes: Any
    ) -> tuple[OpenLoopResult, dict[str, Any]]:
        """Imagine the rest of held-out episodes; return what it gave, and for eval.json.

        Args:
            options: None in a field takes the run's own setting.
            **changes: fields of the options, laid over them: `episodes=20`.

        Raises:
            ConfigError: an option of agents that play, or a change that is none.
            RunError: the data of the run are not there or not what they were.
        """
        options = changed(options, changes)
        for name in ("num_envs", "actions", "targets", "watch"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"eval: expected no {name} for {self.config.system}, which plays no episodes,"
                    f" got {getattr(options, name)}: leave it out"
                )
        config = self.config.eval
        config = dataclasses.replace(config, episodes=options.episodes or config.episodes)
        result = evaluate_open_loop(
            self.agent.world,
            self.parts.held_out,
            config,
            seed=self.eval_seed if options.seed is None else options.seed,
        )
        facts = self.facts.held_out if self.facts.held_out.sha256 else self.facts.learned
        return result, {"data_sha256": list(facts.sha256), **result.as_json()}

    def manifest(self, command: Sequence[str], source: Sampler | None = None) -> dict[str, Any]:
        """Describe a run of this world model and its data."""
        config = self.config
        manifest = build_manifest(command, config.seed, config.device, "exact")
        return manifest | {"resume": RESUME} | self.facts.as_json()

    @contextmanager
    def source(self) -> Iterator[Sampler]:
        """Return the batches of a run.

        Raises:
            RunError: the data are not those that the run began with.
        """
        yield make_sampler(self.parts.learned, self.agent.sampling, self._generator())

    def loop(self, source: Sampler, run: RunDirectory | None) -> WorldDataTraining:
        """Return the training of a run."""
        return WorldDataTraining(self.config, self.agent, source, run, self._evaluate_on_the_way)

    def fit(self, dataset: Any = None, n_steps: int | None = None) -> "TrainedWorldModel":
        """Take more updates in memory, and return the world model.

        A schedule of the learning rate begins and ends with what is left of it after the updates
        so far.

        Args:
            dataset: an `EpisodeDataset`, or the path of one or several, changed as `config.data`
                says; None is the data of the run. The last episodes are held out, as in a run.
            n_steps: updates, at least 1; None means those of `config.total_updates`.

        Raises:
            ConfigError, DatasetError: the data cannot be read, or are of another kind.
            RunError: the data of the run are not there or not what they were.
        """
        if dataset is not None:
            self._parts = self._read(dataset)
        steps = self.config.total_updates if n_steps is None else n_steps
        quiet = dataclasses.replace(self.config.eval, every_updates=0)
        config = dataclasses.replace(self.config, total_updates=steps, eval=quiet)
        prepare_process(config)
        self.agent.end_at(self.step + steps)
        with self.source() as sampler:
            training = WorldDataTraining(
                config, self.agent, sampler, None, self._evaluate_on_the_way
            )
            training.start()
            with Progress(steps, console=None) as progress:
                training.train(progress)
        return self

    def _read(self, dataset: Any) -> Parts:
        data = self.config.data
        if not isinstance(dataset, EpisodeDataset):
            paths = [dataset] if isinstance(dataset, str | Path) else list(dataset)
            data, dataset = dataclasses.replace(data, paths=tuple(map(str, paths))), None
        parts = self._checked(read_parts(data, self.config.eval, dataset))
        if spaces_of(parts.learned.info) != (self.obs_space, self.action_space):
            raise ConfigError(
                f"fit: expected observations {self.obs_space} and actions {self.action_space}, as"
                f" before, got {' and '.join(map(str, spaces_of(parts.learned.info)))}"
            )
        return parts

    def _evaluate_on_the_way(self) -> OpenLoopResult:
        return self.evaluate(EvalOptions())[0]

    def _generator(self) -> np.random.Generator:
        # A model that has learned before sees other batches than it began with.
        name = f"data-{self.step}" if self.step else "data"
        return Seeds(self.config.seed).generator(name)

    def make_env(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Refuse: there is no environment."""
        self._refuse("make_env")

    def wrap(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """Refuse: there is no policy that acts in it."""
        self._refuse("wrap")

    def predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is no policy."""
        self._refuse("predict")

    def learn(self, total_timesteps: int) -> NoReturn:
        """Refuse: there is no environment."""
        self._refuse("learn")

    def export(self, path: str | Path, *, batch_size: int = 1) -> NoReturn:
        """Refuse: there is no policy."""
        self._refuse("export")

    def _refuse(self, method: str) -> NoReturn:
        raise ConfigError(
            f"{method}: expected a system with a policy, got {self.config.system}, a world model"
            " alone: call fit or evaluate, or `statewise imagine RUN`"
        )
