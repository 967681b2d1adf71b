"""An agent that learns from data, with its configuration."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import gymnasium
import numpy as np
from gymnasium import spaces

from statewise.agents.build import AGENTS
from statewise.agents.offline.protocol import ObsStatistics, OfflineAgent
from statewise.data.checks import check_env
from statewise.data.dataset import EpisodeDataset
from statewise.data.errors import DatasetError
from statewise.data.samplers import Sampler
from statewise.envs.build import EnvConfig, make_env, make_single, wrap_like
from statewise.envs.previous import Input
from statewise.envs.return_to_go import ReturnToGoWrapper
from statewise.training.config import ConfigError
from statewise.training.distributed import own_stream, share_sampling
from statewise.training.evaluate import AS_THE_RUN, EvalOptions, Returns, TargetResult, changed
from statewise.training.offline import OfflineTraining
from statewise.training.offline_config import OfflineTrainConfig, check_targets
from statewise.training.offline_data import (
    DataFacts,
    check_same_data,
    check_specs,
    describe_data,
    make_sampler,
    prepared,
    read_data,
    statistics_of,
)
from statewise.training.offline_evaluate import asking, evaluate_offline, find_reference
from statewise.training.own_env import NotGiven, Spaces, given, note, spaces_in
from statewise.training.playing import EnvFactory, PlayingAgent, find_device
from statewise.training.process import prepare_process
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory, build_manifest
from statewise.training.seeding import Seeds

RESUME = (
    "resume restores everything: weights, optimiser, counters, random streams and the order in"
    " which the data are drawn"
)
_OWN = "own"  # label of an environment without a name


class TrainedOfflineAgent(PlayingAgent):
    """An agent that learns from data, and plays in an environment.

    Args:
        config: the run's settings.
        data: learned from in place of `config.data.paths`, which may then be empty.
        facts: of the data of a run whose weights will be restored; they are not read then.
        env: makes one environment, for tasks that are not registered; None uses config.env.id.
        encoder: None; pictures are encoded as `config.agent.encoder` says.
        preset: the name the settings came from.

    Raises:
        ConfigError: there are no data or no environment, an encoder was given, or settings of
            the agent do not fit the spaces.
        DatasetError: the data cannot be read, or are not of this environment.
    """

    config: OfflineTrainConfig
    goes_on_with, unit = "fit(dataset, n_steps)", OfflineTraining.unit

    def __init__(
        self,
        config: OfflineTrainConfig,
        *,
        data: EpisodeDataset | None = None,
        facts: DataFacts | None = None,
        env: EnvFactory | None = None,
        encoder: object | None = None,
        preset: str = "",
    ):
        if encoder is not None:
            raise ConfigError(
                f"encoder: expected none for {config.system}, got {encoder!r}: set agent.encoder"
            )
        self.config, self.preset, self._factory = config, preset, env
        self.eval_seed = Seeds(config.seed).integer("eval")
        self._dataset: EpisodeDataset | None = None
        if facts is None:
            self._dataset = read_data(config.data) if data is None else prepared(data, config.data)
            facts = describe_data(self._dataset, config.data.paths if data is None else ())
        self.facts = facts
        self.env_id = config.env.id or facts.env_id or (_OWN if env else "")
        if not self.env_id:
            raise ConfigError(
                "env.id: expected the environment of the evaluation, got none, and the data do "
                "not name theirs: pass --env.id ID"
            )
        flat = self._flat_spaces()
        if self._dataset is not None:
            self._check(self._dataset, flat)
        self._read_space = _entries(flat, facts.obs_keys, self.env_id)
        moments = None if self._dataset is None else statistics_of(self._dataset)
        self.agent: OfflineAgent = self._make_agent(moments, config.total_updates)
        self.reference = find_reference(config.eval.reference, facts)
        known = env.spaces if isinstance(env, NotGiven) else spaces_in(self.make_env())
        names = (*facts.obs_keys, *self.agent.inputs)
        self.obs_space = _entries(known.obs, names, self.env_id)

    @classmethod
    def opened(
        cls, config: OfflineTrainConfig, run: RunDirectory, **makers: Any
    ) -> "TrainedOfflineAgent":
        """Return the agent of a run before its weights are restored; see the class."""
        facts = DataFacts.from_manifest(run.read_manifest(), run.manifest_path)
        return cls(config, facts=facts, preset=run.read_preset(), **makers)

    @property
    def step(self) -> int:
        """Updates the agent has made."""
        return self.agent.updates_made

    def make_env(self, *, target: float | None = None, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Return one environment of the run, wrapped for `predict`.

        Args:
            target: return to ask for; None is the first of the run's.
            **kwargs: added to `config.env.kwargs`, for example `render_mode`.

        Raises:
            ConfigError: a target for an agent that is not told one.
        """
        single = make_single(self._env_config(1), self.factory, **kwargs)
        return self._with_target(single, target)

    def wrap(
        self, env: gymnasium.Env[Any, Any], *, target: float | None = None
    ) -> gymnasium.Env[Any, Any]:
        """Return `env` in the form the agent expects: flat observations, and its own inputs.

        Args:
            env: any single environment.
            target: return to ask for; None is the first of the run's.

        Raises:
            ConfigError: a target for an agent that is not told one.
            RunError: the run was loaded without the environment of one's own.
        """
        given(self._factory)
        return self._with_target(wrap_like(self._env_config(1), env), target)

    def evaluate(
        self, options: EvalOptions = AS_THE_RUN, **changes: Any
    ) -> tuple[Returns, dict[str, Any]]:
        """Play complete episodes for every target; return what they gave, and for eval.json.

        Args:
            options: None in a field takes the run's own setting.
            **changes: fields of the options, laid over them: `episodes=20`.

        Raises:
            ConfigError: targets for an agent that is not told one, or a change that is none.
            RunError: the run was loaded without the environment of one's own.
        """
        options = changed(options, changes)
        config = self.config.eval
        actions = options.actions or config.actions
        results = self.play_targets(options._replace(actions=actions))
        first = results[0]
        reference = None
        if self.reference is not None:
            reference = dict(zip(("name", "min", "max"), self.reference, strict=True))
        report = {
            "actions": actions,
            "data_sha256": list(self.facts.sha256),
            "reference": reference,
            **first.as_json(),
            "targets": [one.as_json() for one in results],
        }
        return first.result._replace(targets=tuple(results)), report

    def play_targets(self, options: EvalOptions) -> list[TargetResult]:
        """Play complete episodes for every target; see `evaluate`."""
        config = self.config.eval
        targets = self._targets(options.targets)
        episodes = options.episodes or config.episodes
        num_envs = min(options.num_envs or config.num_envs, episodes)
        envs = [make_env(self._env_config(num_envs), self.factory) for _ in targets]
        try:
            return evaluate_offline(
                self.agent,
                options.watched(asking(envs, targets, self.config.data.reward)),
                targets=targets,
                episodes=episodes,
                seed=self.eval_seed if options.seed is None else options.seed,
                explore=(options.actions or config.actions) == "sample",
                reference=self.reference,
                device=self.config.device,
            )
        finally:
            for env in envs:
                env.close()

    def manifest(self, command: Sequence[str], source: Sampler | None = None) -> dict[str, Any]:
        """Describe a run of this agent and the data it learns from."""
        config = self.config
        manifest = build_manifest(command, config.seed, config.device, "exact")
        own = note(self._factory, Spaces(self.obs_space, self.action_space))
        return manifest | {"resume": RESUME, "data": self.facts.as_json()} | own

    @contextmanager
    def source(self) -> Iterator[Sampler]:
        """Return the batches of a run in this process.

        Raises:
            RunError: the data are not those that the run began with.
        """
        if self._dataset is None:
            check_same_data(self.facts)
            self._dataset = read_data(self.config.data, self.facts.paths)
        yield make_sampler(self._dataset, share_sampling(self.agent.sampling), self._generator())

    def loop(self, source: Sampler, run: RunDirectory) -> OfflineTraining:
        """Return the training of a run."""
        return OfflineTraining(self.config, self.agent, source, run, self._evaluate_on_the_way)

    def fit(self, dataset: Any = None, n_steps: int | None = None) -> "TrainedOfflineAgent":
        """Take more updates in memory, and return the agent.

        A schedule of the learning rate begins and ends with what is left of it after the updates
        so far, and the inputs are scaled as by the data that the agent was made with.

        Args:
            dataset: an `EpisodeDataset`, or the path of one or several, changed as `config.data`
                says; None is the data of the run.
            n_steps: updates, at least 1; None means those of `config.total_updates`.

        Raises:
            DatasetError: the data cannot be read, or are not of this environment.
            RunError: the data of the run are not there or not what they were.
        """
        if dataset is not None:
            self._dataset = self._read(dataset)
        steps = self.config.total_updates if n_steps is None else n_steps
        quiet = dataclasses.replace(self.config.eval, every_updates=0)
        config = dataclasses.replace(self.config, total_updates=steps, eval=quiet)
        prepare_process(config)
        state = self.agent.state_dict()
        self.agent = self._make_agent(None, self.step + steps)
        self.agent.load_state_dict(state)
        with self.source() as sampler:
            training = OfflineTraining(config, self.agent, sampler, None, self._evaluate_on_the_way)
            training.start()
            with Progress(steps, console=None) as progress:
                training.train(progress)
        return self

    def _read(self, dataset: Any) -> EpisodeDataset:
        if not isinstance(dataset, EpisodeDataset):
            paths = [dataset] if isinstance(dataset, str | Path) else list(dataset)
            changed = dataclasses.replace(self.config.data, paths=tuple(map(str, paths)))
            dataset = read_data(changed)
        else:
            dataset = prepared(dataset, self.config.data)
        self._check(dataset, self._flat_spaces())
        return dataset

    def _check(self, dataset: EpisodeDataset, flat: spaces.Dict) -> None:
        """Raise DatasetError unless the data are of the environment of the evaluation."""
        info, mismatch = dataset.info, self.config.data.env_mismatch
        check_env(info.env_id, self.env_id, mismatch=mismatch, file=info.source or None)
        check_specs(info, flat, self.action_space, self.env_id)

    def _make_agent(self, moments: ObsStatistics | None, total_updates: int) -> OfflineAgent:
        device = find_device(self.config.device)
        try:
            agent: OfflineAgent = AGENTS[self.config.system].make(
                self.config.agent,
                self._read_space,
                self.action_space,
                statistics=moments,
                total_updates=total_updates,
                seed=Seeds(self.config.seed).integer("policy"),
                device=device,
            )
        except DatasetError:
            raise
        except ValueError as error:  # of an agent, which knows no settings of commands
            raise ConfigError(f"agent: {error}") from error
        return agent

    def _env_config(self, num_envs: int) -> EnvConfig:
        known: tuple[Input, ...] = get_args(Input)
        inputs = tuple(name for name in known if name in self.agent.inputs)
        return self.config.env.config(self.env_id, num_envs, inputs)

    def _flat_spaces(self) -> spaces.Dict:
        """Return the observations of the environment without inputs, and note its actions."""
        if isinstance(self._factory, NotGiven):
            known = self._factory.spaces
        else:
            plain = self.config.env.config(self.env_id, 1, ())
            known = spaces_in(make_single(plain, self._factory))
        self.action_space = known.action
        return known.obs

    def _targets(self, asked: tuple[float, ...] | None) -> Sequence[float | None]:
        """Return the targets of an evaluation, [None] for an agent that is not told one."""
        is_told = "return_to_go" in self.agent.inputs
        if not is_told and asked is not None:
            raise ConfigError(
                f"targets: expected none for {self.config.system}, which is not told a return, "
                f"got {list(asked)}"
            )
        if not is_told:
            return [None]
        targets = self.config.eval.returns_asked() if asked is None else asked
        check_targets(targets)
        return targets

    def _with_target(
        self, env: gymnasium.Env[Any, Any], target: float | None
    ) -> gymnasium.Env[Any, Any]:
        first = self._targets(None if target is None else (target,))[0]
        if first is None:
            return env
        return ReturnToGoWrapper(env, first, reward=self.config.data.reward)

    def _evaluate_on_the_way(self) -> list[TargetResult]:
        return self.play_targets(EvalOptions())

    def _generator(self) -> np.random.Generator:
        # An agent that has learned before sees other batches than it began with.
        name = f"data-{self.step}" if self.step else "data"
        return Seeds(self.config.seed).generator(own_stream(name))


def _entries(flat: spaces.Dict, names: Sequence[str], env_id: str) -> spaces.Dict:
    """Return some entries of a space.

    Raises:
        ConfigError: one is missing.
    """
    for name in names:
        if name not in flat.spaces:
            raise ConfigError(
                f"env.id: expected observations with {name!r}, as the data have them, got "
                f"{sorted(flat.spaces)} of {env_id}: set env.id and env.kwargs"
            )
    return spaces.Dict({name: flat[name] for name in names})
