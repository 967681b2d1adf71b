"""Build and load the C++ kernels, one library per op, once per machine.

`python -m statewise.kernels` builds all of them ahead of time; otherwise the first call of an op on
the CPU builds its own. A library is kept in a cache folder whose name holds the torch version, the
source, the flags and the processor's features, so that nothing stale or foreign is ever loaded.
A failed build is remembered there too; building by hand tries again.
"""

import fcntl
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ninja
import torch

F = TypeVar("F", bound=Callable[..., Any])

OPS: tuple[str, ...] = (
    "linear_scan",
    "discounted_scan",
    "selective_scan",
    "ssm_scan_lti",
    "ssd_scan",
    "causal_conv1d",
    "convolution",
    "acting",
    "fused",
    "categorical",
)
SOURCES = {op: Path(__file__).resolve().parent / op / f"{op}.cpp" for op in OPS}
# No -ffast-math: it would break the handling of NaN at resets.
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp",  # `at::parallel_for` is serial without it
)
FAILURE = "failure.txt"
_log = logging.getLogger(__name__)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.machine())


def _files(source: Path) -> list[Path]:
    """Return a source and the headers of ours that it includes."""
    names = re.findall(r'^#include "(.+)"$', source.read_text(), re.M)
    return [source, *(file for name in names for file in _files(source.parent / name))]


def cache_folder(op: str) -> Path:
    """Return the folder that holds the library of `op` for this torch, source and processor."""
    digest = hashlib.sha256()
    for text in (torch.__version__, sys.version, _processor(), *FLAGS):
        digest.update(text.encode())
    for path in _files(SOURCES[op]):
        digest.update(path.read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "statewise" / f"{op}-{digest.hexdigest()[:16]}"


def compiler() -> str | None:
    """Return the C++ compiler that would be used, None if there is none."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def _flags() -> list[str]:
    """Return the flags for the compiler that is there.

    torch is linked with GNU's OpenMP. GCC's code calls the same library, which is loaded already:
    nothing is linked, and there is no second pool of threads. Code of other compilers would need a
    library of their own, and runs on one thread instead.
    """
    command = [compiler() or "c++", "--version"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    gnu = "Free Software Foundation" in text
    return [f"{flag}-simd" if flag == "-fopenmp" and not gnu else flag for flag in FLAGS]


@contextmanager
def _ninja_on_path() -> Iterator[None]:
    """Let torch find the ninja of this environment, also where the environment is not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join((ninja.BIN_DIR, before))
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _name(op: str) -> str:
    return f"statewise_{op}"


def _build(op: str, folder: Path) -> None:
    from torch.utils import cpp_extension

    # A build that was killed leaves this file behind, and the next one would wait for it forever.
    (folder / "lock").unlink(missing_ok=True)
    with _ninja_on_path():
        cpp_extension.load(
            name=_name(op),
            sources=[str(SOURCES[op])],
            extra_cflags=_flags(),
            build_directory=str(folder),
            is_python_module=False,
        )


def _load_or_build(op: str, *, retry: bool) -> str:
    folder = cache_folder(op)
    library, failure = folder / f"{_name(op)}.so", folder / FAILURE
    if not library.exists() and compiler() is None:
        return "no C++ compiler found: install g++ or clang++"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "build.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if retry:
                failure.unlink(missing_ok=True)
            if failure.exists():
                return failure.read_text().strip()
            if not (folder / "complete").exists():
                _log.warning("building the cpu kernel of %s, once, about half a minute", op)
                _build(op, folder)
                (folder / "complete").touch()
            else:
                torch.ops.load_library(library)
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"the build failed ({lines[0]}): python -m statewise.kernels {op} shows it"
        if folder.is_dir() and not isinstance(error, OSError):
            failure.write_text(reason)
        return reason
    return ""


@functools.cache
def _reason(op: str) -> str:
    return _load_or_build(op, retry=False)


def constant_in_graphs(function: F) -> F:
    """Let `torch.compile` take a function's answers as constants and not trace into it.

    It sets the mark of `torch.compiler.assume_constant_result`, which would load the whole compiler
    for it: two seconds of every command.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# The compiler must not trace into the build; within one process the answer never changes.
@constant_in_graphs
def reason_missing(op: str) -> str:
    """Return "" if the C++ kernel of `op` is loaded (building it if need be), else why not."""
    return _reason(op)


def loaded(op: str) -> bool:
    """Tell whether the C++ kernel of `op` is in this process already; builds nothing."""
    return hasattr(torch.ops.statewise_cpu, f"{op}_forward")


def _build_apart(op: str) -> str:
    """Build one kernel in a process of its own; return what it printed."""
    command = [sys.executable, "-m", "statewise.kernels", op]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def main(argv: list[str]) -> int:
    """Build the kernels of the named ops now, of all without a name; return an exit status.

    The status is 0 also where a build fails: the torch backend serves.
    """
    if len(argv) == 1 and argv[0] in OPS:
        reason = _load_or_build(argv[0], retry=True)
        where = f"ready in {cache_folder(argv[0])}"
        sys.stdout.write(f"{argv[0]}: {f'not available, {reason}' if reason else where}\n")
        return 0
    unknown = [op for op in argv if op not in OPS]
    if unknown:
        sys.stderr.write(f"expected ops of {', '.join(OPS)}, got {unknown[0]!r}\n")
        return 2
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for line in pool.map(_build_apart, argv or OPS):
            sys.stdout.write(line)
    return 0
