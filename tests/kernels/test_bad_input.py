"""Every op: a wrong argument is refused in one line that names it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from statewise.kernels import (
    BackendError,
    causal_conv1d,
    discounted_scan,
    linear_scan,
    linear_scan_pairs,
    selective_scan,
    selective_scan_pairs,
    ssd_scan,
)
from statewise.kernels.convolution.op import (
    cauchy,
    dplr_kernel,
    fft_conv,
    truncated_output,
    vandermonde,
    vandermonde_pairs,
)
from statewise.kernels.delta_rule.op import delta_rule
from statewise.kernels.ssm_scan_lti.op import ssm_scan_lti, ssm_scan_lti_pairs

B, T, N = 2, 7, 3
SINGLE, WIDE = torch.complex64, torch.complex128


class Op(NamedTuple):
    """An op with arguments that it accepts."""

    call: Callable[..., Any]
    floats: dict[str, Tensor]
    own: str  # how its errors begin
    reset: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    has_backend: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        reset = {"reset": torch.zeros(B, T, dtype=torch.bool)} if self.reset else {}
        return self.floats | dict(self.options) | reset


def _numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=SINGLE)


def _selective(kind: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Return the arguments of the selective scan; A, B, C and h0 of one kind."""
    tensors = {name: torch.randn(B, T, 4) for name in ("u", "dt", "z")}
    tensors |= {"D": torch.randn(4), "dt_bias": torch.randn(4)}
    mixing = {"Bm": kind(B, T, 2, N), "Cm": kind(B, T, 2, N), "h0": kind(B, 4, N)}
    return tensors | {"A": -kind(4, N).abs().to(mixing["h0"].dtype)} | mixing


def _pairs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.view_as_real(v) if v.is_complex() else v for k, v in tensors.items()}


def _linear(kind: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"a": kind(B, T, 5), "b": kind(B, T, 5), "h0": kind(B, 5), "h_init": kind(5)}


_SSD = {
    "x": torch.randn(B, T, 4, 5),
    "dt": torch.rand(B, T, 4),
    "A": -torch.rand(4),
    "Bm": torch.randn(B, T, 2, N),
    "Cm": torch.randn(B, T, 2, N),
    "D": torch.randn(4),
    "h0": torch.randn(B, 4, 5, N),
}
_LTI = {
    "x": torch.randn(B, T, 5),
    "abar": 0.3 * _numbers(5, N),
    "bbar": _numbers(5, N),
    "c": _numbers(5, N),
    "h0": _numbers(B, 5, N),
}
_CONV = {
    "x": torch.randn(B, T, 5),
    "w": torch.randn(5, 4),
    "bias": torch.randn(5),
    "state": torch.randn(B, 5, 3),
}
_DELTA = {
    "q": torch.randn(B, T, 4, 5),
    "k": torch.randn(B, T, 4, 5),
    "v": torch.randn(B, T, 4, 6),
    "g": -torch.rand(B, T, 4),
    "beta": torch.rand(B, T, 4),
    "h0": torch.randn(B, 4, 5, 6),
}
_S4 = {"dt": torch.rand(5), "w": _numbers(5, N), "P": _numbers(1, 5, N)}
_WEIGHTS = {"w": _numbers(5, N), "a": 0.3 * _numbers(5, N)}
LENGTH = (("L", T),)
# Where one of these is wrong, another argument may be said not to fit it.
SETS_SIZES = ("b", "u", "A", "Bm", "x", "abar", "w", "q")
OPS = {
    "linear_scan": Op(linear_scan, _linear(torch.randn), "linear_scan"),
    "linear_scan-complex": Op(linear_scan, _linear(_numbers), "linear_scan"),
    "linear_scan_pairs": Op(linear_scan_pairs, _pairs(_linear(_numbers)), "linear_scan"),
    "selective_scan": Op(selective_scan, _selective(torch.randn), "selective_scan"),
    "selective_scan-complex": Op(selective_scan, _selective(_numbers), "selective_scan"),
    "selective_scan_pairs": Op(
        selective_scan_pairs, _pairs(_selective(_numbers)), "selective_scan"
    ),
    "ssm_scan_lti": Op(ssm_scan_lti, _LTI, "ssm_scan_lti"),
    "ssm_scan_lti_pairs": Op(ssm_scan_lti_pairs, _pairs(_LTI), "ssm_scan_lti"),
    "ssd_scan": Op(ssd_scan, _SSD, "ssd_scan"),
    "causal_conv1d": Op(causal_conv1d, _CONV, "causal_conv1d"),
    "delta_rule": Op(delta_rule, _DELTA, "delta_rule"),
    "discounted_scan": Op(
        discounted_scan,
        {"x": torch.randn(B, T), "discount": torch.rand(B, T), "last": torch.randn(B)},
        "discounted_scan",
        reset=False,
    ),
    "fft_conv": Op(
        fft_conv,
        {"x": torch.randn(B, T, 5), "k": torch.randn(5, T), "D": torch.randn(5)},
        "fft_conv",
        reset=False,
        has_backend=False,
    ),
    "vandermonde": Op(vandermonde, _WEIGHTS, "vandermonde", False, LENGTH),
    "vandermonde_pairs": Op(vandermonde_pairs, _pairs(_WEIGHTS), "vandermonde", False, LENGTH),
    "cauchy": Op(
        cauchy,
        {"v": _numbers(1, 5, N).to(WIDE), "s": _numbers(5, N).to(WIDE)},
        "cauchy",
        False,
        LENGTH,
    ),
    "dplr_kernel": Op(
        dplr_kernel,
        _S4 | {"B": _numbers(5, N), "C_tilde": _numbers(5, N)},
        "dplr_kernel",
        False,
        LENGTH,
    ),
    "truncated_output": Op(
        truncated_output, _S4 | {"C": _numbers(5, N)}, "dplr_kernel", False, LENGTH, False
    ),
}
WITH_RESET = {name: op for name, op in OPS.items() if op.reset}
WITH_BACKEND = {name: op for name, op in OPS.items() if op.has_backend}
WITH_LENGTH = {name: op for name, op in OPS.items() if op.options}
GROUPED = {name: OPS[name] for name in ("selective_scan", "selective_scan_pairs", "ssd_scan")}
every_float = pytest.mark.parametrize(
    ("op", "name"),
    [
        pytest.param(op, argument, id=f"{name}-{argument}")
        for name, op in OPS.items()
        for argument in op.floats
    ],
)


def _every(ops: dict[str, Op]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("op", ops.values(), ids=list(ops))


def _refused(op: Op, error: type[Exception] = ValueError, **change: Any) -> str:
    """Return the text of the error, without the name of the op that it begins with."""
    with pytest.raises(error) as caught:
        op.call(**(op.arguments | change))
    message = str(caught.value)
    assert "\n" not in message
    own, _, rest = message.partition(": ")
    assert own in (op.own, "convolution"), message  # the folder chooses the backend
    return rest


def _names(name: str, text: str) -> bool:
    return name in text.replace(",", " ").replace(":", " ").split()


@_every(OPS)
def test_the_arguments_of_this_file_are_accepted_as_they_are(op):
    op.call(**op.arguments)


@every_float
def test_a_wrong_shape_is_named_with_what_came(op, name):
    value = op.floats[name]
    longer = value.new_zeros([size + 1 for size in value.shape])
    for wrong in (longer, value[None, None], value.new_zeros(())):
        message = _refused(op, **{name: wrong})
        came = str(tuple(wrong.shape)).rstrip(",)")  # complex numbers may be shown as pairs
        assert (_names(name, message) and came in message) or name in SETS_SIZES, message


@every_float
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64], ids=str)
def test_a_dtype_that_is_not_computed_with_is_named(op, name, dtype):
    value = op.floats[name]
    message = _refused(op, **{name: (value.real if value.is_complex() else value).to(dtype)})
    assert str(dtype) in message, message
    assert _names(name, message), message
    assert "convert" in message, message


@every_float
def test_a_tensor_on_another_device_is_named_with_both_devices(op, name):
    message = _refused(op, **{name: op.floats[name].to("meta")})
    assert f"{name} on meta" in message, message
    assert "on cpu" in message, message


@_every(WITH_RESET)
def test_a_reset_must_be_bool_with_one_flag_per_step(op):
    for wrong in (torch.zeros(B, T), torch.zeros(B, T, dtype=torch.int64)):
        assert f"reset must be bool, got {wrong.dtype}" in _refused(op, reset=wrong)
    for shape in ((T, B), (B, T, 1), (B,), ()):
        message = _refused(op, reset=torch.zeros(shape, dtype=torch.bool))
        assert message == f"reset must be {(B, T)}, got {shape}"
    message = _refused(op, reset=torch.zeros(B, T, dtype=torch.bool, device="meta"))
    assert "reset on meta" in message, message


@_every(GROUPED)
@pytest.mark.parametrize("name", ["Bm", "Cm"])
@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_are_refused(op, name, groups):
    value = op.floats[name]
    wrong = value.new_zeros((B, T, groups, *value.shape[3:]))
    message = _refused(op, **{name: wrong})
    assert _names(name, message), message
    divides = f"must divide the 4 {'heads of x' if op.call is ssd_scan else 'channels of u'}"
    assert f"{divides}, got {groups}" in message or str(tuple(wrong.shape)) in message, message


@_every(WITH_BACKEND)
def test_a_backend_that_does_not_exist_is_refused_with_those_that_do(op):
    message = _refused(op, BackendError, backend="unknown")
    assert message.startswith("expected a backend of "), message
    assert message.endswith("got 'unknown'"), message


@_every(WITH_BACKEND)
def test_a_backend_that_cannot_run_on_these_tensors_is_refused(op):
    assert "triton" in _refused(op, BackendError, backend="triton")


@_every(WITH_LENGTH)
def test_a_length_below_the_least_is_refused(op):
    message = _refused(op, L=-1)
    assert message.startswith("L must be at least"), message
    assert message.endswith("got -1"), message


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("selective_scan", ("Bm", "Cm", "D", "z", "h0")), ("linear_scan", ("h0", "h_init"))],
)
def test_a_complex_argument_of_a_real_scan_does_not_lose_its_imaginary_part(name, arguments):
    op = OPS[name]
    for argument in arguments:
        message = _refused(op, **{argument: op.floats[argument] + 0j})
        assert message.startswith(f"{argument} must be one of float32"), message


def test_a_flag_that_holds_a_step_must_be_bool_with_one_flag_per_step():
    op = OPS["linear_scan"]
    assert "hold must be bool, got torch.float32" in _refused(op, hold=torch.zeros(B, T))
    message = _refused(op, hold=torch.zeros(T, B, dtype=torch.bool))
    assert message == "hold must be (2, 7), got (7, 2)"


@pytest.mark.parametrize("name", ["linear_scan", "linear_scan-complex"])
def test_a_scan_in_reverse_checks_before_it_turns_its_arguments(name):
    reset = torch.zeros(B, dtype=torch.bool)
    message = _refused(OPS[name], reset=reset, reverse=True)
    assert message == "reset must be (2, 7), got (2,)"
