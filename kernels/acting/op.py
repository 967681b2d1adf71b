"""Steps of acting that are one call into C++ instead of a dozen small operations.

At batch 1 a torch operation costs more than the arithmetic in it. What is here computes what the
composition of operations computes, without gradient, on CPU tensors; everywhere else the caller's
composition runs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels.dispatch import Backend, steps_in_cpp
from statewise.kernels.extension import reason_missing

OP = "acting"
_PARTS_OF_MAMBA = ("causal_conv1d", "selective_scan")
_PARTS_OF_BLOCKS = ("ssm_scan_lti",)
_DTYPES = (torch.float32, torch.float64)
_NORMS = ("none", "layer", "rms")
_GATES = ("none", "gelu", "full_glu", "half_glu1", "half_glu2")
_LEAST_ROWS = 16  # for which it is worth to bring weights into another order
_LARGEST_WIDTH = 128
_COLUMNS = {torch.float32: 16, torch.float64: 8}  # widths of products are multiples of these


class BlockForm(NamedTuple):
    """What all blocks of a `diagonal_blocks_step` have in common; see `ssm.block`."""

    norm: str
    """none, layer or rms."""
    is_post: bool
    """The norm stands behind the sum, not before the layer."""
    is_shared: bool
    """It is applied once more, to what the layer returns."""
    gate: str
    """none, gelu, full_glu, half_glu1 or half_glu2."""
    eps: float
    """Of the norm."""


class DenseLayer(NamedTuple):
    """A fully connected layer of `dense_layers`."""

    weight: Tensor
    """(N, K)."""
    bias: Tensor | None
    """(N,)."""
    norm: str
    """none, layer or rms, over the N results."""
    norm_weight: Tensor | None
    """(N,), of a norm."""
    norm_bias: Tensor | None
    """(N,), of a layer norm alone."""
    silu: bool
    """Whether x sigmoid(x) of the norm is the result."""


class LatentModel(NamedTuple):
    """What `imagine_step` applies."""

    read: Sequence[DenseLayer]
    """Of [z, a]."""
    blocks: Sequence[tuple[Tensor, ...]]
    """Of what was read, as in `diagonal_blocks_step`."""
    form: BlockForm
    """Of the blocks."""
    write: Sequence[DenseLayer]
    """Of what the blocks return: h."""
    prior: Sequence[DenseLayer]
    """Of h: logits of z."""
    eps: float
    """Of the norms of fully connected layers."""
    unimix: float
    """Share of even probabilities."""


def rms_norm(x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
    """Divide rows by their root mean square, `torch.nn.functional.rms_norm` over the last axis.

    Args:
        x: (..., D).
        weight: (D,); None is 1.
        eps: > 0, added to the mean square; None means that of torch.

    Returns:
        (..., D). Differentiable; one call into C++ where no gradient is asked for.
    """
    known = eps is not None and x.dtype in _DTYPES
    if known and steps_in_cpp(OP, x, x if weight is None else weight, "auto"):
        y: Tensor = torch.ops.statewise_cpu.rms_norm(x, weight, eps)
        return y
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _runs(x: Tensor, state: Tensor, backend: Backend, parts: Sequence[str] = ()) -> bool:
    """Tell whether an op whose C++ calls that of `parts` serves this input and state."""
    if not steps_in_cpp(OP, x, state, backend) or torch.is_autocast_enabled("cpu"):
        return False
    return not any(map(reason_missing, parts))


def mamba_step_runs(x: Tensor, ssm: Tensor, backend: Backend) -> bool:
    """Tell whether `mamba_step` serves this input and state."""
    return _runs(x, ssm, backend, _PARTS_OF_MAMBA)


def lti_blocks_step_runs(x: Tensor, h: Tensor, backend: Backend) -> bool:
    """Tell whether `lti_blocks_step` serves this input and state."""
    return x.dtype in _DTYPES and _runs(x, h, backend, _PARTS_OF_BLOCKS)


def diagonal_blocks_step_runs(
    x: Tensor, states: Sequence[Tensor], form: BlockForm, backend: Backend
) -> bool:
    """Tell whether `diagonal_blocks_step` serves blocks of this form, this input and states."""
    if form.norm not in _NORMS or form.gate not in _GATES or x.dim() != 2:
        return False
    if x.dtype not in _DTYPES or not _runs(x, states[0], backend):
        return False
    widths = (x.shape[1], *(2 * h.shape[1] for h in states))
    return all(width % _COLUMNS[x.dtype] == 0 for width in widths)


def join_step_runs(x: Tensor, weight: Tensor) -> bool:
    """Tell whether `join_step` serves this input and weight."""
    return x.dim() == 2 and x.dtype in _DTYPES and _runs(x, weight, "auto")


def dense_layers_run(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Tell whether `dense_layers` serves this input and weights (N, K).

    It is for many rows and small layers: a product of large matrices is BLAS's.
    """
    if not weights or x.dtype not in _DTYPES or x.numel() < _LEAST_ROWS * x.shape[-1]:
        return False
    if x.shape[-1] != weights[0].shape[1]:  # torch says what is wrong
        return False
    return _are_small(weights, x.dtype) and _runs(x, weights[0], "auto")


def _are_small(weights: Sequence[Tensor], dtype: torch.dtype) -> bool:
    return not any(max(w.shape) > _LARGEST_WIDTH or w.dtype != dtype for w in weights)


def imagine_step_runs(
    stoch: Tensor,
    action: Tensor,
    noise: Tensor,
    states: Sequence[Tensor],
    model: LatentModel,
    backend: Backend,
) -> bool:
    """Tell whether `imagine_step` serves these inputs and this model."""
    layers = [*model.read, *model.write, *model.prior]
    if not (model.read and model.write and model.prior) or len(stoch) < _LEAST_ROWS:
        return False
    if noise.shape != stoch.shape or noise.dtype != stoch.dtype or action.dtype != stoch.dtype:
        return False
    if stoch[0].numel() + action.shape[-1] != model.read[0].weight.shape[1]:
        return False
    first = model.blocks[0][3]  # W_in^T, of the width of the blocks
    return _are_small([layer.weight for layer in layers], stoch.dtype) and (
        diagonal_blocks_step_runs(stoch.new_empty(0, len(first)), states, model.form, backend)
    )


def mamba_step(
    x: Tensor,
    weights: Sequence[Tensor],
    conv: Tensor,
    ssm: Tensor,
    reset: Tensor | None,
    a_override: Tensor | None,
    *,
    signed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of a Mamba layer with real eigenvalues, where `mamba_step_runs`; no checks.

    Args:
        x: (B, D).
        weights: in_proj (2 E, D), conv_weight (E, W), conv_bias (E,), x_proj (R + 2 N, E),
            dt_weight (E, R), dt_bias (E,), A (E, N), D (E,), out_proj (D, E).
        conv: (B, E, W - 1).
        ssm: (B, E, N).
        reset: (B,) bool or None.
        a_override: (N,) or None, see `selective_scan`.
        signed: decays 2 exp(d A) - 1.

    Returns:
        y (B, D) and the next conv and ssm.
    """
    y, conv, ssm = torch.ops.statewise_cpu.mamba_step(
        x, *weights, conv, ssm, reset, a_override, signed
    )
    return y, conv, ssm


def lti_blocks_step(
    x: Tensor,
    blocks: Sequence[tuple[Tensor, ...]],
    states: Sequence[Tensor],
    reset: Tensor | None,
    *,
    eps: float,
    share: float,
) -> tuple[Tensor, list[Tensor]]:
    """One step of blocks around diagonal layers, where `lti_blocks_step_runs`; no checks.

        x = share x + gelu(W gelu(v) + w),   v = 2 Re sum_n c_n h'_n + D u,   h' = a h + b u

    block after block, with u the layer norm of x, and h replaced by 0 where `reset`.

    Args:
        x: (B, H).
        blocks: of each, weight and bias (H,) of the norm, both empty where u is x; a, b and c
            (H, N, 2), D (H,), W (H, H) and w (H,).
        states: h (B, H, N, 2) of each block.
        reset: (B,) bool or None.
        eps: of the norms.
        share: of the residual branch.

    Returns:
        x (B, H) and the next states.
    """
    parts = [part for block in blocks for part in block]
    y, after = torch.ops.statewise_cpu.lti_blocks_step(x, parts, states, reset, eps, share)
    return y, after


def diagonal_blocks_step(
    x: Tensor,
    blocks: Sequence[tuple[Tensor, ...]],
    states: Sequence[Tensor],
    reset: Tensor | None,
    form: BlockForm,
) -> tuple[Tensor, list[Tensor]]:
    """One step of blocks around S5 or LRU, where `diagonal_blocks_step_runs`; no checks.

        v = norm(x);   h' = a h + W_in v;   v = W_out h' + D v;   x = x + gate(v)

    block after block, with h replaced where `reset`, and the norm where the form has it.

    Args:
        x: (B, H).
        blocks: of each, weight and bias (H,) of the norm, a (P, 2), W_in^T (H, 2 P), W_out^T
            (2 P, H), D (H,), weight^T (H, G) and bias (G,) of the gate, and h after a reset
            (P, 2), each empty where there is none.
        states: h (B, P, 2) of each block.
        reset: (B,) bool or None.
        form: of the blocks.

    Returns:
        x (B, H) and the next states.
    """
    parts = [part for block in blocks for part in block]
    norm, gate = _NORMS.index(form.norm), _GATES.index(form.gate)
    y, after = torch.ops.statewise_cpu.diagonal_blocks_step(
        x, parts, states, reset, norm, form.is_post, form.is_shared, gate, form.eps
    )
    return y, after


def dense_layers(x: Tensor, layers: Sequence[DenseLayer], eps: float) -> Tensor:
    """Fully connected layers one behind the other, where `dense_layers_run`; no checks.

    Args:
        x: (..., K) of the first layer.
        layers: at least one; each reads what the one before returned.
        eps: of the norms.

    Returns:
        (..., N) of the last layer.
    """
    parts, norms, silus = _flat(layers)
    y: Tensor = torch.ops.statewise_cpu.dense_layers(x, parts, norms, silus, eps)
    return y


def _flat(layers: Sequence[DenseLayer]) -> tuple[list[Tensor], list[int], list[int]]:
    """Return the parts of all layers, their norms and which have SiLU, as C++ takes them."""
    none = layers[0].weight.new_empty(0)
    parts = [
        none if part is None else part
        for layer in layers
        for part in (layer.weight, layer.bias, layer.norm_weight, layer.norm_bias)
    ]
    norms = [_NORMS.index(layer.norm) for layer in layers]
    return parts, norms, [int(layer.silu) for layer in layers]


def imagine_step(
    stoch: Tensor, action: Tensor, noise: Tensor, states: Sequence[Tensor], model: LatentModel
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """One step of a world model without observations, where `imagine_step_runs`; no checks.

        x = blocks(read [z, a]);   h = write x
        log p = log((1 - unimix) softmax(prior h) + unimix / K)
        z' = one-hot at the largest log p + noise

    Args:
        stoch: z (B, S, K).
        action: a (B, A).
        noise: (B, S, K), Gumbel.
        states: of the blocks, (B, P, 2) each.
        model: what is applied.

    Returns:
        z' (B, S, K), h (B, D), log p (B, S, K) and the next states.
    """
    parts, norms, silus = _flat([*model.read, *model.write, *model.prior])
    counts = [len(model.read), len(model.write), len(model.prior)]
    blocks = [part for block in model.blocks for part in block]
    form = model.form
    drawn, deter, log_p, after = torch.ops.statewise_cpu.imagine_step(
        *(stoch, action, noise, states, parts, norms, silus, counts, model.eps),
        *(blocks, _NORMS.index(form.norm), form.is_post, form.is_shared),
        *(_GATES.index(form.gate), form.eps, model.unimix),
    )
    return drawn, deter, log_p, after


def join_step(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]],
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
) -> Tensor:
    """One vector from several, where `join_step_runs`; no checks.

        y = W_2 gelu(W_1 tanh([V_k x_k + c_k]) + b_1) + b_2

    Args:
        parts: x_k (B, D_k), V_k (E_k, D_k) and c_k (E_k,).
        first: W_1 and b_1.
        second: W_2 and b_2.
    """
    xs, weights, biases = zip(*parts, strict=True)
    y: Tensor = torch.ops.statewise_cpu.join_step(xs, weights, biases, *first, *second)
    return y


def stack_steps(xs: Sequence[Tensor]) -> Tensor:
    """Return T tensors (N, ...) of one shape and dtype as (N, T, ...).

    Differentiable; one call into C++, on all threads, where no gradient is asked for.
    """
    first = xs[0]
    same = first.dtype in _DTYPES and all(x.dtype == first.dtype for x in xs)
    if same and _runs(first, first, "auto"):
        y: Tensor = torch.ops.statewise_cpu.stack_steps(xs)
        return y
    return torch.stack(list(xs), 1)
