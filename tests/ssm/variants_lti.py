"""Variants of the layers with a time-invariant recurrence, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel
from statewise.ssm.dss import DSSConfig, DSSLayer
from statewise.ssm.lssl import LSSLConfig, LSSLLayer
from statewise.ssm.s4 import S4Config, S4Layer
from statewise.ssm.s4d import S4DConfig, S4DLayer


def _s4d(backend: str = "auto", **options: object) -> Callable[[], SequenceModel]:
    return lambda: S4DLayer(4, S4DConfig(**{"state_size": 8} | options), backend)


def _s4(backend: str = "auto", **options: object) -> Callable[[], SequenceModel]:
    return lambda: S4Layer(4, S4Config(**{"state_size": 8} | options), backend)


def _lssl(**options: object) -> Callable[[], SequenceModel]:
    return lambda: LSSLLayer(4, LSSLConfig(**{"state_size": 6} | options))


LAYERS: dict[str, Callable[[], SequenceModel]] = {
    "s4d-torch-inv-bilinear": _s4d(
        "torch", init="inv", discretization="bilinear", num_copies=2, dt_tie=False
    ),
    "s4d-reference-real": _s4d("reference", init="real", learn_b=False, bandlimit=0.9),
    "s4d-ptd-softplus": _s4d(init="ptd", re_param="softplus", num_copies=2),
    "s4d-inv_square-scaled": _s4d(
        re_param="inv_square", dt_scale=0.5, memory_steps=(2.0, 40.0), learn_b=False
    ),
    "s4d-clip-bilinear": _s4d(re_param="clip", discretization="bilinear", dt_scale=2.0),
    "s4-legt": _s4(measure="legt", num_copies=None),
    "s4-torch-fourier": _s4("torch", measure="fourier"),
    "s4-inv_square-scaled": _s4(re_param="inv_square", dt_scale=0.5, memory_steps=(2.0, 40.0)),
    "dss-two": lambda: DSSLayer(4, DSSConfig(state_size=6, num_copies=2)),
    "dss-softplus-scaled": lambda: DSSLayer(
        4, DSSConfig(state_size=6, re_param="softplus", dt_scale=2.0)
    ),
    "lssl-fixed": _lssl(learn="fixed", alpha=1.0, dt_scale=0.5),
    "lssl-per-channel": _lssl(learn="per_channel", measure="fourier", learn_dt=True),
}
