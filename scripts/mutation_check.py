"""Break the code on purpose, one sign, mask or index at a time, and see that tests notice.

    python scripts/mutation_check.py             # all of them; builds a C++ variant for some
    python scripts/mutation_check.py --list
    python scripts/mutation_check.py --only cpu-real

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
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = shutil.ignore_patterns(
    ".venv", ".git", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "runs", "build"
)
PASSED, FAILED = 0, 1  # pytest's exit statuses

VALUES = "tests/kernels/test_linear_scan.py"
GRADIENTS = "tests/kernels/test_linear_scan_gradients.py"
DISCOUNTED = "tests/kernels/test_discounted_scan.py"
RETURNS = "tests/agents/test_returns.py"
ADVANTAGES = f"{RETURNS}::test_staggered_episodes_equal_the_sum_over_each_episode"
MIXTURES = f"{RETURNS}::test_staggered_lambda_returns_equal_the_mixture_of_n_step_returns"
LAWS = "tests/ssm/test_laws.py"
MATRIX = f"{VALUES}::test_a_backend_equals_the_reference_in_double"
PATTERNS = f"{VALUES}::test_every_reset_pattern_equals_the_reference"
HOLD = f"{VALUES}::test_a_held_step_keeps_the_state_and_a_reset_comes_before_the_hold"
REVERSE = f"{VALUES}::test_reverse_is_the_mirrored_scan"
EXACT = f"{GRADIENTS}::test_gradients_equal_those_of_the_loop"
CUT = f"{GRADIENTS}::test_the_past_of_a_reset_gets_exactly_no_gradient"
MODES = f"{LAWS}::test_the_parallel_mode_equals_the_steps"
TRACE = f"{LAWS}::test_a_trace_holds_the_states_of_the_steps"

LINEAR = "kernels/linear_scan"
DISCOUNT = "kernels/discounted_scan"


class Mutation(NamedTuple):
    """One deliberate fault."""

    name: str
    file: str
    old: str
    """Text that occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Node ids of which at least one must fail."""


MUTATIONS = (
    # the linear scan in torch operations
    Mutation(
        "torch-forward-sign",
        f"{LINEAR}/torch.py",
        "state = a_t * state + b_c[:, :, i]",
        "state = a_t * state - b_c[:, :, i]",
        (MATRIX,),
    ),
    Mutation(
        "torch-forward-mask",
        f"{LINEAR}/torch.py",
        "since = since | flag",
        "since = flag",
        (MATRIX,),
    ),
    Mutation(
        "torch-forward-index",
        f"{LINEAR}/torch.py",
        "factor[:, k, -1] * carry)",
        "factor[:, k, 0] * carry)",
        (MATRIX,),
    ),
    Mutation(
        "torch-backward-sign",
        f"{LINEAR}/torch.py",
        "(g[:, -1] + g_last)",
        "(g[:, -1] - g_last)",
        (EXACT,),
    ),
    Mutation(
        "torch-backward-final-state",
        f"{LINEAR}/torch.py",
        "(g[:, -1] + g_last)",
        "(g[:, -1])",
        (EXACT,),
    ),
    Mutation(
        "torch-backward-mask",
        f"{LINEAR}/torch.py",
        "grad_h0 = torch.where(reset[:, 0, None], 0, grad_h0)",
        "grad_h0 = torch.where(reset[:, -1, None], 0, grad_h0)",
        (EXACT,),
    ),
    Mutation(
        "torch-backward-reset-shifted",
        f"{LINEAR}/torch.py",
        "torch.roll(reset, -1, 1).flip(1)",
        "reset.flip(1)",
        (EXACT, CUT),
    ),
    Mutation(
        "torch-backward-index",
        f"{LINEAR}/torch.py",
        "prev = torch.cat([h0_[:, None], h_[:, :-1]], 1)",
        "prev = torch.cat([h0_[:, None], h_[:, 1:]], 1)",
        (EXACT,),
    ),
    # the linear scan in C++
    Mutation(
        "cpu-real-forward-sign",
        f"{LINEAR}/linear_scan.cpp",
        "v[d] = at_[d] * v[d] + static_cast<A>(bt[d]);",
        "v[d] = at_[d] * v[d] - static_cast<A>(bt[d]);",
        (MATRIX,),
    ),
    Mutation(
        "cpu-real-forward-mask",
        f"{LINEAR}/linear_scan.cpp",
        "if (reset && reset[row * s.T + t]) {\n          if (h_init) std::copy_n",
        "if (reset && t > 0 && reset[row * s.T + t]) {\n          if (h_init) std::copy_n",
        (MATRIX,),
    ),
    Mutation(
        "cpu-real-forward-index",
        f"{LINEAR}/linear_scan.cpp",
        "if (h_init) std::copy_n(h_init + d0, n, v);",
        "if (h_init) std::copy_n(h_init, n, v);",
        (MATRIX,),
    ),
    Mutation(
        "cpu-real-backward-sign",
        f"{LINEAR}/linear_scan.cpp",
        "if constexpr (need_a && varying) dat[d] = v * static_cast<A>(prev[d]);",
        "if constexpr (need_a && varying) dat[d] = -v * static_cast<A>(prev[d]);",
        (EXACT,),
    ),
    Mutation(
        "cpu-real-backward-mask",
        f"{LINEAR}/linear_scan.cpp",
        "          std::fill_n(carry, n, A(0));\n",
        "",
        (EXACT, CUT),
    ),
    Mutation(
        "cpu-real-backward-index",
        f"{LINEAR}/linear_scan.cpp",
        "else step(h + offset - s.D);",
        "else step(h + offset);",
        (EXACT,),
    ),
    Mutation(
        "cpu-complex-forward-sign",
        f"{LINEAR}/linear_scan.cpp",
        "const A r = ar * re[d] - ai * im[d]",
        "const A r = ar * re[d] + ai * im[d]",
        (MATRIX,),
    ),
    Mutation(
        "cpu-complex-forward-mask",
        f"{LINEAR}/linear_scan.cpp",
        "if (reset && reset[row * s.T + t]) {\n          if (h_init) load",
        "if (reset && t + 1 < s.T && reset[row * s.T + t]) {\n          if (h_init) load",
        (MATRIX,),
    ),
    Mutation(
        "cpu-complex-forward-index",
        f"{LINEAR}/linear_scan.cpp",
        "load(h_init + 2 * d0);",
        "load(h_init);",
        (MATRIX,),
    ),
    Mutation(
        "cpu-complex-backward-sign",
        f"{LINEAR}/linear_scan.cpp",
        "im[d] = ar * vi - ai * vr;",
        "im[d] = ar * vi + ai * vr;",
        (EXACT,),
    ),
    Mutation(
        "cpu-complex-backward-mask",
        f"{LINEAR}/linear_scan.cpp",
        "init_sum[2 * d] += re[d], init_sum[2 * d + 1] += im[d];\n"
        "          std::fill_n(re, n, A(0)), std::fill_n(im, n, A(0));",
        "init_sum[2 * d] += re[d], init_sum[2 * d + 1] += im[d];",
        (EXACT, CUT),
    ),
    Mutation(
        "cpu-complex-backward-index",
        f"{LINEAR}/linear_scan.cpp",
        "else step(h + offset - 2 * s.D);",
        "else step(h + offset);",
        (EXACT,),
    ),
    # the public linear scan
    Mutation(
        "op-hold-mask",
        f"{LINEAR}/op.py",
        "b = torch.where(kept, torch.zeros_like(b), b)",
        "b = torch.where(kept, b, b)",
        (HOLD,),
    ),
    Mutation(
        "op-reverse-index",
        f"{LINEAR}/op.py",
        "reset = None if reset is None else reset.flip(1)",
        "reset = None if reset is None else reset.flip(0)",
        (REVERSE,),
    ),
    # the discounted scan
    Mutation(
        "discounted-cpu-forward-sign",
        f"{DISCOUNT}/discounted_scan.cpp",
        "xs[b * T + t] + d * next;",
        "xs[b * T + t] - d * next;",
        (DISCOUNTED,),
    ),
    Mutation(
        "discounted-cpu-forward-index",
        f"{DISCOUNT}/discounted_scan.cpp",
        "const scalar_t d = ds[b * T + t];",
        "const scalar_t d = ds[b * T];",
        (DISCOUNTED,),
    ),
    Mutation(
        "discounted-cpu-backward-index",
        f"{DISCOUNT}/discounted_scan.cpp",
        "ys[k + 1] : ls[b]",
        "ys[k] : ls[b]",
        (DISCOUNTED,),
    ),
    Mutation(
        "discounted-torch-backward-index",
        f"{DISCOUNT}/torch.py",
        "torch.roll(discount, 1, 1)",
        "torch.roll(discount, -1, 1)",
        (DISCOUNTED,),
    ),
    Mutation(
        "discounted-torch-backward-sign",
        f"{DISCOUNT}/torch.py",
        "discount[:, -1] * v[:, -1]",
        "-discount[:, -1] * v[:, -1]",
        (DISCOUNTED,),
    ),
    # advantages and returns
    Mutation(
        "gae-sign",
        "agents/returns.py",
        "delta = reward + discount * following - value",
        "delta = reward + discount * following + value",
        (ADVANTAGES,),
    ),
    Mutation(
        "gae-truncation-does-not-cut-the-trace",
        "agents/returns.py",
        "torch.where(terminated | truncated, 0, torch.full_like(delta, discount * trace))",
        "torch.where(terminated, 0, torch.full_like(delta, discount * trace))",
        (ADVANTAGES,),
    ),
    Mutation(
        "gae-truncation-treated-as-termination",
        "agents/returns.py",
        "following = torch.where(terminated, 0, value_tp1)",
        "following = torch.where(terminated | truncated, 0, value_tp1)",
        (ADVANTAGES,),
    ),
    Mutation(
        "lambda-return-window-end",
        "agents/returns.py",
        "inside[:, -1:] = 0",
        "inside[:, :1] = 0",
        (MIXTURES,),
    ),
    Mutation(
        "lambda-return-truncation-mask",
        "agents/returns.py",
        "inside = torch.where(truncated, 0, inside)",
        "inside = torch.where(truncated, inside, inside)",
        (MIXTURES,),
    ),
    # collection
    Mutation(
        "collector-reset-one-row-early",
        "training/collector.py",
        "arrived.obs, arrived.is_first, arrived.reset",
        "arrived.obs, arrived.is_first, arrived.terminated | arrived.truncated",
        ("tests/training/test_collector.py",),
    ),
    # layers
    Mutation(
        "layer-reset-one-step-late",
        "ssm/diagonal.py",
        "            reset=reset,\n            h_init",
        "            reset=None if reset is None else reset.roll(1, 1),\n            h_init",
        (MODES,),
    ),
    Mutation(
        "layer-reset-after-the-input",
        "ssm/diagonal.py",
        "h = torch.where(reset[:, None, None], restored, h)",
        "state = {'h': torch.where(reset[:, None, None], restored, h)}",
        (MODES,),
    ),
    Mutation(
        "layer-trace-index",
        "ssm/diagonal.py",
        "h[:, every - 1 :: every]",
        "h[:, ::every]",
        (TRACE,),
    ),
    Mutation(
        "recurrent-reset-one-step-late",
        "ssm/recurrent.py",
        "begins = reset.clone()",
        "begins = reset.roll(1, 1)",
        (MODES, "tests/ssm/test_baselines.py"),
    ),
    Mutation(
        "s5-sign",
        "ssm/s5.py",
        "inverse = torch.stack((re, -im), -1)",
        "inverse = torch.stack((re, im), -1)",
        ("tests/ssm/test_s5_golden.py",),
    ),
    Mutation(
        "lru-sign",
        "ssm/lru.py",
        "a = diagonal.polar(-self.nu_log.exp(), self.theta_log.exp())",
        "a = diagonal.polar(-self.nu_log.exp(), -self.theta_log.exp())",
        ("tests/ssm/test_lru_golden.py",),
    ),
    Mutation(
        "gate-order",
        "ssm/block.py",
        'kept = activated if kind == "half_glu1" else v',
        'kept = v if kind == "half_glu1" else activated',
        ("tests/ssm/test_s5_golden.py",),
    ),
)


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
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in m.name]
    if arguments.list or not chosen:
        print("\n".join(f"{m.name}: {m.file}" for m in MUTATIONS))
        return 0 if arguments.list else 1
    bad = 0
    with tempfile.TemporaryDirectory(prefix="statewise-mutations-") as folder:
        copy, cache = Path(folder) / "tree", Path(folder) / "cache"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=SKIPPED)
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
