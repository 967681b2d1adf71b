"""Variants of Mamba and its options, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel
from statewise.ssm.mamba import MambaConfig, MambaLayer


def _mamba(backend: str = "auto", **options: object) -> Callable[[], SequenceModel]:
    return lambda: MambaLayer(4, MambaConfig(**{"state_size": 4} | options), backend)


LAYERS: dict[str, Callable[[], SequenceModel]] = {
    "mamba-torch": _mamba("torch", state_size=3, polarized="both"),
    "mamba-reference": _mamba("reference", dt_scale=2.0),
    "mamba-signed": _mamba(eigenvalues="signed", conv_width=1),
    "mamba-complex": _mamba(eigenvalues="complex", inner_norm="rms", init="mimetic"),
}
