"""Small agents and played episodes for the tests of fine-tuning."""

from typing import Any

import torch

from statewise.agents.offline.decision_s4 import DecisionS4
from statewise.agents.offline.finetune_s4 import ActorCritic, ActorCriticConfig
from statewise.agents.offline.hidden_replay import PlayedEpisode
from tests.agents.offline.sequence_cases import BOX, OBS_SPACE, s4

WIDTH = 2  # of the action codes of BOX


def agent_of(depth: int = 2, space: Any = BOX, **changes: Any) -> DecisionS4:
    agent = s4(depth, space, **changes)
    assert isinstance(agent, DecisionS4)
    return agent


def played(agent: DecisionS4, T: int = 6, *, seed: int = 0, **changes: Any) -> PlayedEpisode:
    """Return an episode of random observations and rewards, with the states the agent had."""
    draw = torch.Generator().manual_seed(seed)
    obs = torch.randn(T + 1, 3, generator=draw)
    reward = torch.randn(T, generator=draw)
    code = agent.policy.code
    width = code.width
    # What was asked for differs from what was got, as it does in play.
    left = 1.5 - torch.cat((torch.zeros(1), reward.cumsum(0)))
    state = agent.initial_state(1)
    previous = torch.zeros(1, width)
    states, actions = [], []
    for t in range(T + 1):
        first = torch.tensor([t == 0])
        given = {
            "obs": obs[t : t + 1],
            "previous_action": code.choose(previous, None) if not code.nvec else previous,
            "return_to_go": left[t : t + 1, None],
        }
        states.append({k.removeprefix("core."): v[0] for k, v in state.items() if "core." in k})
        action, _, state = agent.act(given, state, first, first, explore=False)
        noisy = code.encode(action)
        if not code.nvec:
            noisy = (noisy + 0.3 * torch.randn(1, width, generator=draw)).clamp(-1, 1)
        actions.append(noisy[0])
        previous = noisy
    episode = PlayedEpisode(
        obs={"obs": obs},
        action=torch.stack(actions[:-1]),
        reward=reward,
        asked=left,
        terminated=False,
        state={key: torch.stack([one[key] for one in states]) for key in states[0]},
    )
    return episode._replace(**changes)


def actor_critic(
    agent: DecisionS4 | None = None, *, episodes: int = 3, **changes: Any
) -> ActorCritic:
    settings: dict[str, Any] = {
        "replay_size": 64,
        "batch_size": 8,
        "critic_only_steps": 0,
        "actor_lr": 0.01,
        "critic_lr": 0.01,
    } | changes
    agent = agent_of() if agent is None else agent
    learner = ActorCritic(agent, ActorCriticConfig(**settings), OBS_SPACE, seed=3)
    for number in range(episodes):
        learner.add(played(agent, 5 + number, seed=number))
    return learner
