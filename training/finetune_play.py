"""Playing for fine-tuning: complete episodes with the memory before every step.

The return asked for is drawn for each episode, g (1 + spread u) with u even in [-1, 1]; on the way
it sinks by the rewards, as in `envs.return_to_go`. Environments are stepped with NEXT_STEP
auto-reset: the row of a final observation ends the episode and gives its last state.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statewise.agents.offline.acting import CORE
from statewise.agents.offline.decision_s4 import DecisionS4
from statewise.agents.offline.hidden_replay import PlayedEpisode
from statewise.agents.offline.inputs import ActionCode
from statewise.envs.protocol import Arrived, Obs, VectorEnv
from statewise.envs.return_to_go import NAME
from statewise.ssm.protocol import State
from statewise.ssm.state import select, where
from statewise.training.stepper import to_tensors


def explored(
    code: ActionCode, action: Tensor, deviation: float, generator: torch.Generator
) -> Tensor:
    """Return actions (B, A) of a Box with Gaussian noise on their codes, within the bounds.

    Args:
        code: of the action space; actions of other spaces come back as they are.
        action: of the space.
        deviation: >= 0, in units of half the range of a bounded axis.
        generator: of the noise.
    """
    if code.nvec or not deviation:
        return action
    exact = code.encode(action)
    noise = torch.randn(exact.shape, generator=generator).to(exact)
    return code.choose(exact + deviation * noise, None)


class Row(NamedTuple):
    """One row of one environment."""

    obs: dict[str, Tensor]
    state: State
    action: Tensor
    """(A,) code."""
    asked: float
    """The return to go that the agent was told."""
    reward: float
    terminated: bool


def _packed(rows: list[Row]) -> dict[str, Any]:
    """Return rows as a few tensors; {} for none."""
    if not rows:
        return {}
    return {
        "obs": {key: torch.stack([row.obs[key] for row in rows]) for key in rows[0].obs},
        "state": {key: torch.stack([row.state[key] for row in rows]) for key in rows[0].state},
        "action": torch.stack([row.action for row in rows]),
        "asked": [row.asked for row in rows],
        "reward": [row.reward for row in rows],
        "terminated": [row.terminated for row in rows],
    }


def episode_of(rows: list[Row]) -> PlayedEpisode:
    """Join rows to an episode; the last one is that of the final observation."""
    packed = _packed(rows)
    return PlayedEpisode(
        obs=packed["obs"],
        action=packed["action"][:-1],
        reward=torch.tensor(packed["reward"][:-1]),
        asked=torch.tensor(packed["asked"]),
        terminated=rows[-2].terminated,
        state=packed["state"],
    )


def _unpacked(packed: dict[str, Any]) -> list[Row]:
    """Return the rows that `_packed` was given."""
    if not packed:
        return []
    return [
        Row(
            {key: value[t] for key, value in packed["obs"].items()},
            {key: value[t] for key, value in packed["state"].items()},
            packed["action"][t],
            packed["asked"][t],
            packed["reward"][t],
            packed["terminated"][t],
        )
        for t in range(len(packed["reward"]))
    ]


class EpisodePlayer:
    """Steps environments with an agent and hands out episodes as they end.

    Args:
        env: with NEXT_STEP auto-reset; it gives what the agent reads, without the return to go.
        agent: acts.
        target: g, the return asked for; it may be changed between two calls of `play`.
        spread: in [0, 1).
        seed: of the returns asked for and of the noise.
    """

    def __init__(
        self, env: VectorEnv, agent: DecisionS4, *, target: float, spread: float, seed: int
    ) -> None:
        self._env, self._agent, self._spread = env, agent, spread
        self.target = target
        self._random = np.random.default_rng(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._obs: Obs = {}
        self._is_first = self._reset = np.zeros(env.num_envs, bool)
        self._left = np.zeros(env.num_envs)
        self._state = self._initial = agent.initial_state(env.num_envs)
        self._rows: list[list[Row]] = [[] for _ in range(env.num_envs)]

    def start(self, seed: int) -> None:
        """Begin episodes in all environments."""
        self._obs, self._is_first = self._env.reset(seed)
        self._reset = self._is_first
        self._ask()

    def _ask(self) -> None:
        """Draw the returns to ask for where an episode begins."""
        if not self._is_first.any():
            return
        drawn = self._random.uniform(-1, 1, self._env.num_envs)
        asked = self.target * (1 + self._spread * drawn)
        self._left = np.where(self._is_first, asked, self._left)

    def play(self, num_rows: int, deviation: float) -> tuple[int, list[PlayedEpisode]]:
        """Step all environments `num_rows` times.

        Args:
            num_rows: >= 1.
            deviation: >= 0, of the exploration noise; discrete actions are drawn from the policy.

        Returns:
            How many valid steps there were, and the episodes that ended.
        """
        num_steps, ended = 0, []
        for _ in range(num_rows):
            arrived = self._step(deviation)
            num_steps += int(arrived.valid.sum())
            for i in (~arrived.valid).nonzero()[0]:
                rows, self._rows[i] = self._rows[i], []
                if len(rows) > 1:  # otherwise the first row after a resume was a final one
                    ended.append(episode_of(rows))
        return num_steps, ended

    def _step(self, deviation: float) -> Arrived:
        agent, place = self._agent, self._agent.device
        flags = torch.from_numpy(self._is_first).to(place), torch.from_numpy(self._reset).to(place)
        obs = to_tensors(self._obs, place)
        asked = self._left.astype(np.float32)
        given = obs | {NAME: torch.from_numpy(asked[:, None]).to(place)}
        before = where(flags[1], self._initial, self._state)
        greedy, _, self._state = agent.act(given, before, *flags, explore=True)
        code = agent.policy.code
        action = explored(code, greedy, deviation, self._noise)
        arrived = self._env.step(action.cpu().numpy())
        # Rounded as in `envs.return_to_go`.
        self._left = self._left - np.where(arrived.valid, arrived.reward, np.float32(0))
        seen = {key: obs[key].cpu() for key in obs if key not in agent.inputs}
        core = {key: value.cpu() for key, value in select(before, CORE).items()}
        codes = code.encode(action).cpu()
        for i, rows in enumerate(self._rows):
            own = {key: value[i] for key, value in seen.items()}
            memory = {key: value[i] for key, value in core.items()}
            reward, over = float(arrived.reward[i]), bool(arrived.terminated[i])
            rows.append(Row(own, memory, codes[i], float(asked[i]), reward, over))
        self._obs, self._is_first, self._reset = arrived.obs, arrived.is_first, arrived.reset
        self._ask()
        return arrived

    def state_dict(self) -> dict[str, Any]:
        """Return what playing needs to go on exactly where it is."""
        return {
            "env": self._env.state_dict(),
            "memory": dict(self._state),
            "reset": self._reset,
            "left": self._left,
            "target": self.target,
            "random": self._random.bit_generator.state,
            "noise": self._noise.get_state(),
            "rows": {str(i): _packed(rows) for i, rows in enumerate(self._rows)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, or from new episodes (`env.resume`)."""
        self._obs, self._is_first = self._env.load_state_dict(state["env"])
        self._reset = self._is_first
        self.target = float(state["target"])
        self._random.bit_generator.state = state["random"]
        self._noise.set_state(state["noise"].cpu())
        if self._env.resume != "exact":
            self._ask()
            return
        self._state = {key: x.to(self._agent.device) for key, x in state["memory"].items()}
        self._reset, self._left = state["reset"], state["left"]
        self._rows = [_unpacked(state["rows"][str(i)]) for i in range(self._env.num_envs)]
