"""GRU and LSTM layers against torch's own cells, stepped with a selection at resets."""

import pytest
import torch
from torch import Tensor, nn

from statewise.ssm.gru import GRULayer
from statewise.ssm.lstm import LSTMLayer
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close

B, T, D = 4, 11, 6


def _cell(layer: GRULayer | LSTMLayer) -> nn.Module:
    """Return a torch cell that shares the layer's weights."""
    cell = (nn.GRUCell if isinstance(layer, GRULayer) else nn.LSTMCell)(D, D).double()
    for name, parameter in list(cell.named_parameters()):
        del cell._parameters[name]
        cell.register_parameter(name, getattr(layer.rnn, f"{name}_l0"))
        assert parameter.shape == getattr(cell, name).shape
    return cell


def _loop(
    layer: GRULayer | LSTMLayer, x: Tensor, parts: tuple[Tensor, ...], reset: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    cell, outputs = _cell(layer), []
    for t in range(x.shape[1]):
        if reset is not None:
            parts = tuple(torch.where(reset[:, t, None], 0.0, part) for part in parts)
        after = cell(x[:, t], parts[0] if len(parts) == 1 else parts)
        parts = after if isinstance(after, tuple) else (after,)
        outputs.append(parts[0])
    return torch.stack(outputs, 1), parts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [GRULayer, LSTMLayer])
def test_a_layer_equals_torchs_cell_in_values_and_gradients(make, kind):
    layer = make(D).double()
    keys = ("h",) if make is GRULayer else ("h", "c")
    assert tuple(layer.initial_state(B)) == keys
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    parts = tuple(torch.randn(B, D, dtype=torch.float64, requires_grad=True) for _ in keys)
    reset = pattern(kind, B, T)
    y, last = layer(x, dict(zip(keys, parts, strict=True)), reset)
    expected, expected_parts = _loop(layer, x, parts, reset)
    assert_close(y, expected, torch.float64, T)
    for key, value in zip(keys, expected_parts, strict=True):
        assert_close(last[key], value, torch.float64, T)
    inputs = [x, *parts, *layer.parameters()]
    w_y, w_last = torch.randn_like(y), torch.randn_like(parts[0])
    gradients = []
    for outputs, final in ((y, last[keys[-1]]), (expected, expected_parts[-1])):
        loss = (outputs * w_y).sum() + (final * w_last).sum()
        gradients.append(
            torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        )
    for left, right in zip(*gradients, strict=True):
        assert_close(left, right, torch.float64, T, gradient=True)


def test_a_gru_step_worked_by_hand():
    # All weights and biases 0: r = z = 1/2, n = tanh(0) = 0, h' = (1 - z) n + z h = h / 2.
    layer = GRULayer(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    x = torch.ones(1, 3, 1)
    y, last = layer(x, {"h": torch.tensor([[8.0]])})
    assert y.flatten().tolist() == [4.0, 2.0, 1.0]
    assert last["h"].item() == 1.0
    y, _ = layer(x, {"h": torch.tensor([[8.0]])}, torch.tensor([[False, True, False]]))
    assert y.flatten().tolist() == [4.0, 0.0, 0.0]


def test_an_lstm_step_worked_by_hand():
    # All weights 0: i = f = o = 1/2, g = 0, c' = c / 2, h' = tanh(c') / 2; x and h play no part.
    layer = LSTMLayer(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    state = {"h": torch.tensor([[5.0]]), "c": torch.tensor([[2.0]])}
    y, last = layer(torch.ones(1, 2, 1), state)
    torch.testing.assert_close(y.flatten(), torch.tensor([1.0, 0.5]).tanh() / 2)
    assert last["c"].item() == 0.5
