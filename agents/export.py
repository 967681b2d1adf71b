"""A policy as one exported program: observation, memory and reset in, action and memory out.

The program of `torch.export` holds the weights and only torch's own operations, so that a robot
needs torch alone to run it:

    program = torch.export.load("policy.pt2").module()
    action, state = program(obs, state, reset)
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statewise.agents.ppo_network import ActorCritic
from statewise.ssm.protocol import State

FACTS = "statewise.json"


class PolicyStep(nn.Module):
    """One greedy step of a policy, every tensor an argument."""

    def __init__(self, network: ActorCritic):
        super().__init__()
        self.network = network

    def forward(self, obs: dict[str, Tensor], state: State, reset: Tensor) -> tuple[Tensor, State]:
        """Return the most probable action and the next state.

        Args:
            obs: (B, ...) per key.
            state: memory before `obs`; what `initial_state` gave, or the call before.
            reset: (B,) bool, True where the memory is cleared before `obs` is read.
        """
        policy, after = self.network.act(obs, state, reset)
        return policy.mode(), after


def example_inputs(
    network: ActorCritic, obs: dict[str, Tensor], batch_size: int
) -> tuple[dict[str, Tensor], State, Tensor]:
    """Return arguments for `PolicyStep`: `obs` of one environment repeated, and a fresh memory."""
    device = next(network.parameters()).device
    batch = {key: x.to(device).expand(batch_size, *x.shape).clone() for key, x in obs.items()}
    state = {key: x.clone() for key, x in network.sequence.initial_state(batch_size).items()}
    return batch, state, torch.ones(batch_size, dtype=torch.bool, device=device)


def export_policy(
    network: ActorCritic, obs: dict[str, Tensor], path: Path, *, batch_size: int = 1
) -> dict[str, Any]:
    """Write the program of one step to `path`.

    Args:
        network: the policy.
        obs: one observation per key, without batch axis; only shapes and dtypes count.
        path: ends in .pt2.
        batch_size: >= 1, the number of environments the program takes, fixed.

    Returns:
        What the file says about itself, under `statewise.json` of its extra files: shapes and
        dtypes of observations and states, and the batch size. A fresh state is all zeros, or
        whatever a call with `reset` all True makes of one.
    """
    step = PolicyStep(network).eval()
    inputs = example_inputs(network, obs, batch_size)
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
        program = torch.export.export(step, inputs, strict=False)
    facts = {
        "batch_size": batch_size,
        "obs": {key: _facts(x) for key, x in inputs[0].items()},
        "state": {key: _facts(x) for key, x in inputs[1].items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part.pt2")
    torch.export.save(program, partial, extra_files={FACTS: json.dumps(facts)})
    partial.replace(path)
    return facts


def _facts(x: Tensor) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
