"""Pong from its pictures, played by a script that knows where the ball is.

Data for world models: random actions alone hardly ever return a ball. The script reads the
console's memory, whose addresses are those of Anand et al. 2019, "Unsupervised State
Representation Learning in Atari", and hands over pictures and actions alone.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformObservation

from statewise.data import EpisodeDataset, atari_scores
from statewise.envs.build import EnvConfig, make_single
from statewise.training.make_data_rollout import Environment, Recorder, environment_info

PONG = "ALE/Pong-v5"
STAY, UP, DOWN = 0, 2, 3  # of the six actions of the game

_PADDLE, _BALL = 51, 54  # bytes: rows, counted from above; the ball's is 0 between two points
_SLACK = 3  # rows around the ball's in which the paddle stays
_CHANGE = 0.1  # probability per step that the script changes its mind


def chase(paddle: int, ball: int) -> int:
    """Return the action that brings the paddle to the row of the ball."""
    if ball == 0 or abs(ball - paddle) <= _SLACK:
        return STAY
    return UP if ball < paddle else DOWN


def pong(
    num_episodes: int = 40, *, chases: float = 0.5, steps: int = 1000, seed: int = 0
) -> EpisodeDataset:
    """Return episodes of Pong that are cut off after some steps.

    Every ten steps on average the script decides anew: it follows the ball with the probability
    `chases`, else it repeats one of up, down and stay.

    Args:
        num_episodes: >= 1; episode k starts with the seed `seed` + k.
        chases: in [0, 1].
        steps: of an episode at most, >= 1; a game takes about 1000 to 4000.
        seed: of the first episode, and of the script.

    Raises:
        EnvError: ale-py is missing.
    """
    game = make_single(EnvConfig(id=PONG))
    assert isinstance(game.observation_space, spaces.Dict)
    shown = game.observation_space["obs"]
    env: Environment = TimeLimit(TransformObservation(game, lambda obs: obs["obs"], shown), steps)
    script = _Script(chases, seed)
    episodes = []
    for index in range(num_episodes):
        playing = Recorder(env, seed + index, index)
        while not playing.step(script.act(env.unwrapped)):
            pass
        episodes.append(playing.episode())
    ref_min, ref_max = atari_scores("pong")  # of whole games
    info = replace(
        environment_info(env),
        ref_min=ref_min,
        ref_max=ref_max,
        generator={"made_by": "pong", "seed": seed, "chases": chases, "steps": steps},
    )
    env.close()
    return EpisodeDataset.from_episodes(episodes, info)


class _Script:
    """Chooses the actions of one episode after the other.

    Args:
        chases: probability that it decides to follow the ball.
        seed: of its decisions.
    """

    def __init__(self, chases: float, seed: int) -> None:
        self._chases = chases
        self._generator = np.random.default_rng(seed)
        self._repeated: int | None = STAY
        """Action; None: it follows the ball."""

    def act(self, game: Any) -> int:
        """Return the next action in a game of ale-py."""
        draw = self._generator
        if draw.random() < _CHANGE:
            follows = draw.random() < self._chases
            self._repeated = None if follows else int(draw.choice([STAY, UP, DOWN]))
        if self._repeated is not None:
            return self._repeated
        memory = game.ale.getRAM()
        return chase(int(memory[_PADDLE]), int(memory[_BALL]))
