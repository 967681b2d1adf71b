"""The layers of multi-grained Decision Mamba: two selective scans side by side.

Paper: Lv et al. 2024, "Decision Mamba: A Multi-Grained State Space Model with Self-Evolution
Regularization for Offline RL" (section 4). Over tokens x of three per step,

    u = RMSNorm(x);   c = Mamba_c(u);   f = LN(fine(u));   x = x + drop(c + f)

or g c + (1 - g) f with g = sigmoid(W u) in place of the sum. The fine branch is one of

    causal_window     Mamba_f(W [u_{j-2}, u_{j-1}, u_j]): at s_t it sees a_{t-1}, R_t, s_t
    shifted_triplet   Mamba_f over one summary W [R, s, a] per step, read at the step after
    paper_release     the same, but token j of 3 K reads summary j mod K

The last is what the released code does. It leaks: most predictions see the action that they are
to predict. `shifted_triplet` and `paper_release` need whole steps and have no step mode.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from statewise.agents.offline.sequence_policy import TokenCore
from statewise.agents.offline.tokens import cleared
from statewise.agents.offline.wrapped import Wrapped
from statewise.kernels import Backend
from statewise.ssm.block import Block, BlockConfig
from statewise.ssm.mamba import MambaConfig, MambaLayer
from statewise.ssm.norm import RMSNorm
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.stack import Stack
from statewise.ssm.state import prefixed, select
from statewise.ssm.windows import trace_by_windows

TRIPLET = 3  # tokens of a step, and width of the fine branch's convolution
NORM_EPS = 1e-5
Fine = Literal["causal_window", "shifted_triplet", "paper_release"]
Fusion = Literal["sum", "gate"]


def build_core(
    fine: Fine,
    fusion: Fusion,
    num_layers: int,
    *,
    d_model: int,
    dropout: float,
    mamba: MambaConfig,
    backend: Backend,
) -> TokenCore:
    """Return the layers and a last norm; initial weights come from torch's own generator."""
    D, layers = d_model, range(num_layers)
    if fine == "causal_window":
        return Wrapped(
            nn.Identity(),
            Stack(
                [
                    Block(
                        Wrapped(
                            RMSNorm(D, eps=NORM_EPS),
                            MultiGrained(D, fusion, mamba, backend),
                            AddBranch(dropout),
                        ),
                        BlockConfig(kind="plain"),
                    )
                    for _ in layers
                ]
            ),
            LastNorm(D),
        )
    return TripletCore(
        [TripletBlock(TRIPLETS[fine](D, mamba, backend), fusion, dropout) for _ in layers]
    )


def triplets(u: Tensor) -> Tensor:
    """Turn the tokens (B, 3 K, D) of K steps into (B, K, 3 D)."""
    return u.unflatten(1, (-1, TRIPLET)).flatten(2)


def at_next_step(summary: Tensor, reset: Tensor | None) -> Tensor:
    """Give every token the summary of the step before its own; zeros where there is none.

    Args:
        summary: (B, K, D), one per step.
        reset: (B, K) bool; True where the step before belongs to another memory.

    Returns:
        (B, 3 K, D).
    """
    moved = torch.cat((torch.zeros_like(summary[:, :1]), summary[:, :-1]), 1)
    if reset is not None:
        moved = cleared(moved, ~reset)
    return moved.repeat_interleave(TRIPLET, 1)


class FuseBranches(nn.Module):
    """Joins the coarse and the fine branch, of width `d_model`."""

    def __init__(self, d_model: int, fusion: Fusion) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.gate = nn.Linear(d_model, d_model) if fusion == "gate" else None

    def forward(self, u: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return the sum or the mixture; all (..., D)."""
        fine = self.norm(fine)
        if self.gate is None:
            return coarse + fine
        return torch.lerp(fine, coarse, self.gate(u).sigmoid())


class AddBranch(nn.Module):
    """Adds a branch with dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        """Return x + drop(v), (..., D)."""
        return x + self.drop(v)


class LastNorm(nn.Module):
    """A norm of width `d_model` behind a stack."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model, eps=NORM_EPS)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        """Normalise v (..., D); x, what went into the stack, has no branch here."""
        return self.norm(v)


class CausalWindow(nn.Module):
    """A linear map of the last three tokens, of width `d_model`, that honours resets.

    Its state (B, 2, D) holds the two tokens before, the older one first.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(TRIPLET * d_model, d_model)
        self.d_model = d_model

    def initial_state(self, batch_size: int) -> Tensor:
        """Return zeros."""
        return self.linear.weight.new_zeros(batch_size, TRIPLET - 1, self.d_model)

    def forward(self, u: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map u (B, T, D), reset (B, T), to y (B, T, D) and the state after it."""
        known = torch.cat((state, u), 1)
        second, first = known[:, :-2], known[:, 1:-1]
        if reset is not None:
            keeps = ~reset
            first = cleared(first, keeps)
            before = torch.cat((torch.ones_like(keeps[:, :1]), keeps[:, :-1]), 1)
            second = cleared(second, keeps & before)
        after = torch.stack((first[:, -1], u[:, -1]), 1)
        return self.linear(torch.cat((second, first, u), -1)), after


class MultiGrained(nn.Module):
    """Coarse and fine branch over the same tokens; a `SequenceModel`.

    State keys "coarse.*" and "fine.*" of the two Mamba layers, and "window" (B, 2, D).

    Args:
        d_model: D, width of the tokens.
        fusion: how the branches are joined.
        mamba: of both layers.
        backend: of the scans.
    """

    def __init__(
        self, d_model: int, fusion: Fusion, mamba: MambaConfig, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.d_in = self.d_out = d_model
        self.coarse = MambaLayer(d_model, mamba, backend)
        self.window = CausalWindow(d_model)
        self.fine = MambaLayer(d_model, mamba, backend)
        self.fuse = FuseBranches(d_model, fusion)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        return (
            prefixed(self.coarse.initial_state(batch_size), "coarse.")
            | prefixed(self.fine.initial_state(batch_size), "fine.")
            | {"window": self.window.initial_state(batch_size)}
        )

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        state = self.initial_state(len(x)) if state is None else state
        coarse, after = self.coarse(x, select(state, "coarse."), reset)
        joined, window = self.window(x, state["window"], reset)
        fine, last = self.fine(joined, select(state, "fine."), reset)
        return self.fuse(x, coarse, fine), (
            prefixed(after, "coarse.") | prefixed(last, "fine.") | {"window": window}
        )

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way, window by window."""
        return trace_by_windows(self, x, state, reset, every)

    def prepare_step(self) -> Cache:
        """Return those of both layers."""
        return prefixed(self.coarse.prepare_step(), "coarse.") | prefixed(
            self.fine.prepare_step(), "fine."
        )

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        own = [None if cache is None else select(cache, key) for key in ("coarse.", "fine.")]
        coarse, after = self.coarse.step(x, select(state, "coarse."), reset, cache=own[0])
        resets = None if reset is None else reset.unsqueeze(1)
        joined, window = self.window(x.unsqueeze(1), state["window"], resets)
        fine, last = self.fine.step(joined.squeeze(1), select(state, "fine."), reset, cache=own[1])
        return self.fuse(x, coarse, fine), (
            prefixed(after, "coarse.") | prefixed(last, "fine.") | {"window": window}
        )


class ShiftedTriplets(nn.Module):
    """Summaries of whole steps, read at the step after; width `d_model`."""

    def __init__(self, d_model: int, mamba: MambaConfig, backend: Backend) -> None:
        super().__init__()
        self.coarse = MambaLayer(d_model, mamba, backend)
        self.join = nn.Linear(TRIPLET * d_model, d_model)
        self.fine = MambaLayer(d_model, mamba, backend)

    def forward(self, u: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map tokens u (B, 3 K, D) to both branches; a step's first token has its reset."""
        steps = None if reset is None else reset[:, ::TRIPLET]
        summary, _ = self.fine(self.join(triplets(u)), None, steps)
        return self.coarse(u, None, reset)[0], at_next_step(summary, steps)


class ReleasedTriplets(nn.Module):
    """Summaries of whole steps, tiled over the tokens as the released code does, leak included.

    The release knows no resets: a line is one window. The last token, whose action is not known
    when acting, is 0 in the fine branch.
    """

    def __init__(self, d_model: int, mamba: MambaConfig, backend: Backend) -> None:
        super().__init__()
        self.coarse = MambaLayer(d_model, mamba, backend)
        self.join = nn.Linear(TRIPLET * d_model, d_model)
        self.fine = MambaLayer(d_model, mamba, backend)

    def forward(self, u: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map tokens u (B, 3 K, D) to both branches."""
        known = torch.cat((u[:, :-1], torch.zeros_like(u[:, -1:])), 1)
        summary, _ = self.fine(self.join(triplets(known)))
        return self.coarse(u, None, reset)[0], summary.repeat(1, TRIPLET, 1)


TRIPLETS: dict[str, type[ShiftedTriplets] | type[ReleasedTriplets]] = {
    "shifted_triplet": ShiftedTriplets,
    "paper_release": ReleasedTriplets,
}


class TripletBlock(nn.Module):
    """Norm, both branches and residual, over whole steps."""

    def __init__(
        self, branches: ShiftedTriplets | ReleasedTriplets, fusion: Fusion, dropout: float
    ) -> None:
        super().__init__()
        self.d_model = branches.coarse.d_in
        self.norm = RMSNorm(self.d_model, eps=NORM_EPS)
        self.branches = branches
        self.fuse = FuseBranches(self.d_model, fusion)
        self.add = AddBranch(dropout)

    def forward(self, x: Tensor, reset: Tensor | None) -> Tensor:
        """Map (B, 3 K, D) to the same shape."""
        u = self.norm(x)
        return self.add(x, self.fuse(u, *self.branches(u, reset)))


class TripletCore(nn.Module):
    """Blocks over whole steps and a last norm; a `TokenCore` without memory between calls."""

    def __init__(self, blocks: list[TripletBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.d_in = self.d_out = blocks[0].d_model
        self.norm = RMSNorm(self.d_out, eps=NORM_EPS)

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Map tokens (B, 3 K, D) of whole steps; there is no state to go on from.

        Raises:
            ValueError: a state is given, or tokens are not of whole steps.
        """
        if state or x.shape[1] % TRIPLET:
            raise ValueError(
                f"core: expected {TRIPLET} tokens for every step and no state, got "
                f"{x.shape[1]} tokens and {len(state or {})} entries: use fine 'causal_window'"
            )
        for block in self.blocks:
            x = block(x, reset)
        return self.norm(x), {}


def conforms(layer: MultiGrained) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
