"""Replayed windows and small agents for the tests of imagination."""

import torch
from gymnasium import spaces

from statewise.agents.imagination.agent import ImaginationAgent, ImaginationConfig
from statewise.agents.imagination.behavior import BehaviorConfig
from statewise.data.replay_config import ReplayBatch, WindowRefs
from statewise.data.step import Step
from tests.worldmodels import cases

SMALL = BehaviorConfig(
    actor_hidden=(8,), critic_hidden=(8,), horizon=3, learning_rate=1e-2, actor_outscale=1.0
)


def agent(
    core: str = "s5",
    *,
    space: spaces.Space[object] = cases.ACTIONS,
    seed: int = 0,
    **changes: object,
) -> ImaginationAgent:
    behavior = changes.pop("behavior", SMALL)
    config = ImaginationConfig(world=cases.config(core, **changes), behavior=behavior)  # type: ignore[arg-type]
    return ImaginationAgent(config, cases.OBS_SPACE, space, seed=seed)


def step(B: int, T: int, *, seed: int = 0, space: spaces.Space[object] = cases.ACTIONS) -> Step:
    """Return rows of episodes of 4 steps and a final observation, each row somewhere else."""
    draw = torch.Generator().manual_seed(seed)
    place = (torch.arange(T)[None] + torch.arange(B)[:, None]) % 5
    valid, is_first = place != 4, place == 0
    ends, terminates = place == 3, torch.rand(B, T, generator=draw) < 0.5
    if isinstance(space, spaces.Discrete):
        action = torch.randint(int(space.n), (B, T), generator=draw)
    else:
        assert space.shape is not None
        action = torch.rand(B, T, *space.shape, generator=draw) * 2 - 1
    return Step(
        obs={"obs": torch.randn(B, T, 3, generator=draw)},
        is_first=is_first,
        reset=is_first,
        action=action,
        reward=torch.where(valid, torch.randn(B, T, generator=draw), 0.0),
        terminated=ends & terminates,
        truncated=ends & ~terminates,
        valid=valid,
    )


def rows(one: Step, part: slice) -> Step:
    """Return some rows of a window."""
    obs = {key: x[:, part] for key, x in one.obs.items()}
    return Step(obs, *(x[:, part] for x in one[1:]))  # type: ignore[index]


def batch(B: int = 3, T: int = 11, **given: object) -> ReplayBatch:
    """Return windows of T rows whose first rows are cleared, with the row before each."""
    whole = step(B, T + 1, **given)  # type: ignore[arg-type]
    inside = rows(whole, slice(1, None))
    reset = inside.reset.clone()
    reset[:, 0] = True
    before = rows(whole, slice(0, 1))
    obs = {key: x[:, 0] for key, x in before.obs.items()}
    previous = Step(obs, *(x[:, 0] for x in before[1:]))  # type: ignore[index]
    refs = WindowRefs(torch.zeros(B).numpy(), torch.zeros(B).numpy())  # type: ignore[arg-type]
    return ReplayBatch(inside._replace(reset=reset), previous, {}, refs, 0)
