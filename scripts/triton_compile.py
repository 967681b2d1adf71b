"""Compile every Triton kernel for GPUs that need not be here, and report what each one takes.

    python scripts/triton_compile.py                  # docs/results/triton_compile.csv
    python scripts/triton_compile.py --op ssd_scan --arch 90 --out /tmp/report.csv
    python scripts/triton_compile.py --quick          # each kernel once

The cases are the launches of the kernels themselves on tensors without memory (COMPILE_CASES of
`kernels/<op>/triton.py`). Registers, stack and local memory are read from the cubin by cuobjdump,
spills and vector loads from its instructions by nvdisasm; both come with triton. Exit status 1
where a kernel passes a limit: spills, stack or local memory at all, more than 128 registers
(255 for adjoints, which hold two recurrences and sums, and for products of matrices), more than
100 KB of shared memory.
"""

import argparse
import csv
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from statewise.kernels.triton_launch import CompileCase

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "results" / "triton_compile.csv"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DTYPES = ("float32", "bfloat16")
ARCHS = (80, 90)
WARP = 32
REGISTERS = 128
MOST_REGISTERS = 255
SHARED_BYTES = 100 * 1024


class Row(NamedTuple):
    """What one kernel takes, compiled for one case."""

    op: str
    kernel: str
    case: str
    dtype: str
    arch: str
    registers: int
    stack: int
    spill_loads: int
    spill_stores: int
    local: int
    shared_bytes: int
    ldg128: int
    """Instructions that load 16 bytes per thread."""
    matrix: int
    """Tensor-core instructions."""
    cubin_bytes: int

    @property
    def key(self) -> tuple[str, ...]:
        """What the row is about."""
        return self[:5]


def ops() -> list[str]:
    """Return the ops that have a Triton backend."""
    return sorted(path.parent.name for path in (ROOT / "kernels").glob("*/triton.py"))


def cases_of(op: str) -> list[CompileCase]:
    """Return the cases that the backend of an op lists."""
    cases: list[CompileCase] = importlib.import_module(
        f"statewise.kernels.{op}.triton"
    ).COMPILE_CASES
    return distinct(cases)


def dtype_of(case: CompileCase) -> str:
    """Return the dtype of the inputs, which the name of a case holds."""
    found = [dtype for dtype in DTYPES if dtype in case.name.split("-")]
    if len(found) != 1:
        raise ValueError(f"{case.name}: expected one of {DTYPES} in the name, got {found}")
    return found[0]


def distinct(cases: Iterable[CompileCase]) -> list[CompileCase]:
    """Return the cases without repeated ones; cases of one name get numbers."""
    kept: list[CompileCase] = []
    for case in cases:
        if case not in kept:
            kept.append(case)
    names: dict[str, int] = {}
    for position, case in enumerate(kept):
        number = names[case.name] = names.get(case.name, 0) + 1
        if number > 1:
            kept[position] = case._replace(name=f"{case.name}-{number}")
    return kept


def first_of_each(cases: Iterable[CompileCase]) -> list[CompileCase]:
    """Return the first case of every kernel."""
    chosen: dict[str, CompileCase] = {}
    for case in cases:
        chosen.setdefault(case.kernel.fn.__name__, case)
    return list(chosen.values())


def build(case: CompileCase, arch: int) -> tuple[bytes, int]:
    """Compile for compute capability `arch` / 10; return the cubin and its shared memory."""
    source = ASTSource(
        fn=case.kernel,
        signature=case.signature,
        constexprs=case.constexprs,
        attrs={(position,): [["tt.divisibility", 16]] for position in case.aligned},
    )
    target = GPUTarget("cuda", arch, WARP)
    compiled = triton.compile(source, target=target, options=case.options)
    return compiled.asm["cubin"], compiled.metadata.shared


def run_tool(name: str, *arguments: str) -> str:
    """Return what a tool of triton's prints."""
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def count(pattern: str, assembly: str) -> int:
    """Return how many instructions begin with the pattern, predicated ones included."""
    return len(re.findall(rf"\*/\s+(?:@!?U?P\w+\s+)?{pattern}\b", assembly))


def measure(op: str, case: CompileCase, arch: int, folder: Path) -> Row:
    """Compile one case and read its cubin."""
    cubin, shared = build(case, arch)
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage = run_tool("cuobjdump", "--dump-resource-usage", str(path))
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    assembly = run_tool("nvdisasm", str(path))
    kernel = case.kernel.fn.__name__
    return Row(
        op=op,
        kernel=kernel,
        case=case.name.removeprefix(f"{kernel}-"),
        dtype=dtype_of(case),
        arch=f"sm_{arch}",
        registers=used["REG"],
        stack=used["STACK"],
        spill_loads=count("LDL", assembly),
        spill_stores=count("STL", assembly),
        local=used["LOCAL"],
        shared_bytes=shared,
        ldg128=count(r"LDG(?:\.\w+)*\.128", assembly) + count(r"LDGSTS(?:\.\w+)*\.128", assembly),
        matrix=count("HMMA", assembly) + count("HGMMA", assembly),
        cubin_bytes=len(cubin),
    )


def faults(row: Row) -> list[str]:
    """Return one line per limit that the row passes."""
    many = row.matrix or "adjoint" in row.kernel
    limits = {
        "registers": MOST_REGISTERS if many else REGISTERS,
        "stack": 0,
        "spill_loads": 0,
        "spill_stores": 0,
        "local": 0,
        "shared_bytes": SHARED_BYTES,
    }
    name = "/".join(row.key)
    return [
        f"{name}: {getattr(row, field)} {field}, at most {limit}"
        for field, limit in limits.items()
        if getattr(row, field) > limit
    ]


def write(rows: Iterable[Row], path: Path) -> None:
    """Write the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(sorted(rows))


def read(path: Path) -> list[Row]:
    """Read a report."""
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    if tuple(lines[0]) != Row._fields:
        raise ValueError(f"{path}: expected the columns {Row._fields}, got {lines[0]}")
    return [Row(*line[:5], *map(int, line[5:])) for line in lines[1:]]


def main() -> int:
    """Compile what was asked for; return an exit status."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument("--op", choices=ops(), help="by default all")
    parser.add_argument("--arch", type=int, choices=ARCHS, help="by default all")
    parser.add_argument("--quick", action="store_true", help="each kernel once")
    parser.add_argument("--out", type=Path, default=REPORT, help=f"by default {REPORT}")
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        print("TRITON_INTERPRET is set: kernels for the interpreter do not compile; unset it")
        return 1
    rows, broken = [], []
    with tempfile.TemporaryDirectory() as folder:
        for op in [options.op] if options.op else ops():
            cases = cases_of(op)
            for case in first_of_each(cases) if options.quick else cases:
                for arch in [options.arch] if options.arch else ARCHS:
                    row = measure(op, case, arch, Path(folder))
                    rows.append(row)
                    broken += faults(row)
                    if sys.stdout.isatty():
                        print(*row)
    write(rows, options.out)
    print(f"{options.out}: {len(rows)} cubins")
    print("\n".join(broken) if broken else "no kernel passes a limit")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
