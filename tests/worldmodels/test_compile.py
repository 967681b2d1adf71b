"""A compiled world model is the eager one (test T24 of the contract)."""

import pytest
import torch
from torch import Tensor

from statewise.data.shift import Arrival, to_arrival
from statewise.data.step import Step
from statewise.worldmodels.model import WorldModel
from tests.agents.imagination.world_cases import batch as windows
from tests.tolerance import assert_close
from tests.worldmodels.cases import model

B, T = 3, 3


def loss_of(made: WorldModel, step: Step, arrival: Arrival, noise: Tensor) -> Tensor:
    seen = made.observe(step.obs, made.action_in(arrival), None, step.reset, noise)
    return made.loss(step.obs, arrival, seen)[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks, after a break
@pytest.mark.parametrize("core", ["rssm", "s5"])
def test_a_compiled_window_has_the_loss_and_the_gradients_of_the_eager_one(core: str) -> None:
    made, step = model(core), windows(T=T).step
    double = {key: x.double() for key, x in step.obs.items()}
    step = step._replace(obs=double, reward=step.reward.double())
    inputs = (made, step, to_arrival(step), made.noise(B, T))
    expected = loss_of(*inputs)
    gradients = torch.autograd.grad(expected, list(made.parameters()), allow_unused=True)
    actual = torch.compile(loss_of, backend="aot_eager")(*inputs)
    assert_close(actual.detach(), expected.detach(), torch.float64, T)
    again = torch.autograd.grad(actual, list(made.parameters()), allow_unused=True)
    for (name, _), mine, other in zip(made.named_parameters(), again, gradients, strict=True):
        assert (mine is None) == (other is None), name
        if mine is not None:
            assert_close(mine, other, torch.float64, T, gradient=True)
