"""The literal table of agents."""

from collections.abc import Callable
from typing import Any, NamedTuple

from statewise.agents.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig


class AgentRow(NamedTuple):
    """One system of the suite."""

    config: type[Any]
    make: Callable[..., RecurrentPPO]
    loop: str
    about: str
    page: str


AGENTS: dict[str, AgentRow] = {
    "ppo": AgentRow(
        RecurrentPPOConfig,
        RecurrentPPO,
        "online",
        "recurrent PPO on any sequence layer (Schulman et al. 2017; Lu et al. 2023)",
        "docs/systems/recurrent_ppo.md",
    ),
}
