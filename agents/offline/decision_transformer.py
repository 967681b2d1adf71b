"""Decision Transformer: the next action from a window of returns to go, observations, actions.

Paper: Chen et al. 2021, "Decision Transformer: Reinforcement Learning via Sequence Modeling"
(section 3, appendix A.2). Three tokens per step and learned time embeddings (`tokens.py`); then
blocks of GPT-2 without its positions:

    x = x + drop(W_o attention(LN x));   x = x + drop(W_2 relu(W_1 LN x))

and a last LN. Only the action is learned, by squared error, or cross-entropy of discrete actions.

Deviations: all linear layers and tables start at N(0, 0.02), the embeddings too; windows are
padded on the right, where a causal model does not see it; weight decay spares norms and biases.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline.acting import WindowActing
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.sequence_agent import SequenceAgent, seeded
from statewise.agents.offline.sequence_policy import SequencePolicy, TokenCore
from statewise.agents.offline.tokens import normal_weights
from statewise.agents.offline.triples import TripleConfig, build_ends
from statewise.data.samplers import WindowConfig
from statewise.ssm.protocol import State

MLP_WIDTH = 4  # times the width of the model
NORM_EPS = 1e-5
EVERY = slice(None)  # all tokens


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerConfig(TripleConfig):
    """Settings; the defaults are the paper's for MuJoCo."""

    num_heads: int = 1  # >= 1, a divisor of d_model

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads < 1:
            raise ValueError(f"num_heads: expected at least 1, got {self.num_heads}")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads: expected a divisor of d_model {self.d_model}, got {self.num_heads}"
            )


def visible(reset: Tensor) -> Tensor:
    """Return which token sees which, (B, L, L) bool: earlier ones since the last reset."""
    segment = reset.long().cumsum(1)
    same = segment[:, :, None] == segment[:, None, :]
    return same.tril()


class GPTBlock(nn.Module):
    """Attention and a network of two layers, each a residual branch behind its norm."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm_mlp = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.up = nn.Linear(d_model, MLP_WIDTH * d_model)
        self.down = nn.Linear(MLP_WIDTH * d_model, d_model)

    def _attend(self, x: Tensor, seen: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if seen is None else seen[:, None],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=seen is None,
        )
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, seen: Tensor | None, at: slice = EVERY) -> Tensor:
        """Map x (B, L, D) and return the tokens `at`.

        `seen` (B, L, L) bool tells which token sees which; None means all that came before.
        """
        drop = self.dropout
        x = x + F.dropout(self._attend(self.norm_attention(x), seen), drop, self.training)
        x = x[:, at]
        hidden = F.relu(self.up(self.norm_mlp(x)))
        return x + F.dropout(self.down(hidden), drop, self.training)


class GPTCore(nn.Module):
    """Blocks of GPT-2 over tokens, without positions; a `TokenReader` that has no memory.

    Args:
        d_model: D, divisible by the heads.
        num_layers: >= 1.
        num_heads: >= 1.
        dropout: in [0, 1): of inputs, attention and branches.
    """

    def __init__(self, d_model: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.d_in = self.d_out = d_model
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            GPTBlock(d_model, num_heads, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Map tokens (B, L, D) that see those before them since the last reset (B, L).

        There is nothing to remember: the state goes in and comes out empty.
        """
        assert not state, "expected no state: this core has none"
        return self.read(x, reset, EVERY), {}

    def read(self, x: Tensor, reset: Tensor | None, at: slice) -> Tensor:
        """Return the outputs of some tokens; see `TokenReader`."""
        seen = None if reset is None else visible(reset)
        x = self.drop(x)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, seen)
        y: Tensor = self.norm(last(x, seen, at))
        return y


def build_policy(
    config: DecisionTransformerConfig,
    obs_space: spaces.Dict,
    action_space: spaces.Space[Any],
    statistics: ObsStatistics | None,
) -> SequencePolicy:
    """Return the network with its initial weights, drawn from torch's own generator."""
    inputs, tokens, head = build_ends(config, obs_space, action_space, statistics)
    core = GPTCore(config.d_model, config.num_layers, config.num_heads, config.dropout)
    for module in (tokens, core, head):
        normal_weights(module)
    return SequencePolicy(inputs, tokens, core, head)


class DecisionTransformer(SequenceAgent):
    """Decision Transformer; an `OfflineAgent` that acts on a window.

    Args:
        config: settings.
        obs_space: flat Dict of one environment.
        action_space: Discrete, MultiDiscrete or a float Box, of one environment.
        statistics: of the data set's observations; None where weights will be loaded.
        total_updates: >= 1, of the run.
        seed: of the initial weights, of dropout and of sampled actions.
        device: where the network lives.
    """

    def __init__(
        self,
        config: DecisionTransformerConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        statistics: ObsStatistics | None,
        total_updates: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        with seeded(seed):
            policy = build_policy(config, obs_space, action_space, statistics).to(device)
        super().__init__(
            config,
            policy,
            WindowActing(policy, config.context),
            WindowConfig(length=config.context, batch_size=config.batch_size),
            total_updates=total_updates,
            seed=seed,
        )


def conforms(core: GPTCore) -> TokenCore:
    """Let the type checker compare the core with the protocol."""
    return core
