"""Algorithms: they act, update and are saved; they never step an environment or open a file."""

from statewise.agents.build import AGENTS
from statewise.agents.protocol import Agent, Metrics
from statewise.agents.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig

__all__ = ["AGENTS", "Agent", "Metrics", "RecurrentPPO", "RecurrentPPOConfig"]
