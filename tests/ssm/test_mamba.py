"""Mamba and Mamba-2 against their equations written out, step by step, and their special starts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.ssm.mamba import MambaConfig, MambaLayer
from statewise.ssm.mamba2 import NORM_EPS, Mamba2Config, Mamba2Layer
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close

B, T, D = 3, 9, 4
DOUBLE = torch.float64
every_reset = pytest.mark.parametrize("kind", KINDS)


def _convolved(layer: nn.Module, v: Tensor, begin: int, t: int) -> Tensor:
    """Return silu(conv(v)) at step t of one row v (T, E), of inputs from `begin` on."""
    width = layer.conv_weight.shape[1]
    taps = range(min(width, t - begin + 1))
    terms = (layer.conv_weight[:, width - 1 - j] * v[t - j] for j in taps)
    return F.silu(sum(terms, start=layer.conv_bias))


def _mamba(layer: MambaLayer, x: Tensor, reset: Tensor | None) -> Tensor:
    """The equations of the paper, one row and one step at a time, from the initial state."""
    E, R, N = layer.inner, layer.rank, layer.config.state_size
    A, rows = -layer.A_log.exp(), []
    for b in range(len(x)):
        h, begin, outputs = torch.zeros(E, N, dtype=DOUBLE), 0, []
        v, z = (x[b] @ layer.in_proj.weight.T).split(E, -1)
        for t in range(x.shape[1]):
            if reset is not None and reset[b, t]:
                h, begin = torch.zeros_like(h), t
            u = _convolved(layer, v, begin, t)
            r, Bt, Ct = (layer.x_proj.weight @ u).split((R, N, N))
            d = F.softplus(layer.dt_weight @ r + layer.dt_bias)[:, None]
            decay = (d * A).exp()
            decay = 2 * decay - 1 if layer.config.eigenvalues == "signed" else decay
            h = decay * h + d * u[:, None] * Bt
            outputs.append(layer.out_proj.weight @ ((h @ Ct + layer.D * u) * F.silu(z[t])))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _mamba2(layer: Mamba2Layer, x: Tensor, reset: Tensor | None) -> Tensor:
    """The equations of the paper, one row and one step at a time, from the initial state."""
    E, H, P, N = layer.inner, layer.num_heads, layer.head_dim, layer.config.state_size
    G, rows = layer.config.groups, []
    A = -layer.A_log.exp()
    for b in range(len(x)):
        h, begin, outputs = torch.zeros(H, P, N, dtype=DOUBLE), 0, []
        z, v, raw = (x[b] @ layer.in_proj.weight.T).split((E, E + 2 * G * N, H), -1)
        for t in range(x.shape[1]):
            if reset is not None and reset[b, t]:
                h, begin = torch.zeros_like(h), t
            u, Bt, Ct = _convolved(layer, v, begin, t).split((E, G * N, G * N))
            d = F.softplus(raw[t] + layer.dt_bias)
            heads, mixed = u.view(H, P), []
            states = []
            for k in range(H):
                of = k // (H // G)
                driven = d[k] * heads[k][:, None] * Bt.view(G, N)[of]
                states.append((d[k] * A[k]).exp() * h[k] + driven)
                mixed.append(states[k] @ Ct.view(G, N)[of] + layer.D[k] * heads[k])
            h = torch.stack(states)
            y = (torch.cat(mixed) * F.silu(z[t])).view(G, -1)
            y = y / (y.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
            outputs.append(layer.out_proj.weight @ (y.flatten() * layer.norm_weight))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _compare(layer: nn.Module, expected: Tensor, x: Tensor, reset: Tensor | None) -> None:
    y, _ = layer(x, None, reset)
    assert_close(y, expected, DOUBLE, T)
    weights, inputs = torch.randn_like(y), [x, *layer.parameters()]
    # With resets everywhere nothing decays, and A_log plays no part.
    options = {"allow_unused": True, "materialize_grads": True}
    actual = torch.autograd.grad((y * weights).sum(), inputs, **options)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs, **options)
    for left, right in zip(actual, wanted, strict=True):
        assert_close(left, right, DOUBLE, T, gradient=True)


def _drawn(layer: nn.Module) -> nn.Module:
    """Move the parameters that start at one value for all channels."""
    layer = layer.double()
    with torch.no_grad():
        for name in ("D", "norm_weight", "conv_bias"):
            if hasattr(layer, name):
                getattr(layer, name).normal_()
    return layer


@every_reset
@pytest.mark.parametrize("options", [{}, {"eigenvalues": "signed", "conv_width": 2, "dt_rank": 3}])
def test_mamba_is_the_recurrence_of_the_paper_in_values_and_gradients(options, kind):
    layer = _drawn(MambaLayer(D, MambaConfig(state_size=3, **options)))
    x, reset = torch.randn(B, T, D, dtype=DOUBLE, requires_grad=True), pattern(kind, B, T)
    _compare(layer, _mamba(layer, x, reset), x, reset)


@every_reset
def test_mamba2_is_the_recurrence_of_the_paper_in_values_and_gradients(kind):
    config = Mamba2Config(state_size=3, head_dim=2, groups=2, chunk=4)
    layer = _drawn(Mamba2Layer(D, config))
    x, reset = torch.randn(B, T, D, dtype=DOUBLE, requires_grad=True), pattern(kind, B, T)
    _compare(layer, _mamba2(layer, x, reset), x, reset)
