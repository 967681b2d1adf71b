"""Small recurrent SAC agents and windows for their tests."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.recurrent_sac import RecurrentSAC, RecurrentSACConfig
from statewise.data.replay_config import ReplayBatch, WindowRefs
from statewise.data.step import Step
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.build import SequenceConfig

B, T = 3, 7
DOUBLE = torch.float64
OBS_SPACE = spaces.Dict({"obs": spaces.Box(-1, 1, (2,))})
BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 6], np.float32))


def make_config(kind: str = "s5", memory: str = "kept", **changes: Any) -> RecurrentSACConfig:
    sequence = SequenceConfig(kind=kind, num_layers=2, d_model=8, memory=memory)  # type: ignore[arg-type]
    encoder = EncoderConfig(hidden=(6,))
    return RecurrentSACConfig(sequence=sequence, encoder=encoder, head_hidden=(8,), **changes)


def make_agent(
    config: RecurrentSACConfig | None = None, dtype: torch.dtype = DOUBLE, space: Any = BOX
) -> RecurrentSAC:
    agent = RecurrentSAC(config or make_config(), OBS_SPACE, space, seed=0)
    for network in (*agent.networks.values(), agent.scale):
        network.to(dtype)
    with torch.no_grad():
        for network in agent.networks.values():  # targets unlike the critics, memories that matter
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return agent


def flags(*places: tuple[int, int], length: int = T) -> Tensor:
    made = torch.zeros(B, length, dtype=torch.bool)
    for b, t in places:
        made[b, t] = True
    return made


def make_batch(agent: RecurrentSAC, burn_in: int = 0, length: int = T) -> ReplayBatch:
    """Return windows in which row 0 is truncated after t = 2 and row 1 terminated after t = 3.

    The final observations are the rows behind.
    """
    dtype = agent.scale.center.dtype
    starts = flags((0, 4), (1, 5), length=length)
    step = Step(
        obs={"obs": torch.randn(B, length, 2, dtype=dtype)},
        is_first=starts,
        reset=starts,
        action=agent.scale.decode(2 * torch.rand(B, length, agent.scale.width, dtype=dtype) - 1),
        reward=torch.randn(B, length, dtype=dtype),
        terminated=flags((1, 3), length=length),
        truncated=flags((0, 2), length=length),
        valid=~flags((0, 3), (1, 4), length=length),
    )
    state = {key: torch.randn_like(x) for key, x in agent.initial_state(B).items()}
    refs = WindowRefs(np.zeros(B, np.int64), np.zeros(B, np.int64))
    return ReplayBatch(step=step, previous=step, state=state, refs=refs, burn_in=burn_in)
