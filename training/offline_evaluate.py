"""Evaluation of agents that learned from data: every target on the same start seeds, with scores.

An agent that is told which return to reach is evaluated once per target, all targets in one batch
of environments that are stepped together; any other agent once. Which target is the headline is
fixed beforehand: the first.

Score: 100 (R - R_min) / (R_max - R_min), with the two returns that the data set was stored with,
or those of a D4RL data set by name.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from statewise.agents.offline.protocol import OfflineAgent
from statewise.data.errors import NoReferenceScore
from statewise.data.scores import Range, normalized_score, reference_scores
from statewise.envs.protocol import VectorEnv
from statewise.envs.return_to_go import ReturnToGo, RewardTime
from statewise.envs.stacked import Stacked
from statewise.training.evaluate import TargetResult, play_episodes, share_of, summarize
from statewise.training.offline_config import OF_THE_DATA
from statewise.training.offline_data import DataFacts


class Reference(NamedTuple):
    """The returns of scores 0 and 100, and where they are from."""

    name: str
    low: float
    high: float

    @property
    def range(self) -> Range:
        """(low, high)."""
        return self.low, self.high


def find_reference(name: str, facts: DataFacts) -> Reference | None:
    """Return the reference returns, None where the data were stored with none.

    Args:
        name: "data", or the name of a D4RL data set.
        facts: of the data.

    Raises:
        NoReferenceScore: the name is not known, or the returns of the data span no range.
    """
    if name != OF_THE_DATA:
        return Reference(name, *reference_scores(name))
    low, high = facts.ref_min, facts.ref_max
    if low is None or high is None:
        return None
    if not (np.isfinite([low, high]).all() and low < high):
        raise NoReferenceScore(
            f"expected finite ref_min < ref_max in the data, got {low} and {high}",
            key="eval.reference",
            hint="name a data set of D4RL instead, or correct the data",
        )
    return Reference(name, low, high)


def asking(
    envs: Sequence[VectorEnv], targets: Sequence[float | None], reward: RewardTime
) -> VectorEnv:
    """Return all environments side by side, with the return to go.

    Args:
        envs: one vector environment per target, all with the same number of environments.
        targets: returns to ask for; [None] for an agent that is not told one.
        reward: as the data were learned from; see `ReturnToGo`.
    """
    assert len(envs) == len(targets), (len(envs), len(targets))
    rows = Stacked(envs)
    told = [target for target in targets if target is not None]
    if not told:
        return rows
    return ReturnToGo(rows, np.repeat(told, envs[0].num_envs), reward=reward)


def evaluate_offline(
    agent: OfflineAgent,
    env: VectorEnv,
    *,
    targets: Sequence[float | None],
    episodes: int,
    seed: int,
    explore: bool,
    reference: Reference | None = None,
    device: str = "cpu",
) -> list[TargetResult]:
    """Play `episodes` complete episodes per target; see `training.evaluate.evaluate`.

    Args:
        agent: the policy.
        env: as many environments for each target, at most `episodes`, one target after the other;
            with every input that the agent wants. See `asking`.
        targets: returns that are asked for; [None] for an agent that is not told one.
        episodes: per target, at least 1.
        seed: environment i of each target starts with seed + i.
        explore: sample the actions, or take the mode.
        reference: of the scores.
        device: where the agent lives.
    """
    num_envs = env.num_envs // len(targets)
    wanted = np.tile(share_of(episodes, num_envs), len(targets))
    played = play_episodes(agent, env, wanted, seed=seed, explore=explore, device=device)
    results = []
    for number, target in enumerate(targets):
        own = [
            one._replace(env=one.env % num_envs) for one in played if one.env // num_envs == number
        ]
        result = summarize(own, seed)
        score = None
        if reference is not None:
            score = float(normalized_score(result.return_mean, reference.range))
        results.append(TargetResult(target, result, score))
    return results
