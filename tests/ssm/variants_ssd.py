"""Variants of Mamba-2, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel
from statewise.ssm.mamba2 import Mamba2Config, Mamba2Layer


def _mamba2(backend: str = "auto", **options: object) -> Callable[[], SequenceModel]:
    return lambda: Mamba2Layer(4, Mamba2Config(**{"state_size": 6} | options), backend)


LAYERS: dict[str, Callable[[], SequenceModel]] = {
    "mamba2-torch": _mamba2("torch", head_dim=2, groups=2, chunk=4),
    "mamba2-reference": _mamba2("reference", head_dim=4, dt_scale=2.0),
    "mamba2-chunks": _mamba2(head_dim=2, chunk=2, conv_width=1, init="mimetic"),
}
