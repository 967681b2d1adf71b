"""A world model's memory in one scan: the posterior reads the observation alone.

Papers: Samsami et al. 2024, "Mastering Memory Tasks with World Models" (R2I); Deng et al. 2023,
"Facing Off World Model Backbones: RNNs, Transformers, and S4" (S4WM).

    q(z_t | o_t)                       all steps at once
    u_t = in [z_{t-1}, a_{t-1}]        z and a cleared where the memory is
    y, x = layers(u)                   one parallel pass with resets
    h_t = out(y_t);   p(z_t | h_t)

h_t has seen z_{t-1}, a_{t-1} and what came before, not o_t. The release of R2I clears other
things in training than in acting, a step early: docs/systems/r2i.md. Here `state.masked` is the
one rule of all modes, and layers reset themselves.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from statewise.kernels import LatentModel, imagine_step, imagine_step_runs
from statewise.nets.dreamer_layers import EPS, LinearSiLU, normed_mlp
from statewise.nets.latents import LatentConfig, sample_one_hot
from statewise.ssm import one_call
from statewise.ssm.build import SequenceConfig, build_sequence
from statewise.ssm.norm import RMSNorm
from statewise.ssm.protocol import Cache, State
from statewise.ssm.stack import Stack
from statewise.ssm.state import num_elements, prefixed
from statewise.worldmodels.dynamics import InitialLatents, LatentHead, Start
from statewise.worldmodels.state import CORE, Observed, core_of, flat_stoch, masked

LARGE_STATES = ("s4", "s4d", "dss", "lssl", "mamba", "mamba2", "delta_net")
TRACE_LARGE = 16  # steps between two states that these layers give


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Sizes of `ParallelDynamics`."""

    deter: int = 512  # D >= 1, width of h; with output "norm" that of the layers
    input_hidden: tuple[int, ...] = ()  # before the last input layer, each >= 1
    prior_hidden: tuple[int, ...] = (512,)  # each >= 1
    posterior_hidden: tuple[int, ...] = (512,)  # each >= 1
    output: Literal["silu", "norm"] = "silu"  # silu: a linear layer; norm: RMS, no layer
    norm: Literal["layer", "rms"] = "layer"  # of all fully connected layers
    start: Start = "learned"  # of h and z; that of the memory is the layer's
    sequence: SequenceConfig = field(default_factory=SequenceConfig)

    def __post_init__(self) -> None:
        widths = (self.deter, *self.input_hidden, *self.prior_hidden, *self.posterior_hidden)
        if min(widths) < 1:
            raise ValueError(f"widths: expected at least 1, got {min(widths)}")
        if self.output == "norm" and self.deter != self.sequence.d_model:
            raise ValueError(
                f"deter: expected {self.sequence.d_model}, the width of the layers, with output"
                f" norm, got {self.deter}"
            )

    @property
    def gives_few_states(self) -> bool:
        """Whether the layer's states are too large to have one at every step."""
        return self.sequence.kind in LARGE_STATES


class ParallelDynamics(nn.Module):
    """Any sequence layer as memory; see `Dynamics`.

    Args:
        d_embed: width of what is observed.
        d_action: width of an action's vector.
        latents: of z.
        config: sizes.
    """

    def __init__(self, d_embed: int, d_action: int, latents: LatentConfig, config: ParallelConfig):
        super().__init__()
        self.config = config
        width, norm = config.sequence.d_model, config.norm
        d_in = latents.num * latents.classes + d_action
        self.posterior = LatentHead(d_embed, config.posterior_hidden, latents, norm)
        self.read = normed_mlp(d_in, (*config.input_hidden, width), norm=norm)
        self.sequence = build_sequence(config.sequence)
        self.write: nn.Module = (
            LinearSiLU(width, config.deter) if config.output == "silu" else RMSNorm(width)
        )
        self.prior = LatentHead(config.deter, config.prior_hidden, latents, norm)
        self.initial = InitialLatents(config.deter, latents, config.start)
        self.d_deter = config.deter
        self.d_hidden = num_elements(self.sequence.initial_state(1))
        self.trace_from = TRACE_LARGE if config.gives_few_states else 1

    def initial_state(self, batch_size: int) -> State:
        """Return what a reset restores; see `Dynamics`."""
        return self._initial_state(batch_size, self.initial(self.prior))

    def _initial_state(self, batch_size: int, start: tuple[Tensor, Tensor]) -> State:
        deter, stoch = start
        return {
            "stoch": stoch.expand(batch_size, *stoch.shape),
            "deter": deter.expand(batch_size, *deter.shape),
            **prefixed(self.sequence.initial_state(batch_size), CORE),
        }

    def prepare_step(self) -> Cache:
        """Return those of the layers, and h and z of a reset."""
        return self.sequence.prepare_step() | self.initial.prepare(self.prior)

    def _inputs(
        self, stoch: Tensor, action: Tensor, reset: Tensor | None, start: Tensor | None
    ) -> Tensor:
        """Return u from what came before: z (..., S, K), what a reset makes of it, a (..., A)."""
        if start is not None:
            stoch = masked(stoch, start, reset)
            action = masked(action, action.new_zeros(()), reset)
        u: Tensor = self.read(torch.cat((flat_stoch(stoch), action), -1))
        return u

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
        """Run T steps in one pass; see `Dynamics`."""
        start = None if state is not None and reset is None else self.initial(self.prior)
        if state is None:
            assert start is not None
            state = self._initial_state(embed.shape[0], start)
        log_q = self.posterior(embed)
        stoch = sample_one_hot(log_q, noise)
        before = torch.cat((state["stoch"][:, None], stoch[:, :-1]), 1)
        u = self._inputs(before, action, reset, None if start is None else start[1])
        traced: State = {}
        if trace:
            y, last, traced = self.sequence.trace(u, core_of(state), reset, trace)
        else:
            y, last = self.sequence(u, core_of(state), reset)
        deter = self.write(y)
        return Observed(
            stoch=stoch,
            deter=deter,
            log_q=log_q,
            log_p=self.prior(deter),
            last={"stoch": stoch[:, -1], "deter": deter[:, -1], **prefixed(last, CORE)},
            traced=prefixed(traced, CORE),
            every=trace,
        )

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
        log_q = self.posterior(embed)
        after = self._advance(action, state, reset, cache)
        return after | {"stoch": sample_one_hot(log_q, noise)}, log_q

    def imagine_step(
        self, action: Tensor, state: State, noise: Tensor, *, cache: Cache | None = None
    ) -> tuple[State, Tensor]:
        """Run one step without an observation; see `Dynamics`."""
        done = self._imagine_in_one_call(action, state, noise, cache)
        if done is not None:
            return done
        after = self._advance(action, state, None, cache)
        log_p = self.prior(after["deter"])
        return after | {"stoch": sample_one_hot(log_p, noise)}, log_p

    def _imagine_in_one_call(
        self, action: Tensor, state: State, noise: Tensor, cache: Cache | None
    ) -> tuple[State, Tensor] | None:
        if not isinstance(self.sequence, Stack) or not isinstance(self.write, LinearSiLU):
            return None
        call = self.sequence.as_one_call(core_of(state), cache)
        if call is None:
            return None
        prior = self.prior
        model = LatentModel(
            *(self.read.dense(), call.parts, call.form, self.write.dense()),
            *(prior.layers.dense(prior.out), EPS, prior.latents.unimix),
        )
        stoch = state["stoch"]
        if not imagine_step_runs(stoch, action, noise, call.states, model, call.backend):
            return None
        drawn, deter, log_p, core = imagine_step(stoch, action, noise, call.states, model)
        after = {"stoch": drawn, "deter": deter, **prefixed(one_call.state_of(core), CORE)}
        return after, log_p

    def _advance(
        self, action: Tensor, state: State, reset: Tensor | None, cache: Cache | None
    ) -> State:
        start = None if reset is None else self.initial(self.prior, cache)[1]
        u = self._inputs(state["stoch"], action, reset, start)
        y, core = self.sequence.step(u, core_of(state), reset, cache=cache)
        return {"deter": self.write(y), **prefixed(core, CORE)}
