"""The recurrent state-space model of DreamerV3: a GRU with a norm, step by step.

Paper: Hafner et al. 2023, "Mastering Diverse Domains through World Models" (sizes and order as in
the code of that year).

    x_t = in [z_{t-1}, a_{t-1}]
    r, c, u = LN(W [h_{t-1}, x_t]);   u' = sigmoid(u - 1)
    h_t = u' tanh(sigmoid(r) c) + (1 - u') h_{t-1}
    p(z_t | h_t);   q(z_t | h_t, o_t), or q(z_t | o_t) with posterior "observation"

With `blocks` the cell is that of the code of 2024 (`block_gru.py`).

With the second posterior everything but h runs over the whole window at once: the ablation that
separates what the posterior changes from what the layer changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.nets.deferred import LoopLinear, LoopMLP
from statewise.nets.dreamer_layers import FeatureNorm, init_hidden, normed_mlp
from statewise.nets.latents import LatentConfig, sample_one_hot
from statewise.ssm.protocol import Cache, State
from statewise.worldmodels.block_gru import BlockGRU
from statewise.worldmodels.dynamics import InitialLatents, LatentHead, Start
from statewise.worldmodels.state import CORE, Observed, flat_stoch, masked

HIDDEN = f"{CORE}0.h"


@dataclass(frozen=True, kw_only=True)
class RSSMConfig:
    """Sizes of `RSSM`."""

    deter: int = 512  # D >= 1, width of h
    units: int = 512  # >= 1, width of x; with blocks that of each of three hidden layers
    blocks: int = 0  # 0: the cell of 2023; else the one of 2024 in so many, a divisor of deter
    prior_hidden: tuple[int, ...] = (512,)  # each >= 1
    posterior_hidden: tuple[int, ...] = (512,)  # each >= 1
    posterior: Literal["recurrent", "observation"] = "recurrent"  # q(z | h, o) or q(z | o)
    norm: Literal["layer", "rms"] = "layer"  # of all fully connected layers
    start: Start = "learned"  # of h and z

    def __post_init__(self) -> None:
        widths = (self.deter, self.units, *self.prior_hidden, *self.posterior_hidden)
        if min(widths) < 1:
            raise ValueError(f"widths: expected at least 1, got {min(widths)}")
        if self.blocks < 0 or (self.blocks and self.deter % self.blocks):
            raise ValueError(
                f"blocks: expected 0 or a divisor of deter ({self.deter}), got {self.blocks}"
            )


class NormGRUCell(nn.Module):
    """A GRU cell with one norm over its three gates."""

    def __init__(self, d_in: int, d_hidden: int, norm: Literal["layer", "rms"]):
        super().__init__()
        self.d_in, self.d_hidden = d_in, d_hidden
        self.linear = init_hidden(nn.Linear(d_hidden + d_in, 3 * d_hidden, bias=False))  # [h, x]
        self.norm = FeatureNorm(3 * d_hidden, norm)

    def project(self, x: Tensor) -> Tensor:
        """Return what x (..., d_in) adds to the gates (..., 3 D), for any number of steps."""
        return F.linear(x, self.linear.weight[:, self.d_hidden :])

    def forward(self, projected: Tensor, h: Tensor) -> Tensor:
        """Return the next h (B, D), from `project` of x and the present h."""
        return self._gated(torch.addmm(projected, h, self.linear.weight[:, : self.d_hidden].t()), h)

    def loop(self, batch_size: int, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the cell for the steps of a window: x (B, d_in) and h (B, D) to the next h."""
        weight = self.linear.weight
        gates = LoopLinear(weight, weight.new_zeros(()).expand(batch_size, steps, len(weight)))
        return lambda x, h: self._gated(gates(torch.cat((h, x), -1)), h)

    def loop_known(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the cell for the steps of a window with x (B, T, d_in): h (B, D) to the next."""
        gates = LoopLinear(self.linear.weight[:, : self.d_hidden], self.project(x))
        return lambda h: self._gated(gates(h), h)

    def _gated(self, summed: Tensor, h: Tensor) -> Tensor:
        r, c, u = self.norm(summed).chunk(3, -1)
        return torch.lerp(h, torch.tanh(torch.sigmoid(r) * c), torch.sigmoid(u - 1))


def resets_by_step(reset: Tensor | None, steps: int) -> list[Tensor | None]:
    """Return reset (B,) of each of T steps, None where nothing is cleared.

    The first step keeps its own: what is learned about the start has a gradient in every window.
    """
    if reset is None:
        return [None] * steps
    some = reset.any(0).tolist()
    return [
        r if here or t == 0 else None
        for t, (r, here) in enumerate(zip(reset.unbind(1), some, strict=True))
    ]


class RSSM(nn.Module):
    """A GRU as memory; see `Dynamics`. Its x is h itself.

    Args:
        d_embed: width of what is observed.
        d_action: width of an action's vector.
        latents: of z.
        config: sizes.
    """

    trace_from = 1

    def __init__(self, d_embed: int, d_action: int, latents: LatentConfig, config: RSSMConfig):
        super().__init__()
        self.config = config
        D, norm = config.deter, config.norm
        d_stoch = latents.num * latents.classes
        self.is_recurrent = config.posterior == "recurrent"
        d_posterior = d_embed + D if self.is_recurrent else d_embed
        self.posterior = LatentHead(d_posterior, config.posterior_hidden, latents, norm)
        self.cell: NormGRUCell | BlockGRU
        if config.blocks:
            self.cell = BlockGRU(
                *(d_stoch, d_action),
                deter=D,
                units=config.units,
                blocks=config.blocks,
                norm=norm,
            )
        else:
            self.read = normed_mlp(d_stoch + d_action, (config.units,), norm=norm)
            self.cell = NormGRUCell(config.units, D, norm)
        self.prior = LatentHead(D, config.prior_hidden, latents, norm)
        self.initial = InitialLatents(D, latents, config.start)
        self.d_deter = self.d_hidden = D

    def initial_state(self, batch_size: int) -> State:
        """Return what a reset restores; see `Dynamics`."""
        return self._initial_state(batch_size, self.initial(self.prior))

    def _initial_state(self, batch_size: int, start: tuple[Tensor, Tensor]) -> State:
        deter, stoch = start
        h = deter.expand(batch_size, *deter.shape)
        return {"stoch": stoch.expand(batch_size, *stoch.shape), "deter": h, HIDDEN: h}

    def prepare_step(self) -> Cache:
        """Return h and z of a reset."""
        return self.initial.prepare(self.prior)

    def observe(
        self,
        embed: Tensor,
        action: Tensor,
        state: State | None,
        reset: Tensor | None,
        noise: Tensor,
        *,
        trace: int = 0,
    ) -> Observed:
        """Run T steps, one after the other; see `Dynamics`."""
        start = self.initial(self.prior)
        if state is None:
            state = self._initial_state(embed.shape[0], start)
        action = masked(action, action.new_zeros(()), reset)
        before = state["deter"], state["stoch"]
        loop = self._loop_recurrent if self.is_recurrent else self._loop_parallel
        deter, stoch, log_q = loop(embed, action, before, start, reset, noise)
        h = deter[:, -1]
        return Observed(
            stoch=stoch,
            deter=deter,
            log_q=log_q,
            log_p=self.prior(deter),
            last={"stoch": stoch[:, -1], "deter": h, HIDDEN: h},
            traced={HIDDEN: deter[:, trace - 1 :: trace]} if trace else {},
            every=trace,
        )

    def _loop_parallel(
        self,
        embed: Tensor,
        action: Tensor,
        before: tuple[Tensor, Tensor],
        start: tuple[Tensor, Tensor],
        reset: Tensor | None,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return h, z and log q where all z are known before the first h."""
        (h, z), (h_start, z_start) = before, start
        log_q = self.posterior(embed)
        stoch = sample_one_hot(log_q, noise)
        previous = masked(torch.cat((z[:, None], stoch[:, :-1]), 1), z_start, reset)
        cell = self._loop_known(flat_stoch(previous), action)
        rows = []
        for cleared in resets_by_step(reset, embed.shape[1]):
            h = cell(masked(h, h_start, cleared))
            rows.append(h)
        return torch.stack(rows, 1), stoch, log_q

    def _loop_recurrent(
        self,
        embed: Tensor,
        action: Tensor,
        before: tuple[Tensor, Tensor],
        start: tuple[Tensor, Tensor],
        reset: Tensor | None,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return h, z and log q where every z needs the h before."""
        (h, z), (h_start, z_start) = before, start
        cell, posterior = self._loop(action), self.posterior.loop(embed)
        deters, stochs, log_qs = [], [], []
        for cleared, one in zip(
            resets_by_step(reset, embed.shape[1]), noise.unbind(1), strict=True
        ):
            h, z = masked(h, h_start, cleared), masked(z, z_start, cleared)
            h = cell(flat_stoch(z), h)
            log_q = posterior(h)
            z = sample_one_hot(log_q, one)
            deters.append(h)
            stochs.append(z)
            log_qs.append(log_q)
        return torch.stack(deters, 1), torch.stack(stochs, 1), torch.stack(log_qs, 1)

    def _next(self, h: Tensor, z: Tensor, action: Tensor) -> Tensor:
        if self.config.blocks:
            after: Tensor = self.cell(flat_stoch(z), action, h)
            return after
        cell = cast("NormGRUCell", self.cell)
        return cell(cell.project(self.read(torch.cat((flat_stoch(z), action), -1))), h)

    def _loop(self, action: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return z (B, S K) and h to the next h, for the steps of a window; action (B, T, A)."""
        if isinstance(self.cell, BlockGRU):
            return self.cell.loop(action)
        read, cell = LoopMLP(self.read, action), self.cell.loop(*action.shape[:2])
        return lambda z, h: cell(read(z), h)

    def _loop_known(self, z: Tensor, action: Tensor) -> Callable[[Tensor], Tensor]:
        """Return h to the next h, for the steps of a window with z (B, T, S K), too."""
        if isinstance(self.cell, BlockGRU):
            return self.cell.loop_known(z, action)
        return self.cell.loop_known(self.read(torch.cat((z, action), -1)))

    def observe_step(
        self,
        embed: Tensor,
        action: Tensor,
        state: State,
        reset: Tensor | None,
        noise: Tensor,
        *,
        cache: Cache | None = None,
    ) -> tuple[State, Tensor]:
        """Run one step of `observe`; see `Dynamics`."""
        h, z = state["deter"], state["stoch"]
        if reset is not None:
            h_start, z_start = self.initial(self.prior, cache)
            h, z = masked(h, h_start, reset), masked(z, z_start, reset)
            action = masked(action, action.new_zeros(()), reset)
        h = self._next(h, z, action)
        log_q = self.posterior(torch.cat((h, embed), -1) if self.is_recurrent else embed)
        z = sample_one_hot(log_q, noise)
        return {"stoch": z, "deter": h, HIDDEN: h}, log_q

    def imagine_step(
        self, action: Tensor, state: State, noise: Tensor, *, cache: Cache | None = None
    ) -> tuple[State, Tensor]:
        """Run one step without an observation; see `Dynamics`."""
        h = self._next(state["deter"], state["stoch"], action)
        log_p = self.prior(h)
        return {"stoch": sample_one_hot(log_p, noise), "deter": h, HIDDEN: h}, log_p
