"""From rows of a data set to the tokens that a sequence model reads, and back to one per step.

Three tokens per step (Chen et al. 2021, "Decision Transformer"), the action read at the second:

    R_t, s_t, a_t,  each LN(W x + time_t)

or one (Bar David et al. 2023, "Decision S4", section 3), u_t = the input of the core:

    u_t = drop(W_2 gelu(W_1 [tanh(W_s s_t), tanh(W_a a_{t-1}), tanh(W_R R_t)]))

Returns to go are divided by `return_scale`. The memory is cleared before the first token of a
step. What is not known, an action before the first step of an episode or of a window, is 0. With
`action_input` "none" all actions are 0 there: a policy that learns its last action alone chooses
the ones before at random, and should not read them.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from statewise.kernels import join_step, join_step_runs

TOKEN_STD = 0.02  # of the initial weights
ActionInput = Literal["taken", "none"]


class PolicyRows(NamedTuple):
    """What a return-conditioned policy reads; leading axes (B, T), or (B,) in a single step."""

    obs: Tensor
    """(B, T, S), from an `ObsNormalizer`."""
    action: Tensor
    """(B, T, A) codes of the actions taken at obs[t]."""
    previous: Tensor
    """(B, T, A) codes of the actions that led to obs[t]; 0 where none is known."""
    rtg: Tensor
    """(B, T) returns to go in the units of the rewards."""
    timestep: Tensor
    """(B, T) int64 within the episode."""
    reset: Tensor
    """(B, T) bool: the memory is cleared before the first token of step t."""


def cleared(x: Tensor, keep: Tensor) -> Tensor:
    """Return x with zeros, in place of NaN too, in the rows where `keep` is False."""
    return torch.where(keep.view(*keep.shape, *(1,) * (x.dim() - keep.dim())), x, 0)


def shown(action: Tensor, action_input: ActionInput) -> Tensor:
    """Return the codes of actions that tokens are made of, zeros with "none"."""
    return action if action_input == "taken" else torch.zeros_like(action)


def normal_weights(
    module: nn.Module, std: float = TOKEN_STD, *, kept: tuple[type[nn.Module], ...] = ()
) -> None:
    """Give linear layers and tables weights N(0, std) and zero biases.

    Args:
        module: whose layers, in place.
        std: > 0.
        kept: modules of these types, with all that is in them, stay as they are.
    """
    own = {
        part for layer in module.modules() if isinstance(layer, kept) for part in layer.modules()
    }
    for layer in module.modules():
        if layer in own:
            continue
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, std=std)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Tokens(Protocol):
    """A layout: how many tokens a step has, and where its action is predicted."""

    per_step: int
    read_at: int
    """Which of a step's tokens the action is read at, from 0."""
    d_out: int

    def __call__(self, rows: PolicyRows) -> tuple[Tensor, Tensor]:
        """Return tokens (B, per_step * T, d_out) and their resets (B, per_step * T)."""
        ...

    def arriving(self, rows: PolicyRows) -> Tensor:
        """Return the tokens of single steps that the action depends on, (B, read_at + 1, d_out)."""
        ...

    def leaving(self, previous: Tensor, timestep: Tensor) -> Tensor | None:
        """Return the token that closes the step before (B, d_out), None if there is none.

        Args:
            previous: (B, A) code of the action taken there.
            timestep: (B,) of the step before.
        """
        ...


class TripleTokens(nn.Module):
    """Return to go, observation and action as tokens of their own.

    Args:
        d_obs: S, width of the observation vectors.
        d_action: A, width of the action codes.
        d_model: width of the tokens.
        return_scale: > 0.
        num_timesteps: rows >= 1 of the learned table; later steps share the last one.
        action_input: whether tokens hold the actions.
    """

    per_step = 3
    read_at = 1

    def __init__(
        self,
        d_obs: int,
        d_action: int,
        d_model: int,
        *,
        return_scale: float,
        num_timesteps: int,
        action_input: ActionInput = "taken",
    ) -> None:
        super().__init__()
        self.d_out = d_model
        self.return_scale = return_scale
        self.action_input: ActionInput = action_input
        self.embed_time = nn.Embedding(num_timesteps, d_model)
        self.embed_return = nn.Linear(1, d_model)
        self.embed_obs = nn.Linear(d_obs, d_model)
        self.embed_action = nn.Linear(d_action, d_model)
        self.norm = nn.LayerNorm(d_model)

    def _time(self, timestep: Tensor) -> Tensor:
        return self.embed_time(timestep.clamp(0, self.embed_time.num_embeddings - 1))

    def arriving(self, rows: PolicyRows) -> Tensor:
        """Return the tokens R, s (..., 2, d_out) of rows (...)."""
        time = self._time(rows.timestep)
        value = self.embed_return(rows.rtg.unsqueeze(-1) / self.return_scale) + time
        return self.norm(torch.stack((value, self.embed_obs(rows.obs) + time), -2))

    def leaving(self, previous: Tensor, timestep: Tensor) -> Tensor:
        """Return the token a (..., d_out) of actions and the steps they were taken at."""
        action = self.embed_action(shown(previous, self.action_input))
        return self.norm(action + self._time(timestep))

    def forward(self, rows: PolicyRows) -> tuple[Tensor, Tensor]:
        """Return R_0, s_0, a_0, R_1, ... and their resets; see `Tokens`."""
        action = self.leaving(rows.action, rows.timestep)
        tokens = torch.cat((self.arriving(rows), action.unsqueeze(-2)), -2)
        never = torch.zeros_like(rows.reset)
        return tokens.flatten(1, 2), torch.stack((rows.reset, never, never), -1).flatten(1)


class SingleTokens(nn.Module):
    """Observation, previous action and return to go joined in one token.

    Args:
        d_obs: S, width of the observation vectors.
        d_action: A, width of the action codes.
        d_embed: E, width of each of the three embeddings.
        d_model: width of the tokens.
        return_scale: > 0.
        dropout: in [0, 1).
        action_input: whether tokens hold the actions.
    """

    per_step = 1
    read_at = 0

    def __init__(
        self,
        d_obs: int,
        d_action: int,
        *,
        d_embed: int,
        d_model: int,
        return_scale: float,
        dropout: float,
        action_input: ActionInput = "taken",
    ) -> None:
        super().__init__()
        self.d_out = d_model
        self.return_scale = return_scale
        self.action_input: ActionInput = action_input
        self.embed_obs = nn.Linear(d_obs, d_embed)
        self.embed_action = nn.Linear(d_action, d_embed)
        self.embed_return = nn.Linear(1, d_embed)
        nn.init.normal_(self.embed_action.weight, std=TOKEN_STD)
        self.project = nn.Sequential(
            nn.Linear(3 * d_embed, d_model),
            nn.GELU(),
            nn.Linear(d_model, d_model),
            nn.Dropout(dropout),
        )

    def arriving(self, rows: PolicyRows) -> Tensor:
        """Return the tokens (..., 1, d_out) of rows (...)."""
        inputs = (
            rows.obs,
            shown(rows.previous, self.action_input),
            rows.rtg.unsqueeze(-1) / self.return_scale,
        )
        layers = (self.embed_obs, self.embed_action, self.embed_return)
        first, second = self.project[0], self.project[2]
        assert isinstance(first, nn.Linear), type(first)
        assert isinstance(second, nn.Linear), type(second)
        if not self.training and join_step_runs(rows.obs, first.weight):
            joined = join_step(
                [(x, layer.weight, layer.bias) for x, layer in zip(inputs, layers, strict=True)],
                (first.weight, first.bias),
                (second.weight, second.bias),
            )
            return joined.unsqueeze(-2)
        parts = [layer(x) for x, layer in zip(inputs, layers, strict=True)]
        return self.project(torch.cat(parts, -1).tanh()).unsqueeze(-2)

    def leaving(self, previous: Tensor, timestep: Tensor) -> None:
        """Return None: the previous action comes with the next token."""

    def forward(self, rows: PolicyRows) -> tuple[Tensor, Tensor]:
        """Return u_0, u_1, ... and their resets; see `Tokens`."""
        return self.arriving(rows).squeeze(-2), rows.reset


def conforms(tokens: TripleTokens | SingleTokens) -> Tokens:
    """Let the type checker compare the layouts with the protocol."""
    return tokens
