"""Reinforcement-learning agents and world models on one state-space core."""

__version__ = "0.1.0"
