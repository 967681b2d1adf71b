"""Layers inside a loop over time: the same as plain ones, in values and in every gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.nets.deferred import LoopLinear, LoopMLP
from statewise.nets.dreamer_layers import Norm, normed_mlp
from tests.tolerance import assert_close

B, T, D, KNOWN = 2, 5, 4, 3


def close(actual: Tensor, expected: Tensor, *, gradient: bool = False) -> None:
    assert_close(actual, expected, torch.float64, T, gradient=gradient)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize(("hidden", "has_out"), [((6, D), False), ((6, 7), True), ((), True)])
def test_a_network_in_a_loop_is_the_network_at_every_step(
    hidden: tuple[int, ...], has_out: bool, norm: Norm
) -> None:
    torch.manual_seed(0)
    mlp = normed_mlp(D + KNOWN, hidden, norm=norm).double()
    out = nn.Linear(mlp.d_out, D).double() if has_out else None
    known, start = (torch.randn(*shape).double() for shape in ((B, T, KNOWN), (B, D)))
    weight = torch.randn(B, T, D).double()
    leaves = [known, start, *mlp.parameters(), *(() if out is None else out.parameters())]
    for leaf in leaves:
        leaf.requires_grad_()

    def plain(x: Tensor, t: int) -> Tensor:
        y = mlp(torch.cat((x, known[:, t]), -1))
        return y if out is None else out(y)

    loop = LoopMLP(mlp, known, out)
    results = []
    for step in (plain, lambda x, _: loop(x)):
        x, rows = start, []
        for t in range(T):
            x = step(x, t).tanh()  # what comes out goes in
            rows.append(x)
        ys = torch.stack(rows, 1)
        results.append((ys, torch.autograd.grad((ys * weight).sum(), leaves)))
    (ys, gradients), (looped, own) = results
    close(looped, ys)
    for a, b in zip(own, gradients, strict=True):
        assert b.any()
        close(a, b, gradient=True)


def test_the_gradient_of_a_matrix_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    weight, added, x = (torch.randn(*s).double() for s in ((3, 3), (B, 3, 3), (B, 3)))

    def last(*given: Tensor) -> Tensor:
        weight, added, x = given
        linear = LoopLinear(weight, added)
        for _ in range(3):
            x = F.silu(linear(x))
        return x

    assert torch.autograd.gradcheck(last, [y.requires_grad_() for y in (weight, added, x)])


def test_a_frozen_matrix_lets_gradients_through_and_keeps_no_inputs() -> None:
    weight, x = torch.randn(3, 3), torch.randn(B, 3, requires_grad=True)
    linear = LoopLinear(weight, torch.zeros(B, 1, 3))
    linear(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(B, 3))
    assert linear._inputs == []
