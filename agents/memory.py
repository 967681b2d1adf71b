"""An encoder and a sequence model: what actors and critics remember with."""

import torch
from torch import Tensor, nn

from statewise.ssm.build import SequenceConfig, build_sequence
from statewise.ssm.protocol import Cache, State


class Memory(nn.Module):
    """Encoder, projection to the sequence width where needed, and the sequence model.

    Args:
        encoder: maps a dict of (..., ) tensors to (..., d_out), with the attribute `d_out`.
        sequence: the core.

    Raises:
        ValueError: the encoder has no `d_out`.
    """

    def __init__(self, encoder: nn.Module, sequence: SequenceConfig):
        super().__init__()
        d_out = getattr(encoder, "d_out", None)
        if not isinstance(d_out, int):
            raise ValueError(
                f"encoder: expected a module with d_out, the width of its features, got {d_out!r} "
                f"on {type(encoder).__name__}: set self.d_out"
            )
        self.encoder = encoder
        self.d_out = sequence.d_model
        self.project = nn.Identity() if d_out == self.d_out else nn.Linear(d_out, self.d_out)
        self.sequence = build_sequence(sequence)

    def forward(
        self, obs: dict[str, Tensor], state: State | None, reset: Tensor, burn_in: int = 0
    ) -> Tensor:
        """Run windows (B, n + T) at once; return features (B, T, d_out).

        Args:
            obs: (B, n + T, ...) per key.
            state: memory before row 0; None for that of a start.
            reset: (B, n + T) bool.
            burn_in: n >= 0, rows that only fill the memory, without gradient.
        """
        if burn_in:
            with torch.no_grad():
                early = {key: x[:, :burn_in] for key, x in obs.items()}
                _, state = self.run(early, state, reset[:, :burn_in])
            obs = {key: x[:, burn_in:] for key, x in obs.items()}
        y, _ = self.run(obs, state, reset[:, burn_in:])
        return y

    def run(
        self, obs: dict[str, Tensor], state: State | None, reset: Tensor
    ) -> tuple[Tensor, State]:
        """Run windows (B, T); return features (B, T, d_out) and the last state."""
        y, last = self.sequence(self.project(self.encoder(obs)), state, reset)
        return y, last

    def step(
        self, obs: dict[str, Tensor], state: State, reset: Tensor, cache: Cache | None
    ) -> tuple[Tensor, State]:
        """Run one step (B); return features (B, d_out) and the next state."""
        return self.sequence.step(self.project(self.encoder(obs)), state, reset, cache=cache)
