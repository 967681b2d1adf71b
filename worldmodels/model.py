"""The skeleton of all world models: encode, posterior, memory, prior, decode.

Papers: Hafner et al. 2023 (DreamerV3); Samsami et al. 2024 (R2I); Deng et al. 2023 (S4WM); Wang et
al. 2025 (Drama). What differs between them is the memory (`dynamics`), what the decoder and the
heads read, and coefficients; `build` has their settings.

Rows are arrivals (`data.shift.to_arrival`): what came with obs[t], and the action that led there.
A row enters the losses if it is an observation, `Arrival.counts`; also the final one of an episode,
which is the only one that says that an episode can end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.data.shift import Arrival
from statewise.kernels import stack_steps
from statewise.nets.dreamer_layers import normed_mlp, output_linear
from statewise.nets.latents import free_kl, gumbel, kl_divergence
from statewise.nets.symlog import TwoHot
from statewise.ssm.protocol import Cache, State
from statewise.worldmodels.actions import ActionVectors
from statewise.worldmodels.config import HeadConfig, WorldModelConfig
from statewise.worldmodels.decoder import ObsDecoder
from statewise.worldmodels.dynamics import Dynamics
from statewise.worldmodels.encoder import ObsEncoder
from statewise.worldmodels.parallel import ParallelDynamics
from statewise.worldmodels.rssm import RSSM
from statewise.worldmodels.state import CORE, Observed, flat_stoch

Obs = dict[str, Tensor]
Policy = Callable[[State, int], Tensor]
"""State (N, ...) and number of the step to action vectors (N, A)."""
EncoderFactory = Callable[[spaces.Dict], nn.Module]


class Imagined(NamedTuple):
    """N rollouts of H steps without observations."""

    states: State
    """(N, H + 1, ...), the first one where they start."""
    action: Tensor
    """(N, H, A), vectors; action[i] led from state i to state i + 1."""


def _kept(state: State, keep: tuple[str, ...]) -> State:
    return {key: x for key, x in state.items() if key.startswith(keep)}


def _cleared(x: Tensor, rows: Tensor) -> Tensor:
    """Return x (B, T, ...) with 0 where `rows` (B, T) is False: 0 * NaN is no gradient of 0."""
    if not x.is_floating_point():
        return x
    return torch.where(rows.reshape(rows.shape + (1,) * (x.dim() - 2)), x, x.new_zeros(()))


class Head(nn.Module):
    """Hidden layers and an output layer."""

    def __init__(self, d_in: int, d_out: int, config: HeadConfig, outscale: float):
        super().__init__()
        self.layers = normed_mlp(d_in, config.hidden, norm=config.norm)
        self.out = output_linear(self.layers.d_out, d_out, outscale)

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        out: Tensor = self.layers(features, self.out)
        return out


class WorldModel(nn.Module):
    """A world model of one environment.

    Weights are drawn from torch's default generator.

    Args:
        obs_space: flat, of one environment.
        action_space: of one environment.
        config: sizes and coefficients.
        encoder: one's own, a module with `d_out` that reads the observations; None builds
            `ObsEncoder`.

    Raises:
        ValueError: a space that cannot be read, or an encoder without a width.
    """

    def __init__(
        self,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        config: WorldModelConfig,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.config = config
        self.encoder = ObsEncoder(obs_space, config.encoder) if encoder is None else encoder
        d_embed = getattr(self.encoder, "d_out", None)
        if not isinstance(d_embed, int):
            raise ValueError(
                f"encoder: expected a module with d_out, the width of its features, got {d_embed!r}"
                f" on {type(self.encoder).__name__}: set self.d_out"
            )
        self.actions = ActionVectors(action_space)
        width = self.actions.width
        self.dynamics: Dynamics = (
            ParallelDynamics(d_embed, width, config.latents, config.parallel)
            if config.core == "parallel"
            else RSSM(d_embed, width, config.latents, config.rssm)
        )
        d_stoch = config.latents.num * config.latents.classes
        d_deter = self.dynamics.d_deter
        d_decoded = d_stoch if config.decoder_reads == "stoch" else d_deter + d_stoch
        d_heads = d_deter if config.heads_read == "deter" else d_deter + d_stoch
        self.decoder = ObsDecoder(d_decoded, obs_space, config.decoder)
        self.two_hot = TwoHot(spacing=config.two_hot)
        self.reward = Head(d_heads, len(self.two_hot.bins), config.heads, config.reward_outscale)
        self.cont = Head(d_heads, 1, config.heads, 1.0)

    def initial_state(self, batch_size: int) -> State:
        """Return what a reset restores."""
        return self.dynamics.initial_state(batch_size)

    def noise(self, *lead: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw Gumbel noise (*lead, S, K) for samples of the latents."""
        parameter = next(self.parameters())
        shape = (*lead, self.config.latents.num, self.config.latents.classes)
        return gumbel(shape, generator, device=parameter.device, dtype=parameter.dtype)

    def action_in(self, arrival: Arrival) -> Tensor:
        """Return the vectors (B, T, A) of the actions that led to the rows, 0 where unknown."""
        known = arrival.counts & ~arrival.is_first
        vectors = self.actions(arrival.action_in)
        return torch.where(known[..., None], vectors, vectors.new_zeros(()))

    def observe(
        self,
        obs: Obs,
        action: Tensor,
        state: State | None,
        reset: Tensor | None,
        noise: Tensor,
        *,
        trace: int = 0,
    ) -> Observed:
        """Run a window (B, T); see `Dynamics.observe`. `action` is what `action_in` returned."""
        return self.dynamics.observe(self.encoder(obs), action, state, reset, noise, trace=trace)

    def observe_step(
        self,
        obs: Obs,
        action: Tensor,
        state: State,
        reset: Tensor | None,
        noise: Tensor,
        *,
        cache: Cache | None = None,
    ) -> State:
        """Run one step (B, ...) of `observe`."""
        embed = self.encoder(obs)
        return self.dynamics.observe_step(embed, action, state, reset, noise, cache=cache)[0]

    def imagine(
        self,
        start: State,
        policy: Policy,
        noise: Tensor,
        *,
        keep: tuple[str, ...] = ("stoch", "deter", CORE),
        cache: Cache | None = None,
    ) -> Imagined:
        """Roll out without observations.

        Args:
            start: (N, ...).
            policy: chooses the actions; the model reads them cut as in the data, and they are
                returned as they are.
            noise: (H, N, S, K), of the samples of the prior.
            keep: beginnings of the names in `Imagined.states`.
            cache: of `dynamics.prepare_step`, for the present parameters; it has no gradient.
        """
        state, states = start, [_kept(start, keep)]
        actions = []
        for i, one in enumerate(noise):
            action = policy(state, i)
            known = action if self.actions.nvec else self.actions.clip(action)
            state, _ = self.dynamics.imagine_step(known, state, one, cache=cache)
            states.append(_kept(state, keep))
            actions.append(action)
        stacked = {key: stack_steps([one[key] for one in states]) for key in states[0]}
        return Imagined(stacked, stack_steps(actions))

    def _read(self, what: str, stoch: Tensor, deter: Tensor) -> Tensor:
        parts = {"stoch": (flat_stoch(stoch),), "deter": (deter,)}
        return torch.cat(parts.get(what, (deter, flat_stoch(stoch))), -1)

    def decode(self, stoch: Tensor, deter: Tensor) -> Obs:
        """Return what the model expects to see, in the units of the observations.

        Args:
            stoch: (..., S, K).
            deter: (..., D).
        """
        return self.decoder.predict(self._read(self.config.decoder_reads, stoch, deter))

    def decoder_loss(self, stoch: Tensor, deter: Tensor, obs: Obs) -> dict[str, Tensor]:
        """Return the decoder's loss (...) per entry of observations (..., *shape) at states."""
        return self.decoder.loss(self._read(self.config.decoder_reads, stoch, deter), obs)

    def predict_reward(self, stoch: Tensor, deter: Tensor) -> Tensor:
        """Return the expected reward (...) on arriving at states, as the environment gives it."""
        return self.scaled_reward(stoch, deter) / self.config.reward_scale

    def scaled_reward(self, stoch: Tensor, deter: Tensor) -> Tensor:
        """Return the expected reward (...) times `reward_scale`, what policies learn from."""
        logits = self.reward(self._read(self.config.heads_read, stoch, deter))
        return self.two_hot.mean(logits)

    def continue_logit(self, stoch: Tensor, deter: Tensor) -> Tensor:
        """Return the logit (...) of not having ended at states."""
        out: Tensor = self.cont(self._read(self.config.heads_read, stoch, deter))
        return out.squeeze(-1)

    def terms(self, obs: Obs, arrival: Arrival, seen: Observed) -> dict[str, Tensor]:
        """Return the terms of the loss per row, (B, T), each without its coefficient.

        decoder, reward, cont, dyn, rep; dyn and rep with `free_over` "batch" are still without
        the free nats.
        """
        config = self.config
        decoded = self._read(config.decoder_reads, seen.stoch, seen.deter)
        shared = config.heads_read == config.decoder_reads
        heads = decoded if shared else self._read(config.heads_read, seen.stoch, seen.deter)
        pictures = self.decoder.loss(decoded, obs)
        target = (~arrival.is_terminal).to(heads.dtype)
        if config.cont_horizon:
            target = target * (1 - 1 / config.cont_horizon)
        cont = self.cont(heads).squeeze(-1)
        free = config.free_nats if config.free_over == "row" else 0.0
        dyn, rep = free_kl(seen.log_q, seen.log_p, free)
        return {
            "decoder": torch.stack(tuple(pictures.values())).sum(0),
            "reward": self.two_hot.loss(
                self.reward(heads), config.reward_scale * arrival.reward_in
            ),
            "cont": F.binary_cross_entropy_with_logits(cont, target, reduction="none"),
            "dyn": dyn,
            "rep": rep,
        }

    def loss(self, obs: Obs, arrival: Arrival, seen: Observed) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a window and its terms, means over the rows that count.

        The rows of first observations count, or with `first_rows` "context" only condition.
        """
        config = self.config
        rows = arrival.counts
        if config.first_rows == "context":
            rows = rows & ~arrival.is_first
        share = rows.to(seen.deter.dtype) / rows.sum().clamp(min=1)
        obs = {key: _cleared(x, rows) for key, x in obs.items()}
        clean = {
            name: torch.where(rows, term, term.new_zeros(()))
            for name, term in self.terms(obs, arrival, seen).items()
        }
        means = {name: (term * share).sum() for name, term in clean.items()}
        if config.free_over == "batch":
            means |= {name: means[name].clamp(min=config.free_nats) for name in ("dyn", "rep")}
        scale = config.loss_scale
        if means.keys() != scale.names():
            raise AssertionError(f"terms {sorted(means)} and coefficients differ")
        total = torch.stack([getattr(scale, name) * term for name, term in means.items()]).sum()
        with torch.no_grad():
            kl = torch.where(rows, kl_divergence(seen.log_q, seen.log_p), 0.0)
            means["kl"] = (kl * share).sum()
        return total, means
