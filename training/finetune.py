"""Fine-tuning of a trained Decision S4 in its environment: play, train, log, now and then evaluate.

The return asked for follows what is got: after the first episode g becomes (g + 2 G) / 3, from
then on, every `recalibrate_every` episodes, min(g_0, G + margin), with G the mean return of the
episodes in between, g_0 what was asked for at first, and the margin a share of the reference range.

A run of this stage holds the settings of the run that it goes on from in `config.yaml`, so that it
is loaded and evaluated as that one is, and its own in `finetune.yaml`.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from statewise.agents.offline.decision_s4 import DecisionS4
from statewise.agents.offline.finetune_s4 import ActorCritic
from statewise.agents.offline.hidden_replay import PlayedEpisode
from statewise.agents.offline.weighted_bc import WeightedBC
from statewise.agents.protocol import Metrics
from statewise.envs.protocol import VectorEnv
from statewise.training.evaluate import TargetResult
from statewise.training.finetune_config import FinetuneConfig, noise_at
from statewise.training.finetune_play import EpisodePlayer
from statewise.training.loop import Loop
from statewise.training.run import RunDirectory
from statewise.training.seeding import Seeds
from statewise.training.stepper import WINDOW

Evaluate = Callable[[], list[TargetResult]]


class Method(Protocol):
    """A way to learn from what was played; see `ActorCritic` and `WeightedBC`."""

    @property
    def quiet_steps(self) -> int:
        """Environment steps at first in which the agent acts as it came."""
        ...

    @property
    def quiet_noise(self) -> float:
        """Deviation of the exploration noise in them, >= 0."""
        ...

    def add(self, episode: PlayedEpisode) -> None:
        """Take what was played."""
        ...

    def train(self, steps: int, rounds: int) -> Metrics:
        """Take updates after `steps` environment steps; return means of their metrics."""
        ...

    def staleness(self) -> Metrics:
        """Return how far stored states are off, where there are some."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that going on needs beside the agent."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class Goal(NamedTuple):
    """What is asked for, and by what it is judged."""

    target: float
    """g_0, the return asked for at first."""
    low: float
    """Reference return of score 0."""
    high: float
    """Reference return of score 100."""


def make_method(
    agent: DecisionS4, config: FinetuneConfig, goal: Goal, env: VectorEnv, seed: int
) -> Method:
    """Return the way of learning that the settings name; `env` tells the observations."""
    if config.method == "weighted_bc":
        return WeightedBC(agent, config.weighted_bc, reference=(goal.low, goal.high), seed=seed)
    names = [name for name in env.obs_space.spaces if name not in agent.inputs]
    space = type(env.obs_space)({name: env.obs_space[name] for name in names})
    return ActorCritic(agent, config.actor_critic, space, seed=seed)


class FinetuneTraining(Loop):
    """One on-policy stage, in a run directory or (`run` None) only in memory.

    Args:
        config: settings.
        agent: trained on data.
        env: of `config.num_envs` environments, with NEXT_STEP auto-reset.
        goal: what is asked for.
        run: where it is written down.
        seed: root of the random streams, >= 0.
        evaluate: plays the episodes of an evaluation; None plays none.
        config_text: the settings that the agent is loaded with, for checkpoints.
    """

    unit, quantity, command = "steps", "return", "finetune"

    def __init__(
        self,
        config: FinetuneConfig,
        agent: DecisionS4,
        env: VectorEnv,
        goal: Goal,
        *,
        run: RunDirectory | None = None,
        seed: int = 0,
        evaluate: Evaluate | None = None,
        config_text: str = "",
    ):
        super().__init__(
            run,
            config_text=config_text,
            end=config.total_steps,
            every=config.checkpoint_every_steps,
            keep=config.checkpoints_kept,
        )
        self.config, self.agent, self.goal = config, agent, goal
        self._seeds = Seeds(seed)
        self.method = make_method(agent, config, goal, env, self._seeds.integer("finetune"))
        self.player = EpisodePlayer(
            env,
            agent,
            target=goal.target,
            spread=config.target_spread,
            seed=self._seeds.integer("finetune-play"),
        )
        self._evaluate = evaluate
        self._returns: deque[float] = deque(maxlen=WINDOW)
        self._lengths: deque[int] = deque(maxlen=WINDOW)
        self._fresh_returns: list[float] = []  # since g was last chosen
        self._num_choices = 0
        self._sums: dict[str, list[float]] = {}  # name: sum and count since the last line

    def begin(self) -> None:
        """Start the episodes."""
        self.player.start(self._seeds.integer("finetune-env"))

    def state_dict(self) -> dict[str, Any]:
        """Return agent, method, player and what was counted."""
        return {
            "agent": self.agent.state_dict(),
            "method": self.method.state_dict(),
            "player": self.player.state_dict(),
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "fresh_returns": list(self._fresh_returns),
            "num_choices": self._num_choices,
            "sums": {name: list(pair) for name, pair in self._sums.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything but the agent."""
        self.method.load_state_dict(state["method"])
        self.player.load_state_dict(state["player"])
        self._returns.extend(state["returns"])
        self._lengths.extend(state["lengths"])
        self._fresh_returns = list(state["fresh_returns"])
        self._num_choices = int(state["num_choices"])
        self._sums = {name: list(pair) for name, pair in state["sums"].items()}

    def shown(self, metrics: dict[str, float]) -> float | None:
        """Return the mean return of the latest episodes."""
        return float(np.mean(self._returns)) if self._returns else None

    def iterate(self) -> dict[str, float]:
        """Play `train_every` steps, train, log and evaluate where it is time."""
        config = self.config
        method = self.method
        deviation = noise_at(self.steps, method.quiet_steps, config)
        if self.steps < method.quiet_steps:
            deviation = method.quiet_noise
        before = self.steps
        rows = config.train_every // config.num_envs
        num_steps, episodes = self.player.play(rows, deviation)
        self.steps += num_steps
        for episode in episodes:
            self._count(episode)
        metrics: Metrics = {}
        if self.steps >= config.learning_starts:
            metrics = self.method.train(self.steps, config.updates_per_train)
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = [total + value, count + 1]
        evaluation = self._evaluation() if self.is_due(config.eval_every_steps, before) else {}
        if self.is_due(config.log_every_steps, before) or evaluation:
            self._write(deviation, evaluation)
        return metrics

    def _count(self, episode: PlayedEpisode) -> None:
        """Take an episode, and choose the return to ask for next."""
        self.method.add(episode)
        self._returns.append(episode.total)
        self._lengths.append(len(episode.action))
        self._fresh_returns.append(episode.total)
        wanted = self.config.recalibrate_every if self._num_choices else 1
        if len(self._fresh_returns) < wanted:
            return
        got = float(np.mean(self._fresh_returns))
        margin = self.config.target_margin * (self.goal.high - self.goal.low)
        if self._num_choices:
            self.player.target = min(self.goal.target, got + margin)
        else:
            self.player.target = (self.player.target + 2 * got) / 3
        self._num_choices += 1
        self._fresh_returns = []

    def _write(self, deviation: float, evaluation: dict[str, float]) -> None:
        """Write a line of the log."""
        means = {f"train/{name}": total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        rollout: dict[str, float] = {}
        if self._returns:
            rollout = {
                "rollout/ep_rew_mean": float(np.mean(self._returns)),
                "rollout/ep_len_mean": float(np.mean(self._lengths)),
            }
        stale = {f"train/{name}": value for name, value in self.method.staleness().items()}
        rest = {"finetune/target": self.player.target, "finetune/noise": deviation}
        if self.logger is not None:
            self.logger.write(self.steps, rollout | means | stale | rest | evaluation)

    def _evaluation(self) -> dict[str, float]:
        """Return the metrics of an evaluation, those of the first target without its name."""
        metrics: dict[str, float] = {}
        for number, one in enumerate([] if self._evaluate is None else self._evaluate()):
            behind = f"/target_{one.target:g}" if number else ""
            metrics[f"eval/return_mean{behind}"] = one.result.return_mean
            if one.score is not None:
                metrics[f"eval/score{behind}"] = one.score
        return metrics
