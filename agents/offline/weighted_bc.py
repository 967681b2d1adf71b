"""Decision S4, on-policy stage by imitation: regression on its own episodes, the best most.

Paper: Bar David et al. 2023, "Decision S4: Efficient Sequence-Based RL via State Spaces Layers";
the scheme is the second one of the code that grew out of it. The latest episodes are kept, with
returns to go as they turned out. Batches hold whole episodes, drawn with probability ~ T^2, and

    loss = sum_e w_e sum_t l(a_hat_t, a_t) / sum_e T_e
    w_e  = clip(exp(G_e / g - 1), 0.01, 10),    G_e = (R_e - R_min) / (R_max - R_min)

g is the highest so far of mean + 0.4 deviations of the kept G, and at least 0.05.

Deviations: G is normalised by the reference returns. The released form divides returns as they
are, which turns the order around where they are negative.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from statewise.agents.offline.decision_s4 import DecisionS4
from statewise.agents.offline.hidden_replay import (
    PlayedEpisode,
    previous_actions,
    returns_to_go,
)
from statewise.agents.offline.tokens import PolicyRows
from statewise.agents.optimizer import Optimizer, OptimizerSettings
from statewise.agents.protocol import Metrics
from statewise.agents.state_dicts import check_keys
from statewise.ssm.state import prefixed, select

LOWEST_WEIGHT, HIGHEST_WEIGHT = 0.01, 10.0
SPREAD = 0.4  # deviations above the mean
LOWEST_GOAL = 0.05  # of the normalised returns
OBS = "obs."


@dataclass(frozen=True, kw_only=True)
class WeightedBCConfig:
    """Settings of the on-policy stage by imitation."""

    learning_rate: float = 1e-4  # > 0, AdamW
    weight_decay: float = 1e-4  # >= 0, never of state-space parameters
    max_grad_norm: float = 0.25  # > 0
    batch_size: int = 16  # >= 1, episodes
    kept_episodes: int = 2000  # >= 1, the latest

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        for name in ("batch_size", "kept_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def episode_weights(scores: Tensor, goal: float) -> Tensor:
    """Return w (E,) of normalised returns G (E,), in [0.01, 10].

    Args:
        scores: G, 0 at R_min and 1 at R_max.
        goal: g > 0.
    """
    return (scores / goal - 1).exp().clamp(LOWEST_WEIGHT, HIGHEST_WEIGHT)


class WeightedBC:
    """Fine-tunes a Decision S4 agent on what it plays, by weighted regression.

    Args:
        agent: trained.
        config: settings.
        reference: R_min and R_max, R_max the higher one.
        seed: of the batches.
    """

    quiet_steps, quiet_noise = 0, 0.0
    """The agent explores from the beginning."""

    def __init__(
        self,
        agent: DecisionS4,
        config: WeightedBCConfig,
        *,
        reference: tuple[float, float],
        seed: int,
    ) -> None:
        self.agent, self.config = agent, config
        self.low, self.high = reference
        self._steps = Optimizer(
            agent.policy,
            OptimizerSettings(
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                total_updates=1,
            ),
        )
        self._kept: deque[PlayedEpisode] = deque(maxlen=config.kept_episodes)
        self.generator = torch.Generator().manual_seed(seed)
        self.goal = LOWEST_GOAL
        self.updates = 0

    def add(self, episode: PlayedEpisode) -> None:
        """Keep an episode without its states, and raise g where the returns have risen."""
        self._kept.append(episode._replace(state={}))
        scores = self.scores(list(self._kept))
        reached = scores.mean() + SPREAD * scores.std(correction=0)
        self.goal = max(self.goal, float(reached))

    def scores(self, episodes: list[PlayedEpisode]) -> Tensor:
        """Return G (E,)."""
        totals = torch.tensor([episode.total for episode in episodes])
        return (totals - self.low) / (self.high - self.low)

    def train(self, steps: int, rounds: int) -> Metrics:
        """Take `rounds` updates, once there is an episode; return means of their metrics.

        Args:
            steps: environment steps so far; it makes no difference.
            rounds: >= 1.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite.
        """
        if not self._kept:
            return {}
        found = [self.update() for _ in range(rounds)]
        return {name: sum(one[name] for one in found) / rounds for name in found[0]}

    def update(self) -> Metrics:
        """Take one gradient step on a batch of whole episodes."""
        episodes = self._draw()
        weights = episode_weights(self.scores(episodes), self.goal).to(self.agent.device)
        rows, valid = self._rows(episodes)
        policy = self.agent.policy.eval()
        error = policy.code.loss(policy(rows), rows.action)
        loss = (weights[:, None] * torch.where(valid, error, 0.0)).sum() / valid.sum()
        report = self._steps.step({"action": loss}, loss, self.updates)
        self.updates += 1
        self.agent.updates_made += 1
        self.agent.acting.forget_weights()
        return {
            "action_loss": float(loss.detach()),
            "weight_mean": float(weights.mean()),
            "grad_norm": report["grad_norm"],
            "goal": self.goal,
        }

    def _draw(self) -> list[PlayedEpisode]:
        lengths = torch.tensor([float(len(episode.action)) for episode in self._kept])
        number = self.config.batch_size
        drawn = torch.multinomial(lengths**2, number, replacement=True, generator=self.generator)
        return [self._kept[index] for index in drawn.tolist()]

    def _rows(self, episodes: list[PlayedEpisode]) -> tuple[PolicyRows, Tensor]:
        """Return the inputs (E, T) of episodes, padded on the right, and which rows are theirs."""
        place = self.agent.device

        def padded(parts: list[Tensor]) -> Tensor:
            return pad_sequence(parts, batch_first=True).to(place)

        valid = padded([torch.ones(len(one.action), dtype=torch.bool) for one in episodes])
        obs = {key: padded([one.obs[key][:-1] for one in episodes]) for key in episodes[0].obs}
        rows = PolicyRows(
            obs=self.agent.policy.inputs(obs),
            action=padded([one.action for one in episodes]),
            previous=padded([previous_actions(one.action)[:-1] for one in episodes]),
            rtg=padded([returns_to_go(one.reward)[:-1] for one in episodes]),
            timestep=torch.arange(valid.shape[1], device=place).expand(valid.shape),
            reset=torch.zeros_like(valid),
        )
        return rows, valid

    def staleness(self) -> Metrics:
        """Return nothing: no state is stored."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that going on needs beside the agent."""
        return {
            "episodes": {
                str(number): prefixed(one.obs, OBS)
                | {
                    "action": one.action,
                    "reward": one.reward,
                    "asked": one.asked,
                    "terminated": torch.tensor(one.terminated),
                }
                for number, one in enumerate(self._kept)
            },
            "moments": self._steps.state_dict(),
            "generator": self.generator.get_state(),
            "goal": self.goal,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the agent is restored apart.

        Raises:
            ValueError: keys differ; one line.
        """
        check_keys(self.state_dict(), state)
        self._kept.clear()
        for one in state["episodes"].values():
            kept = PlayedEpisode(
                obs=select(one, OBS),
                action=one["action"],
                reward=one["reward"],
                asked=one["asked"],
                terminated=bool(one["terminated"]),
                state={},
            )
            self._kept.append(kept)
        self._steps.load_state_dict(state["moments"])
        self.generator.set_state(state["generator"].cpu())
        self.goal = float(state["goal"])
        self.updates = int(state["updates"])
