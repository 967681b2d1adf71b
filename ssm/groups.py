"""Which parameters an optimiser treats apart: state-space parameters take no weight decay.

Decaying the parameters of a recurrence pulls its time scales somewhere, and a large step can make
it forget or explode; the papers give them a smaller learning rate and no decay (S4, S5, Mamba).
"""

from typing import Any

from torch import nn


def ssm_parameter_names(module: nn.Module) -> set[str]:
    """Return the full names of the parameters that layers declare in `ssm_parameters`."""
    names = set()
    for prefix, layer in module.named_modules():
        own = {name for name, _ in layer.named_parameters(recurse=False)}
        for name in getattr(layer, "ssm_parameters", ()):
            if name in own:
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def parameter_groups(
    module: nn.Module, *, learning_rate: float, weight_decay: float = 0.0, ssm_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters for an optimiser.

    Args:
        module: anything that contains sequence layers.
        learning_rate: > 0, of what is not a state-space parameter.
        weight_decay: >= 0, of matrices and tensors with more axes; vectors (biases, norms) and
            state-space parameters take none.
        ssm_factor: > 0, learning rate of the state-space parameters relative to the others.

    Returns:
        Groups "regular", "vectors" and "ssm", without empty ones, each with `name`, `params`,
        `lr`, `lr_factor` and `weight_decay`, in the order of `named_parameters`.
    """
    ssm = ssm_parameter_names(module)
    members: dict[str, list[nn.Parameter]] = {"regular": [], "vectors": [], "ssm": []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = "ssm" if name in ssm else "vectors" if parameter.dim() < 2 else "regular"
            members[group].append(parameter)
    factors = {"regular": 1.0, "vectors": 1.0, "ssm": ssm_factor}
    return [
        {
            "name": name,
            "params": parameters,
            "lr": learning_rate * factors[name],
            "lr_factor": factors[name],
            "weight_decay": weight_decay if name == "regular" else 0.0,
        }
        for name, parameters in members.items()
        if parameters
    ]
