"""Agents that learn from a data set."""
