"""GRU behind the contract of the sequence layers: the baseline that SSMs are compared with.

Paper: Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder"; torch's
form of the equations. A reset restores zeros. State key "h": (B, D).
"""

import torch
from torch import Tensor, nn

from statewise.ssm import recurrent
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, SequenceModel, State


class GRULayer(nn.Module):
    """One GRU layer of width `d_model`; a `SequenceModel`."""

    def __init__(self, d_model: int):
        super().__init__()
        self.d_in = self.d_out = d_model
        self.rnn = nn.GRU(d_model, d_model, batch_first=True)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        return {"h": self.rnn.all_weights[0][0].new_zeros((batch_size, self.d_out))}

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps in one fused call per stretch between resets; see `SequenceModel`."""
        state = self.initial_state(x.shape[0]) if state is None else state
        y, (h,) = recurrent.run(self.rnn, x, (state["h"],), reset)
        return y, {"h": h}

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way, which are the outputs."""
        y, last = self(x, state, reset)
        return y, last, {"h": y[:, every - 1 :: every]}

    def prepare_step(self) -> Cache:
        """Return nothing: there is nothing to derive from the parameters."""
        return {}

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        h = state["h"]
        if reset is not None:
            h = torch.where(reset[:, None], h.new_zeros(()), h)
        with full_precision(h.device):
            h = torch.gru_cell(x.to(h.dtype), h, *self.rnn.all_weights[0])
        return h, {"h": h}


def conforms(layer: GRULayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
