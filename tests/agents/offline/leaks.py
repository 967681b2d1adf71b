"""Which inputs a return-conditioned policy's predictions depend on, by differentiation."""

import torch
from torch import Tensor

from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import PolicyRows

READ = ("obs", "action", "previous", "rtg")


def influence(policy: SequencePolicy, rows: PolicyRows) -> dict[str, Tensor]:
    """Return per input (T, T): at [t, k] the largest |d prediction t / d input k|.

    The prediction is weighted at random, so that no sum of gradients is 0 by chance. Tokens pass
    through the policy in its present mode: call `eval` first.
    """
    T = rows.rtg.shape[1]
    leaves = {name: getattr(rows, name).detach().clone().requires_grad_() for name in READ}
    predicted = policy(rows._replace(**leaves))
    weight = torch.rand(predicted.shape, generator=torch.Generator().manual_seed(5)) + 0.5
    found = {name: torch.zeros(T, T, dtype=torch.float64) for name in READ}
    for t in range(T):
        total = (predicted * weight.to(predicted))[:, t].sum()
        grads = torch.autograd.grad(total, leaves.values(), retain_graph=True, allow_unused=True)
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                found[name][t] = grad.abs().transpose(0, 1).flatten(1).amax(1)
    return found


def leaked(policy: SequencePolicy, rows: PolicyRows) -> dict[str, float]:
    """Return per input the largest influence of what prediction t must not see.

    That is the action from t on, and what arrives after t; `previous` of t arrives with obs[t].
    """
    found = influence(policy, rows)
    result = {name: float(found[name].triu(1).max()) for name in READ}
    return result | {"action": float(found["action"].triu(0).max())}


def assert_no_leak(policy: SequencePolicy, rows: PolicyRows) -> None:
    """Fail unless every forbidden gradient is exactly 0, and the allowed ones are not.

    Rows without a reset after the first step: then each prediction sees obs[t] and R_t, and the
    action before it by one of the two ways in which it is given.
    """
    leaks = leaked(policy, rows)
    assert leaks == dict.fromkeys(READ, 0.0), leaks
    found = influence(policy, rows)
    assert float(found["obs"].diagonal().min()) > 0
    assert float(found["rtg"].diagonal().min()) > 0
    last_action = found["action"].diagonal(-1) + found["previous"].diagonal()[1:]
    assert float(last_action.min()) > 0
