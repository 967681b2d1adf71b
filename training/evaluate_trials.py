"""Evaluation over trials: whole trials from fresh memory, their returns by episode.

What an agent has learned within a trial is its adaptation gain, the return of the last episode
minus that of the first.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from statewise.agents.generators import draws_apart
from statewise.agents.protocol import ActingAgent
from statewise.envs.protocol import EnvError, InTrial, VectorEnv
from statewise.training.evaluate import share_of
from statewise.training.statistics import Interval, mean_interval
from statewise.training.stepper import to_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST, LAST, LATER = "first_episode", "last_episode", "later_episodes"
GAIN = "adaptation_gain"
NUMBERS = (FIRST, LAST, LATER, GAIN)
"""Of an evaluation over trials in `eval.json`; LATER is the mean of all but the first."""


class PlayedTrial(NamedTuple):
    """One complete trial."""

    env: int
    """Number of its environment."""
    number: int
    """Among the trials of that environment, from 0."""
    returns: tuple[float, ...]
    """Of its complete episodes."""
    length: int
    """Its steps."""


class _Playing:
    """The trials under way in N environments."""

    def __init__(self, num_envs: int) -> None:
        self.played = np.zeros(num_envs, np.int64)
        self._total = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)
        self._returns: list[list[float]] = [[] for _ in range(num_envs)]

    def add(
        self, reward: NDArray[np.float32], valid: NDArray[np.bool_], now: InTrial
    ) -> list[PlayedTrial]:
        """Add a step; return the trials that ended."""
        self._total += reward
        self._length += valid
        for i in now.ended.nonzero()[0]:
            self._returns[i].append(float(self._total[i]))
        self._total[now.ended | now.over] = 0
        rows = []
        for i in now.over.nonzero()[0]:
            returns, length = tuple(self._returns[i]), int(self._length[i])
            rows.append(PlayedTrial(int(i), int(self.played[i]), returns, length))
            self.played[i] += 1
            self._returns[i], self._length[i] = [], 0
        return rows


def play_trials(
    agent: ActingAgent,
    env: VectorEnv,
    wanted: NDArray[np.int64],
    *,
    seed: int,
    explore: bool,
    device: str = "cpu",
) -> list[PlayedTrial]:
    """Play complete trials from fresh memory, in the order of environments.

    Args:
        agent: the policy.
        env: N environments of trials.
        wanted: (N,) how many trials of each count; at least 1 in all.
        seed: of the environments and of sampled actions.
        explore: sample the actions, or take the mode.
        device: where the agent lives.

    Raises:
        EnvError: the environments have no trials.
    """
    place = torch.device(device)
    playing, rows = _Playing(env.num_envs), list[PlayedTrial]()
    obs, is_first = env.reset(seed)
    reset = is_first
    state = agent.initial_state(env.num_envs)
    with draws_apart(agent, seed):
        while (playing.played < wanted).any():
            flags = (torch.from_numpy(flag).to(place) for flag in (is_first, reset))
            action, _, state = agent.act(to_tensors(obs, place), state, *flags, explore=explore)
            arrived = env.step(action.cpu().numpy())
            if arrived.trial is None:
                raise EnvError(
                    "expected environments of trials, got single episodes: set env.trial"
                )
            obs, is_first, reset = arrived.obs, arrived.is_first, arrived.reset
            ended = playing.add(arrived.reward, arrived.valid, arrived.trial)
            rows += [row for row in ended if row.number < wanted[row.env]]
    return sorted(rows)


class TrialsResult(NamedTuple):
    """What an evaluation over trials gave."""

    by_episode: tuple[Interval, ...]
    """Mean return of the first, second, ... episode, as many as every trial had."""
    of_trials: Interval
    """Mean over trials of the mean return of these episodes."""
    gain: Interval
    """Last minus first episode, over trials."""
    trials: list[dict[str, Any]]
    """Per trial: return, the mean of its episodes; returns, one per episode; length; seed of its
    environment; index within that environment."""

    @property
    def return_mean(self) -> float:
        """The mean return of an episode."""
        return self.of_trials.mean

    def as_json(self) -> dict[str, Any]:
        """Return what eval.json says; "episodes" has an entry per trial."""
        later = [one.mean for one in self.by_episode[1:]]
        return {
            "return_mean": self.return_mean,
            "return_ci95": self.of_trials[1:],
            "return_by_episode": [
                {"mean": one.mean, "ci95": (one.low, one.high)} for one in self.by_episode
            ],
            FIRST: self.by_episode[0].mean,
            LAST: self.by_episode[-1].mean,
            LATER: float(np.mean(later)) if later else None,
            GAIN: self.gain.mean,
            f"{GAIN}_ci95": self.gain[1:],
            "episodes": self.trials,
        }

    def logged(self) -> dict[str, float]:
        """Return what a log says of an evaluation on the way."""
        report = self.as_json()
        known = {f"eval/{name}": report[name] for name in NUMBERS if report[name] is not None}
        return {"eval/return_mean": self.return_mean} | known

    def lines(self) -> list[str]:
        """Return a line with the returns by episode, and one that sums up."""
        returns = " ".join(f"{one.mean:.3g}" for one in self.by_episode)
        return [
            f"return by episode: {returns}",
            f"return {self.return_mean:.4g}, last minus first episode {self.gain.mean:.3g}, 95 % "
            f"interval {self.gain.low:.3g} to {self.gain.high:.3g}, {len(self.trials)} trials",
        ]


def summarize_trials(rows: list[PlayedTrial], seed: int) -> TrialsResult:
    """Return means and intervals over trials; environment i began with seed + i.

    Episodes that not every trial had count for nothing.

    Raises:
        EnvError: a trial had no complete episode.
    """
    count = min(len(row.returns) for row in rows)
    if not count:
        raise EnvError(
            "expected a complete episode in every trial, got a trial without: raise env.trial.steps"
        )
    returns = np.array([row.returns[:count] for row in rows])
    trials = [
        {
            "return": float(values.mean()),
            "returns": list(row.returns),
            "length": row.length,
            "seed": seed + row.env,
            "index": row.number,
        }
        for row, values in zip(rows, returns, strict=True)
    ]
    return TrialsResult(
        tuple(mean_interval(column) for column in returns.T),
        mean_interval(returns.mean(1)),
        mean_interval(returns[:, -1] - returns[:, 0]),
        trials,
    )


def evaluate_trials(
    agent: ActingAgent,
    env: VectorEnv,
    *,
    trials: int,
    seed: int,
    explore: bool,
    device: str = "cpu",
) -> TrialsResult:
    """Play `trials` complete trials from fresh memory.

    Environment i starts with seed + i and plays (trials + i) // num_envs of them.

    Args:
        agent: the policy.
        env: at most `trials` environments.
        trials: at least 1.
        seed: of the environments and of sampled actions.
        explore: sample the actions, or take the mode.
        device: where the agent lives.

    Raises:
        EnvError: the environments have no trials, or a trial no complete episode.
    """
    wanted = share_of(trials, env.num_envs)
    rows = play_trials(agent, env, wanted, seed=seed, explore=explore, device=device)
    return summarize_trials(rows, seed)


def draw_by_episode(result: TrialsResult, title: str, path: Path) -> None:
    """Draw the return over the number of the episode within the trial, with its interval.

    Args:
        result: of an evaluation.
        title: of the figure.
        path: of the figure; its folder is made.
    """
    figure, axes = start_by_episode(title)
    number = np.arange(1, len(result.by_episode) + 1)
    mean, low, high = np.array(result.by_episode).T
    [line] = axes.plot(number, mean, marker="o", label=f"{len(result.trials)} trials")
    axes.fill_between(number, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    axes.legend(edgecolor="none", title="mean and 95 % interval")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def start_by_episode(title: str) -> "tuple[Figure, Axes]":
    """Return a figure with axes for returns over the episodes of a trial."""
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel("episode of the trial")
    axes.set_ylabel("return")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
