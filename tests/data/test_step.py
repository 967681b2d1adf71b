"""Batches move between devices as one."""

from typing import Any, NamedTuple

import torch

from statewise.data.step import moved


class Pair(NamedTuple):
    """A batch with everything that batches hold."""

    tree: dict[str, Any]
    inner: Any
    number: int


def test_every_tensor_of_a_batch_is_moved_and_the_rest_stays() -> None:
    batch = Pair({"a": torch.zeros(2)}, Pair({}, torch.ones(1, dtype=torch.bool), 3), 5)
    there = moved(batch, torch.device("meta"))
    assert there.tree["a"].is_meta
    assert there.inner.inner.is_meta
    assert there.inner.inner.dtype == torch.bool
    assert (type(there), type(there.inner), there.number, there.inner.number) == (Pair, Pair, 5, 3)
    assert not batch.tree["a"].is_meta
