"""The models every law is checked on: each row of the table, its options, and stacks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from statewise.ssm import SEQUENCES, SequenceConfig, SequenceModel, State, build_sequence
from statewise.ssm.block import BlockConfig
from statewise.ssm.lru import LRUConfig, LRULayer
from statewise.ssm.s5 import S5Config, S5Layer
from tests.kernels.scan_cases import BACKENDS
from tests.ssm import (
    variants_attention,
    variants_lti,
    variants_s5,
    variants_selective,
    variants_ssd,
)

WIDTH = 4  # of the layers in the variants_* files, too


def _bare(kind: str) -> Callable[[], SequenceModel]:
    return lambda: SEQUENCES[kind].make(SequenceConfig(kind=kind, d_model=WIDTH))


def _stack(kind: str, block: BlockConfig | None = None) -> Callable[[], SequenceModel]:
    config = SequenceConfig(
        kind=kind, d_model=WIDTH, num_layers=2, block=BlockConfig() if block is None else block
    )
    return lambda: build_sequence(config)


def _s5(backend: str = "auto", **options: object) -> Callable[[], SequenceModel]:
    return lambda: S5Layer(WIDTH, S5Config(**options), backend)


def _lru(backend: str = "auto", **options: object) -> Callable[[], SequenceModel]:
    return lambda: LRULayer(WIDTH, LRUConfig(**options), backend)


BLOCKS = {
    "pre-shared-half_glu2": BlockConfig(after_norm="shared", gate="half_glu2"),
    "post-rms-half_glu1": BlockConfig(norm="rms", norm_position="post", gate="half_glu1"),
    "no-norm-gelu": BlockConfig(norm="none", gate="gelu"),
    "no-gate": BlockConfig(gate="none"),
    "plain": BlockConfig(kind="plain"),
}
LAYERS: dict[str, Callable[[], SequenceModel]] = {
    **{kind: _bare(kind) for kind in SEQUENCES},
    **{f"s5-{backend}": _s5(backend, initial_state="learned") for backend in BACKENDS},
    **{f"lru-{backend}": _lru(backend, initial_state="learned") for backend in BACKENDS},
    "s5-bilinear": _s5(discretization="bilinear"),
    "s5-blocks-wide": _s5(state_size=12, blocks=3),
    "s5-all-pairs": _s5(state_size=5, conj_sym=False, c_init="complex_normal"),
    "s5-clip": _s5(re_param="clip", c_init="lecun_normal"),
    **variants_s5.LAYERS,
    **variants_lti.LAYERS,
    **variants_selective.LAYERS,
    **variants_ssd.LAYERS,
    **variants_attention.LAYERS,
    "lru-long": _lru(state_size=7, r_min=0.9, r_max=0.999, max_phase=0.314),
}
STACKS: dict[str, Callable[[], SequenceModel]] = {
    **{f"stack-{kind}": _stack(kind) for kind in SEQUENCES},
    **{f"stack-s5-{name}": _stack("s5", block) for name, block in BLOCKS.items()},
}
MODELS = LAYERS | STACKS


def make(name: str, dtype: torch.dtype = torch.float64) -> SequenceModel:
    """Build a model whose parameters, the initial state included, are nowhere zero."""
    model = MODELS[name]()
    assert isinstance(model, nn.Module)
    model.to(dtype)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("h_init"):
                parameter.normal_()
            elif "norm" in parameter_name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_state(model: SequenceModel, B: int) -> State:
    """Return a state unlike the initial one."""
    return {key: torch.randn_like(value) for key, value in model.initial_state(B).items()}


def step_loop(
    model: SequenceModel, x: Tensor, state: State, reset: Tensor | None
) -> tuple[Tensor, State, list[State]]:
    """Run T calls of `step`; also return the states after each."""
    outputs, states = [], []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state, None if reset is None else reset[:, t])
        outputs.append(y)
        states.append(state)
    return torch.stack(outputs, 1), state, states
