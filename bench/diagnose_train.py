"""One run of `bench diagnose`: a core, a task, a seed."""

import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from statewise.bench.diagnose_tasks import TASKS, Sequences, Task
from statewise.bench.process import Answer, Job
from statewise.ssm.build import Kind, SequenceConfig, build_sequence
from statewise.ssm.groups import parameter_groups

WINDOW = 20  # updates that "reached" looks back on
REACHED = 0.95
DONE = 0.999  # over a window: training stops, nothing is left to learn
TEST_ROWS = 256


class Core(NamedTuple):
    """A kind of layer with options."""

    kind: Kind
    options: Mapping[str, Any] = MappingProxyType({})


VARIANTS: dict[str, Core] = {
    "mamba, signed": Core("mamba", {"eigenvalues": "signed"}),
    "mamba, complex": Core("mamba", {"eigenvalues": "complex"}),
    "mamba, mimetic": Core("mamba", {"init": "mimetic"}),
    "mamba2, mimetic": Core("mamba2", {"init": "mimetic"}),
    "delta_net, negative": Core("delta_net", {"allow_neg_eigval": True, "conv_width": 1}),
}


def cores() -> dict[str, Core]:
    """Return every row of the table of layers, followed by its variants."""
    found: dict[str, Core] = {}
    for kind in get_args(Kind):
        found[kind] = Core(kind)
        found |= {name: core for name, core in VARIANTS.items() if core.kind == kind}
    return found


class Tagger(nn.Module):
    """A class for every step: linear, a stack of the core, norm, linear."""

    def __init__(self, core: Core, task: Task, width: int, num_layers: int):
        super().__init__()
        config = SequenceConfig(kind=core.kind, d_model=width, num_layers=num_layers)
        if core.options:
            own = replace(getattr(config, core.kind), **core.options)
            config = replace(config, **{core.kind: own})
        self.encode = nn.Linear(task.features, width)
        self.sequence = build_sequence(config)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, task.classes)

    def forward(self, x: Tensor, reset: Tensor) -> Tensor:
        """Return logits (B, T, classes)."""
        y, _ = self.sequence(self.encode(x), None, reset)
        logits: Tensor = self.classify(self.norm(y))
        return logits


def accuracy(logits: Tensor, batch: Sequences) -> float:
    """Return the share of right answers among those asked for."""
    right = logits.argmax(-1) == batch.target
    return float(right[batch.asked].float().mean())


def run_job(job: Job) -> Answer:
    """Train one core on one task and test it on fresh sequences, also of twice the length.

    Args:
        job: core, task, seed, budget, batch, width, num_layers, learning_rate.

    Returns:
        The fields of `diagnose_runs.Run` but for its settings.
    """
    begin = time.process_time()
    torch.manual_seed(job["seed"])
    generator = Generator().manual_seed(job["seed"])
    task = TASKS[job["task"]]
    model = Tagger(cores()[job["core"]], task, job["width"], job["num_layers"])
    updates, reached = _train(model, task, job, generator)
    model.eval()
    short, long = (_test(model, task, job["seed"], scale) for scale in (1, 2))
    return {
        "core": job["core"],
        "task": job["task"],
        "seed": job["seed"],
        "budget": job["budget"],
        "updates": updates,
        "reached": reached,
        "accuracy": short,
        "accuracy_long": long,
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": (time.process_time() - begin) / 60,
    }


def _train(model: Tagger, task: Task, job: Job, generator: Generator) -> tuple[int, int | None]:
    """Return the updates made, and the one at which the accuracy had reached 0.95."""
    groups = parameter_groups(model, learning_rate=job["learning_rate"], weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups)
    total = job["budget"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in groups], total, pct_start=0.1, cycle_momentum=False
    )
    history: list[float] = []
    reached = None
    for update in range(1, total + 1):
        batch = task.make(generator, job["batch"], 1)
        logits = model(batch.x, batch.reset)
        loss = F.cross_entropy(logits[batch.asked], batch.target[batch.asked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        # Every batch is new, so accuracy in training is accuracy on unseen sequences.
        history = [*history[1 - WINDOW :], accuracy(logits.detach(), batch)]
        mean = sum(history) / len(history) if len(history) == WINDOW else 0.0
        if reached is None and mean >= REACHED:
            reached = update
        if mean >= DONE:
            return update, reached
    return total, reached


def _test(model: Tagger, task: Task, seed: int, scale: int) -> float:
    generator = Generator().manual_seed(1_000_003 * (seed + 1) + scale)
    batch = task.make(generator, TEST_ROWS, scale)
    with torch.no_grad():
        return accuracy(model(batch.x, batch.reset), batch)
