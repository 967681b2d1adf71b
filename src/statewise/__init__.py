"""Reinforcement-learning agents and world models on one state-space core.

    agent = statewise.train("ppo/cartpole", seed=1)
    agent = statewise.load("runs/ppo-cartpole-1")

`make`, `train` and `load` are those of `statewise.training.api`, `resume` is that of
`statewise.training.resuming`. They are imported when one is first asked for: `import statewise`
alone imports nothing else.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_FROM = {"load": "api", "make": "api", "resume": "resuming", "train": "api"}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"statewise.training.{_FROM[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM])
