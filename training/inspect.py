"""What `statewise inspect` tells of the memory of a policy, on episodes that it plays.

    time constants   of the recurrence of every layer, `ssm.decays`
    state norm       |h_t| of every layer after every row
    influence        g(t, k) = | d y_t / d x_{t-k} |,  averaged over t for each lag k
    its share        g(t, k) / sum_j g(t, j),          averaged likewise

x is what the memory reads at a step, y_t what is asked of the action at t (`inspect_policy`), and
|.| the Frobenius norm. The derivative is taken in parallel mode; over a reset it is 0, and such
pairs are left out of the averages. The log-probability of a certain action hardly has a slope: of
a policy that is certain the first average shows what it does where it guesses, the second counts
every action the same.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statewise.ssm.decays import (
    KINDS,
    Read,
    find_layers,
    fixed_decays,
    recurrence,
    selective_decays,
    time_constants,
    why_none,
)
from statewise.training.inspect_play import play
from statewise.training.inspect_policy import (
    Played,
    Reader,
    Reading,
    check_memory,
    read_played,
)
from statewise.training.run import RunDirectory

MOST_ACTIONS = 128  # rows at which the influence on the action is taken
TOGETHER = 16  # of them in one pass
MOST_READS = 256  # steps of a sequence at which selective layers are asked
MOST_POINTS = 256  # of a sorted curve
TINY = 1e-300  # of a sum of slopes: an action without any has shares of 0


class InspectOptions(NamedTuple):
    """What is looked at."""

    episodes: int = 1
    """At least 1; whole trials where there are trials."""
    seed: int | None = None
    """Of the first one; None is that of evaluations."""
    checkpoint: int | None = None
    device: str | None = None
    out: Path | None = None
    """The figure; its ending chooses the format. None is plots/inspect.png in the run."""


class LayerReport(NamedTuple):
    """One sequence layer."""

    kind: str
    recurrence: str
    """"fixed", "selective" or "none"."""
    note: str
    """What takes the place of time constants, "" where there are some."""
    num_states: int
    """How many time constants were met in all."""
    time_constants: list[float]
    """Sorted, in steps; of many so many at even ranks."""


class Influence(NamedTuple):
    """Averages over actions, for every lag."""

    quantity: str
    """What is asked of the action."""
    mean: Tensor
    """(K,) of lags 0, 1, ... that occur."""
    share: Tensor
    """(K,) mean of what each lag has of the sum over all lags of an action."""
    pairs: Tensor
    """(K,) int64, how many actions and steps before them were averaged."""


class Inspection(NamedTuple):
    """All that is told."""

    layers: dict[str, LayerReport]
    """By number of the layer."""
    note: str
    """What a memory without layers of the suite is, else ""."""
    played: Played
    influence: Influence

    def as_json(self) -> dict[str, Any]:
        """Return what is written beside the figure."""
        played = self.played
        return {
            "rows": len(played.valid),
            "episode_starts": played.is_first.nonzero().flatten().tolist(),
            "memory_starts": played.reset.nonzero().flatten().tolist(),
            "layers": {name: layer._asdict() for name, layer in self.layers.items()},
            "state_norm": {name: norm.tolist() for name, norm in played.norms.items()},
            "influence": {
                "of": self.influence.quantity,
                "mean": self.influence.mean.tolist(),
                "share": self.influence.share.tolist(),
                "pairs": self.influence.pairs.tolist(),
            },
        }

    def lines(self) -> list[str]:
        """Return what was found in words."""
        lines = [self.note] if self.note else []
        for name, layer in self.layers.items():
            found = layer.note
            if layer.time_constants:
                low, high = layer.time_constants[0], layer.time_constants[-1]
                middle = layer.time_constants[len(layer.time_constants) // 2]
                found = f"time constants {low:.3g} to {high:.3g} steps, median {middle:.3g}"
            lines.append(f"layer {name}, {layer.kind}: {found}")
        share = self.influence.share
        if len(share) > 1:
            lag = int(share[1:].argmax()) + 1
            lines.append(
                f"influence on the {self.influence.quantity}: {100 * share[0]:.3g} % of the present"
                f" step, of past ones most at lag {lag}: {100 * share[lag]:.3g} %"
            )
        return lines


def influence(reading: Reading) -> Tensor:
    """Return |d y / d x| (n, S) of the actions of a reading with respect to every step."""
    x = reading.inputs.detach().clone().requires_grad_()
    num_steps = reading.steps.shape[1]
    with torch.enable_grad():
        answer = reading.respond(x)
        squares = x.new_zeros(x.shape[0], num_steps)
        for column in answer.unbind(1):
            (slope,) = torch.autograd.grad(column.sum(), x, retain_graph=True)
            squares += slope.square().reshape(*squares.shape, -1).sum(-1)
    return squares.sqrt()


def spread(rows: Tensor, most: int) -> Tensor:
    """Return at most so many entries of a vector, evenly spaced, the last one among them."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most, device=rows.device).round().long()]


def influence_by_lag(reader: Reader, played: Played, most: int = MOST_ACTIONS) -> Influence:
    """Average the influence over actions, for each lag within one memory."""
    T, device = len(played.valid), played.valid.device
    sums = torch.zeros(2, T, dtype=torch.float64, device=device)
    pairs = torch.zeros(T, dtype=torch.int64, device=device)
    for at in spread(played.valid.nonzero().flatten(), most).split(TOGETHER):
        with torch.no_grad():
            reading = reader.read(at)
        known = (reading.steps >= reader.begins[at][:, None]) & (reading.steps <= at[:, None])
        lag = (at[:, None] - reading.steps)[known]
        found = torch.where(known, influence(reading).double(), 0.0)
        share = found / found.sum(1, keepdim=True).clamp(min=TINY)
        sums.index_add_(1, lag, torch.stack((found[known], share[known])))
        pairs += torch.bincount(lag, minlength=T)
    count = int((pairs > 0).sum())  # lags without a gap
    mean, share = (sums[:, :count] / pairs[:count]).cpu()
    return Influence(reader.quantity, mean, share, pairs[:count].cpu())


def _reads(reading: Reading, layers: dict[str, nn.Module]) -> Iterator[tuple[str, Read]]:
    """Yield what each layer is called with while a reading is answered."""
    met: dict[str, Read] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            met[name] = Read(*(*args, None, None)[:3])

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(keep(name)).remove)
        reading.respond(reading.inputs)
    yield from met.items()


def _sizes_met(reader: Reader, played: Played, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return |a| (M,) of selective layers at steps of what was played."""
    if not layers:
        return {}
    at = spread(played.valid.nonzero().flatten(), MOST_ACTIONS)
    with torch.no_grad():
        reading = reader.read(at if reader.context else at[-1:])
    found = {}
    for name, read in _reads(reading, layers):
        length = read.x.shape[1]
        # Of a layer that reads one input per step, or several.
        known = (reading.steps >= 0).repeat_interleave(length // reading.steps.shape[1], 1)
        every = max(1, length // MOST_READS)
        found[name] = selective_decays(layers[name], read, every)[known[:, ::every]].flatten()
    return found


def describe_layers(reader: Reader, played: Played) -> dict[str, LayerReport]:
    """Return what is known of every layer of a memory."""
    layers = find_layers(reader.memory)
    kinds = {name: recurrence(layer) for name, layer in layers.items()}
    met = {name: layer for name, layer in layers.items() if kinds[name] == "selective"}
    sizes = _sizes_met(reader, played, met)
    for name, layer in layers.items():
        if kinds[name] == "fixed":
            sizes[name] = fixed_decays(layer)
    reports = {}
    for name, layer in layers.items():
        tau = time_constants(sizes.get(name, torch.zeros(0))).sort().values
        note = why_none(layer) if kinds[name] == "none" else ""
        curve = spread(tau, MOST_POINTS).tolist()
        reports[name] = LayerReport(KINDS[type(layer)], kinds[name], note, len(tau), curve)
    return reports


def inspect_agent(agent: Any, played: Played) -> Inspection:
    """Return all that is told of an agent and what it played."""
    reader = read_played(agent, played)
    layers = describe_layers(reader, played)
    note = ""
    if not layers:
        window = f"attention over {reader.context} steps" if reader.context else "a GRU cell"
        note = f"the memory is {window}, without eigenvalues"
    return Inspection(layers, note, played, influence_by_lag(reader, played))


def inspect_run(run: Path, options: InspectOptions) -> tuple[Inspection, Path]:
    """Look into the memory of a run's policy; draw it, and write the numbers beside the figure.

    Returns:
        What was found, and the figure.

    Raises:
        ConfigError: the policy has no memory, or the run no policy.
        RunError: the figure cannot be written.
    """
    from statewise.training.api import load
    from statewise.training.inspect_draw import write_figure

    trained = load(run, checkpoint=options.checkpoint, device=options.device)
    check_memory(trained)
    torch.set_num_threads(trained.config.num_threads)
    seed = trained.eval_seed if options.seed is None else options.seed
    found = inspect_agent(trained.agent, play(trained, options.episodes, seed))
    head = {"env": trained.env_id, "preset": trained.preset, "step": trained.step, "seed": seed}
    out = options.out or RunDirectory.open(run).plots_dir / "inspect.png"
    return found, write_figure(found, head, out)
