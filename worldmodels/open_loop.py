"""Open-loop evaluation of a world model: what it makes of the rest of an episode it cannot see.

Paper: Deng, Park and Ahn 2023, "Facing Off World Model Backbones: RNNs, Transformers, and S4".
Of an episode with n observations o_0 .. o_{n-1} the first C are seen, with the actions that led
to them. The rest follows from the recorded actions alone:

    seen         z_t ~ q(. | o_t, ...)   t = 0 .. n - 1     the whole episode
    imagined     z_t ~ p(. | h_t)        t = C .. n - 1     from the state after row C - 1

Errors are those of rows C .. n - 1, so that both are about the same observations: reconstruction
decodes what was seen, generation what was imagined. Row C + i is step i. Episodes may differ in n
and in C.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.data.shift import Arrival, to_arrival
from statewise.data.step import Step
from statewise.nets.dreamer_layers import widened
from statewise.ssm.protocol import Cache, State
from statewise.ssm.state import detach
from statewise.worldmodels.entries import Entry
from statewise.worldmodels.model import Imagined, WorldModel
from statewise.worldmodels.state import masked

MOST_VALUES = 16  # distinct final rewards, beyond which none is nearest in a sense that says much


class Latents(NamedTuple):
    """Where a model is at some rows."""

    stoch: Tensor
    """(B, n, S, K)."""
    deter: Tensor
    """(B, n, D)."""


class Rest(NamedTuple):
    """The rows of episodes that are imagined, the first of them in column 0."""

    first: Tensor
    """(B,) number of that row, C."""
    mask: Tensor
    """(B, H) bool: the episode has such a row."""

    def take(self, x: Tensor) -> Tensor:
        """Return (B, H, ...) of rows (B, T, ...); where the mask is False they mean nothing."""
        return rows_from(x, self.first, self.mask.shape[1])


class Errors(NamedTuple):
    """Errors of decoded observations, (B, H) each but for the last, by entry."""

    loss: dict[str, Tensor]
    """In the units of the decoder's loss."""
    mse: dict[str, Tensor]
    """Mean squares in the units of the observation; pictures in [0, 1], indices one-hot."""
    numbers: dict[str, Tensor]
    """(B, H, width) their squares, of vectors of numbers alone."""


class Measured(NamedTuple):
    """What an evaluation found on B episodes."""

    mask: Tensor
    """(B, H) bool."""
    reconstruction: Errors
    generation: Errors
    """Means over the rollouts."""
    reward: Tensor
    """(B,) with the last of these rows."""
    inferred: Tensor
    """(B,) the same, predicted from the whole episode."""
    imagined: Tensor
    """(B, samples) the same, predicted from what was imagined."""


def rows_from(x: Tensor, first: Tensor, length: int) -> Tensor:
    """Return rows first .. first + length - 1 of x (B, T, ...), cut to those that there are."""
    index = first[:, None] + torch.arange(length, device=x.device)
    index = index.clamp(0, x.shape[1] - 1)
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def half(rows: Tensor) -> Tensor:
    """Return the context of episodes (B,) of `rows` observations: half of them, at least 1."""
    return (rows // 2).clamp(min=1)


def check_context(context: Tensor, rows: Tensor) -> None:
    """Check that something is seen of episodes (B,) and something left to imagine.

    Raises:
        ValueError: of an episode nothing is.
    """
    wrong = (context < 1) | (context >= rows)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"context: expected at least 1 row and fewer than the {int(rows[first])} of episode"
            f" {first}, got {int(context[first])}"
        )


def rest_of(context: Tensor, rows: Tensor, horizon: int | None = None) -> Rest:
    """Return the rows after the context (B,) of episodes with `rows` (B,) observations each.

    Args:
        context: rows that are seen.
        rows: of the whole episode.
        horizon: at most so many; None is all.

    Raises:
        ValueError: see `check_context`.
    """
    check_context(context, rows)
    left = rows - context
    left = left if horizon is None else left.clamp(max=horizon)
    steps = torch.arange(int(left.max()), device=rows.device)
    return Rest(context, steps < left[:, None])


def hand_over(
    world: WorldModel, step: Step, arrival: Arrival, context: Tensor, noise: Tensor
) -> State:
    """Return the state after the first `context` (B,) rows of episodes.

    Contexts of different lengths end in the same column: what is left of them is cleared by the
    reset at each first row.

    Args:
        world: the model.
        step: episodes (B, T, ...), each from its first row on.
        arrival: of these rows.
        context: rows that are seen.
        noise: (B, T, S, K) by row.
    """
    width = int(context.max())
    first = context - width

    def aligned(x: Tensor) -> Tensor:
        return rows_from(x, first, width)

    number = first[:, None] + torch.arange(width, device=context.device)
    obs = {key: aligned(x) for key, x in step.obs.items()}
    action = aligned(world.action_in(arrival))
    return world.observe(obs, action, None, number <= 0, aligned(noise)).last


def imagine_rest(
    world: WorldModel,
    start: State,
    action: Tensor,
    noise: Tensor,
    *,
    cache: Cache | None = None,
) -> Imagined:
    """Roll out with given actions.

    Args:
        world: the model.
        start: (B, ...) the state before the first row.
        action: (B, H, A) vectors; action[:, i] leads to row i.
        noise: (H, B, S, K).
        cache: of `world.dynamics.prepare_step`.
    """
    return world.imagine(
        start, lambda state, i: action[:, i], noise, keep=("stoch", "deter"), cache=cache
    )


class OpenLoop:
    """One model on B episodes: what it sees, and rollouts of the rest.

    Args:
        world: the model; nothing here has a gradient.
        step: episodes (B, T, ...), a line each from its first row on, padded on the right.
        context: (B,) rows that are seen; None is half of each episode.
        generator: of the noise.
        horizon: rows that are imagined at most; None is all.

    Raises:
        ValueError: a context that leaves nothing to see or to imagine.
    """

    @torch.no_grad()
    def __init__(
        self,
        world: WorldModel,
        step: Step,
        context: Tensor | None,
        generator: torch.Generator,
        *,
        horizon: int | None = None,
    ):
        self.world, self.step, self.generator = world, step, generator
        self.arrival = to_arrival(step)
        self.rows = self.arrival.counts.sum(1)
        self.context = half(self.rows) if context is None else context
        self.rest = rest_of(self.context, self.rows, horizon)
        noise = world.noise(*self.arrival.counts.shape, generator=generator)
        self._action = world.action_in(self.arrival)
        seen = world.observe(step.obs, self._action, None, step.reset, noise)
        self.seen = Latents(seen.stoch, seen.deter)
        self._start = detach(hand_over(world, step, self.arrival, self.context, noise))
        self._cache = world.dynamics.prepare_step()

    @torch.no_grad()
    def imagine(self) -> Latents:
        """Return a new rollout of the rest, (B, H, ...)."""
        B, H = self.rest.mask.shape
        noise = self.world.noise(H, B, generator=self.generator)
        action = self.rest.take(self._action)
        made = imagine_rest(self.world, self._start, action, noise, cache=self._cache)
        return Latents(made.states["stoch"][:, 1:], made.states["deter"][:, 1:])

    @torch.no_grad()
    def errors(self, latents: Latents) -> Errors:
        """Return the errors of what is decoded at the rest's rows, 0 where there is none."""
        obs = {key: self.rest.take(x) for key, x in self.step.obs.items()}
        loss = self.world.decoder_loss(*latents, obs)
        predicted = self.world.decode(*latents)
        mse = {
            key: mean_square(self.world.decoder.entries[key], predicted[key], obs[key])
            for key in loss
        }
        numbers = {
            key: (predicted[key] - widened(obs[key])).square()
            for key in loss
            if self.world.decoder.entries[key].kind == "numbers" and obs[key].dim() == 3
        }
        gone = ~self.rest.mask
        return Errors(
            *(
                {key: masked(x, x.new_zeros(()), gone) for key, x in each.items()}
                for each in (loss, mse, numbers)
            )
        )

    @torch.no_grad()
    def measure(self, samples: int) -> Measured:
        """Return errors and rewards, with means over `samples` >= 1 rollouts."""
        last = (self.rest.mask.sum(1) - 1)[:, None]
        lines = torch.arange(len(last), device=last.device)[:, None]

        def at_end(latents: Latents) -> Tensor:
            return self.world.predict_reward(*(x[lines, last] for x in latents)).squeeze(1)

        seen = Latents(*map(self.rest.take, self.seen))
        generation, imagined = [], []
        for _ in range(samples):
            rollout = self.imagine()
            generation.append(self.errors(rollout))
            imagined.append(at_end(rollout))
        means = (
            {key: torch.stack([one[i][key] for one in generation]).mean(0) for key in each}
            for i, each in enumerate(generation[0])
        )
        reward = self.rest.take(self.arrival.reward_in)[lines, last].squeeze(1)
        return Measured(
            mask=self.rest.mask,
            reconstruction=self.errors(seen),
            generation=Errors(*means),
            reward=reward,
            inferred=at_end(seen),
            imagined=torch.stack(imagined, 1),
        )


def as_numbers(entry: Entry, obs: Tensor) -> Tensor:
    """Return observations (..., *shape) as `WorldModel.decode` would have them if it were right."""
    match entry.kind:
        case "picture":
            return widened(obs) / 255.0
        case "numbers":
            return widened(obs)
        case "indices":
            return entry.one_hot(obs, torch.float32)


def mean_square(entry: Entry, predicted: Tensor, obs: Tensor) -> Tensor:
    """Return the mean squared error (...) of decoded observations.

    Args:
        entry: what they are.
        predicted: as `WorldModel.decode` has it.
        obs: (..., *shape).
    """
    lead = entry.lead(obs)
    return (predicted - as_numbers(entry, obs)).square().reshape(*lead, -1).mean(-1)


def _columns(parts: list[Tensor]) -> Tensor:
    """Join (B, H) of different H, zeros behind."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


def summarize_errors(parts: list[Errors], masks: list[Tensor]) -> dict[str, Any]:
    """Return means over all rows, and per step, of errors as numbers and lists.

    `loss` is the sum over the entries; the mean squares of different entries are not added.
    `mse_per_number` are those of each number of a vector.
    """
    mask = _columns(masks)
    num, per_step = int(mask.sum()), mask.sum(0)
    entries: dict[str, Any] = {}
    for key in parts[0].loss:
        entry = entries[key] = {}
        for name in ("loss", "mse"):
            rows = _columns([getattr(part, name)[key] for part in parts]).double()
            entry[name] = float(rows.sum() / num)
            entry[f"{name}_per_step"] = (rows.sum(0) / per_step).tolist()
        if key in parts[0].numbers:
            sums = [part.numbers[key].double().sum((0, 1)) for part in parts]
            entry["mse_per_number"] = (torch.stack(sums).sum(0) / num).tolist()
    return {"loss": sum(entry["loss"] for entry in entries.values()), "entries": entries}


def nearest_share(predicted: Tensor, reward: Tensor, values: Tensor) -> Tensor:
    """Return (E,) the share of predictions (E, n) to which `reward` (E,) is the nearest value."""
    nearest = values[(predicted[..., None] - values).abs().argmin(-1)]
    return (nearest == reward[:, None]).double().mean(1)


def sign_share(predicted: Tensor, reward: Tensor) -> float | None:
    """Return the share of predictions (E, n) of the right sign where `reward` (E,) is not 0."""
    pays = reward != 0
    if not bool(pays.any()):
        return None
    return float((predicted.sign() == reward.sign()[:, None])[pays].double().mean())


def summarize_rewards(reward: Tensor, inferred: Tensor, imagined: Tensor) -> dict[str, Any]:
    """Return how well the final rewards are told apart.

        accuracy   share of predictions to which the true reward is the nearest of the distinct
                   ones; `chance` is that of the best constant. None where all rewards are equal
                   or more than 16 differ.
        sign       share of predictions of the right sign where the reward is not 0; None where
                   it always is

    Args:
        reward: (E,) with the last observation of each episode.
        inferred: (E,) predicted from the whole episode.
        imagined: (E, samples) predicted from rollouts, each judged by itself.
    """
    predicted = {"inference": inferred[:, None], "imagination": imagined}
    signs = {f"sign_{name}": sign_share(x, reward) for name, x in predicted.items()}
    values, counts = reward.unique(return_counts=True)
    if not 1 < len(values) <= MOST_VALUES:
        nothing = {"chance": None, **{f"accuracy_{name}": None for name in predicted}}
        return nothing | signs | {"values": []}
    right = {name: nearest_share(x, reward, values) for name, x in predicted.items()}
    rows = [
        {"reward": float(value), "episodes": int(count)}
        | {name: float(x[reward == value].mean()) for name, x in right.items()}
        for value, count in zip(values, counts, strict=True)
    ]
    accuracy = {f"accuracy_{name}": float(x.mean()) for name, x in right.items()}
    return {"chance": int(counts.max()) / len(reward)} | accuracy | signs | {"values": rows}


def summarize(parts: list[Measured]) -> dict[str, Any]:
    """Return what was found on all episodes, as numbers and lists."""
    masks = [part.mask for part in parts]
    reward, inferred, imagined = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("reward", "inferred", "imagined")
    )
    return {
        "episodes": sum(len(part.mask) for part in parts),
        "rows": sum(int(mask.sum()) for mask in masks),
        "reconstruction": summarize_errors([part.reconstruction for part in parts], masks),
        "generation": summarize_errors([part.generation for part in parts], masks),
        "reward": summarize_rewards(reward, inferred, imagined),
    }
