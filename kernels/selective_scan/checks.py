"""What the arguments of the selective scan must look like."""

from statewise.kernels.checks import (
    COMPLEX,
    FLOATS,
    require_dtype,
    require_flag,
    require_one_device,
    require_shape,
)
from statewise.kernels.selective_scan.torch import Operands

OP = "selective_scan"


def check_complex(o: Operands) -> None:
    """Raise ValueError, in one line, unless A and h0 are complex, Bm and Cm complex or real."""
    require_dtype(OP, COMPLEX, A=o.A, h0=o.h0)
    require_dtype(OP, COMPLEX + FLOATS, Bm=o.Bm, Cm=o.Cm)


def check(o: Operands, decay: str, pairs: bool) -> None:
    """Raise ValueError, in one line, unless all shapes, dtypes and devices fit."""
    tail = (2,) if pairs else ()
    if o.u.dim() != 3 or o.A.dim() != 2 + pairs:
        raise ValueError(
            f"{OP}: u must be (B, T, E) and A (E, N), got {tuple(o.u.shape)} and {tuple(o.A.shape)}"
        )
    (B, T, E), N = o.u.shape, o.A.shape[1]
    if decay not in ("exp", "signed"):
        raise ValueError(f"{OP}: decay must be 'exp' or 'signed', got {decay!r}")
    require_shape(OP, "dt", o.dt, (B, T, E))
    require_shape(OP, "A", o.A, (E, N, *tail))
    for name, value in (("Bm", o.Bm), ("Cm", o.Cm)):
        groups = value.shape[2] if value.dim() == 4 + pairs else 1
        require_shape(OP, name, value, (B, T, N, *tail), (B, T, groups, N, *tail))
        if groups < 1 or E % groups:
            raise ValueError(f"{OP}: the groups of {name} must divide the {E} channels of u, "
                             f"got {groups}")  # fmt: skip
    require_shape(OP, "D", o.D, (E,))
    require_shape(OP, "z", o.z, (B, T, E))
    require_shape(OP, "dt_bias", o.dt_bias, (E,))
    require_shape(OP, "h0", o.h0, (B, E, N, *tail))
    require_flag(OP, "reset", o.reset, (B, T))
    require_shape(OP, "a_override", o.a_override, (N,))
    named = o._asdict()
    require_one_device(OP, **named)
    del named["reset"]
    require_dtype(OP, FLOATS, **named)
