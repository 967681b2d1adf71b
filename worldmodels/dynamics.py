"""What every sequence model of a world model offers, and what is the same in all of them."""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from statewise.nets.deferred import LoopMLP
from statewise.nets.dreamer_layers import Norm, normed_mlp, output_linear
from statewise.nets.latents import LatentConfig, mixed_log_p, sample_one_hot
from statewise.ssm.protocol import Cache, State
from statewise.worldmodels.state import Observed

Start = Literal["learned", "zeros"]
START_DETER, START_STOCH = "start.deter", "start.stoch"


class Dynamics(Protocol):
    """The memory of a world model, in three modes that compute the same function.

    observe         a window at once, samples of the posterior
    observe_step    one step of it
    imagine_step    one step, samples of the prior

    Noise is an argument, Gumbel of the shape of the samples: with the same noise the first two
    give the same samples.
    """

    prior: "LatentHead"
    """Of z, from h."""
    d_deter: int
    """Width of h."""
    d_hidden: int
    """Numbers of x in a state, what `state.hidden_vector` has."""
    trace_from: int
    """Smallest distance of steps at which `observe` can return x; see `SequenceModel.trace`."""

    def initial_state(self, batch_size: int) -> State:
        """Return what a reset restores."""
        ...

    def prepare_step(self) -> Cache:
        """Return what steps would recompute from the parameters, without gradient.

        Also what a reset restores of h and z.
        """
        ...

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
        """Run T steps at once.

        Args:
            embed: (B, T, E) of what was observed.
            action: (B, T, A), the vector of the action that led there.
            state: before the first step; None means `initial_state`.
            reset: (B, T) bool; True clears z, the action and the memory before the step.
            noise: (B, T, S, K).
            trace: 0, or the distance of the steps whose memory is returned.
        """
        ...

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
        """Run one step (B, ...); return the state and log q (B, S, K).

        log p is `prior` of its h; acting does not ask for it.
        """
        ...

    def imagine_step(
        self, action: Tensor, state: State, noise: Tensor, *, cache: Cache | None = None
    ) -> tuple[State, Tensor]:
        """Run one step without an observation; return the state and log p. Nothing is reset."""
        ...


class LatentHead(nn.Module):
    """Categorical latents from features: hidden layers, then logits with a uniform share."""

    def __init__(self, d_in: int, hidden: tuple[int, ...], latents: LatentConfig, norm: Norm):
        super().__init__()
        self.latents = latents
        self.layers = normed_mlp(d_in, hidden, norm=norm)
        self.out = output_linear(self.layers.d_out, latents.num * latents.classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., d_in) to log-probabilities (..., S, K)."""
        return self._log_p(self.layers(features, self.out))

    def loop(self, known: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the head for the steps of a window whose features end in `known` (B, T, ...).

        It maps the rest of the features (B, ...) of the next step to (B, S, K).
        """
        layers = LoopMLP(self.layers, known, self.out)
        return lambda features: self._log_p(layers(features))

    def _log_p(self, logits: Tensor) -> Tensor:
        shape = (*logits.shape[:-1], self.latents.num, self.latents.classes)
        return mixed_log_p(logits.reshape(shape), self.latents.unimix)


class InitialLatents(nn.Module):
    """h and z before anything was seen.

    learned   h = tanh(w), w at 0 in the beginning; z is the mode of the prior there
    zeros     both 0, no valid one-hot, but a token for "nothing yet"
    """

    def __init__(self, d_deter: int, latents: LatentConfig, start: Start):
        super().__init__()
        self.shape = (latents.num, latents.classes)
        self.deter = nn.Parameter(torch.zeros(d_deter)) if start == "learned" else None
        self.register_buffer("_zeros", torch.zeros(d_deter), persistent=False)
        self._zeros: Tensor

    @torch.no_grad()
    def prepare(self, prior: LatentHead) -> Cache:
        """Return h and z for the cache of many steps."""
        deter, stoch = self(prior)
        return {START_DETER: deter, START_STOCH: stoch}

    def forward(self, prior: LatentHead, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """Return h (D,) and z (S, K), the latter with the gradient of its probabilities.

        Args:
            prior: of z.
            cache: what `prepare` returned for the present parameters; without gradient.
        """
        if cache is not None:
            return cache[START_DETER], cache[START_STOCH]
        if self.deter is None:
            return self._zeros, self._zeros.new_zeros(self.shape)
        deter = self.deter.tanh()
        log_p = prior(deter)
        return deter, sample_one_hot(log_p, torch.zeros_like(log_p))
