"""LSTM behind the contract of the sequence layers: a baseline.

Paper: Hochreiter & Schmidhuber 1997, "Long Short-Term Memory"; torch's form of the equations.
A reset restores zeros. State keys "h" and "c": (B, D).
"""

import torch
from torch import Tensor, nn

from statewise.ssm import recurrent
from statewise.ssm.precision import full_precision
from statewise.ssm.protocol import Cache, SequenceModel, State


class LSTMLayer(nn.Module):
    """One LSTM layer of width `d_model`; a `SequenceModel`."""

    def __init__(self, d_model: int):
        super().__init__()
        self.d_in = self.d_out = d_model
        self.rnn = nn.LSTM(d_model, d_model, batch_first=True)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        zeros = self.rnn.all_weights[0][0].new_zeros((batch_size, self.d_out))
        return {"h": zeros, "c": zeros.clone()}

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps in one fused call per stretch between resets; see `SequenceModel`."""
        state = self.initial_state(x.shape[0]) if state is None else state
        y, (h, c) = recurrent.run(self.rnn, x, (state["h"], state["c"]), reset)
        return y, {"h": h, "c": c}

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps in calls of `every` steps, because the fused call hides the cell state."""
        state = self.initial_state(x.shape[0]) if state is None else state
        outputs, states = [], []
        for begin in range(0, x.shape[1], every):
            window = slice(begin, begin + every)
            y, state = self(x[:, window], state, None if reset is None else reset[:, window])
            outputs.append(y)
            states.append(state)
        whole = states[: x.shape[1] // every]
        traced = {
            key: torch.stack([s[key] for s in whole], 1)
            if whole
            else value.new_empty((len(value), 0, *value.shape[1:]))
            for key, value in state.items()
        }
        return torch.cat(outputs, 1) if outputs else x.clone(), state, traced

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
        h, c = state["h"], state["c"]
        if reset is not None:
            h = torch.where(reset[:, None], h.new_zeros(()), h)
            c = torch.where(reset[:, None], c.new_zeros(()), c)
        with full_precision(h.device):
            h, c = torch.lstm_cell(x.to(h.dtype), (h, c), *self.rnn.all_weights[0])
        return h, {"h": h, "c": c}


def conforms(layer: LSTMLayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
