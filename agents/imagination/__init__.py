"""Actor-critic in the imagination of a world model."""

from statewise.agents.imagination.normalizer import ReturnNormalizer
from statewise.agents.imagination.returns import imagined_lambda_return, weights

__all__ = ["ReturnNormalizer", "imagined_lambda_return", "weights"]
