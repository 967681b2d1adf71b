"""Scaled observations: moments against numpy, parts against the whole, what is left alone."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.moments import NormalizedEncoder, has_no_scale

OPEN = spaces.Box(-np.inf, np.inf, (3,), np.float32)
HALF = spaces.Box(np.array([-1, -3.4e38], np.float32), np.array([1, 3.4e38], np.float32))
SPACE = spaces.Dict(
    {
        "bits": spaces.MultiBinary(2),
        "bounded": spaces.Box(-1, 1, (2,)),
        "half": HALF,
        "obs": OPEN,
        "picture": spaces.Box(0, 255, (8, 8, 1), np.uint8),
    }
)


class Seen(nn.Module):
    """Returns what it is given."""

    d_out = 1

    def forward(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return obs


def draw(*lead: int, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "bits": torch.ones(*lead, 2),
        "bounded": torch.rand(*lead, 2),
        "half": 5 + 2 * torch.randn(*lead, 2),
        "obs": 1e3 + torch.tensor([1e-2, 1.0, 1e2]) * torch.randn(*lead, 3),
        "picture": torch.zeros(*lead, 8, 8, 1, dtype=torch.uint8),
    }


def alone(x: Tensor) -> Tensor:
    return x


def test_only_numbers_without_bounds_have_no_scale():
    assert [key for key, space in SPACE.spaces.items() if has_no_scale(space)] == ["half", "obs"]
    assert not has_no_scale(spaces.Discrete(3))


def test_before_the_first_rows_numbers_come_as_they_are():
    encoder = NormalizedEncoder(SPACE, Seen())
    obs = draw(4) | {"obs": torch.tensor([[0.5, -3.0, 20.0]])}
    seen = encoder(obs)
    assert torch.allclose(seen["obs"], torch.tensor([[0.5, -3.0, 10.0]]))
    assert all(seen[key] is obs[key] for key in ("bits", "bounded", "picture"))


def test_moments_are_those_of_all_valid_rows_in_any_split():
    encoder = NormalizedEncoder(SPACE, Seen())
    kept = {"half": [], "obs": []}
    for part in range(5):
        obs, valid = draw(6, 7 + part, seed=part), torch.rand(6, 7 + part) < 0.6
        obs["obs"][~valid] = float("nan")
        if part == 3:
            valid[:] = False
        encoder.learn(obs, valid, alone)
        for key, rows in kept.items():
            rows.append(obs[key][valid].double().numpy())
    for key, parts in kept.items():
        rows = np.concatenate(parts)
        x, part = torch.as_tensor(rows).float(), slice(0, 2) if key == "half" else slice(2, 5)
        expected = (x.double().numpy() - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-8)
        # float32 holds 1000 to 6e-5, a hundredth of the smallest deviation
        assert np.abs(encoder.scaled(draw(1) | {key: x})[key].numpy() - expected).max() < 1e-2
        assert float(encoder.count) == len(rows)
        squares = encoder.squares[part] / encoder.count
        np.testing.assert_allclose(encoder.mean[part], rows.mean(0), rtol=1e-12)
        # the first rows are 1e5 deviations from 0, where the sums begin: 16 - 10 digits are left
        np.testing.assert_allclose(squares, rows.var(0), rtol=1e-6)


def test_the_shares_of_two_processes_give_the_moments_of_one():
    whole, shares = NormalizedEncoder(SPACE, Seen()), [NormalizedEncoder(SPACE, Seen())] * 2
    for part in range(3):
        obs, valid = draw(4, 5, seed=part), torch.rand(4, 5) < 0.7
        whole.learn(obs, valid, alone)
        parts = [({key: x[i : i + 2] for key, x in obs.items()}, valid[i : i + 2]) for i in (0, 2)]
        sent: list[Tensor] = []
        other = NormalizedEncoder(SPACE, Seen())
        other.load_state_dict(shares[1].state_dict())
        other.learn(*parts[1], lambda x, sent=sent: (sent.append(x), x)[1])
        heard = iter(sent)
        shares[0].learn(*parts[0], lambda x, heard=heard: x + next(heard))
        shares[1] = shares[0]
    for name, buffer in whole.state_dict().items():
        torch.testing.assert_close(shares[0].state_dict()[name], buffer, rtol=1e-12, atol=0)


def test_a_number_far_from_all_others_is_cut():
    encoder = NormalizedEncoder(spaces.Dict({"obs": OPEN}), Seen())
    encoder.learn({"obs": torch.randn(100, 3)}, torch.ones(100, dtype=torch.bool), alone)
    assert encoder({"obs": torch.tensor([1e6, -1e6, 0.0])})["obs"][:2].tolist() == [10.0, -10.0]


def test_moments_are_part_of_the_weights():
    one, two = (NormalizedEncoder(SPACE, Seen()) for _ in range(2))
    one.learn(draw(9), torch.ones(9, dtype=torch.bool), alone)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(draw(3))["obs"], one(draw(3))["obs"])
    assert not list(one.parameters())


def test_nothing_to_scale_is_an_error():
    with pytest.raises(ValueError, match="normalize_obs: expected a Box of numbers without bounds"):
        NormalizedEncoder(spaces.Dict({"obs": spaces.Box(-1, 1, (2,))}), Seen())
