"""The systems of `bench worldmodel`, each checked and timed in a process of its own.

Before timing, a window has to be its steps: the same samples and the same h. Sizes are those of
small memory tasks: 7 numbers observed, 4 actions, 8 latents of 8 classes, S5 with 32 states in 2
layers, or a GRU.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.optimizer import Optimizer, OptimizerSettings
from statewise.bench.measure import Timing, time_calls
from statewise.bench.process import Answer, Job
from statewise.bench.worldmodel import CELL, GRU_Z, R2I
from statewise.data.shift import to_arrival
from statewise.data.step import Step, moved
from statewise.nets.latents import LatentConfig
from statewise.ssm.block import BlockConfig
from statewise.ssm.build import SequenceConfig
from statewise.ssm.s5 import S5Config
from statewise.worldmodels.config import HeadConfig, WorldModelConfig
from statewise.worldmodels.decoder import ObsDecoderConfig
from statewise.worldmodels.encoder import ObsEncoderConfig
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.parallel import ParallelConfig
from statewise.worldmodels.rssm import RSSM, RSSMConfig

OBS_SPACE = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (7,), np.float32)})
ACTIONS: spaces.Space[Any] = spaces.Discrete(4)
RESET_RATE = 0.02
CHECKED_STEPS = 16
LIMIT = 1e-4  # of the largest entry, float32
SETTINGS = OptimizerSettings(learning_rate=1e-4, max_grad_norm=1000.0, total_updates=1)


class TorchCell(nn.Module):
    """`torch.nn.GRUCell` behind the calls of `NormGRUCell`: without the norm."""

    def __init__(self, d_in: int, d_hidden: int):
        super().__init__()
        self.cell = nn.GRUCell(d_in, d_hidden)

    def project(self, x: Tensor) -> Tensor:
        """Return x: the cell projects by itself."""
        return x

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the next h."""
        after: Tensor = self.cell(x, h)
        return after

    def loop(self, batch_size: int, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the cell itself."""
        return self


def make_model(system: str, width: int) -> WorldModel:
    """Return the world model of a system, all widths `width`."""
    sizes: dict[str, Any] = {
        "deter": width,
        "prior_hidden": (width,),
        "posterior_hidden": (width,),
    }
    core: Literal["parallel", "rssm"] = "parallel" if system == R2I else "rssm"
    memory: dict[str, Any]
    if system == R2I:
        s5 = S5Config(
            state_size=32,
            blocks=4,
            conj_sym=False,
            discretization="bilinear",
            initial_state="learned",
        )
        block = BlockConfig(norm_position="post")
        sequence = SequenceConfig(kind="s5", num_layers=2, d_model=width, block=block, s5=s5)
        memory = {"parallel": ParallelConfig(sequence=sequence, **sizes)}
    else:
        posterior: Literal["observation", "recurrent"] = (
            "observation" if system == GRU_Z else "recurrent"
        )
        memory = {"rssm": RSSMConfig(units=width, posterior=posterior, **sizes)}
    config = WorldModelConfig(
        core=core,
        latents=LatentConfig(num=8, classes=8),
        encoder=ObsEncoderConfig(hidden=(width,)),
        decoder=ObsDecoderConfig(hidden=(width,)),
        heads=HeadConfig(hidden=(width,)),
        **memory,
    )
    torch.manual_seed(0)
    model = WorldModel(OBS_SPACE, ACTIONS, config)
    if system == CELL:
        assert isinstance(model.dynamics, RSSM)
        model.dynamics.cell = TorchCell(width, width)  # type: ignore[assignment]
    return model


def device_of(model: WorldModel) -> torch.device:
    """Return where a model is."""
    return next(model.parameters()).device


def make_window(batch: int, steps: int) -> Step:
    """Return random rows (B, T) with resets in 2 % of them."""
    draw = torch.Generator().manual_seed(0)
    is_first = torch.rand(batch, steps, generator=draw) < RESET_RATE
    is_first[:, 0] = True
    no = torch.zeros_like(is_first)
    return Step(
        obs={"obs": torch.randn(batch, steps, 7, generator=draw)},
        is_first=is_first,
        reset=is_first,
        action=torch.randint(4, (batch, steps), generator=draw),
        reward=torch.randn(batch, steps, generator=draw),
        terminated=no,
        truncated=no,
        valid=~no,
    )


def check(model: WorldModel) -> str:
    """Return "" if a window is its steps, else what differs."""
    device = device_of(model)
    step = moved(make_window(2, CHECKED_STEPS), device)
    action = model.action_in(to_arrival(step))
    noise = model.noise(2, CHECKED_STEPS, generator=torch.Generator(device).manual_seed(1))
    with torch.no_grad():
        seen = model.observe(step.obs, action, None, step.reset, noise)
        state = model.initial_state(2)
        for t in range(CHECKED_STEPS):
            obs = {key: x[:, t] for key, x in step.obs.items()}
            state = model.observe_step(obs, action[:, t], state, step.reset[:, t], noise[:, t])
            if not torch.equal(state["stoch"], seen.stoch[:, t]):
                return f"expected the samples of the window, got others at step {t}"
    error = float((state["deter"] - seen.deter[:, -1]).abs().max() / seen.deter.abs().max())
    return "" if error <= LIMIT else f"expected h within {LIMIT:g}, got {error:.3g}"


def time_updates(model: WorldModel, job: Job) -> Timing:
    """Time updates on one window."""
    step = moved(make_window(job["batch"], job["steps"]), device_of(model))
    arrival = to_arrival(step)
    optimizer = Optimizer(model, SETTINGS)
    count = 0

    def update() -> None:
        nonlocal count
        noise = model.noise(job["batch"], job["steps"])
        seen = model.observe(step.obs, model.action_in(arrival), None, step.reset, noise)
        total, terms = model.loss(step.obs, arrival, seen)
        optimizer.step(terms, total, count)
        count += 1

    return time_calls(update, device=device_of(model), **_extent(job))


def time_imagination(model: WorldModel, job: Job) -> Timing:
    """Time rollouts of the prior with one action each."""
    N, H = job["batch"], job["steps"]
    chosen = torch.arange(N, device=device_of(model)) % 4
    action = torch.nn.functional.one_hot(chosen, 4).float()

    @torch.no_grad()
    def roll_out() -> None:
        noise = model.noise(H, N)
        cache = model.dynamics.prepare_step()
        model.imagine(model.initial_state(N), lambda state, i: action, noise, cache=cache)

    return time_calls(roll_out, device=action.device, **_extent(job))


def _extent(job: Job) -> dict[str, Any]:
    """Return how often and how long a job is timed, as `time_calls` takes it."""
    return {key: job[key] for key in ("reps", "seconds", "least_seconds")}


def run_job(job: Job) -> Answer:
    """Check a system if asked, and time it."""
    model = make_model(job["system"], job["width"]).to(job["device"])
    refused = check(model) if job["check"] else ""
    if refused:
        return {"refused": refused}
    timing = (time_imagination if job["mode"] == "imagine" else time_updates)(model, job)
    return {
        "refused": "",
        "timing": [timing.wall, timing.cpu],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
