"""Training for a data set: evaluated and saved at intervals, and resumed where it stopped.

checkpoints/<step>/   the trainer's state and all evaluations so far
policies/<step>/      the actor's weights at an evaluation
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from statewise.data import normalized_score
from statewise.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from statewise.training.make_data_recipes import MakeConfig, settings_of
from statewise.training.make_data_rollout import Policy, make_environment, returns_of, roll_out
from statewise.training.make_data_sac import Trainer
from statewise.training.progress import Progress
from statewise.training.seeding import Seeds

MEDIUM_SCORE = 100 / 3

_KEPT = 2  # states of the trainer: the newest, and the one before in case it is damaged
_ALL = 10**9

Curve = list[tuple[int, float]]
"""(step, mean return without exploration) of each evaluation."""


def train(trainer: Trainer, folder: Path, console: Console | None) -> Curve:
    """Train to the end, from the newest saved state if there is one; return all evaluations.

    Args:
        trainer: a new one.
        folder: for states and policies.
        console: where to show the progress; None shows nothing.

    Raises:
        CheckpointError: the disk is full or refuses.
    """
    config, curve = trainer.config, Curve()
    if (newest := newest_checkpoint(folder / "checkpoints")) is not None:
        state = load_checkpoint(newest)
        trainer.load_state_dict(state["trainer"])
        curve = [(step, mean) for step, mean in state["curve"]]
    text = json.dumps(settings_of(config), indent=2)
    with Progress(config.steps, start_step=trainer.step, console=console) as progress:
        while trainer.step < config.steps:
            goal = (trainer.step // config.eval_every + 1) * config.eval_every
            trainer.train_to(min(goal, config.steps), progress.update)
            if trainer.step > config.learning_starts:
                weights = trainer.weights()
                mean = float(evaluate(config, trainer.greedy(weights)).mean())
                curve.append((trainer.step, mean))
                progress.update(*curve[-1])
                actor = {"actor": weights}
                save_checkpoint(folder / "policies", trainer.step, actor, text, keep=_ALL)
            state = {"trainer": trainer.state_dict(), "curve": curve}
            save_checkpoint(folder / "checkpoints", trainer.step, state, text, keep=_KEPT)
    return curve


def load_policy(folder: Path, step: int) -> dict[str, Tensor]:
    """Return the actor's weights that `train` saved at an evaluation.

    Raises:
        CheckpointError: they are not there, or damaged.
    """
    weights: dict[str, Tensor] = load_checkpoint(folder / "policies" / str(step))["actor"]
    return weights


def evaluate(
    config: MakeConfig, policy: Policy, *, stream: str = "eval", episodes: int | None = None
) -> NDArray[np.float64]:
    """Return (E,) returns of a policy in new environments.

    Args:
        config: of the environment and the root seed.
        policy: is asked.
        stream: the seeds of the episodes follow from it.
        episodes: E; None is `config.eval_episodes`.
    """
    make = partial(make_environment, config.env_id)
    seed = Seeds(config.seed).integer(stream)
    return returns_of(roll_out(make, policy, episodes=episodes or config.eval_episodes, seed=seed))


def medium_candidates(curve: Curve, ref_min: float, ref_max: float) -> list[int]:
    """Return the steps of the policies one of which is about a third as good as the expert.

    They are the first whose evaluation reaches a third, and its neighbours: an evaluation of few
    episodes is only about right.

    Args:
        curve: at least one evaluation, by step.
        ref_min: return of score 0.
        ref_max: return of score 100, > ref_min.
    """
    scores = normalized_score([mean for _, mean in curve], (ref_min, ref_max))
    reached = np.flatnonzero(scores >= MEDIUM_SCORE)
    first = int(reached[0]) if len(reached) else int(scores.argmax())
    return [step for step, _ in curve[max(0, first - 1) : first + 2]]


def choose_expert(curve: Curve) -> int:
    """Return the step of the best evaluation, the first of equal ones."""
    return max(curve, key=lambda entry: entry[1])[0]
