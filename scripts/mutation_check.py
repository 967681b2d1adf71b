"""Break the code on purpose, one sign, mask or index at a time, and see that tests notice.

    python scripts/mutation_check.py             # all of them; builds a C++ variant for some
    python scripts/mutation_check.py --list
    python scripts/mutation_check.py --only cpu-real
    python scripts/mutation_check.py --of linear_scan --of returns --jobs 2

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
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
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


def make_place(folder: Path) -> tuple[Path, Path]:
    """Copy the tree and what is built already; return both folders."""
    copy, cache = folder / "tree", folder / "cache"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=SKIPPED)
    for op in OPS:  # a mutated source gets a folder of its own
        if (built := cache_folder(op)).exists():
            shutil.copytree(built, cache / "statewise" / built.name)
    return copy, cache


def check_all(
    mutations: Sequence[Mutation], places: Sequence[tuple[Path, Path]]
) -> Iterator[tuple[Mutation, str, float]]:
    """Check mutations in as many places at a time; yield what happened and the seconds it took."""
    free: Queue[tuple[Path, Path]] = Queue()
    for place in places:
        free.put(place)

    def run(mutation: Mutation) -> tuple[Mutation, str, float]:
        place, begin = free.get(), time.monotonic()
        try:
            return mutation, check(mutation, *place), time.monotonic() - begin
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        yield from pool.map(run, mutations)


def main() -> int:
    """Run the mutations asked for; return an exit status."""
    parser = argparse.ArgumentParser(description="Check that tests notice deliberate faults.")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--only", default="", help="run those whose name contains this")
    parser.add_argument(
        "--of", default=[], action="append", help="take a file of scripts/mutations; repeatable"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time; default 1")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {arguments.jobs}")
    chosen = [m for m in load_mutations(arguments.of) if arguments.only in m.name]
    if arguments.list or not chosen:
        print("\n".join(f"{m.name}: {m.file}" for m in load_mutations()))
        return 0 if arguments.list else 1
    tests = sorted({test for mutation in chosen for test in mutation.tests})
    with tempfile.TemporaryDirectory(prefix="statewise-mutations-") as folder:
        places = [make_place(Path(folder) / str(job)) for job in range(arguments.jobs)]
        if run_tests(*places[0], tests) != PASSED:
            print("the tests fail without any mutation: repair that first")
            return 1
        bad = 0
        for mutation, outcome, seconds in check_all(chosen, places):
            bad += outcome != "RED"
            print(f"{mutation.name}: {outcome} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutations were noticed")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
