"""The memories of `bench ppo` compared in one update: forward and backward of the network.

The masked GRU is the loop that a recurrent PPO runs where resets lie inside its sequences: one
cell per step, the state cleared where the flag says so.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.ppo_network import ActorCritic
from statewise.agents.recurrent_ppo import RecurrentPPOConfig
from statewise.bench.measure import time_calls
from statewise.bench.process import Answer, Job
from statewise.nets.encoder import Encoder
from statewise.ssm.block import BlockConfig
from statewise.ssm.build import SequenceConfig, build_sequence
from statewise.ssm.protocol import SequenceModel, State

RESET_RATE = 0.02
NUM_MINIBATCHES = 4
GRU = SequenceConfig(kind="gru", num_layers=1, d_model=64, block=BlockConfig(kind="plain"))
SYSTEMS: dict[str, tuple[SequenceConfig, bool]] = {
    "statewise S5": (SequenceConfig(kind="s5", num_layers=2, d_model=64), False),
    "masked GRU, step by step": (GRU, True),
    "GRU, fused between resets": (GRU, False),
}


class StepByStep(nn.Module):
    """A sequence model run one step at a time, also in training."""

    def __init__(self, model: SequenceModel):
        super().__init__()
        assert isinstance(model, nn.Module)
        self.model = model

    def forward(self, x: Tensor, state: State, reset: Tensor) -> tuple[Tensor, State]:
        """Run (B, T, D) with resets (B, T)."""
        outputs = []
        for x_t, reset_t in zip(x.unbind(1), reset.unbind(1), strict=True):
            y, state = self.model.step(x_t, state, reset_t)
            outputs.append(y)
        return torch.stack(outputs, 1), state


def make_network(config: SequenceConfig, step_by_step: bool) -> ActorCritic:
    """Return the actor-critic of the presets with this memory, for 8 inputs and 4 actions."""
    agent = RecurrentPPOConfig(sequence=config)
    space = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (8,), np.float32)})
    network = ActorCritic(Encoder(space, agent.encoder), spaces.Discrete(4), config)
    if step_by_step:
        network.sequence = StepByStep(build_sequence(config))  # type: ignore[assignment]
    return network


def run_job(job: Job) -> Answer:
    """Time one update of `num_envs` sequences of T steps, in 4 minibatches of sequences.

    Args:
        job: system, num_envs, T, reps, seconds.

    Returns:
        {"timing": [wall, cpu]}, seconds per update.
    """
    config, step_by_step = SYSTEMS[job["system"]]
    torch.manual_seed(0)
    network = make_network(config, step_by_step)
    B, T = job["num_envs"], job["T"]
    obs, reset = torch.randn(B, T, 8), torch.rand(B, T) < RESET_RATE
    action = torch.randint(4, (B, T))
    state = build_sequence(config).initial_state(B // NUM_MINIBATCHES)

    def update() -> None:
        for rows in torch.arange(B).chunk(NUM_MINIBATCHES):
            network.zero_grad(set_to_none=True)
            policy, value, _ = network({"obs": obs[rows]}, state, reset[rows])
            loss = value.square().mean() - policy.log_prob(action[rows]).mean()
            loss.backward()

    timing: Any = time_calls(update, reps=job["reps"], seconds=job["seconds"])
    return {"timing": timing}
