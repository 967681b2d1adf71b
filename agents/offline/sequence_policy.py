"""The return-conditioned policy that Decision Transformer, Decision S4 and Decision Mamba share.

    rows -> tokens -> core -> output at one token of every step -> action

The core is any causal sequence model over tokens (B, L, D); a policy that acts with a window
needs no more of it than `TokenCore`, one that acts step by step a whole `SequenceModel`.
"""

from typing import Any, Protocol, runtime_checkable

from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline.inputs import ActionCode, ObsNormalizer, Squash
from statewise.agents.offline.tokens import PolicyRows, Tokens, cleared
from statewise.data.samplers import SampledBatch
from statewise.data.shift import to_arrival
from statewise.ssm.protocol import State


class TokenCore(Protocol):
    """A causal map over tokens that honours resets; every `SequenceModel` is one."""

    d_in: int
    d_out: int

    def __call__(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Map tokens (B, L, d_in) to outputs (B, L, d_out); see `SequenceModel`."""
        ...


@runtime_checkable
class TokenReader(Protocol):
    """A core that can leave out what only the outputs of other tokens need."""

    def read(self, x: Tensor, reset: Tensor, at: slice) -> Tensor:
        """Return `self(x, None, reset)[0][:, at]`."""
        ...


class ActionHead(nn.Module):
    """A linear layer to a code or to logits; see `ActionCode`.

    Args:
        d_in: width of the features.
        action_space: of one environment.
        squash: what keeps a Box within its bounds.
        bias: whether the layer has one.

    Raises:
        ValueError: the action space has no code.
    """

    def __init__(
        self,
        d_in: int,
        action_space: spaces.Space[Any],
        *,
        squash: Squash = "tanh",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.code = ActionCode(action_space)
        self.linear = nn.Linear(d_in, self.code.width, bias=bias)
        self.squash: Squash = squash

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., d_in) to predictions (..., A)."""
        return self.code.squash(self.linear(features), self.squash)


class SequencePolicy(nn.Module):
    """Inputs, tokens, core and head of a return-conditioned policy.

    Args:
        inputs: of the observations.
        tokens: the layout; an `nn.Module`.
        core: over tokens of the layout's width; an `nn.Module`.
        head: over the core's width.
    """

    def __init__(
        self, inputs: ObsNormalizer, tokens: Tokens, core: TokenCore, head: ActionHead
    ) -> None:
        super().__init__()
        assert isinstance(tokens, nn.Module), type(tokens)
        assert isinstance(core, nn.Module), type(core)
        assert core.d_in == tokens.d_out, (core.d_in, tokens.d_out)
        self.inputs = inputs
        self.tokens: Tokens = tokens
        self.core: TokenCore = core
        self.head = head

    @property
    def code(self) -> ActionCode:
        """What actions are in numbers."""
        return self.head.code

    def rows(self, batch: SampledBatch) -> PolicyRows:
        """Return the inputs of a batch (B, T); rows that are not valid hold zeros."""
        step, valid = batch.step, batch.step.valid
        obs = cleared(self.inputs(step.obs), valid)
        action = cleared(self.code.encode(cleared(step.action, valid)), valid).to(obs.dtype)
        return PolicyRows(
            obs=obs,
            action=action,
            previous=to_arrival(step._replace(action=action)).action_in,
            rtg=cleared(batch.rtg, valid).to(obs.dtype),
            timestep=batch.timestep,
            reset=step.reset,
        )

    def outputs(self, rows: PolicyRows) -> Tensor:
        """Return what the core makes of every token, (B, per_step * T, D)."""
        tokens, reset = self.tokens(rows)
        y, _ = self.core(tokens, None, reset)
        return y

    def at(self, outputs: Tensor, token: int) -> Tensor:
        """Return those of token 0 .. per_step - 1 of every step, (B, T, D)."""
        return outputs[:, token :: self.tokens.per_step]

    def forward(self, rows: PolicyRows) -> Tensor:
        """Return predictions (B, T, A): codes, or logits."""
        read_at, per_step = self.tokens.read_at, self.tokens.per_step
        if per_step == 1 or not isinstance(self.core, TokenReader):
            return self.head(self.at(self.outputs(rows), read_at))
        return self.head(self.core.read(*self.tokens(rows), slice(read_at, None, per_step)))
