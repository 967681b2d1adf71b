"""Break the code on purpose, one sign, mask or index at a time, and see that tests notice.

    python scripts/mutation_check.py             # all of them; builds a C++ variant for some
    python scripts/mutation_check.py --list
    python scripts/mutation_check.py --only cpu-real
    python scripts/mutation_check.py --of linear_scan --of returns

The tree is copied to a temporary folder, every mutation is made in the copy alone, and the tests
it names run there with the copy on the import path and a kernel cache of their own. A mutation
that leaves its tests green has found a hole in the tests. Exit status 1 if one stays green, if
a text to replace is not found exactly once, or if the tests fail without any mutation.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import yaml

from statewise.kernels.extension import OPS, cache_folder

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = shutil.ignore_patterns(
    ".venv", ".git", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "runs", "build"
)
PASSED, FAILED = 0, 1  # pytest's exit statuses


class Mutation(NamedTuple):
    """One deliberate fault."""

    name: str
    file: str
    old: str
    """Text that occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Node ids of which at least one must fail."""


def load_mutations(files: Collection[str] = ()) -> list[Mutation]:
    """Return the mutations of some files of `scripts/mutations`, or of all, in their order."""
    return [
        Mutation(**entry | {"tests": tuple(entry["tests"])})
        for path in sorted((ROOT / "scripts" / "mutations").glob("*.yaml"))
        if not files or path.stem in files
        for entry in yaml.safe_load(path.read_text())
    ]


def run_tests(copy: Path, cache: Path, tests: list[str]) -> int:
    """Run tests in the copy and return pytest's exit status."""
    environment = os.environ | {
        "PYTHONPATH": str(copy / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutated file may keep its size and its second
        "XDG_CACHE_HOME": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    where = subprocess.run(
        [sys.executable, "-c", "import statewise; print(statewise.__file__)"],
        cwd=copy, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(copy), where.stdout
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (PASSED, FAILED):
        print(done.stdout[-2000:] + done.stderr[-2000:])
    return done.returncode


def check(mutation: Mutation, copy: Path, cache: Path) -> str:
    """Make one mutation in the copy, run its tests, undo it; return what happened."""
    target = copy / mutation.file
    original = target.read_text()
    if (found := original.count(mutation.old)) != 1:
        return f"NOT APPLIED: text found {found} times, expected once"
    failures = set(cache.rglob("failure.txt"))
    target.write_text(original.replace(mutation.old, mutation.new))
    try:
        status = run_tests(copy, cache, list(mutation.tests))
    finally:
        target.write_text(original)
    if set(cache.rglob("failure.txt")) - failures:
        return "ERROR: the mutated kernel does not build"
    if status not in (PASSED, FAILED):
        return f"ERROR: pytest ended with status {status}"
    return "RED" if status == FAILED else "GREEN: no test noticed"


def main() -> int:
    """Run the mutations asked for; return an exit status."""
    parser = argparse.ArgumentParser(description="Check that tests notice deliberate faults.")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--only", default="", help="run those whose name contains this")
    parser.add_argument(
        "--of", default=[], action="append", help="take a file of scripts/mutations; repeatable"
    )
    arguments = parser.parse_args()
    chosen = [m for m in load_mutations(arguments.of) if arguments.only in m.name]
    if arguments.list or not chosen:
        print("\n".join(f"{m.name}: {m.file}" for m in load_mutations()))
        return 0 if arguments.list else 1
    bad = 0
    with tempfile.TemporaryDirectory(prefix="statewise-mutations-") as folder:
        copy, cache = Path(folder) / "tree", Path(folder) / "cache"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=SKIPPED)
        for op in OPS:  # what is built already; a mutated source gets a folder of its own
            if (built := cache_folder(op)).exists():
                shutil.copytree(built, cache / "statewise" / built.name)
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        if run_tests(copy, cache, tests) != PASSED:
            print("the tests fail without any mutation: repair that first")
            return 1
        for mutation in chosen:
            begin = time.monotonic()
            outcome = check(mutation, copy, cache)
            bad += outcome != "RED"
            print(f"{mutation.name}: {outcome} ({time.monotonic() - begin:.0f} s)", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutations were noticed")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
