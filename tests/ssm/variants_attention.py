"""Variants of causal attention, Gated DeltaNet and RG-LRU, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel
from statewise.ssm.attention import AttentionConfig, AttentionLayer
from statewise.ssm.delta_net import GatedDeltaNetConfig, GatedDeltaNetLayer
from statewise.ssm.rg_lru import RGLRUConfig, RGLRULayer


def _attention(**options: object) -> Callable[[], SequenceModel]:
    return lambda: AttentionLayer(4, AttentionConfig(**options))


def _rg_lru(backend: str = "auto", **options: object) -> Callable[[], SequenceModel]:
    return lambda: RGLRULayer(4, RGLRUConfig(**options), backend)


def _delta_net(backend: str = "auto", **options: object) -> Callable[[], SequenceModel]:
    return lambda: GatedDeltaNetLayer(4, GatedDeltaNetConfig(**options), backend)


LAYERS: dict[str, Callable[[], SequenceModel]] = {
    "attention-wide": _attention(),
    "attention-short": _attention(context=3, num_heads=2),
    "delta_net-signed": _delta_net(allow_neg_eigval=True, num_heads=2, chunk=4),
    "delta_net-reference": _delta_net("reference", conv_width=1, gate="none"),
    "rg_lru-blocks": _rg_lru("torch", lru_width=6, heads=3),
    "rg_lru-reference": _rg_lru("reference", conv_width=1),
    "rg_lru-cpu": _rg_lru("cpu", radius_min=0.2),
}
