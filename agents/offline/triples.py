"""What Decision Transformer and the Decision Mambas share: windows of three tokens per step."""

from dataclasses import dataclass
from typing import Any

from gymnasium import spaces

from statewise.agents.offline.inputs import ObsNormalizer
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.sequence_agent import SequenceAgentConfig
from statewise.agents.offline.sequence_policy import ActionHead
from statewise.agents.offline.tokens import TripleTokens

PAPER_CONTEXT = 20


@dataclass(frozen=True, kw_only=True)
class TripleConfig(SequenceAgentConfig):
    """Settings of a policy over return to go, observation and action of each step."""

    context: int = PAPER_CONTEXT  # K >= 1, steps of a window, in training or acting
    d_model: int = 128  # >= 1
    num_layers: int = 3  # >= 1
    num_timesteps: int = 1000  # >= 1, rows of the time table; the longest episode

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "d_model", "num_layers", "num_timesteps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def build_ends(
    config: TripleConfig,
    obs_space: spaces.Dict,
    action_space: spaces.Space[Any],
    statistics: ObsStatistics | None,
) -> tuple[ObsNormalizer, TripleTokens, ActionHead]:
    """Return what stands before the core of a policy, and behind it.

    Initial weights come from torch's own generator.

    Raises:
        ValueError: a space that is not supported.
    """
    inputs = ObsNormalizer(obs_space, statistics, config.encoder)
    head = ActionHead(config.d_model, action_space)
    tokens = TripleTokens(
        inputs.d_out,
        head.code.width,
        config.d_model,
        return_scale=config.return_scale,
        num_timesteps=config.num_timesteps,
        action_input=config.action_input,
    )
    return inputs, tokens, head
