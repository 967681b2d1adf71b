"""Configuration of agents that learn from data: the run's dataclasses, one per system.

`training.config` builds them from YAML and overrides, as it does `TrainConfig`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from statewise.agents.offline.algorithm_distillation import AlgorithmDistillationConfig
from statewise.agents.offline.behavior_cloning import BehaviorCloningConfig
from statewise.agents.offline.decision_mamba import DecisionMambaConfig
from statewise.agents.offline.decision_mamba_mg import DecisionMambaMGConfig
from statewise.agents.offline.decision_s4 import DecisionS4Config
from statewise.agents.offline.decision_transformer import DecisionTransformerConfig
from statewise.agents.offline.iql import IQLConfig
from statewise.agents.offline.td3_bc import TD3BCConfig
from statewise.data.checks import check_return_settings
from statewise.data.errors import DataConfigError, NoReferenceScore
from statewise.data.scores import reference_scores
from statewise.envs.build import EnvConfig
from statewise.envs.previous import Input
from statewise.envs.return_to_go import RewardTime
from statewise.envs.trials import TrialConfig
from statewise.training.schema import check_at_least, check_device

OF_THE_DATA = "data"


def check_targets(targets: tuple[float, ...]) -> None:
    """Raise DataConfigError unless there are returns to ask for, finite and none of them twice."""
    check_return_settings(scale=1.0, targets=targets, discount=1.0)
    if len(set(targets)) < len(targets):
        problem = f"expected every return once, got {list(targets)}"
        raise DataConfigError(problem, key="targets")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which data sets are learned from, and what is done to them first."""

    paths: tuple[str, ...] = ()  # files or folders, put one after the other; `--data` fills it
    mode: Literal["memory", "lazy"] = "memory"  # lazy: read from the file when asked
    keep_best: float = 1.0  # (0, 1], share of the episodes kept, those of highest return
    reward: RewardTime = "as_is"  # delayed: the whole return at the last step, acting told alike
    max_episode_steps: int | None = None  # of D4RL and npz files, >= 1; None: theirs or the task's

    def __post_init__(self) -> None:
        if not 0 < self.keep_best <= 1:
            raise ValueError(f"keep_best: expected a share in (0, 1], got {self.keep_best}")
        if self.max_episode_steps is not None:
            check_at_least(1, max_episode_steps=self.max_episode_steps)


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """The data of an agent that is evaluated in an environment."""

    env_mismatch: Literal["error", "warn"] = "error"  # data of another environment than env.id


@dataclass(frozen=True, kw_only=True)
class EvalEnvConfig:
    """Where the agent is evaluated; what it is shown beside the observation, it says itself."""

    id: str = ""  # as gymnasium.make takes it; "" means that of the data
    vectorization: Literal["sync", "async"] = "sync"  # async: each in a process of its own
    kwargs: dict[str, Any] = field(default_factory=dict)  # for gymnasium.make or the factory

    def config(self, data_id: str | None, num_envs: int, inputs: tuple[Input, ...]) -> EnvConfig:
        """Return the settings of `envs.build`.

        Args:
            data_id: environment of the data, used where `id` is "".
            num_envs: at least 1.
            inputs: as in `EnvConfig`.

        Raises:
            ValueError: neither id is known, or `kwargs` holds one of `EnvConfig`'s settings.
        """
        return EnvConfig(
            id=self.id or data_id or "",
            num_envs=num_envs,
            vectorization=self.vectorization,
            inputs=inputs,
            kwargs=self.kwargs,
        )


@dataclass(frozen=True, kw_only=True)
class EvalTrialConfig:
    """What a trial of an evaluation is."""

    episodes: int = 8  # of one task, over which the memory runs on, >= 1

    def __post_init__(self) -> None:
        check_at_least(1, episodes=self.episodes)


@dataclass(frozen=True, kw_only=True)
class TrialEvalEnvConfig(EvalEnvConfig):
    """Where an agent is evaluated that acts over several episodes of a task."""

    trial: EvalTrialConfig = field(default_factory=EvalTrialConfig)

    def config(self, data_id: str | None, num_envs: int, inputs: tuple[Input, ...]) -> EnvConfig:
        """Return the settings of `envs.build`, with trials and, as in histories, no final rows."""
        single = super().config(data_id, num_envs, inputs)
        trial = TrialConfig(episodes=self.trial.episodes)
        return replace(single, autoreset="same_step", trial=trial)


@dataclass(frozen=True, kw_only=True)
class OfflineCheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_updates: int = 500  # updates between two checkpoints, >= 1
    keep: int = 3  # newest checkpoints kept, >= 1

    def __post_init__(self) -> None:
        check_at_least(1, every_updates=self.every_updates, keep=self.keep)


@dataclass(frozen=True, kw_only=True)
class OfflineEvalConfig:
    """How a trained agent is evaluated."""

    episodes: int = 100  # per evaluation, and per target where there are some; or trials, >= 1
    num_envs: int = 25  # environments stepped together, per target, >= 1
    every_updates: int = 0  # updates between two evaluations while training; 0: none
    actions: Literal["greedy", "sample"] = "greedy"  # mode of the policy, or a sample of it
    reference: str = OF_THE_DATA  # returns of scores 0 and 100: "data", or a D4RL data set's name

    def __post_init__(self) -> None:
        check_at_least(1, episodes=self.episodes, num_envs=self.num_envs)
        check_at_least(0, every_updates=self.every_updates)
        if self.reference != OF_THE_DATA:
            try:
                reference_scores(self.reference)
            except NoReferenceScore as error:
                raise ValueError(f"reference: {error}") from error

    def returns_asked(self) -> tuple[float, ...]:
        """Return what is asked for, one evaluation each; none of agents that are not told."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TargetEvalConfig(OfflineEvalConfig):
    """How an agent that is told which return to reach is evaluated."""

    targets: tuple[float, ...]  # returns to ask for, unscaled; the first is the headline

    def __post_init__(self) -> None:
        super().__post_init__()
        check_targets(self.targets)

    def returns_asked(self) -> tuple[float, ...]:
        """Return the targets."""
        return self.targets


@dataclass(frozen=True, kw_only=True)
class DataRunConfig:
    """What every run on data has."""

    system: str  # key of `agents.build.AGENTS`
    data: SourceConfig = field(default_factory=SourceConfig)
    agent: Any  # the agent and its network
    total_updates: int  # gradient steps of the whole run, >= 1
    log_every: int = 10  # updates between two lines of metrics, which are means over them, >= 1
    seed: int = 0  # root of every random stream, >= 0
    device: str = "cpu"  # "cpu", "cuda" or "cuda:N"
    num_threads: int = 1  # threads of one tensor operation, >= 1
    checkpoint: OfflineCheckpointConfig = field(default_factory=OfflineCheckpointConfig)

    def __post_init__(self) -> None:
        check_at_least(
            1,
            total_updates=self.total_updates,
            log_every=self.log_every,
            num_threads=self.num_threads,
        )
        check_at_least(0, seed=self.seed)
        check_device(self.device)

    @property
    def end(self) -> int:
        """Where training ends, in updates."""
        return self.total_updates


@dataclass(frozen=True, kw_only=True)
class OfflineTrainConfig(DataRunConfig):
    """Everything that determines a run of an agent on data; each system has a subclass."""

    data: DataConfig = field(default_factory=DataConfig)
    env: EvalEnvConfig = field(default_factory=EvalEnvConfig)  # where it is evaluated
    eval: OfflineEvalConfig = field(default_factory=OfflineEvalConfig)


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerRun(OfflineTrainConfig):
    """A run of Decision Transformer."""

    system: Literal["dt"]
    agent: DecisionTransformerConfig
    eval: TargetEvalConfig


@dataclass(frozen=True, kw_only=True)
class DecisionS4Run(OfflineTrainConfig):
    """A run of Decision S4."""

    system: Literal["decision_s4"]
    agent: DecisionS4Config
    eval: TargetEvalConfig


@dataclass(frozen=True, kw_only=True)
class DecisionMambaRun(OfflineTrainConfig):
    """A run of Decision Mamba."""

    system: Literal["decision_mamba"]
    agent: DecisionMambaConfig
    eval: TargetEvalConfig


@dataclass(frozen=True, kw_only=True)
class DecisionMambaMGRun(OfflineTrainConfig):
    """A run of multi-grained Decision Mamba."""

    system: Literal["decision_mamba_mg"]
    agent: DecisionMambaMGConfig
    eval: TargetEvalConfig


@dataclass(frozen=True, kw_only=True)
class AlgorithmDistillationRun(OfflineTrainConfig):
    """A run of Algorithm Distillation."""

    system: Literal["ad"]
    agent: AlgorithmDistillationConfig
    env: TrialEvalEnvConfig = field(default_factory=TrialEvalEnvConfig)


@dataclass(frozen=True, kw_only=True)
class BehaviorCloningRun(OfflineTrainConfig):
    """A run of behaviour cloning."""

    system: Literal["bc"]
    agent: BehaviorCloningConfig


@dataclass(frozen=True, kw_only=True)
class TD3BCRun(OfflineTrainConfig):
    """A run of TD3+BC."""

    system: Literal["td3bc"]
    agent: TD3BCConfig


@dataclass(frozen=True, kw_only=True)
class IQLRun(OfflineTrainConfig):
    """A run of IQL."""

    system: Literal["iql"]
    agent: IQLConfig
