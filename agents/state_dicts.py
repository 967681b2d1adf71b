"""What agents write into a checkpoint and read again; one line for what does not fit."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Saved(Protocol):
    """An optimiser, or what else is written down and read again."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is written down."""
        ...

    def load_state_dict(self, moments: dict[str, Any], /) -> None:
        """Read it again."""
        ...


def check_keys(expected: Iterable[str], got: Iterable[str]) -> None:
    """Raise ValueError unless the keys are the expected ones, in any order."""
    if set(expected) != set(got):
        raise ValueError(f"expected the keys {sorted(expected)}, got {sorted(got)}")


def load_weights(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Load weights and buffers.

    Raises:
        ValueError: names or shapes differ; one line that names the first difference.
    """
    own = module.state_dict()
    for key in sorted(own.keys() | given.keys()):
        a, b = own.get(key), given.get(key)
        if a is None or b is None or a.shape != b.shape:
            want = "nothing" if a is None else tuple(a.shape)
            got = "nothing" if b is None else tuple(b.shape)
            raise ValueError(f"weights do not fit: {key}: expected {want}, got {got}")
    module.load_state_dict(given)


def copy_moments(module: nn.Module, moments: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return moments by the name of their parameter, copied: torch writes into those it is given.

    Raises:
        ValueError: one belongs to no trained parameter of the module.
    """
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    if odd := sorted(moments.keys() - trained):
        raise ValueError(f"moments do not fit: expected names of parameters, got {odd[0]!r}")
    return {
        parameter: {name: value.clone() for name, value in entry.items()}
        for parameter, entry in moments.items()
    }


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the parameters of a module's optimiser by name, in its order."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]


def moments_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the moments of a module's optimiser by the name of their parameter."""
    names = _names(module, optimizer)
    return {names[i]: dict(entry) for i, entry in optimizer.state_dict()["state"].items()}


def give_moments(
    module: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Any]
) -> None:
    """Let a new optimiser of a module go on from moments by name; others begin at 0."""
    names = _names(module, optimizer)
    kept = {i: moments[name] for i, name in enumerate(names) if name in moments}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": kept, "param_groups": groups})


def parts_of(
    networks: Mapping[str, nn.Module], optimizers: Mapping[str, Saved]
) -> dict[str, dict[str, Any]]:
    """Return the states of networks and of their optimisers, each by name."""
    return {
        "networks": {name: network.state_dict() for name, network in networks.items()},
        "optimizers": {name: one.state_dict() for name, one in optimizers.items()},
    }


def load_parts(
    networks: Mapping[str, nn.Module], optimizers: Mapping[str, Saved], state: Mapping[str, Any]
) -> None:
    """Restore what `parts_of` returned.

    Raises:
        ValueError: keys or shapes differ; one line that names the first difference.
    """
    check_keys(networks, state["networks"])
    check_keys(optimizers, state["optimizers"])
    for name, network in networks.items():
        load_weights(network, state["networks"][name])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
