"""An analytic data set for world models: the reward of taking an offer depends on an old cue.

It belongs to `statewise/DelayedOffer-v0`; see `data.toys` for the others.
"""

import math

import numpy as np

from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import ArraySpec, DatasetInfo
from statewise.data.errors import DataConfigError
from statewise.data.toys import box, check_counts, dataset_of

OFFER_AMP, BRIGHT_OFFER, SHORTEST_OFFER = 4.0, 20.0, 2


def delayed_offer(
    num_episodes: int = 2000,
    *,
    length: int = 10,
    low: int | None = None,
    takes: float = 0.5,
    amp: float = OFFER_AMP,
    seed: int = 0,
) -> EpisodeDataset:
    """Return episodes of DelayedOffer with random actions: nothing depends on the cue.

    Args:
        num_episodes: >= 1.
        length: steps between cue and question, >= 1.
        low: None: all wait `length` steps; else delays are uniform in low .. length, >= 2.
        takes: in [0, 1], probability that the offer is taken.
        amp: size of the cue, > 0.
        seed: of numpy's generator, >= 0.

    Raises:
        DataConfigError: a number is out of its range.
    """
    check_counts(num_episodes=num_episodes, length=length)
    shortest = length if low is None else low
    is_ordered = low is None or SHORTEST_OFFER <= low <= length
    if not is_ordered or not 0 <= takes <= 1 or not 0 < amp < math.inf:
        problem = (
            f"expected {SHORTEST_OFFER} <= low <= length, takes in [0, 1] and a finite amp > 0, got"
            f" {low}, {length}, {takes} and {amp}"
        )
        raise DataConfigError(problem, key="low")
    generator = np.random.default_rng(seed)
    cue = generator.integers(2, size=num_episodes)
    delay = generator.integers(shortest, length + 1, size=num_episodes)
    noise = 2 * generator.integers(2, size=(num_episodes, length + 1)) - 1
    actions = generator.integers(2, size=(num_episodes, length + 1))
    every, is_taken = np.arange(num_episodes), generator.uniform(size=num_episodes) < takes
    actions[every, delay] = np.where(is_taken, 0, 1)
    obs = np.zeros((num_episodes, length + 2, 4), np.float32)
    obs[every, 0, cue] = amp
    obs[:, :-1, 2] = noise * (np.arange(length + 1) <= delay[:, None])
    obs[every, delay, 3] = 1
    rewards = np.zeros((num_episodes, length + 1), np.float32)
    rewards[every, delay] = np.where(is_taken, 1 - 2 * cue, 0)
    info = DatasetInfo(
        env_id="statewise/DelayedOffer-v0",
        obs_specs={"obs": box([0, 0, -1, 0], [amp, amp, 1, 1])},
        action_spec=ArraySpec(shape=(), dtype="int64", num_choices=(2,)),
        max_episode_steps=length + 1,
        ref_min=0.0,
        ref_max=0.5,
        generator={
            "made_by": "delayed_offer",
            "length": length,
            "low": shortest,
            "takes": takes,
            "amp": amp,
            "seed": seed,
        },
    )
    return dataset_of(obs, actions, rewards, info, ends="terminated", steps=delay + 1)
