"""Variants of S5's options from the literature, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel
from statewise.ssm.s5 import S5Config, S5Layer


def _s5(**options: object) -> Callable[[], SequenceModel]:
    return lambda: S5Layer(4, S5Config(**options))


LAYERS: dict[str, Callable[[], SequenceModel]] = {
    "s5-ptd-softplus": _s5(state_size=8, blocks=2, init="ptd", re_param="softplus"),
    "s5-ptd-all-pairs": _s5(state_size=5, init="ptd", perturbation=0.3, conj_sym=False),
    "s5-gamma-bilinear-learned": _s5(
        b_init="gamma_normalised",
        c_init="half_normal",
        discretization="bilinear",
        initial_state="learned",
    ),
    "s5-inv_square-scaled": _s5(re_param="inv_square", dt_scale=0.5, memory_steps=(2.0, 40.0)),
}
