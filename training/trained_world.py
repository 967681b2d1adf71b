"""An agent that learns in its environment and in its imagination, with its configuration."""

from statewise.agents.imagination.agent import ImaginationAgent
from statewise.training.trained_replay import TrainedReplayAgent
from statewise.training.world_config import WorldTrainConfig


class TrainedWorldAgent(TrainedReplayAgent):
    """An agent with a world model; see `TrainedReplayAgent`."""

    config: WorldTrainConfig
    agent: ImaginationAgent
