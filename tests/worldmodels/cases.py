"""Small world models of every kind of memory, in float64, and windows for them."""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.nets.latents import LatentConfig
from statewise.ssm.build import SequenceConfig
from statewise.ssm.protocol import State
from statewise.ssm.s5 import S5Config
from statewise.worldmodels.config import HeadConfig, WorldModelConfig
from statewise.worldmodels.decoder import ObsDecoderConfig
from statewise.worldmodels.encoder import ObsEncoderConfig
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.parallel import ParallelConfig
from statewise.worldmodels.rssm import RSSMConfig

OBS_SPACE = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (3,), np.float32)})
ACTIONS = spaces.Discrete(3)
LATENTS = LatentConfig(num=3, classes=4)
WIDTH = 8
LEARNED_S5 = S5Config(state_size=8, initial_state="learned", discretization="bilinear")
CORES = (
    *("rssm", "rssm_observation", "rssm_blocks", "rssm_blocks_observation"),
    *("s5", "s5_norm", "lru", "gru", "mamba", "s4d"),
)


def sequence(kind: str) -> SequenceConfig:
    s5 = {"s5": LEARNED_S5} if kind == "s5" else {}
    return SequenceConfig(kind=kind, num_layers=2, d_model=WIDTH, **s5)  # type: ignore[arg-type]


def core_config(core: str) -> dict[str, object]:
    small = {"prior_hidden": (WIDTH,), "posterior_hidden": (WIDTH,), "deter": WIDTH}
    if core.startswith("rssm"):
        posterior = "observation" if core.endswith("observation") else "recurrent"
        blocks = 2 if "blocks" in core else 0
        rssm = RSSMConfig(units=WIDTH, posterior=posterior, blocks=blocks, **small)  # type: ignore[arg-type]
        return {"core": "rssm", "rssm": rssm}
    output = "norm" if core == "s5_norm" else "silu"
    kind = core.removesuffix("_norm")
    parallel = ParallelConfig(sequence=sequence(kind), output=output, **small)  # type: ignore[arg-type]
    return {"core": "parallel", "parallel": parallel}


def config(core: str, **changes: object) -> WorldModelConfig:
    settings: dict[str, object] = {
        "latents": LATENTS,
        "encoder": ObsEncoderConfig(hidden=(WIDTH,)),
        "decoder": ObsDecoderConfig(hidden=(WIDTH,)),
        "heads": HeadConfig(hidden=(WIDTH,)),
        "reward_outscale": 1.0,
        **core_config(core),
        **changes,
    }
    return WorldModelConfig(**settings)  # type: ignore[arg-type]


def model(core: str, *, seed: int = 0, **changes: object) -> WorldModel:
    """Return a model in float64 whose learned starts are not zero."""
    torch.manual_seed(seed)
    made = WorldModel(OBS_SPACE, ACTIONS, config(core, **changes)).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "init" in name.rpartition("layers")[2]:  # h_init of layers, deter of the start
                parameter.copy_(torch.randn_like(parameter))
    return made


class Window:
    """Random inputs of `observe` for B rows of T steps."""

    def __init__(self, made: WorldModel, B: int, T: int, seed: int = 1):
        draw = torch.Generator().manual_seed(seed)
        self.obs = {"obs": torch.randn(B, T, 3, dtype=torch.float64, generator=draw)}
        index = torch.randint(3, (B, T), generator=draw)
        self.action = torch.nn.functional.one_hot(index, 3).double()
        self.noise = made.noise(B, T, generator=draw)
        self.state: State = made.initial_state(B)
        last = made.observe(self.obs, self.action, None, None, self.noise).last
        self.state = {key: x.detach() for key, x in last.items()}

    def at(self, t: int) -> tuple[dict[str, Tensor], Tensor]:
        return {key: x[:, t] for key, x in self.obs.items()}, self.action[:, t]
