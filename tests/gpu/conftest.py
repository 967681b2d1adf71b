"""Full precision for every test on a GPU."""

import pytest
import torch


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN's recurrent networks from rounding their inputs to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
