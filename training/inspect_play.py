"""Playing of the episodes that `statewise inspect` looks at, with the norms of the states."""

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from statewise.agents.imagination.agent import ACTION
from statewise.envs.spaces import restore_action
from statewise.envs.trial_env import IGNORED, STARTS
from statewise.ssm.protocol import State
from statewise.training.inspect_policy import Played
from statewise.training.playing import PlayingAgent
from statewise.training.stepper import to_tensors

MOST_ROWS = 2000
STATES = ("h", "c", "ssm", "s", "kv")  # of layers: not the inputs that a convolution waits for
OTHERS = ("critic.",)  # state that the policy does not read
PREFIXES = ("core.", "actor.")


def norms_of(state: State) -> dict[str, float]:
    """Return the norm of the state of each layer of a policy, by number of the layer."""
    squares: dict[str, float] = {}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        if name not in STATES or key.startswith(OTHERS):
            continue
        for prefix in PREFIXES:
            layer = f"{layer}.".removeprefix(prefix).removesuffix(".")
        squares[layer] = squares.get(layer, 0.0) + float(value.double().square().sum())
    return {layer: square**0.5 for layer, square in squares.items()}


class _Rows:
    """The rows so far."""

    def __init__(self) -> None:
        self.obs: list[dict[str, Tensor]] = []
        self.actions: list[Tensor] = []
        self.flags: list[tuple[bool, bool]] = []
        self.valid: list[bool] = []
        self.norms: list[dict[str, float]] = []
        self.vectors: list[Tensor] = []

    def played(self, generator: Tensor) -> Played:
        """Return them, in time."""
        is_first, reset = torch.tensor(self.flags).unbind(1)
        return Played(
            obs={key: torch.cat([row[key] for row in self.obs]) for key in self.obs[0]},
            action=torch.cat(self.actions),
            is_first=is_first,
            reset=reset,
            valid=torch.tensor(self.valid),
            norms={
                key: torch.tensor([row[key] for row in self.norms], dtype=torch.float64)
                for key in self.norms[0]
            },
            vectors=torch.cat(self.vectors) if self.vectors else None,
            generator=generator,
        )


def play(trained: PlayingAgent, episodes: int, seed: int, most_rows: int = MOST_ROWS) -> Played:
    """Play episodes of an evaluation, whole trials where there are trials, with the mode.

    Args:
        trained: the agent.
        episodes: at least 1; number i begins with seed + i.
        seed: at least 0.
        most_rows: after so many rows in all it stops, at least 1.
    """
    generator = trained.agent.generator.get_state()
    rows, env = _Rows(), trained.make_single_eval_env()
    try:
        for number in range(episodes):
            _play_one(trained, env, rows, seed + number, most_rows)
    finally:
        env.close()
    return rows.played(generator)


def _play_one(
    trained: PlayingAgent, env: gymnasium.Env[Any, Any], rows: _Rows, seed: int, most_rows: int
) -> None:
    agent, is_over = trained.agent, False
    state: State = agent.initial_state(1)
    obs, _ = env.reset(seed=seed)
    is_first = reset = True
    while not is_over and len(rows.valid) < most_rows:
        batch = {key: np.asarray(value)[None] for key, value in obs.items()}
        seen = to_tensors(batch, agent.device)
        flags = (torch.tensor([flag], device=agent.device) for flag in (is_first, reset))
        if ACTION in state:
            rows.vectors.append(state[ACTION].clone())  # no inference tensor
        action, _, state = agent.act(seen, state, *flags, explore=False)
        rows.obs.append(seen)
        rows.actions.append(action.clone())
        rows.flags.append((is_first, reset))
        rows.norms.append(norms_of(state))
        chosen = restore_action(trained.action_space, action.cpu().numpy())[0]
        obs, _, terminated, truncated, info = env.step(chosen)
        rows.valid.append(not info.get(IGNORED, False))
        is_first, reset = bool(info.get(STARTS, False)), False
        is_over = bool(terminated or truncated)
