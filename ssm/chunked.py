"""Time-invariant recurrences with a dense matrix per channel, exact in chunks, with resets.

    h_t = A h_{t-1} + B x_t,    y_t = C h_t     per channel, h replaced by 0 where `reset_t`

Within a chunk of Q steps the inputs act through the first Q taps of the kernel C A^l B, a short
causal convolution that starts again at every chunk and every reset. Between chunks goes the state:
a chunk adds sum_j A^(Q-1-j) B x_j to A^Q h, and reads C A^(i+1) h. So the work is matrix products
over whole chunks, and states exist once per chunk. Powers of A are plain products: nothing is
diagonalised, which for HiPPO matrices loses every digit (their eigenvectors have condition numbers
above 1e14 at N = 64).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from statewise.kernels import Backend, causal_conv1d

LONGEST = 64  # steps in a chunk at most
FEW_ROWS = 8  # with fewer rows than this the products cost as much as with this many


class Dense(NamedTuple):
    """A discretised system per channel, real."""

    A: Tensor
    """(H, N, N)."""
    B: Tensor
    """(H, N)."""
    C: Tensor
    """(H, N)."""


class Chunk(NamedTuple):
    """What a system does within Q = 2^K steps."""

    squares: tuple[Tensor, ...]
    """A^(2^k), each (H, N, N), k = 0 .. K."""
    rows: Tensor
    """C A^(i+1), (H, Q, N)."""
    columns: Tensor
    """A^(Q-1-j) B, (H, N, Q)."""
    kernel: Tensor
    """C A^i B, (H, Q)."""


def _power_of_two(limit: float) -> int:
    """Return the largest power of two up to `limit` and `LONGEST`, at least 1."""
    length = 1
    while 2 * length <= min(limit, LONGEST):
        length *= 2
    return length


def chunk_length(B: int, T: int, N: int) -> int:
    """Return the power of two that balances the powers of A with the products per chunk.

    N^3 log2 Q + B T N^2 / Q is least at Q = B T ln 2 / N.
    """
    return _power_of_two(min(T, 0.7 * max(B, FEW_ROWS) * T / N))


def chunk(system: Dense, length: int) -> Chunk:
    """Tabulate a system for chunks of `length` steps, a power of two, by doubling."""
    A, B, C = system
    squares = [A]
    columns = B[..., None]
    rows = C[:, None]
    while columns.shape[-1] < length:
        square = squares[-1]
        columns = torch.cat((square @ columns, columns), -1)
        rows = torch.cat((rows, rows @ square), 1)
        squares.append(square @ square)
    kernel = (rows @ B[..., None]).squeeze(-1)
    return Chunk(tuple(squares), rows @ A, columns, kernel)


def _advance(table: Chunk, h: Tensor, steps: int) -> Tensor:
    """Return A^steps h for states h (H, B, N), 0 <= steps <= Q."""
    for k, square in enumerate(table.squares):
        if steps >> k & 1:
            h = h @ square.mT
    return h


def _chunk_of(reset: Tensor, Q: int, count: int) -> Tensor:
    """Return reset (B, T) as (B, count, Q), False after the end."""
    return torch.nn.functional.pad(reset, (0, count * Q - reset.shape[1])).unflatten(1, (count, Q))


def _driven(table: Chunk, x: Tensor, flags: Tensor | None) -> list[Tensor]:
    """Return what the inputs x (B, T, H) of each chunk add to the state after it, (H, B, N)."""
    (B, T, _), Q = x.shape, table.columns.shape[-1]
    if flags is not None:  # inputs before the last reset of their chunk
        after = flags.flip(2).cumsum(2).flip(2) - flags.to(torch.int64)
        x = torch.where((after > 0).flatten(1)[:, :T, None], x.new_zeros(()), x)
    whole = (T - 1) // Q * Q
    inputs = x.permute(2, 0, 1)  # (H, B, T)
    full = inputs[..., :whole].unflatten(2, (-1, Q)).flatten(1, 2) @ table.columns.mT
    tail = inputs[..., whole:] @ table.columns[..., Q - (T - whole) :].mT
    return [*full.unflatten(1, (B, -1)).unbind(2), tail] if whole else [tail]


def _carry(
    table: Chunk, h: Tensor, T: int, driven: list[Tensor] | None, flags: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Take the state h (H, B, N) through T steps; return it before each chunk and at the end."""
    Q, starts = table.columns.shape[-1], []
    for c, first in enumerate(range(0, T, Q)):
        starts.append(h)
        h = _advance(table, h, min(Q, T - first))
        if flags is not None:
            h = torch.where(flags[:, c].any(1)[:, None], h.new_zeros(()), h)
        if driven is not None:
            h = h + driven[c]
    return starts, h


def _read(table: Chunk, starts: list[Tensor], flags: Tensor | None, T: int) -> Tensor:
    """Return what the states before each chunk add to the outputs, (B, T, H)."""
    if flags is not None:  # a state that nothing reads must not reach a gradient
        starts = [
            torch.where(flags[:, c, 0, None], h.new_zeros(()), h) for c, h in enumerate(starts)
        ]
    y = torch.stack(starts, 2).flatten(1, 2) @ table.rows.mT  # (H, B count, Q)
    y = y.unflatten(1, (-1, len(starts))).permute(1, 2, 3, 0)
    if flags is not None:
        y = torch.where((flags.cumsum(2) > 0)[..., None], y.new_zeros(()), y)
    return y.flatten(1, 2)[:, :T]


def scan(
    system: Dense,
    x: Tensor,
    h: Tensor,
    reset: Tensor | None,
    *,
    length: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Run T >= 1 steps.

    Args:
        system: A, B and C.
        x: (B, T, H), in the dtype of the system.
        h: (B, H, N), state before x[:, 0].
        reset: (B, T) bool or None.
        length: steps per chunk, a power of two; None chooses by the shapes.
        backend: of the convolution within chunks.

    Returns:
        y (B, T, H) and the state (B, H, N) after the last step.
    """
    B, T, _ = x.shape
    Q = chunk_length(B, T, h.shape[-1]) if length is None else length
    table = chunk(system, Q)
    flags = None if reset is None else _chunk_of(reset, Q, -(-T // Q))
    driven = _driven(table, x, flags)
    starts, last = _carry(table, h.transpose(0, 1), T, driven, flags)
    begins = torch.arange(T, device=x.device) % Q == 0
    cut = begins.expand(B, T) if reset is None else reset | begins
    inside, _ = causal_conv1d(x, table.kernel.flip(-1), reset=cut, backend=backend)
    return inside + _read(table, starts, flags, T), last.transpose(0, 1)


def free_response(system: Dense, h: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Return the T >= 1 outputs (B, T, H) and the last state (B, H, N) of a system left alone."""
    table = chunk(system, chunk_length(len(h), T, h.shape[-1]))
    starts, last = _carry(table, h.transpose(0, 1), T, None, None)
    return _read(table, starts, None, T), last.transpose(0, 1)


def driven_state(system: Dense, x: Tensor) -> Tensor:
    """Return the state (B, H, N) to which T >= 1 inputs x (B, T, H) take a system at rest."""
    B, T, _ = x.shape
    table = chunk(system, chunk_length(B, T, system.B.shape[-1]))
    driven = _driven(table, x, None)
    return _carry(table, torch.zeros_like(driven[0]), T, driven, None)[1].transpose(0, 1)


def kernel(system: Dense, length: int) -> Tensor:
    """Return the impulse response C A^l B for l < length, (H, length)."""
    Q = _power_of_two(length)
    table = chunk(system, Q)
    column, taps = system.B[..., None], []
    rows = torch.cat((system.C[:, None], table.rows[:, :-1]), 1)  # C A^i
    for _ in range(0, length, Q):
        taps.append(rows @ column)
        column = table.squares[-1] @ column
    return torch.cat(taps, 1).squeeze(-1)[:, :length]
