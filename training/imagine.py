"""What `statewise imagine` shows: episodes as they were, as they are seen, as they are imagined.

A world model from data is shown its held-out episodes; an agent that imagines plays new ones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import Episode
from statewise.data.step import Step, moved
from statewise.envs.spaces import restore_action
from statewise.training.playing import PlayingAgent
from statewise.training.run import RunDirectory
from statewise.training.schema import ConfigError
from statewise.training.stepper import to_tensors
from statewise.training.trained_world import TrainedWorldAgent
from statewise.training.trained_world_model import TrainedWorldModel
from statewise.worldmodels.entries import Entry
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.open_loop import Latents, OpenLoop, as_numbers

MOST_SEEN, MOST_IMAGINED = 50, 100  # rows, where nobody says how many

Floats = NDArray[np.float32]


class ImagineOptions(NamedTuple):
    """What is shown; None is what the run or the episode says."""

    context: int | None = None
    """Observations that are seen, at least 1."""
    horizon: int | None = None
    """Steps that are imagined, at least 1."""
    episodes: int = 2
    """At least 1."""
    seed: int | None = None
    """Of the samples, and of environments."""
    checkpoint: int | None = None
    device: str | None = None
    out: Path | None = None
    """A .gif of pictures, or a .png of curves."""


class Told(NamedTuple):
    """What a model says about n rows, or what is true of them."""

    obs: dict[str, Floats]
    """(n, ...) by entry: pictures in [0, 1], indices as probabilities of their classes, joined."""
    reward: Floats
    """(n,) on arriving."""
    cont: Floats
    """(n,) probability that the episode has not ended."""


class Scene(NamedTuple):
    """One episode, from its first row on."""

    context: int
    """Rows that are seen, C."""
    truth: Told
    """Rows 0 .. n - 1."""
    seen: Told
    """The same rows, decoded from the posterior."""
    imagined: Told
    """Rows C .. n - 1, decoded from one rollout."""

    def said(self, key: str) -> Floats:
        """Return what the model says of an entry (n, ...): seen at first, then imagined."""
        return np.concatenate((self.seen.obs[key][: self.context], self.imagined.obs[key]))

    def errors(self, key: str) -> tuple[Floats, Floats]:
        """Return mean squares of an entry per row: (n,) of what is seen, (n - C,) imagined."""
        truth = self.truth.obs[key]
        pairs = (self.seen.obs[key] - truth, self.imagined.obs[key] - truth[self.context :])
        seen, imagined = (np.square(d).reshape(len(d), -1).mean(1) for d in pairs)
        return seen, imagined


class Shown(NamedTuple):
    """What `imagine` made."""

    path: Path
    lines: list[str]
    """A line per episode."""


def imagine(run: Path, options: ImagineOptions) -> Shown:
    """Draw episodes of a run beside what its world model makes of them.

    Raises:
        ConfigError: the run has no world model, or an episode is no longer than the context.
        RunError: the figure cannot be written.
    """
    from statewise.training.api import load
    from statewise.training.imagine_draw import draw

    trained = load(run, checkpoint=options.checkpoint, device=options.device)
    torch.set_num_threads(trained.config.num_threads)
    world = world_of(trained)
    seed = trained.eval_seed if options.seed is None else options.seed
    steps = episodes_of(trained, options.episodes, seed)
    context = options.context
    if context is None and isinstance(trained, TrainedWorldModel):
        context = trained.config.eval.context or None
    generator = torch.Generator(trained.agent.device).manual_seed(seed)
    scenes = [
        make_scene(
            world,
            moved(step, trained.agent.device),
            number,
            generator,
            context=context,
            horizon=options.horizon,
        )
        for number, step in enumerate(steps)
    ]
    entries = list(world.decoder.entries.values())
    folder = RunDirectory.open(run).plots_dir
    path = draw(scenes, entries, out=options.out, folder=folder)
    return Shown(path, [describe(scene, number) for number, scene in enumerate(scenes)])


def describe(scene: Scene, number: int) -> str:
    """Return what was drawn of an episode and its errors in words."""
    errors = []
    for key in scene.truth.obs:
        seen, imagined = scene.errors(key)
        errors.append(
            f"{key} {seen[scene.context :].mean():.4g} seen, {imagined.mean():.4g} imagined"
        )
    rows = len(scene.truth.reward)
    return (
        f"episode {number}: context {scene.context}, imagined {rows - scene.context}, mean square"
        f" {'; '.join(errors)}"
    )


def world_of(trained: PlayingAgent) -> WorldModel:
    """Return the world model of a run.

    Raises:
        ConfigError: it has none.
    """
    if not isinstance(trained, TrainedWorldModel | TrainedWorldAgent):
        raise ConfigError(
            "imagine: expected a run with a world model (dreamer, r2i, drama, s4wm), got one of"
            f" {trained.config.system}"
        )
    return trained.agent.world


def episodes_of(trained: PlayingAgent, count: int, seed: int) -> list[Step]:
    """Return episodes (1, T, ...): held out, or of an agent that imagines played now."""
    if isinstance(trained, TrainedWorldModel):
        held_out = trained.parts.held_out
        return [held_out.whole([index]) for index in range(min(count, len(held_out)))]
    assert isinstance(trained, TrainedWorldAgent), type(trained)
    played = EpisodeDataset.from_episodes(play(trained, count, seed))
    return [played.whole([index]) for index in range(count)]


def play(trained: TrainedWorldAgent, count: int, seed: int) -> list[Episode]:
    """Return complete episodes of an agent, with actions as it chose them."""
    env = trained.make_env(**trained.config.eval.kwargs)
    explore = trained.config.eval.actions == "sample"
    episodes = []
    try:
        for index in range(count):
            obs, _ = env.reset(seed=seed + index)
            rows, actions, rewards = [obs], [], []
            flag = torch.ones(1, dtype=torch.bool, device=trained.agent.device)
            state, ends = trained.agent.initial_state(1), [False, False]
            while not any(ends):
                batch = {key: np.asarray(value)[None] for key, value in obs.items()}
                action, _, state = trained.agent.act(
                    to_tensors(batch, trained.agent.device), state, flag, flag, explore=explore
                )
                actions.append(action[0].cpu().numpy())
                chosen = restore_action(trained.action_space, action.cpu().numpy())[0]
                obs, reward, *ends, _ = env.step(chosen)
                rows.append(obs)
                rewards.append(reward)
                flag = torch.zeros_like(flag)
            episodes.append(_episode(rows, actions, rewards, ends))
    finally:
        env.close()
    return episodes


def _episode(
    rows: list[dict[str, Any]], actions: list[Any], rewards: list[Any], ends: Sequence[bool]
) -> Episode:
    return Episode(
        observations={key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]},
        actions=np.stack(actions),
        rewards=np.asarray(rewards, np.float32),
        terminated=bool(ends[0]),
        truncated=bool(ends[1]) and not ends[0],
    )


def make_scene(
    world: WorldModel,
    step: Step,
    number: int,
    generator: torch.Generator,
    *,
    context: int | None = None,
    horizon: int | None = None,
) -> Scene:
    """Return an episode as it was, as it is seen and as it is imagined.

    Args:
        world: the model.
        step: (1, T, ...) from the first row of the episode on.
        number: of the episode, for messages.
        generator: of the samples.
        context: rows that are seen; None is half of them, at most 50.
        horizon: rows that are imagined at most; None is 100.

    Raises:
        ConfigError: the episode is no longer than the context.
    """
    rows = int(step.valid.sum()) + int(bool((step.terminated | step.truncated).any()))
    rows = min(rows, step.valid.shape[1])
    length = min(max(1, rows // 2), MOST_SEEN) if context is None else context
    if not 1 <= length < rows:
        raise ConfigError(
            f"imagine: expected a context of 1 to {rows - 1} of the {rows} observations of episode"
            f" {number}, got {length}: pass another --context"
        )
    seen_rows = torch.tensor([length], device=step.valid.device)
    most = MOST_IMAGINED if horizon is None else horizon
    loop = OpenLoop(world, step, seen_rows, generator, horizon=most)
    n = length + loop.rest.mask.shape[1]
    truth = Told(
        {
            key: _floats(as_numbers(entry, step.obs[key][0, :n]))
            for key, entry in world.decoder.entries.items()
        },
        _floats(loop.arrival.reward_in[0, :n]),
        _floats((~loop.arrival.is_terminal[0, :n]).float()),
    )
    seen = told(world, Latents(*(x[:, :n] for x in loop.seen)))
    return Scene(length, truth, seen, told(world, loop.imagine()))


@torch.no_grad()
def told(world: WorldModel, latents: Latents) -> Told:
    """Return what a model says at states (1, n, ...)."""
    return Told(
        {key: _floats(x[0]) for key, x in world.decode(*latents).items()},
        _floats(world.predict_reward(*latents)[0]),
        _floats(world.continue_logit(*latents)[0].sigmoid()),
    )


def _floats(x: Tensor) -> Floats:
    return x.float().cpu().numpy()


def pictures(entries: Sequence[Entry]) -> list[Entry]:
    """Return those entries that are pictures."""
    return [entry for entry in entries if entry.kind == "picture"]
