"""What the Triton backends share: how time is split, sizes of blocks, how a kernel is started.

Needs no triton itself, so that the rules can be tested anywhere.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Estimates for an H100 until `scripts/gpu_check.py` has measured them.
SERIAL_LANES = 32768  # as many independent recurrences hide the latency of a loop over time
SERIAL_STEPS = 128  # below it a second launch costs more than it saves
SPLIT_LANES = 65536  # recurrences times chunks that a split aims at
SHORTEST_CHUNK = 64
WARP = 32
NUM_STAGES = 2

_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Split(NamedTuple):
    """Time in `chunks` pieces of `length` steps; the last may be shorter."""

    chunks: int
    length: int


class CompileCase(NamedTuple):
    """One kernel as a launch specialises it, for an offline compile.

    Every module `kernels/<op>/triton.py` lists its own as COMPILE_CASES. The fields are those of
    `triton.compiler.ASTSource`: `signature` holds every argument in order ("*fp32", "i32",
    "constexpr"), `constexprs` the values of the constant ones, `aligned` the positions of what is
    divisible by 16 (addresses and numbers); `max_registers` of a lane is None where the assembler
    chooses.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    aligned: tuple[int, ...]
    num_warps: int
    num_stages: int
    max_registers: int | None

    @property
    def options(self) -> dict[str, Any]:
        """The options of `triton.compile` and of a launch."""
        return _options(self.num_warps, self.max_registers)


def _options(num_warps: int, max_registers: int | None) -> dict[str, Any]:
    # Contraction is on whatever the default of this version of triton is: it only adds digits.
    options = {"num_warps": num_warps, "num_stages": NUM_STAGES, "enable_fp_fusion": True}
    return options if max_registers is None else options | {"maxnreg": max_registers}


def ceil_div(number: int, by: int) -> int:
    """Return number / by, rounded up."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()


def split_time(lanes: int, T: int, multiple: int = 1) -> Split:
    """Choose between one loop over time and chunks of time that run side by side.

    Chunks cost a second pass over the inputs, so they are for few lanes and many steps.

    Args:
        lanes: independent recurrences, B * D.
        T: steps, at least 1.
        multiple: what the length of a chunk must be divisible by.
    """
    if lanes >= SERIAL_LANES or T <= SERIAL_STEPS:
        return Split(1, T)
    wanted = ceil_div(T, ceil_div(SPLIT_LANES, lanes))
    length = ceil_div(max(wanted, SHORTEST_CHUNK), multiple) * multiple
    return Split(1, T) if length >= T else Split(ceil_div(T, length), length)


def channel_block(width: int, lanes: int, pairs: bool = False) -> int:
    """Return how many channels one warp serves: 16 bytes a lane once lanes abound, else one."""
    per_lane = (2 if pairs else 4) if lanes >= 4 * SERIAL_LANES else 1
    return min(WARP * per_lane, power_of_two(width))


def dense_rows(x: Tensor, trailing: int = 1) -> Tensor:
    """Return x, copied only if its last `trailing` axes are not dense; outer strides are free."""
    expected = 1
    for size, stride in zip(x.shape[::-1][:trailing], x.stride()[::-1], strict=False):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def flags(reset: Tensor | None) -> Tensor | None:
    """Return dense bytes for a (B, T) bool."""
    return None if reset is None else reset.contiguous().view(torch.uint8)


_recorded: list[CompileCase] | None = None


@contextlib.contextmanager
def _recording() -> Iterator[list[CompileCase]]:
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def compile_cases(name: str, run: Callable[[], object]) -> list[CompileCase]:
    """Return a case for every launch of `run`, which works on meta tensors and starts nothing.

    So the report compiles what is launched, argument for argument.
    """
    with _recording() as cases:
        run()
    return [case._replace(name=f"{case.name}-{name}") for case in cases]


def _case(
    kernel: Any,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    num_warps: int,
    max_registers: int | None,
) -> CompileCase:
    names = list(inspect.signature(kernel.fn).parameters)
    values = dict(zip(names, arguments, strict=False)) | constants
    signature, constexprs, aligned = {}, {}, []
    for position, name in enumerate(names):
        value = values[name]
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constexprs[name] = value
            continue
        signature[name] = _TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
        if isinstance(value, Tensor) or value % 16 == 0:
            aligned.append(position)
    case = (kernel.fn.__name__, kernel, signature, constexprs, tuple(aligned))
    return CompileCase(*case, num_warps, NUM_STAGES, max_registers)


def launch(
    kernel: Any,
    programs: int,
    num_warps: int,
    *arguments: Any,
    max_registers: int | None = None,
    **constants: Any,
) -> None:
    """Start `programs` instances of a kernel on the device of its first tensor.

    Args:
        kernel: the decorated function.
        programs: size of the one-dimensional grid.
        num_warps: per program.
        arguments: tensors, numbers or None (an absent tensor), in the order of the kernel.
        max_registers: of a lane; None leaves it to the assembler, which trades spills for
            occupancy.
        constants: its constexpr arguments, by name.
    """
    if _recorded is not None:
        _recorded.append(_case(kernel, arguments, constants, num_warps, max_registers))
        return
    device = next(x for x in arguments if isinstance(x, Tensor)).device
    options = _options(num_warps, max_registers)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **constants, **options)
