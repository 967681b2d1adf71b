"""Small agents of multi-grained Decision Mamba for the tests."""

from typing import Any

from gymnasium import spaces

from statewise.agents.offline.decision_mamba_mg import DecisionMambaMG, DecisionMambaMGConfig
from statewise.ssm.mamba import MambaConfig
from tests.agents.offline.sequence_cases import BOX, SMALL, finished

WHOLE: dict[str, Any] = {"train_on": "trajectories", "inference": "recurrent"}


def mg(depth: int = 2, space: spaces.Space[Any] = BOX, **changes: Any) -> DecisionMambaMG:
    """Return an agent for a run of 50 updates."""
    sizes = {"d_model": 8, "num_layers": depth, "mamba": MambaConfig(state_size=4)}
    config = DecisionMambaMGConfig(**{**SMALL, **sizes, **changes})
    agent = finished(DecisionMambaMG, config, space)
    assert isinstance(agent, DecisionMambaMG)
    return agent
