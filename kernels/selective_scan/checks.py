"""What the arguments of the selective scan must look like."""

import torch
from torch import Tensor

from statewise.kernels.selective_scan.torch import Operands

OP = "selective_scan"


def _require(name: str, value: Tensor | None, *shapes: tuple[int, ...]) -> None:
    if value is not None and tuple(value.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{OP}: {name} must be {wanted}, got {tuple(value.shape)}")


def check(o: Operands, decay: str, pairs: bool) -> None:
    """Raise ValueError, in one line, unless all shapes and dtypes fit."""
    tail = (2,) if pairs else ()
    if o.u.dim() != 3 or o.A.dim() != 2 + pairs:
        raise ValueError(
            f"{OP}: u must be (B, T, E) and A (E, N), got {tuple(o.u.shape)} and {tuple(o.A.shape)}"
        )
    (B, T, E), N = o.u.shape, o.A.shape[1]
    if decay not in ("exp", "signed"):
        raise ValueError(f"{OP}: decay must be 'exp' or 'signed', got {decay!r}")
    _require("dt", o.dt, (B, T, E))
    _require("A", o.A, (E, N, *tail))
    for name, value in (("Bm", o.Bm), ("Cm", o.Cm)):
        groups = value.shape[2] if value.dim() == 4 + pairs else 1
        _require(name, value, (B, T, N, *tail), (B, T, groups, N, *tail))
        if E % groups:
            raise ValueError(f"{OP}: the groups of {name} must divide the {E} channels of u, "
                             f"got {groups}")  # fmt: skip
    _require("D", o.D, (E,))
    _require("z", o.z, (B, T, E))
    _require("dt_bias", o.dt_bias, (E,))
    _require("h0", o.h0, (B, E, N, *tail))
    _require("reset", o.reset, (B, T))
    _require("a_override", o.a_override, (N,))
    if o.reset is not None and o.reset.dtype != torch.bool:
        raise ValueError(f"{OP}: reset must be bool, got {o.reset.dtype}")
    devices = {x.device for x in o if x is not None}
    if len(devices) > 1:
        raise ValueError(
            f"{OP}: all tensors must be on one device, got {sorted(map(str, devices))}"
        )
