"""Between `Step` and the named arrays of a replay: checks on the way in, tensors on the way out."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from statewise.data import checks
from statewise.data.episode import Array, ArraySpec
from statewise.data.errors import DataConfigError, NonFinite, SpecMismatch
from statewise.data.memory import Index
from statewise.data.replay_spec import RowSpec
from statewise.data.step import Step


def named_rows(
    step: Step, state: Mapping[str, Tensor], spec: RowSpec, worker: Index, first: Index
) -> dict[str, Array]:
    """Return the rows (n, T, ...) of n workers by name, checked.

    Args:
        step: leading axes (n, T), or (n,) for one row each.
        state: memory before each row, the same leading axes.
        spec: of the rows.
        worker: (n,) for messages.
        first: (n,) numbers of the first rows, for messages.

    Raises:
        SpecMismatch: other keys, shapes or dtypes than those of `spec`.
        NonFinite: NaN or infinity, with worker, key and row.
    """
    arrays = {
        **{f"obs/{key}": values for key, values in step.obs.items()},
        **{name: getattr(step, name) for name in Step._fields if name != "obs"},
        **{f"state/{key}": values for key, values in state.items()},
    }
    fields = spec.fields
    check_names(set(arrays), set(fields))
    lead = step.reward.shape
    if len(lead) not in (1, 2) or lead[0] != len(worker):
        raise SpecMismatch(
            f"expected rows of shape ({len(worker)},) or ({len(worker)}, T), got {tuple(lead)}",
            key="reward",
            hint="give one line per worker",
        )
    rows = {name: checked(name, arrays[name], tuple(lead), fields[name]) for name in fields}
    if len(lead) == 1:
        rows = {name: values[:, None] for name, values in rows.items()}
    number = first[:, None] + np.arange(rows["reward"].shape[1])
    for name, values in rows.items():
        check_finite(name, values, worker, number)
    return rows


def named_states(
    state: Mapping[str, Tensor],
    lead: tuple[int, ...],
    spec: RowSpec,
    worker: Index,
    number: Index,
) -> dict[str, Array]:
    """Return states (B, R, ...) by name, checked.

    Args:
        state: by key, leading axes (B,), then R is 1, or (B, R).
        lead: which of the two.
        spec: of the rows.
        worker: (B,) for messages.
        number: (B, R) of the rows that the states come before.

    Raises:
        SpecMismatch: other keys, shapes or dtypes than those of `spec.state`.
        NonFinite: NaN or infinity, with worker, key and row.
    """
    arrays = {f"state/{key}": values for key, values in state.items()}
    fields = {name: one for name, one in spec.fields.items() if name.startswith("state/")}
    check_names(set(arrays), set(fields))
    rows = {
        name: checked(name, arrays[name], lead, one).reshape(*number.shape, *one.shape)
        for name, one in fields.items()
    }
    for name, values in rows.items():
        check_finite(name, values, worker, number)
    return rows


def check_workers(worker: Index, num_workers: int) -> None:
    """Raise DataConfigError unless all are different numbers below `num_workers`."""
    known = (worker >= 0) & (worker < num_workers)
    if len(np.unique(worker)) < len(worker) or not known.all():
        problem = f"expected different numbers below {num_workers}, got {worker.tolist()}"
        raise DataConfigError(problem, key="workers")


def check_names(found: set[str], expected: set[str]) -> None:
    """Raise SpecMismatch unless two sets of names of fields are equal."""
    if found != expected:
        wrong = f"missing {sorted(expected - found)}, unknown {sorted(found - expected)}"
        raise SpecMismatch(f"expected the fields of the replay, got {wrong}", key="rows")


def checked(name: str, values: Tensor, lead: tuple[int, ...], spec: ArraySpec) -> Array:
    """Return a tensor as an array.

    Raises:
        SpecMismatch: its shape is not that of the leading axes and of `spec`, or its dtype is
            another.
    """
    shape, dtype = (*lead, *spec.shape), str(values.dtype).removeprefix("torch.")
    if tuple(values.shape) != shape or dtype != np.dtype(spec.dtype).name:
        raise SpecMismatch(
            f"expected shape {shape} and dtype {spec.dtype}, got {tuple(values.shape)} and {dtype}",
            key=name,
            hint="convert it, or correct the spec of the replay",
        )
    return values.detach().cpu().numpy()


def check_finite(name: str, values: Array, worker: Index, number: Index) -> None:
    """Raise NonFinite for the first row of (n, T, ...) with NaN or infinity.

    Args:
        name: of the field.
        values: (n, T, ...).
        worker: (n,).
        number: (n, T) of the rows.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    flat = values.reshape(values.shape[0] * values.shape[1], -1)
    line, t = divmod(int(checks.broken_rows(flat).argmax()), values.shape[1])
    raise NonFinite(
        "expected finite numbers, got NaN or infinity",
        file=f"replay of worker {worker[line]}",
        key=name,
        index=int(number[line, t]),
        hint="repair the environment or the agent that made it; nothing was stored",
    )


def step_of(rows: Mapping[str, Array]) -> Step:
    """Return rows by name as a Step."""
    obs = {
        name.removeprefix("obs/"): torch.from_numpy(values)
        for name, values in rows.items()
        if name.startswith("obs/")
    }
    others = {name: torch.from_numpy(rows[name]) for name in Step._fields if name != "obs"}
    return Step(obs=obs, **others)


def state_of(rows: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return the state among rows by name; half precision becomes single."""
    state = {}
    for name, values in rows.items():
        if name.startswith("state/"):
            tensor = torch.from_numpy(values)
            key = name.removeprefix("state/")
            state[key] = tensor.float() if tensor.dtype == torch.float16 else tensor
    return state
