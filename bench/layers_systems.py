"""The systems of `bench layers`, each timed in a process of its own.

"train" is forward and backward of two layers, "scan" the selective scan alone, "step" one
acting step of one environment after a history. Peers without memory of their own (attention)
encode the whole history again at every step, as a Decision Transformer does.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statewise.bench.measure import time_calls
from statewise.bench.process import Answer, Job
from statewise.bench.update_systems import StepByStep
from statewise.kernels import selective_scan
from statewise.ssm.block import BlockConfig
from statewise.ssm.build import SequenceConfig, build_sequence
from statewise.ssm.protocol import SequenceModel

RESET_RATE = 0.02
NUM_LAYERS = 2
NUM_HEADS = 4
STATE_SIZE = 16
Call = Callable[[], object]


def _ours(kind: str, width: int) -> SequenceModel:
    return build_sequence(SequenceConfig(kind=kind, d_model=width, num_layers=NUM_LAYERS))  # type: ignore[arg-type]


def _attention(width: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        width, NUM_HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, NUM_LAYERS, enable_nested_tensor=False)


def _mambapy(width: int) -> nn.Module:
    from mambapy.mamba import Mamba, MambaConfig

    model: nn.Module = Mamba(MambaConfig(d_model=width, n_layers=NUM_LAYERS, d_state=STATE_SIZE))
    return model


# ---------------------------------------------------------------- training


def _trained(system: str, x: Tensor, reset: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a system's module and its forward pass."""
    width = x.shape[2]
    if system in ("torch.nn.LSTM", "torch.nn.GRU"):
        make = nn.LSTM if system.endswith("LSTM") else nn.GRU
        rnn = make(width, width, NUM_LAYERS, batch_first=True).to(x.device)
        return rnn, lambda: rnn(x)[0]
    if system == "causal attention":
        encoder = _attention(width).to(x.device)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return encoder, lambda: encoder(x, mask=mask, is_causal=True)
    if system == "mambapy":
        mamba = _mambapy(width).to(x.device)
        return mamba, lambda: mamba(x)
    if system == "masked GRU, step by step":
        plain = SequenceConfig(
            kind="gru", d_model=width, num_layers=NUM_LAYERS, block=BlockConfig(kind="plain")
        )
        gru = build_sequence(plain)
        loop = StepByStep(gru).to(x.device)
        return loop, lambda: loop(x, gru.initial_state(len(x)), reset)[0]
    kind, _, resets = system.removeprefix("statewise ").partition(", ")
    model = _ours(kind, width)
    assert isinstance(model, nn.Module)
    model.to(x.device)
    return model, lambda: model(x, None, reset if resets else None)[0]


def _train(job: Job) -> Answer:
    device = torch.device(job["device"])
    B, T, D = job["shape"]
    x = torch.randn(B, T, D).to(device).requires_grad_()
    grad, reset = torch.randn(B, T, D).to(device), (torch.rand(B, T) < RESET_RATE).to(device)
    module, forward = _trained(job["system"], x, reset)
    leaves = (x, *(p for p in module.parameters() if p.requires_grad))

    def without_gradient() -> Tensor:
        with torch.no_grad():
            return forward()

    def both() -> object:
        # Unused: the last norm's or a skipped parameter, as in training.
        return torch.autograd.grad(forward(), leaves, grad, allow_unused=True)

    num = sum(p.numel() for p in module.parameters())
    return _answer(
        job, {"forward": without_gradient, "forward+backward": both}, [("parameters", num, "")]
    )


# ---------------------------------------------------------------- the scan alone


def _scan(job: Job) -> Answer:
    device = torch.device(job["device"])
    B, T, E = job["shape"]
    A = -torch.arange(1.0, STATE_SIZE + 1).repeat(E, 1)
    Bm, Cm = (torch.randn(B, T, STATE_SIZE) for _ in range(2))
    inputs = (torch.randn(B, T, E), torch.randn(B, T, E) - 4.0, A, Bm, Cm)
    leaves = u, dt, A, Bm, Cm = tuple(x.to(device).requires_grad_() for x in inputs)
    reset, grad = (torch.rand(B, T) < RESET_RATE).to(device), torch.randn(B, T, E).to(device)
    backend: Any = "reference" if job["system"] == "unbind reference" else "auto"

    def run() -> Tensor:
        return selective_scan(u, dt, A, Bm, Cm, reset=reset, backend=backend)[0]

    def without_gradient() -> Tensor:
        with torch.no_grad():
            return run()

    def both() -> object:
        return torch.autograd.grad(run(), leaves, grad)

    answer = _answer(job, {"forward": without_gradient, "forward+backward": both}, [])
    peak = peak_memory(both, device)
    if peak is not None:
        share = peak / (u.numel() * u.element_size())
        answer["facts"].append(("peak memory above the inputs", share, "x u"))
    return answer


def peak_memory(call: Call, device: torch.device) -> int | None:
    """Return the most bytes that `call` takes for itself; None if unknown.

    On a GPU what torch allocates, else by how much the process grows.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - held
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(key: str) -> int:
        lines = status.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

    try:
        _give_back_memory()
        clear.write_text("5")  # the peak starts anew
        before = read("VmRSS")
        result = call()
        del result
        return read("VmHWM") - before
    except OSError:
        return None


def _give_back_memory() -> None:
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)


# ---------------------------------------------------------------- acting


def _step(job: Job) -> Answer:
    x = torch.randn(1, job["shape"][2]).to(job["device"])
    torch.manual_seed(0)
    with torch.inference_mode():
        early, late = (_stepper(job["system"], x, history) for history in (10, int(job["history"])))
        # The names say how long the memory is; a recurrent system must not feel it.
        calls = {f"step after {job['history']}": late, "step after 10": early}
        return _answer(job, calls, [])


def _stepper(system: str, x: Tensor, history: int) -> Call:
    """Return one step of one environment, which shows `x`, after `history` steps."""
    width, device = x.shape[1], x.device
    if system == "torch.nn.GRU":
        rnn = nn.GRU(width, width, NUM_LAYERS, batch_first=True).to(device)
        h = rnn(torch.randn(1, history, width).to(device))[1]
        return lambda: rnn(x[:, None], h)
    if system == "causal attention":
        encoder = _attention(width).eval().to(device)
        window = torch.randn(1, history, width).to(device)
        mask = nn.Transformer.generate_square_subsequent_mask(history, device=device)
        return lambda: encoder(window, mask=mask, is_causal=True)
    if system == "mambapy":
        mamba = _mambapy(width).to(device)
        block: Any = mamba.layers[0]  # type: ignore[index]
        inner, taps = block.mixer.config.d_inner, block.mixer.config.d_conv - 1
        cache_of = (x.new_zeros(1, inner, STATE_SIZE), x.new_zeros(1, inner, taps))
        caches = [cache_of] * NUM_LAYERS
        for _ in range(history):
            _, caches = mamba.step(x, caches)  # type: ignore[operator]
        return lambda: mamba.step(x, list(caches))  # type: ignore[operator]
    model = _ours(system.removeprefix("statewise "), width)
    assert isinstance(model, nn.Module)
    model.to(device)
    state, cache = model.initial_state(1), model.prepare_step()
    for _ in range(history):
        _, state = model.step(x, state, None, cache=cache)
    reset = torch.zeros(1, dtype=torch.bool, device=device)
    return lambda: model.step(x, state, reset, cache=cache)


def _answer(job: Job, calls: dict[str, Call], facts: list[tuple[str, float, str]]) -> Answer:
    timings = {
        name: time_calls(
            call, reps=job["reps"], seconds=job["seconds"], device=torch.device(job["device"])
        )
        for name, call in calls.items()
    }
    assert all(math.isfinite(value) for _, value, _ in facts)
    return {"timings": timings, "facts": facts}


MODES: dict[str, Callable[[Job], Answer]] = {"train": _train, "scan": _scan, "step": _step}


def run_job(job: Job) -> Answer:
    """Time one system.

    Args:
        job: system, mode, shape, history, device, reps, seconds.

    Returns:
        {"timings": {metric: [wall, cpu]}, "facts": [[metric, value, unit], ...]}, seconds.
    """
    torch.manual_seed(0)
    return MODES[job["mode"]](job)
