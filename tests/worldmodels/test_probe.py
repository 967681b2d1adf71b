"""Probes read what is in frozen states and nothing else."""

import pytest
import torch

from statewise.worldmodels.probe import ProbeConfig, frozen_features, train_probe
from tests.worldmodels import cases
from tests.worldmodels.test_open_loop import episodes

CONFIG = ProbeConfig(hidden=(16,), learning_rate=1e-2, updates=200, batch_size=64)


def draws(n: int = 512) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_a_linear_probe_finds_the_line_that_made_the_labels() -> None:
    x = draws()
    weight = torch.tensor([[1.0, 0.0], [0.0, -2.0], [0.5, 0.0], [0.0, 0.0]])
    y = x @ weight + torch.tensor([1.0, -1.0])
    config = ProbeConfig(hidden=(), learning_rate=0.2, updates=400, batch_size=128)
    probe = train_probe(x, y, config, generator())
    assert probe.score(x, y) < 1e-4 * float(y.var(0).mean())
    assert sum(p.numel() for p in probe.parameters()) == 2 * 4 + 2


def test_a_probe_tells_classes_that_are_in_the_features_and_none_that_are_not() -> None:
    x = draws()
    labels = (x[:, 0] > 5).long() + 2 * (x[:, 1] > 5).long()
    probe = train_probe(x, labels, CONFIG, generator())
    assert probe.score(x, labels) > 0.95
    noise = torch.randint(4, (512,), generator=torch.Generator().manual_seed(2))
    halves = train_probe(x[:256], noise[:256], CONFIG, generator())
    assert halves.score(x[256:], noise[256:]) < 0.4


def test_features_are_those_of_the_rows_that_are_observations_without_gradient() -> None:
    made, step = cases.model("s5"), episodes()
    features, rows = frozen_features(made, step, generator())
    assert rows.sum(1).tolist() == [9, 4, 7]
    assert features.shape == (20, 8 + 12)
    assert not features.requires_grad
    assert step.obs["obs"][rows].shape == (20, 3)
    stoch = features[:, 8:].reshape(20, 3, 4)
    assert torch.equal(stoch.sum(-1), torch.ones(20, 3, dtype=torch.float64))


def test_wrong_labels_and_settings_are_refused_in_one_line() -> None:
    x = draws(8)
    for labels in (torch.zeros(7, dtype=torch.int64), torch.zeros(8), torch.zeros(8, 1).long()):
        with pytest.raises(ValueError, match="labels: expected") as caught:
            train_probe(x, labels, CONFIG, generator())
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="at least 1"):
        ProbeConfig(hidden=(0,))
    with pytest.raises(ValueError, match="learning_rate"):
        ProbeConfig(learning_rate=0)
