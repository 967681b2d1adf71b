"""Evaluation: a fixed number of complete episodes, their returns and an interval."""

from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from statewise.agents.generators import draws_apart
from statewise.agents.protocol import ActingAgent
from statewise.envs.protocol import VectorEnv
from statewise.training.run import RunDirectory, write_json
from statewise.training.schema import ACTIONS, ConfigError, nearest
from statewise.training.statistics import mean_interval
from statewise.training.stepper import to_tensors


class Evaluation(Protocol):
    """What an evaluation gave, of whatever kind."""

    def lines(self) -> list[str]:
        """Return what a person wants to read first; the last line sums up."""
        ...


class Returns(Evaluation, Protocol):
    """What an evaluation by playing gave."""

    @property
    def return_mean(self) -> float:
        """The mean return of an episode."""
        ...

    def as_json(self) -> dict[str, Any]:
        """Return what eval.json says of it."""
        ...

    def logged(self) -> dict[str, float]:
        """Return what a log says of it on the way."""
        ...


Evaluate = Callable[[], Returns]
"""Plays the episodes of an evaluation on the way."""


class EvalResult(NamedTuple):
    """What an evaluation gave."""

    return_mean: float
    return_ci95: tuple[float, float]
    episodes: list[dict[str, Any]]
    """Per episode: return, length, seed of its environment, index within that environment."""
    targets: tuple["TargetResult", ...] = ()
    """Of an agent that learned from data: one per target, the first being the rest of this."""

    def as_json(self) -> dict[str, Any]:
        """Return mean, interval and episodes for eval.json."""
        return {key: value for key, value in self._asdict().items() if key != "targets"}

    def logged(self) -> dict[str, float]:
        """Return what a log says of an evaluation on the way."""
        return {"eval/return_mean": self.return_mean}

    def lines(self) -> list[str]:
        """Return a line per target, with its score, and one with the return."""
        low, high = self.return_ci95
        return [one.line() for one in self.targets] + [
            f"return {self.return_mean:.4g}, 95 % interval {low:.4g} to {high:.4g}, "
            f"{len(self.episodes)} episodes"
        ]


class TargetResult(NamedTuple):
    """What an evaluation gave for one target."""

    target: float | None
    """None for an agent that is not told one."""
    result: EvalResult
    score: float | None
    """Normalised mean return, None without reference returns."""

    def as_json(self) -> dict[str, Any]:
        """Return an entry of "targets" in eval.json."""
        return {"target": self.target, "score": self.score, **self.result.as_json()}

    def line(self) -> str:
        """Return target, return and score in words."""
        asked = "" if self.target is None else f"target {self.target:g}: "
        score = "not known" if self.score is None else f"{self.score:.1f}"
        return f"{asked}return {self.result.return_mean:.4g}, score {score}"


class EvalOptions(NamedTuple):
    """What an evaluation does otherwise than the run's settings say; None keeps those."""

    episodes: int | None = None
    num_envs: int | None = None
    seed: int | None = None
    actions: str | None = None
    targets: tuple[float, ...] | None = None
    """Returns to ask for, of agents that are told one."""
    watch: Callable[[VectorEnv], VectorEnv] | None = None
    """Put around the environments that are played in, to see what is done there."""

    def watched(self, env: VectorEnv) -> VectorEnv:
        """Return the environments as they are to be played in."""
        return env if self.watch is None else self.watch(env)


AS_THE_RUN = EvalOptions()
"""Every option as the run has it."""
_LEAST = {"episodes": 1, "num_envs": 1, "seed": 0}


def _is_targets(value: Any) -> bool:
    if not isinstance(value, tuple | list):
        return value is None
    return all(isinstance(one, Real) for one in value)


def changed(options: EvalOptions, changes: dict[str, Any]) -> EvalOptions:
    """Return the options with some of their fields replaced.

    Raises:
        ConfigError: there is no such field, or its value is out of range.
    """
    for name, value in changes.items():
        if name not in options._fields:
            known = ", ".join(options._fields)
            raise ConfigError(
                f"evaluate: expected options among {known}, got {name!r}"
                f"{nearest(name, options._fields)}"
            )
        wanted = ""
        if name in _LEAST and value is not None:
            if not isinstance(value, Integral) or value < _LEAST[name]:
                wanted = f"an integer, at least {_LEAST[name]}"
        elif name == "targets" and not _is_targets(value):
            wanted = "a sequence of numbers"
        elif name == "actions" and value not in (None, *ACTIONS):
            wanted = " or ".join(ACTIONS)
        if wanted:
            raise ConfigError(
                f"evaluate: {name}: expected {wanted}, got {value!r}: leave it out to do as the "
                "run's settings say"
            )
    return options._replace(**changes)


class Evaluable(Protocol):
    """An agent of a run, as far as its evaluation goes; see `PlayingAgent`."""

    config: Any
    preset: str
    env_id: str

    @property
    def step(self) -> int:
        """What the agent has learned from."""
        ...

    def evaluate(self, options: EvalOptions) -> tuple[Evaluation, dict[str, Any]]:
        """Return what an evaluation gave, and the same for eval.json."""
        ...


class Played(NamedTuple):
    """One complete episode."""

    env: int
    """Number of its environment."""
    number: int
    """Among the episodes of that environment, from 0."""
    total: float
    """Sum of its rewards."""
    length: int


def play_episodes(
    agent: ActingAgent,
    env: VectorEnv,
    wanted: NDArray[np.int64],
    *,
    seed: int,
    explore: bool,
    device: str = "cpu",
) -> list[Played]:
    """Play complete episodes from fresh memory, in the order of environments.

    Args:
        agent: the policy.
        env: N environments.
        wanted: (N,) how many episodes of each count; at least 1 in all.
        seed: of the environments and of sampled actions.
        explore: sample the actions, or take the mode.
        device: where the agent lives.
    """
    place = torch.device(device)
    played = np.zeros(env.num_envs, np.int64)
    total = np.zeros(env.num_envs)
    length = np.zeros(env.num_envs, np.int64)
    rows: list[Played] = []
    obs, is_first = env.reset(seed)
    reset = is_first
    state = agent.initial_state(env.num_envs)
    with draws_apart(agent, seed):
        while (played < wanted).any():
            action, _, state = agent.act(
                to_tensors(obs, place),
                state,
                torch.from_numpy(is_first).to(place),
                torch.from_numpy(reset).to(place),
                explore=explore,
            )
            arrived = env.step(action.cpu().numpy())
            obs, is_first, reset = arrived.obs, arrived.is_first, arrived.reset
            total += arrived.reward
            length += arrived.valid
            for i in (arrived.terminated | arrived.truncated).nonzero()[0]:
                if played[i] < wanted[i]:
                    rows.append(Played(int(i), int(played[i]), float(total[i]), int(length[i])))
                played[i] += 1
                total[i], length[i] = 0, 0
    return sorted(rows)


def share_of(episodes: int, num_envs: int) -> NDArray[np.int64]:
    """Return (N,) how many of the episodes each environment plays.

    The numbers are fixed beforehand, so that short episodes are not preferred.
    """
    return (episodes + np.arange(num_envs)) // num_envs


def summarize(rows: list[Played], seed: int) -> EvalResult:
    """Return the mean, its interval and the episodes; environment i began with seed + i."""
    mean, low, high = mean_interval([row.total for row in rows])
    episodes = [
        {"return": row.total, "length": row.length, "seed": seed + row.env, "index": row.number}
        for row in rows
    ]
    return EvalResult(mean, (low, high), episodes)


def evaluate(
    agent: ActingAgent,
    env: VectorEnv,
    *,
    episodes: int,
    seed: int,
    explore: bool,
    device: str = "cpu",
) -> EvalResult:
    """Play `episodes` complete episodes from fresh memory.

    Environment i starts with seed + i and plays (episodes + i) // num_envs of them, so that
    short episodes are not preferred; these are the episodes that Stable-Baselines3's
    `evaluate_policy` plays after `env.seed(seed)`.

    Args:
        agent: the policy.
        env: at most `episodes` environments.
        episodes: at least 1.
        seed: of the environments and of sampled actions.
        explore: sample the actions, or take the mode.
        device: where the agent lives.
    """
    wanted = share_of(episodes, env.num_envs)
    rows = play_episodes(agent, env, wanted, seed=seed, explore=explore, device=device)
    return summarize(rows, seed)


def evaluate_run(
    path: Path,
    *,
    episodes: int | None = None,
    num_envs: int | None = None,
    seed: int | None = None,
    actions: str | None = None,
    targets: tuple[float, ...] | None = None,
    checkpoint: int | None = None,
    device: str | None = None,
) -> Evaluation:
    """Evaluate a run's agent and write `eval.json`; None takes the run's own setting.

    Of an evaluation over trials the returns by episode are also drawn, in the run's `plots/`.

    Raises:
        CheckpointError: the checkpoint does not exist or cannot be read.
        ConfigError: an option that this agent does not have.
        EnvError: the environment cannot be made.
        RunError: it was one's own, which only Python can give.
    """
    from statewise.training.api import load

    trained = load(path, checkpoint=checkpoint, device=device)
    return evaluate_trained(trained, path, EvalOptions(episodes, num_envs, seed, actions, targets))


def evaluate_trained(trained: Evaluable, path: Path, options: EvalOptions) -> Evaluation:
    """Evaluate the agent of a run and write `eval.json`; see `evaluate_run`."""
    from statewise.training.evaluate_trials import TrialsResult, draw_by_episode

    torch.set_num_threads(trained.config.num_threads)  # as in training
    result, report = trained.evaluate(options)
    head = {"env": trained.env_id, "preset": trained.preset, "step": trained.step}
    run = RunDirectory.open(path)
    write_json(run.eval_path, head | report)
    if isinstance(result, TrialsResult):
        title = f"{trained.env_id}, {trained.step:,} steps"
        draw_by_episode(result, title, run.plots_dir / "return_by_episode.png")
    return result
