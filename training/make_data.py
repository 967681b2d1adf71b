"""Data sets in the manner of D4RL, made on this machine.

Paper: Fu et al. 2020, "D4RL: Datasets for Deep Data-Driven Reinforcement Learning".

    random          uniform random actions
    medium          the policy of training whose score is nearest to a third of the expert's
    expert          the policy with the best evaluation
    medium-replay   what the training of the medium policy had seen
    full-replay     what the whole training had seen
    medium-expert   medium, then expert

Policies explore while they are recorded. Score 0 is the mean return of random actions, 100 that
of the expert without exploration.

Deviations:
    Levels have a number of episodes, not of steps, so that none is cut in the middle; the
    unfinished episode at the end of a replay buffer is left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from statewise.data import Episode, EpisodeDataset, concatenate, normalized_score, read_d4rl
from statewise.data.errors import EmptyDataset, NoReferenceScore
from statewise.training.make_data_folder import DataFolder, installed_versions, open_folder
from statewise.training.make_data_recipes import (
    LEVELS,
    MakeConfig,
    ToyConfig,
    check_levels,
    level_names,
    settings_of,
)
from statewise.training.make_data_rollout import (
    Policy,
    environment_info,
    make_environment,
    random_policy,
    replay_episodes,
    roll_out,
)
from statewise.training.make_data_sac import Trainer, check_installed, global_streams_kept
from statewise.training.make_data_train import (
    MEDIUM_SCORE,
    Curve,
    choose_expert,
    evaluate,
    load_policy,
    medium_candidates,
    train,
)
from statewise.training.seeding import Seeds

_PACKAGES = ("stable-baselines3", "torch", "gymnasium", "numpy")


class Chosen(NamedTuple):
    """What a finished training says about its levels."""

    ref_min: float
    ref_max: float
    medium: int
    """Step at which the medium policy was saved."""
    expert: int


def make_data(
    config: MakeConfig | ToyConfig,
    out: Path,
    levels: Sequence[str] = (),
    *,
    console: Console | None = None,
) -> list[str]:
    """Make the levels that are not there yet.

    A training that was stopped goes on; a finished one is not repeated for further levels.

    Args:
        config: what to make.
        out: folder, new or of the same config.
        levels: names; none means all.
        console: where to show the progress; None shows nothing.

    Returns:
        The levels that were made now.

    Raises:
        ConfigError: a level or a folder that cannot be used, or a package is missing.
        EnvError: the environment cannot be made, or does not suit.
        NoReferenceScore: the trained policy is no better than random actions.
        DatasetError, CheckpointError: the disk is full or refuses.
    """
    wanted = tuple(levels) or level_names(config)
    check_levels(config, wanted)
    if isinstance(config, ToyConfig):
        return _make_toy(config, out, wanted)
    check_installed()
    make_environment(config.env_id).close()  # refused before there is a folder
    with open_folder(out, settings_of(config), installed_versions(*_PACKAGES)) as folder:
        missing = [level for level in wanted if not folder.has(level)]
        if missing:
            with global_streams_kept():
                _Maker(config, folder, console).make(missing)
    return missing


def _make_toy(config: ToyConfig, out: Path, levels: Sequence[str]) -> list[str]:
    with open_folder(out, settings_of(config), installed_versions("numpy")) as folder:
        missing = [level for level in levels if not folder.has(level)]
        for level in missing:
            dataset = config.make(level)
            origin = {"level": level, "versions": folder.recipe["versions"]}
            folder.add(level, dataset, dataset.info.generator | origin)
    return missing


class _Maker:
    """Trains a policy and records levels of it.

    Args:
        config: how.
        folder: where.
        console: as in `make_data`.
    """

    def __init__(self, config: MakeConfig, folder: DataFolder, console: Console | None) -> None:
        self._config, self._folder, self._console = config, folder, console
        self._training = folder.path / "training"
        self._seeds = Seeds(config.seed)
        self._env = make_environment(config.env_id)
        self._trainer = Trainer(config, self._env)

    def make(self, levels: Sequence[str]) -> None:
        """Train, then write the levels, parts before what is made of them."""
        chosen = self._choose(train(self._trainer, self._training, self._console))
        for level in sorted(levels, key=LEVELS.index):
            if self._console is not None:
                self._console.print(f"recording {level}", highlight=False)
            self._folder.add(level, self._dataset(level, chosen), self._origin(level, chosen))
        self._env.close()

    def _choose(self, curve: Curve) -> Chosen:
        """Return the reference returns and the policies, measured once and noted.

        Raises:
            NoReferenceScore: the best policy is no better than random actions.
        """
        if (noted := self._folder.recipe.get("chosen")) is not None:
            return Chosen(**noted)
        expert = choose_expert(curve)
        low = self._reference(random_policy(self._env, self._seeds.integer("reference.actions")))
        high = self._reference(self._trainer.greedy(load_policy(self._training, expert)))
        if not high > low:
            raise NoReferenceScore(
                "expected a trained policy that is better than random actions, got mean returns"
                f" of {high:.6g} and {low:.6g}",
                file=self._folder.path,
                hint="train for more --steps into another --out",
            )
        medium = self._choose_medium(curve, (low, high))
        chosen = Chosen(ref_min=low, ref_max=high, medium=medium, expert=expert)
        self._folder.note(chosen=chosen._asdict(), curve=curve)
        return chosen

    def _choose_medium(self, curve: Curve, reference: tuple[float, float]) -> int:
        """Return the step of the candidate that, exploring, scores nearest to a third."""

        def distance(step: int) -> float:
            policy = self._explorer(step, "medium.candidates")
            return abs(float(normalized_score(self._reference(policy), reference)) - MEDIUM_SCORE)

        return min(medium_candidates(curve, *reference), key=distance)

    def _reference(self, policy: Policy) -> float:
        """Return the mean return over the reference episodes."""
        episodes = self._config.reference_episodes
        return float(evaluate(self._config, policy, stream="reference", episodes=episodes).mean())

    def _explorer(self, step: int, stream: str) -> Policy:
        """Return the policy of an evaluation as it explores."""
        weights = load_policy(self._training, step)
        return self._trainer.explorer(weights, self._seeds.integer(stream))

    def _dataset(self, level: str, chosen: Chosen) -> EpisodeDataset:
        """Return a level; a part that is in the folder already is read from there."""
        if self._folder.has(level):
            return read_d4rl(self._folder.file(level))
        if level == "medium-expert":
            return concatenate([self._dataset(part, chosen) for part in ("medium", "expert")])
        episodes = self._episodes(level, chosen)
        info = environment_info(self._env)
        if not episodes:
            raise EmptyDataset(
                "expected a finished episode, got none",
                file=self._folder.file(level),
                hint="leave this level out, or train for more --steps into another --out",
            )
        return EpisodeDataset.from_episodes(
            episodes, replace(info, ref_min=chosen.ref_min, ref_max=chosen.ref_max)
        )

    def _episodes(self, level: str, chosen: Chosen) -> list[Episode]:
        if level.endswith("-replay"):
            seen = chosen.medium if level == "medium-replay" else self._config.steps
            return replay_episodes(self._trainer.replay(seen))
        noise = f"{level}.actions"
        if level == "random":
            policy = random_policy(self._env, self._seeds.integer(noise))
        else:
            step = chosen.medium if level == "medium" else chosen.expert
            policy = self._explorer(step, noise)
        make = partial(make_environment, self._config.env_id)
        seed = self._seeds.integer(f"{level}.episodes")
        return roll_out(make, policy, episodes=self._config.episodes, seed=seed)

    def _origin(self, level: str, chosen: Chosen) -> dict[str, Any]:
        """Return how a level was made, for its file."""
        return {
            "made_by": "statewise data make",
            "level": level,
            "medium_step": chosen.medium,
            "expert_step": chosen.expert,
            **settings_of(self._config),
            "versions": self._folder.recipe["versions"],
        }
