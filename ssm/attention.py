"""Causal multi-head attention over a sliding window: the baseline with a bounded memory.

Vaswani et al. 2017, "Attention Is All You Need"; rotary positions of Su et al. 2021, "RoFormer:
Enhanced Transformer with Rotary Position Embedding":

    y_t = W_o sum_j softmax_j(<R(t - j) q_t, k_j> / sqrt(d)) v_j
    over t - context < j <= t with no reset in (j, t]

R(n) turns pair f of a head's d numbers by the angle n base^(-2 f / d). Scores depend on t - j
alone, so the cache holds keys that are not turned yet, and nothing counts the steps of a long life.

State keys: "kv" (B, context, 2, heads, d), the last keys and values, the most recent last, and
"valid" (B, context), above 0.5 where an entry was written after the last reset.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels.segments import broken, starts
from statewise.ssm.history import windows_after
from statewise.ssm.protocol import Cache, SequenceModel, State

WIDTH_PER_HEAD = 32


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Hyper-parameters of one attention layer."""

    num_heads: int | None = None  # >= 1; None means one per 32 of the layer's width
    context: int = 128  # >= 1, steps that a query sees, its own among them
    rope_base: float = 10000.0  # > 1; the slowest pair turns once in about 6 * rope_base steps

    def __post_init__(self) -> None:
        for name in ("num_heads", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not self.rope_base > 1:
            raise ValueError(f"rope_base: expected a number above 1, got {self.rope_base}")


def rotation(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> Tensor:
    """Return cosines and signed sines for `rotate`: positions (N,), result (2, N, 1, width)."""
    pairs = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angle = positions.to(torch.float64)[:, None] * base ** (-pairs / width)
    cos, sin = angle.cos(), angle.sin()
    both = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))
    return both[:, :, None].to(dtype)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn x (..., N, H, width); number f and number f + width / 2 form a pair."""
    cos, sin = turn.unbind(0)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _fold(x: Tensor, block: int, count: int) -> Tensor:
    """Return for each block of queries the entries it may see: (B, count, context + block, ...)."""
    if count == 1:
        return x[:, None]
    blocks = x.unflatten(1, (count + 1, block))  # here a block is as long as the context
    return torch.cat((blocks[:, :-1], blocks[:, 1:]), 2)


def _visible(first: Tensor, valid: Tensor, context: int, block: int, count: int) -> Tensor:
    """Return which entry each query sees, (B, count, block, context + block) bool.

    Args:
        first: (B, count * block), number of the first entry since the last reset.
        valid: (B, context + count * block) bool, entries that hold something.
        context: entries before the first query; query i is entry context + i.
        block: queries in a block.
        count: blocks.
    """
    query = torch.arange(block, device=first.device)[:, None]
    entry = torch.arange(context + block, device=first.device)
    band = (entry > query) & (entry <= query + context)
    base = torch.arange(count, device=first.device)[:, None] * block
    since = (base + entry)[:, None] >= first.unflatten(1, (count, block))[..., None]
    return band & since & _fold(valid, block, count)[:, :, None]


class AttentionLayer(nn.Module):
    """One attention layer of width `d_model`; a `SequenceModel`."""

    ssm_parameters: tuple[str, ...] = ()

    def __init__(self, d_model: int, config: AttentionConfig | None = None):
        super().__init__()
        self.config = config = AttentionConfig() if config is None else config
        self.d_in = self.d_out = d_model
        self.num_heads = config.num_heads or max(1, d_model // WIDTH_PER_HEAD)
        self.head_dim = 2 * -(-d_model // (2 * self.num_heads))  # even, for the pairs
        inner = self.num_heads * self.head_dim
        self.qkv_proj = nn.Linear(d_model, 3 * inner, bias=False)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def initial_state(self, batch_size: int) -> State:
        """Return an empty cache."""
        zeros, C = self.out_proj.weight.new_zeros, self.config.context
        return {
            "kv": zeros((batch_size, C, 2, self.num_heads, self.head_dim)),
            "valid": zeros((batch_size, C)),
        }

    def _rotation(self, begin: int, end: int, like: Tensor) -> Tensor:
        positions = torch.arange(begin, end, device=like.device)
        return rotation(positions, self.head_dim, self.config.rope_base, like.dtype)

    def _attend(self, q: Tensor, kv: Tensor, valid: Tensor, first: Tensor) -> Tensor:
        """Attend from q (B, T, H, d) to entries (B, context + T, 2, H, d); return (B, T, H * d).

        Queries go in blocks of `context`, each with the block before it: memory and work are
        those of T * context pairs.
        """
        T, C = q.shape[1], self.config.context
        block = T if T <= C else C
        count = -(-T // block)
        padding = count * block - T
        k = rotate(kv[:, :, 0], self._rotation(0, C + T, kv)).to(q.dtype)
        turned = rotate(q.to(kv.dtype), self._rotation(C, C + T, kv)).to(q.dtype)
        v = kv[:, :, 1].to(q.dtype)
        if padding:  # valid, so that a padded query sees something: itself
            k, v, turned = (F.pad(each, (0, 0, 0, 0, 0, padding)) for each in (k, v, turned))
            valid, first = F.pad(valid, (0, padding), value=True), F.pad(first, (0, padding))
        seen = _visible(first, valid, C, block, count).flatten(0, 1)[:, None]
        y = F.scaled_dot_product_attention(
            turned.unflatten(1, (count, block)).flatten(0, 1).transpose(1, 2),
            _fold(k, block, count).flatten(0, 1).transpose(1, 2),
            _fold(v, block, count).flatten(0, 1).transpose(1, 2),
            attn_mask=seen,
        )
        return y.transpose(1, 2).flatten(2).unflatten(0, (-1, count)).flatten(1, 2)[:, :T]

    def _run(self, x: Tensor, before: State, start: Tensor) -> tuple[Tensor, State]:
        """Return y and the entries (B, context + T, ...): those of the cache, then the new ones."""
        B, T = x.shape[:2]
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        kv = torch.cat((before["kv"], qkv[:, :, 1:].to(before["kv"].dtype)), 1)
        valid = torch.cat((before["valid"], before["valid"].new_ones((B, T))), 1)
        y = self._output(qkv[:, :, 0], kv, valid > 0.5, start) if x.numel() else x.clone()
        return y, {"kv": kv, "valid": valid}

    def _output(self, q: Tensor, kv: Tensor, valid: Tensor, start: Tensor) -> Tensor:
        """Attend, and let no broken number reach a step that does not see it."""
        T, C = q.shape[1], self.config.context
        first = torch.where(start < 0, 0, start + C)
        bad = broken(kv.flatten(2))
        bad = torch.cat((bad[:, :C], bad[:, C:] | broken(q.flatten(2))), 1)
        q = torch.where(bad[:, C:, None, None], 0.0, q)
        kv = torch.where(bad[..., None, None, None], 0.0, kv)
        y = self.out_proj(self._attend(q, kv, valid, first))
        entries = torch.arange(C + T, device=q.device)
        latest = torch.where(bad & valid, entries, -1).cummax(1).values[:, C:]
        reached = latest >= torch.maximum(first, entries[1 : T + 1])
        return torch.where(reached[..., None], torch.nan, y)

    def _after(self, entries: State, start: Tensor, every: int) -> State:
        """Return the caches after steps every - 1, 2 * every - 1, ..."""
        size = self.config.context
        return {key: windows_after(value, start, size, every) for key, value in entries.items()}

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        before = self.initial_state(x.shape[0]) if state is None else state
        start = starts(reset, x)
        y, entries = self._run(x, before, start)
        return y, self._last(before, entries, start)

    def _last(self, before: State, entries: State, start: Tensor) -> State:
        T = start.shape[1]
        source = before if T == 0 else self._after(entries, start, T)
        return {key: value.clone() if T == 0 else value[:, 0] for key, value in source.items()}

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return the caches on the way."""
        before = self.initial_state(x.shape[0]) if state is None else state
        start = starts(reset, x)
        y, entries = self._run(x, before, start)
        return y, self._last(before, entries, start), self._after(entries, start, every)

    def prepare_step(self) -> Cache:
        """Compute the rotation of the cache once for many steps; see `SequenceModel`."""
        with torch.no_grad():
            return {"turn": self._step_rotation()}

    def _step_rotation(self) -> Tensor:
        """Return the rotation of each entry against the query, which then stays as it is."""
        return self._rotation(1 - self.config.context, 1, self.out_proj.weight)

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Attend from one step to the cache; see `SequenceModel`."""
        turn = self._step_rotation() if cache is None else cache["turn"]
        old, valid = state["kv"], state["valid"]
        if reset is not None:
            old = torch.where(reset[:, None, None, None, None], 0.0, old)
            valid = torch.where(reset[:, None], 0.0, valid)
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        kv = torch.cat((old[:, 1:], qkv[:, None, 1:].to(old.dtype)), 1)
        valid = torch.cat((valid[:, 1:], valid.new_ones((len(valid), 1))), 1)
        y = F.scaled_dot_product_attention(
            qkv[:, 0, :, None],
            rotate(kv[:, :, 0], turn).to(qkv.dtype).transpose(1, 2),
            kv[:, :, 1].to(qkv.dtype).transpose(1, 2),
            attn_mask=(valid > 0.5)[:, None, None],
        )
        return self.out_proj(y.flatten(1)), {"kv": kv, "valid": valid}


def conforms(layer: AttentionLayer) -> SequenceModel:
    """Let the type checker compare the layer with the protocol."""
    return layer
