"""A model that is told actions one step early or late cannot predict what they do (test T14)."""

import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces

from statewise.data.shift import Arrival, to_arrival
from statewise.data.step import Step
from statewise.worldmodels.model import WorldModel
from tests.worldmodels import cases

B, T, UPDATES = 16, 8, 120
SPACE = spaces.Dict({"obs": spaces.Box(0.0, 1.0, (3,))})


def window(draw: torch.Generator) -> Step:
    """Return rows that show the action before, one-hot; zeros where an episode starts."""
    action = torch.randint(3, (B, T), generator=draw)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 0] = is_first[:, 5] = True
    before = F.one_hot(action.roll(1, 1), 3).float()
    no = torch.zeros_like(is_first)
    return Step(
        obs={"obs": 4 * torch.where(is_first[..., None], 0.0, before)},
        is_first=is_first,
        reset=is_first,
        action=action,
        reward=torch.zeros(B, T),
        terminated=no,
        truncated=no.clone().index_fill_(1, torch.tensor([4]), True),
        valid=~no,
    )


def action_vectors(made: WorldModel, arrival: Arrival, shift: int) -> torch.Tensor:
    return made.action_in(arrival).roll(shift, 1)


def share_predicted(shift: int) -> float:
    torch.manual_seed(0)
    made = WorldModel(SPACE, cases.ACTIONS, cases.config("s5", free_nats=0.0))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        step = window(draw)
        arrival = to_arrival(step)
        vectors = action_vectors(made, arrival, shift)
        noise = made.noise(B, T, generator=draw)
        seen = made.observe(step.obs, vectors, None, step.reset, noise)
        total, _ = made.loss(step.obs, arrival, seen)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    step = window(draw)
    arrival = to_arrival(step)
    vectors = action_vectors(made, arrival, shift)
    with torch.no_grad():
        seen = made.observe(step.obs, vectors, None, step.reset, made.noise(B, T, generator=draw))
        z = F.one_hot(seen.log_p.argmax(-1), cases.LATENTS.classes).float()
        expected = made.decode(z, seen.deter)["obs"]
    rows = ~step.is_first
    right = expected.argmax(-1)[rows] == step.obs["obs"].argmax(-1)[rows]
    return float(right.float().mean())


@pytest.mark.parametrize(("shift", "is_right"), [(0, True), (1, False), (-1, False)])
def test_the_prior_knows_what_an_action_does_only_if_it_is_told_the_right_one(
    shift: int, is_right: bool
) -> None:
    share = share_predicted(shift)
    assert (share > 0.95) if is_right else (share < 0.6)
