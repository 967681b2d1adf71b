"""The processes that train one agent together, as torch's default process group has them.

Every process holds the same weights and learns from a share of its own of the batch. With W
processes, S_r the sum of a quantity over the n_r rows that count in process r, and N = sum_r n_r,

    mean over the joint batch = sum_r S_r / N = mean_r (W S_r / N)

so that losses which are such shares W S_r / N, and gradients averaged over the processes, are
those of one process with the joint batch. Without a group, or in a group of one, every function
returns what it was given. What is exchanged has to be exchanged in all processes, in one order.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from statewise.agents.protocol import Metrics


class LostProcessError(RuntimeError):
    """One of the processes that train together has gone, or waits for something else."""


def num_processes() -> int:
    """Return W, how many processes train together; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 .. W - 1; 0 without a group."""
    return dist.get_rank() if num_processes() > 1 else 0


def lost() -> LostProcessError:
    """Return the error of a process that hears nothing from the others."""
    return LostProcessError(
        f"expected {num_processes()} processes to train together, lost one of them: see what it "
        "said, or whether the system ran out of memory and ended it"
    )


def total(x: Tensor) -> Tensor:
    """Return the sum of `x` over the processes, of its shape, without gradient."""
    if num_processes() == 1:
        return x
    x = x.detach().clone()
    try:
        dist.all_reduce(x)
    except RuntimeError as error:
        raise lost() from error
    return x


def mean(x: Tensor) -> Tensor:
    """Return the mean of a floating `x` over the processes, of its shape, without gradient."""
    processes = num_processes()
    return x if processes == 1 else total(x) / processes


def mean_share(summed: Tensor, count: Tensor) -> Tensor:
    """Return W S_r / N, with a gradient in S_r; alone S / n. See the module.

    Args:
        summed: S_r, scalar.
        count: n_r, an integer scalar; where N is 0 it counts as 1.
    """
    processes = num_processes()
    if processes == 1:
        return summed / count.clamp(min=1)
    return summed * processes / total(count).clamp(min=1)


def variance(x: Tensor) -> Tensor:
    """Return the unbiased variance of the entries (n_r,) of all processes, a scalar.

    Together they must have at least two.
    """
    if num_processes() == 1:
        return x.var()
    count, summed = total(torch.stack((x.new_tensor(float(len(x))), x.sum()))).unbind()
    return total((x - summed / count).square().sum()) / (count - 1)


def mean_metrics(metrics: Metrics) -> Metrics:
    """Return the means of numbers over the processes, which all have the same names."""
    if num_processes() == 1:
        return metrics
    values = mean(torch.tensor(list(metrics.values()), dtype=torch.float64))
    return dict(zip(metrics, values.tolist(), strict=True))


def mean_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the means of loss terms over the processes, without gradient."""
    if num_processes() == 1:
        return losses
    return {name: mean(loss) for name, loss in losses.items()}


def any_of(flag: bool) -> bool:
    """Return whether the flag is up in some process."""
    return bool(total(torch.tensor(int(flag))))


def mean_gradients(module: nn.Module) -> None:
    """Replace the gradients of a module by their means over the processes, in one exchange.

    A parameter that has none in this process counts as 0, and keeps none if no process has one.
    """
    if num_processes() == 1:
        return
    kinds: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            kinds.setdefault(parameter.dtype, []).append(parameter)
    for members in kinds.values():
        _exchange(members)


@torch.no_grad()
def _exchange(parameters: list[nn.Parameter]) -> None:
    """Average the gradients of parameters of one dtype and device."""
    grads = [p.grad for p in parameters]
    has_one = parameters[0].new_tensor([float(grad is not None) for grad in grads])
    parts = [
        (torch.zeros_like(p) if grad is None else grad).reshape(-1)
        for p, grad in zip(parameters, grads, strict=True)
    ]
    joined = mean(torch.cat((*parts, has_one)))
    *means, has_one = joined.split([*map(len, parts), len(parameters)])
    for parameter, flat, there in zip(parameters, means, has_one.tolist(), strict=True):
        parameter.grad = flat.view_as(parameter) if there else None


def gather_bytes(content: bytes) -> list[bytes]:
    """Return in process 0 what every process gave, by rank; an empty list in the others."""
    processes, own = num_processes(), rank()
    if processes == 1:
        return [content]
    sizes = [0] * processes
    sizes[own] = len(content)
    sizes = total(torch.tensor(sizes)).tolist()
    try:
        if own:
            dist.send(_as_tensor(content), 0)
            return []
        received = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        for sender in range(1, processes):
            dist.recv(received[sender], sender)
    except RuntimeError as error:
        raise lost() from error
    return [content, *(bytes(one.numpy()) for one in received[1:])]


def from_first(content: bytes) -> bytes:
    """Return in every process what process 0 gave."""
    if num_processes() == 1:
        return content
    is_first = rank() == 0
    size = int(total(torch.tensor(len(content) if is_first else 0)))
    sent = _as_tensor(content) if is_first else torch.zeros(size, dtype=torch.uint8)
    return bytes(total(sent).numpy())


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
