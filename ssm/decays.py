"""How long the states of layers last: time constants of their recurrences.

    h_t = a_t h_{t-1} + ...,      tau = -1 / log |a|  steps

After tau steps 1/e of a state is left. Time-invariant layers have one set of factors a: the
diagonal of the discretised system, or the eigenvalues of its matrix. Selective layers choose theirs
at every step, so that there is a set per step of a sequence. Of Gated DeltaNet it is exp(g), the
factor of what a step does not correct. Gated recurrent networks and attention have none.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from statewise.kernels import causal_conv1d
from statewise.ssm.attention import AttentionLayer
from statewise.ssm.delta_net import GatedDeltaNetLayer
from statewise.ssm.dense import DenseLayer
from statewise.ssm.diagonal import DiagonalLayer
from statewise.ssm.dss import DSSLayer
from statewise.ssm.gru import GRULayer
from statewise.ssm.lru import LRULayer
from statewise.ssm.lssl import LSSLLayer
from statewise.ssm.lstm import LSTMLayer
from statewise.ssm.lti import ChannelLayer
from statewise.ssm.mamba import MambaLayer
from statewise.ssm.mamba2 import Mamba2Layer
from statewise.ssm.protocol import State
from statewise.ssm.rg_lru import RGLRULayer
from statewise.ssm.s4 import S4Layer
from statewise.ssm.s4d import S4DLayer
from statewise.ssm.s5 import S5Layer

BRANCHES = ("coarse", "fine")  # of layers with two sequence models side by side
Recurrence = Literal["fixed", "selective", "none"]


class Read(NamedTuple):
    """What a layer was called with."""

    x: Tensor
    """(B, T, d_in)."""
    state: State | None
    reset: Tensor | None
    """(B, T) bool."""


def time_constants(size: Tensor) -> Tensor:
    """Return tau of |a| >= 0: 0 where nothing is kept, infinity from 1 on."""
    tau = size.log().abs().reciprocal()
    return torch.where(size < 1, tau, math.inf)


def _diagonal(layer: Any) -> Tensor:
    return torch.linalg.vector_norm(layer.discretize().a, dim=-1)


def _dense(layer: Any) -> Tensor:
    return torch.linalg.eigvals(layer.discretize().A).abs()


def _mamba(layer: MambaLayer, read: Read, every: int) -> Tensor:
    v, _ = layer.in_proj(read.x).split(layer.inner, -1)
    state = layer.initial_state(len(v)) if read.state is None else read.state
    v, _ = causal_conv1d(
        v,
        layer.conv_weight,
        layer.conv_bias,
        state=state["conv"],
        reset=read.reset,
        activation="silu",
        backend=layer.backend,
    )
    step, _, _ = layer._select(v[:, ::every])
    a = (layer._scaled(step)[..., None] * -layer.A_log.exp()).exp()
    if layer.config.eigenvalues == "signed":
        a = (2 * a - 1).abs()
    kept = layer.a_override
    return a if kept is None else torch.where(kept.isnan(), a, kept)


def _mamba2(layer: Mamba2Layer, read: Read, every: int) -> Tensor:
    _, _, step = layer._project(read.x[:, ::every])
    return (step * layer._decay()).exp()


def _delta_net(layer: GatedDeltaNetLayer, read: Read, every: int) -> Tensor:
    mixed, _, a, b = layer.in_proj(read.x[:, ::every]).split(layer.widths, -1)
    return layer._operands(mixed, a, b, layer._rate())[3].exp()


def _rg_lru(layer: RGLRULayer, read: Read, every: int) -> Tensor:
    v, _ = layer.in_proj(read.x).split(layer.inner, -1)
    state = layer.initial_state(len(v)) if read.state is None else read.state
    v, _ = causal_conv1d(
        v,
        layer.conv_weight,
        layer.conv_bias,
        state=state["conv"],
        reset=read.reset,
        backend=layer.backend,
    )
    v = v[:, ::every]
    fresh = torch.zeros(v.shape[:2], dtype=torch.bool, device=v.device)
    return layer._gated(v, layer._rate(), fresh)[0]


KINDS: dict[type[nn.Module], str] = {
    S5Layer: "s5",
    LRULayer: "lru",
    RGLRULayer: "rg_lru",
    S4Layer: "s4",
    S4DLayer: "s4d",
    DSSLayer: "dss",
    LSSLLayer: "lssl",
    MambaLayer: "mamba",
    Mamba2Layer: "mamba2",
    GatedDeltaNetLayer: "delta_net",
    GRULayer: "gru",
    LSTMLayer: "lstm",
    AttentionLayer: "attention",
}
"""Every layer by the name that `ssm.build` gives it."""

_FIXED: dict[type[nn.Module], Callable[[Any], Tensor]] = {
    DiagonalLayer: _diagonal,
    ChannelLayer: _diagonal,
    DenseLayer: _dense,
}
_SELECTIVE: dict[type[nn.Module], Callable[[Any, Read, int], Tensor]] = {
    MambaLayer: _mamba,
    Mamba2Layer: _mamba2,
    GatedDeltaNetLayer: _delta_net,
    RGLRULayer: _rg_lru,
}


def recurrence(layer: nn.Module) -> Recurrence:
    """Return what decides how long a state of the layer lasts."""
    if isinstance(layer, DSSLayer) and layer.config.kernel == "softmax":
        return "none"
    if isinstance(layer, tuple(_FIXED)):
        return "fixed"
    return "selective" if type(layer) in _SELECTIVE else "none"


def why_none(layer: nn.Module) -> str:
    """Return in words what takes the place of time constants in a layer that has none."""
    match layer:
        case AttentionLayer():
            return f"attention over the last {layer.config.context} steps: nothing decays"
        case DSSLayer():
            return "a convolution over whole windows: there is no recurrence"
        case GRULayer() | LSTMLayer():
            return "gates that depend on the state itself: there are no eigenvalues"
    return "no layer of the suite"


@torch.no_grad()
def fixed_decays(layer: nn.Module) -> Tensor:
    """Return |a| (M,) of a layer whose recurrence is "fixed", float64.

    Of conjugate pairs one is kept where the layer keeps one.
    """
    [find] = [find for kind, find in _FIXED.items() if isinstance(layer, kind)]
    return find(copy.deepcopy(layer).double()).flatten()


@torch.no_grad()
def selective_decays(layer: nn.Module, read: Read, every: int = 1) -> Tensor:
    """Return |a| (B, ceil(T / every), ...) at steps 0, every, ... of a "selective" layer.

    Args:
        layer: as it was called.
        read: what it was called with.
        every: at least 1.
    """
    return _SELECTIVE[type(layer)](layer, read, every)


def find_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the sequence layers in a module, in order, by number: "0", "1", "2.coarse"."""
    found: dict[str, nn.Module] = {}
    for path, layer in module.named_modules():
        if type(layer) in KINDS:
            parts = [part for part in path.split(".") if part.isdigit() or part in BRANCHES]
            found[".".join(parts) or "0"] = layer
    return found
