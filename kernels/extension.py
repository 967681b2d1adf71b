"""Build and load the C++ kernels, once per machine.

`python -m statewise.kernels` builds them ahead of time; otherwise the first scan on
the CPU does. The library is kept in a cache folder whose name holds the torch version, the
sources, the flags and the processor's features, so that nothing stale or foreign is ever loaded.
A failed build is remembered there too; building by hand tries again.
"""

import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ninja
import torch

SOURCES = tuple(
    Path(__file__).resolve().parent / name
    for name in ("linear_scan/linear_scan.cpp", "discounted_scan/discounted_scan.cpp")
)
# No -ffast-math: it would break the handling of NaN at resets.
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp-simd",
)
FAILURE = "failure.txt"
_log = logging.getLogger(__name__)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.machine())


def cache_folder() -> Path:
    """Return the folder that holds the library for this torch, source, flags and processor."""
    digest = hashlib.sha256()
    for text in (torch.__version__, sys.version, _processor(), *FLAGS):
        digest.update(text.encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "statewise" / f"kernels-{digest.hexdigest()[:16]}"


def compiler() -> str | None:
    """Return the C++ compiler that would be used, None if there is none."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


@contextmanager
def _ninja_on_path() -> Iterator[None]:
    """Let torch find the ninja of this environment, also where the environment is not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join((ninja.BIN_DIR, before))
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _build(folder: Path) -> None:
    from torch.utils import cpp_extension

    # A build that was killed leaves this file behind, and the next one would wait for it forever.
    (folder / "lock").unlink(missing_ok=True)
    with _ninja_on_path():
        cpp_extension.load(
            name="statewise_cpu",
            sources=[str(source) for source in SOURCES],
            extra_cflags=list(FLAGS),
            build_directory=str(folder),
            is_python_module=False,
        )


def _load_or_build(*, retry: bool) -> str:
    folder = cache_folder()
    library, failure = folder / "statewise_cpu.so", folder / FAILURE
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
                _log.warning("building the cpu kernels, once, about half a minute")
                _build(folder)
                (folder / "complete").touch()
            else:
                torch.ops.load_library(library)
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"the build failed ({lines[0]}): python -m statewise.kernels shows it"
        if folder.is_dir() and not isinstance(error, OSError):
            failure.write_text(reason)
        return reason
    return ""


@functools.cache
def _reason() -> str:
    return _load_or_build(retry=False)


# The compiler must not trace into the build; within one process the answer never changes.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def reason_missing() -> str:
    """Return "" if the C++ kernels are loaded (building them if need be), else why not."""
    return _reason()


def main() -> int:
    """Build the kernels now, whatever happened before; return an exit status."""
    reason = _load_or_build(retry=True)
    where = cache_folder()
    sys.stdout.write(
        f"cpu kernels: not available, {reason}\n" if reason else f"cpu kernels: ready in {where}\n"
    )
    return 0  # the torch backend serves without them
