"""What the JAX scans share: dtypes, shape checks, resets."""

from typing import Any

import jax
import jax.numpy as jnp

_ACCUMULATE = {
    "float32": jnp.float32,
    "float64": jnp.float64,
    "bfloat16": jnp.float32,
    "complex64": jnp.complex64,
    "complex128": jnp.complex128,
}


def accumulate_dtype(op: str, dtype: Any) -> Any:
    """Return the dtype in which a scan over `dtype` adds up; raise ValueError if there is none."""
    name = jnp.dtype(dtype).name
    if name not in _ACCUMULATE:
        raise ValueError(f"{op}: expected one of {', '.join(_ACCUMULATE)}, got {name}: convert it")
    return _ACCUMULATE[name]


def require_shape(op: str, name: str, value: jax.Array | None, *shapes: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` is None or has one of the shapes."""
    if value is not None and value.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{op}: {name} must be {wanted}, got {value.shape}")


def require_reset(op: str, reset: jax.Array | None, shape: tuple[int, int]) -> None:
    """Raise ValueError unless `reset` is None or bool (B, T)."""
    require_shape(op, "reset", reset, shape)
    if reset is not None and reset.dtype != jnp.bool_:
        raise ValueError(f"{op}: reset must be bool, got {reset.dtype}")


def expand_like(flag: jax.Array, x: jax.Array) -> jax.Array:
    """Give a flag the trailing axes of x, each of size 1."""
    return flag.reshape(flag.shape + (1,) * (x.ndim - flag.ndim))


def select(flag: jax.Array, restored: jax.Array, h: jax.Array) -> jax.Array:
    """Return `restored` where `flag`, else `h`; a non-finite h does not pass, nor its gradient."""
    return jnp.where(expand_like(flag, h), restored, h)
