"""Which backend runs: the rule, what happens without a compiler, and what is told about it."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from statewise.kernels import BackendError, discounted_scan, dispatch, extension, linear_scan
from statewise.kernels.dispatch import available, explain, select_backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
REASON = "no compiler in this test"


@pytest.fixture
def _without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "reason_missing", lambda op: REASON)
    dispatch._warn_fallback.cache_clear()


def test_the_cpu_kernels_are_built_and_loaded_here():
    reasons = available()
    assert list(reasons) == ["reference", "torch", "cpu", "triton", "jax"]
    assert reasons["reference"] == reasons["torch"] == reasons["cpu"] == ""


def test_one_kernel_that_cannot_be_built_is_named(monkeypatch):
    broken = {"selective_scan": REASON}
    monkeypatch.setattr(extension, "reason_missing", lambda op: broken.get(op, ""))
    assert available()["cpu"] == f"selective_scan: {REASON}"


def test_every_op_has_its_sources_and_every_folder_of_kernels_is_an_op():
    folders = {path.parent.name for path in Path(extension.__file__).parent.glob("*/*.cpp")}
    assert folders == set(extension.OPS)
    compositions = {"acting", "fused", "categorical"}  # of torch operations
    for op in set(extension.OPS) - compositions:
        assert {path.name for path in extension.SOURCES[op].parent.glob("*.py")} >= {
            "op.py",
            "reference.py",
            "torch.py",
            "cpu.py",
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_auto_takes_the_compiled_kernel_for_cpu_tensors(dtype):
    assert select_backend("linear_scan", CPU, dtype) == "cpu"


def test_auto_takes_triton_on_a_gpu_that_it_serves_and_plain_torch_elsewhere(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_missing", lambda device_type: "no GPU in this test")
    assert select_backend("linear_scan", CUDA, torch.float32) == "torch"
    monkeypatch.setattr(dispatch, "triton_missing", lambda device_type: "")
    assert select_backend("linear_scan", CUDA, torch.float32) == "triton"
    assert select_backend("linear_scan", torch.device("mps"), torch.float32) == "torch"


def test_an_op_without_a_triton_kernel_runs_in_torch_on_a_gpu(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_missing", lambda device_type: "")
    assert select_backend("convolution", CUDA, torch.float32) == "torch"
    with pytest.raises(BackendError, match=r"convolution: the triton backend.*no such kernel"):
        select_backend("convolution", CUDA, torch.float32, "triton")


def test_asking_for_triton_where_it_cannot_run_raises_the_reason(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_missing", lambda device_type: "it needs CUDA tensors")
    with pytest.raises(BackendError, match=r"selective_scan: the triton backend.*CUDA tensors"):
        select_backend("selective_scan", CPU, torch.float32, "triton")


def test_triton_serves_no_other_device_and_says_which_came():
    assert "got mps tensors" in dispatch.triton_missing("mps")


@pytest.mark.parametrize("name", ["reference", "torch", "cpu"])
def test_an_explicit_name_wins(name):
    assert select_backend("linear_scan", CPU, torch.float32, name) == name


def test_a_backend_that_cannot_serve_the_device_is_refused_with_the_reason():
    with pytest.raises(BackendError, match=r"linear_scan.*cpu.*cuda"):
        select_backend("linear_scan", CUDA, torch.float32, "cpu")


def test_an_unknown_backend_is_refused_with_the_names_there_are():
    with pytest.raises(BackendError, match=r"reference, torch, cpu, triton.*'fast'"):
        linear_scan(torch.ones(1, 2, 3), torch.ones(1, 2, 3), backend="fast")


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64], ids=str)
def test_a_dtype_without_an_accumulator_is_refused(dtype):
    with pytest.raises(ValueError, match="float32, float64, bfloat16"):
        select_backend("linear_scan", CPU, dtype)


@pytest.mark.usefixtures("_without_extension")
def test_auto_falls_back_with_one_warning_per_process():
    x = torch.ones(2, 5, 3)
    with pytest.warns(RuntimeWarning, match=REASON):
        h, _ = linear_scan(x, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = linear_scan(x, x)
        discounted_scan(x[..., 0], x[..., 0])
    assert torch.equal(h, x.cumsum(1))
    assert torch.equal(again, h)


@pytest.mark.usefixtures("_without_extension")
def test_asking_by_name_without_the_extension_raises_the_reason():
    x = torch.ones(2, 5, 3)
    with pytest.raises(BackendError, match=REASON):
        linear_scan(x, x, backend="cpu")
    with pytest.raises(BackendError, match=REASON):
        discounted_scan(x[..., 0], x[..., 0], backend="cpu")


@pytest.mark.usefixtures("_without_extension")
def test_the_explanation_names_what_is_missing_and_what_serves():
    lines = explain()
    assert any(line.startswith("cpu") and REASON in line for line in lines)
    assert any(line.startswith("auto: torch") for line in lines)


def test_the_explanation_says_that_the_cpu_kernel_serves():
    lines = explain()
    assert "cpu: ready" in lines
    assert any(line.startswith("auto: cpu") for line in lines)


def test_without_a_compiler_the_reason_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(extension, "cache_folder", lambda op: tmp_path / op)
    monkeypatch.setattr(extension, "compiler", lambda: None)
    assert "install g++" in extension._load_or_build("linear_scan", retry=False)


def test_a_failed_build_is_remembered_until_it_is_asked_for_by_hand(monkeypatch, tmp_path, capsys):
    builds: list[Path] = []

    def broken_build(op: str, folder: Path) -> None:
        builds.append(folder)
        raise RuntimeError("error: expected ';'")

    monkeypatch.setattr(extension, "cache_folder", lambda op: tmp_path / op)
    monkeypatch.setattr(extension, "_build", broken_build)
    first = extension._load_or_build("linear_scan", retry=False)
    second = extension._load_or_build("linear_scan", retry=False)
    assert "expected ';'" in first
    assert first == second
    assert len(builds) == 1
    extension.main(["linear_scan"])
    assert len(builds) == 2
    assert "not available" in capsys.readouterr().out


def test_the_library_is_kept_per_source_flags_and_torch_version(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = extension.cache_folder("linear_scan")
    assert folder.is_relative_to(tmp_path)
    assert extension.cache_folder("linear_scan") == folder
    monkeypatch.setattr(extension, "FLAGS", ("-O0",))
    other_flags = extension.cache_folder("linear_scan")
    header, changed = tmp_path / "own.h", tmp_path / "cpu.cpp"
    header.write_text("// first")
    changed.write_text('// another source\n#include "own.h"\n')
    monkeypatch.setitem(extension.SOURCES, "linear_scan", changed)
    other_source = extension.cache_folder("linear_scan")
    header.write_text("// second")
    other_header = extension.cache_folder("linear_scan")
    assert len({folder, other_flags, other_source, other_header}) == 4
    assert "-ffast-math" not in " ".join(extension.FLAGS)


# Before any test: what a test itself imports is poisoned from the next one on.
LOOPS = {
    name: importlib.import_module(f"statewise.kernels.{name}.torch")
    for name in ("linear_scan", "discounted_scan")
}


@pytest.mark.parametrize("name", list(LOOPS))
def test_fresh_memory_of_the_python_backends_is_poisoned_in_tests(name):
    backend = LOOPS[name]
    assert backend.torch.empty(3).isnan().all()
    assert backend.torch.empty_like(torch.zeros(2, dtype=torch.complex64)).isnan().all()
    assert backend.torch.zeros(3).eq(0).all()
    assert backend.torch is not torch


def test_neither_agents_nor_a_first_call_load_the_compiler():
    # It takes two seconds, which every command would wait for.
    code = (
        "import sys, torch, statewise.agents, statewise.training.api\n"
        "from statewise.kernels import linear_scan\n"
        "linear_scan(torch.rand(3), torch.rand(1, 4, 3))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False", out.stderr
