"""Gated DeltaNet: the layer's own promises; its recurrence is checked with the kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels.dispatch import BackendError
from statewise.ssm.delta_net import GatedDeltaNetConfig, GatedDeltaNetLayer
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close

B, D = 2, 6
DOUBLE = torch.float64


def _layer(backend: str = "auto", **options: object) -> GatedDeltaNetLayer:
    return GatedDeltaNetLayer(D, GatedDeltaNetConfig(**options), backend).double()


def _oracle(layer: GatedDeltaNetLayer, x: Tensor, reset: Tensor | None) -> Tensor:
    """The equations of the paper, one row, head and step at a time, from the initial state."""
    c, H, K, V = layer.config, layer.num_heads, layer.key_dim, layer.value_dim
    W, rows = c.conv_width, []
    for b in range(len(x)):
        mixed, gate, a, beta = (x[b] @ layer.in_proj.weight.T).split(layer.widths, -1)
        g = -layer.A_log.exp() * F.softplus(a + layer.dt_bias)
        beta = beta.sigmoid() * (2 if c.allow_neg_eigval else 1)
        S, outputs, begin = [torch.zeros(K, V, dtype=DOUBLE)] * H, [], 0
        for t in range(x.shape[1]):
            if reset is not None and reset[b, t]:
                S, begin = [torch.zeros(K, V, dtype=DOUBLE)] * H, t
            taps = range(min(W, t - begin + 1))
            u = F.silu(sum(layer.conv_weight[:, W - 1 - j] * mixed[t - j] for j in taps))
            heads = []
            for h in range(H):
                q, k = (u[i * H * K + h * K :][:K] for i in (0, 1))
                q, k = (z / (z.square().sum() + 1e-6).sqrt() for z in (q, k))
                v = u[2 * H * K + h * V :][:V]
                decayed = g[t, h].exp() * S[h]
                S = [*S[:h], decayed + beta[t, h] * k.outer(v - decayed.T @ k), *S[h + 1 :]]
                o = S[h].T @ q / K**0.5
                heads.append(o / (o.square().mean() + 1e-5).sqrt() * layer.norm.weight)
            o = torch.cat(heads)
            outputs.append(layer.out_proj(o * F.silu(gate[t]) if c.gate == "silu" else o))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 2, "chunk": 4, "allow_neg_eigval": True},
        {"head_dim": 3, "expand_v": 1, "conv_width": 2, "gate": "none"},
    ],
    ids=["signed", "plain"],
)
def test_it_is_the_recurrence_of_the_paper_in_values_and_gradients(options, kind):
    layer, reset = _layer(**options), pattern(kind, B, 7)
    x = torch.randn(B, 7, D, dtype=DOUBLE, requires_grad=True)
    y, _ = layer(x, None, reset)
    expected = _oracle(layer, x, reset)
    assert_close(y, expected, DOUBLE, 7)
    weights = torch.randn_like(y)
    inputs = [x, *layer.parameters()]
    actual = torch.autograd.grad((y * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for left, right in zip(actual, wanted, strict=True):
        assert_close(left, right, DOUBLE, 7, gradient=True)


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 130])
def test_chunks_equal_the_steps_at_the_edges_of_a_chunk(T):
    layer, reset = _layer(allow_neg_eigval=True, num_heads=2), pattern("random", B, T)
    x, state = torch.randn(B, T, D, dtype=DOUBLE), layer.initial_state(B)
    y, last = layer(x, state, reset)
    outputs = []
    for t in range(T):
        out, state = layer.step(x[:, t], state, None if reset is None else reset[:, t])
        outputs.append(out)
    assert_close(y, torch.stack(outputs, 1), DOUBLE, T)
    for key, value in state.items():
        assert_close(last[key], value, DOUBLE, T)


def _parity_layer(*, signed: bool) -> GatedDeltaNetLayer:
    """One number of memory; inputs are one-hot: start, zero, one.

    The start writes a value, a one has beta near its largest value, a zero near 0; keys and
    queries are constant, and nothing decays.
    """
    config = GatedDeltaNetConfig(
        num_heads=1,
        head_dim=1,
        expand_v=1,
        conv_width=1,
        gate="none",
        allow_neg_eigval=signed,
    )
    layer = GatedDeltaNetLayer(3, config).double()
    far = 40.0
    with torch.no_grad():
        layer.conv_weight.fill_(1.0)
        layer.A_log.fill_(-far)
        layer.in_proj.weight.copy_(
            torch.tensor(
                [
                    [5.0, 5.0, 5.0],  # q
                    [5.0, 5.0, 5.0],  # k
                    [5.0, 0.0, 0.0],  # v
                    [0.0, 0.0, 0.0],  # a
                    [0.0, -far, far],  # b: beta 1/2, 0 and 1, twice that where signed
                ]
            )
        )
        layer.out_proj.weight.fill_(1.0)
    return layer


def test_parity_of_any_length_has_an_exact_solution_with_negative_eigenvalues_alone():
    bits = torch.randint(0, 2, (8, 300))
    symbols = torch.cat((torch.zeros(8, 1, dtype=torch.long), bits + 1), 1)
    x = F.one_hot(symbols, 3).double()
    expected = 1 - 2 * (bits.cumsum(1) % 2)
    y, _ = _parity_layer(signed=True)(x)
    assert torch.equal(y[:, 1:, 0].sign().long(), expected)
    assert (y[:, 1:].abs() > 0.9).all()
    y, _ = _parity_layer(signed=False)(x)
    assert (y[:, 1:] > -1e-6).all()


def test_a_second_start_with_a_reset_begins_a_new_count():
    layer = _parity_layer(signed=True)
    symbols = torch.tensor([[0, 2, 2, 2, 0, 2, 1, 2]])
    reset = torch.zeros(1, 8, dtype=torch.bool)
    reset[0, 4] = True
    y, _ = layer(F.one_hot(symbols, 3).double(), None, reset)
    assert y[0, :, 0].sign().tolist() == [1, -1, 1, -1, 1, -1, -1, 1]


def test_keys_are_unit_vectors_and_beta_stays_in_its_range():
    for signed in (False, True):
        layer = _layer(allow_neg_eigval=signed, num_heads=2, head_dim=4)
        mixed = 30 * torch.randn(500, layer.inner, dtype=DOUBLE)
        a, b = 30 * torch.randn(2, 500, 2, dtype=DOUBLE)
        q, k, _, g, beta = layer._operands(mixed, a, b, layer.prepare_step()["rate"])
        assert_close(k.norm(dim=-1), torch.ones(500, 2, dtype=DOUBLE), torch.float32, 1)
        assert_close(q.norm(dim=-1), torch.full((500, 2), 0.5, dtype=DOUBLE), torch.float32, 1)
        assert (g <= 0).all()
        top = 2.0 if signed else 1.0
        assert 0 <= beta.min() < 0.01 * top
        assert 0.99 * top < beta.max() <= top


def test_the_default_keeps_the_ratios_of_the_paper():
    layer = GatedDeltaNetLayer(256)
    assert (layer.num_heads, layer.key_dim, layer.value_dim) == (4, 48, 96)
    matrices = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    assert abs(matrices / 256**2 - 6) < 0.1  # 6 D^2, and the short convolution


def test_gradients_equal_finite_differences():
    layer = _layer(num_heads=1, head_dim=2, expand_v=1, chunk=2)
    assert isinstance(layer, nn.Module)
    names = [name for name, _ in layer.named_parameters()]
    reset = torch.tensor([[False, True, False], [False, False, False]])

    def function(x: Tensor, conv: Tensor, s: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, values, strict=True))
        y, last = torch.func.functional_call(layer, parameters, (x, {"conv": conv, "s": s}, reset))
        return y, *last.values()

    state = layer.initial_state(2)
    inputs = [torch.randn(2, 3, D, dtype=DOUBLE), *(torch.randn_like(v) for v in state.values())]
    inputs = [value.detach().clone().requires_grad_() for value in (*inputs, *layer.parameters())]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_heads": 0}, "num_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"expand_v": 0}, "expand_v"),
        ({"conv_width": 0}, "conv_width"),
        ({"chunk": 0}, "chunk"),
        ({"dt_min": 0.2}, "dt_min"),
    ],
    ids=str,
)
def test_a_bad_setting_is_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        GatedDeltaNetConfig(**options)


def test_a_backend_that_the_rule_does_not_have_is_refused():
    with pytest.raises(BackendError, match="expected a backend of auto, torch, reference"):
        _layer("cpu")(torch.randn(B, 3, D, dtype=DOUBLE))
