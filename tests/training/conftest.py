"""What tests of runs share."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Let files be written without waiting until they are on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
