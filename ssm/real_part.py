"""How the real part of a continuous eigenvalue stays negative, whatever the training does.

Papers: Wang & Li 2023, "StableSSM: Alleviating the Curse of Memory in State-space Models through
Stable Reparameterization" (softplus, inv_square, and the criterion below); Gu et al. 2022, S4D
(exp); Smith et al. 2023, S5 (clip).

    exp         Re = -exp(w)
    softplus    Re = -log(1 + exp(w))
    inv_square  Re = -1 / (w^2 + 0.1)
    clip        Re = min(w, -1e-4): no bound of its own, and no gradient once it is clipped

A mode remembers for -1 / Re, and the gradient of that with respect to w is f'(w) / f(w)^2. A step
of training is to be small against w itself. Gradient over weight is 2 for inv_square at every w;
for exp and softplus it grows without bound with the memory, so that slow modes train in jumps.

Deviations: w is cut where Re would leave [-1e12, -1e-12], which no training reaches, so that no
value of w makes Re 0 or infinite.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from statewise.ssm.init import inverse_softplus

RealPart = Literal["exp", "softplus", "inv_square", "clip"]
CLIP = -1e-4
OFFSET = 0.1  # of inv_square: the largest rate it can hold is 1 / OFFSET
BOUNDS: dict[str, tuple[float, float]] = {
    "exp": (-27.0, 27.0),
    "softplus": (-27.0, 1e12),
    "inv_square": (-1e6, 1e6),
    "clip": (-1e12, CLIP),
}


def parameter_name(form: RealPart, free: str) -> str:
    """Return what a layer calls w, so that a checkpoint says how to read it.

    Args:
        form: how w becomes Re.
        free: the name where w is Re itself ("clip").
    """
    return {"exp": "log_neg_re", "clip": free}.get(form, "re_weight")


def initial_weight(form: RealPart, re: Tensor) -> Tensor:
    """Return w such that `value(form, w)` is `re` (any shape, < 0).

    Raises:
        ValueError: "inv_square" and a rate -re of 10 or more.
    """
    match form:
        case "exp":
            return (-re).log()
        case "softplus":
            return inverse_softplus(-re)
        case "inv_square":
            fastest = -re.min().item()
            if not fastest * OFFSET < 1:
                raise ValueError(
                    f"re_param: inv_square holds rates below {1 / OFFSET:g}, got eigenvalues that "
                    f"start with real parts down to {-fastest:.3g}: use softplus or exp, or "
                    "another init"
                )
            return (-1 / re - OFFSET).sqrt()
        case "clip":
            return re.clone()


def value(form: RealPart, w: Tensor) -> Tensor:
    """Return Re (the shape of w), in [-1e12, -1e-12] for every w that is not NaN."""
    w = w.clamp(*BOUNDS[form])
    match form:
        case "exp":
            return -w.exp()
        case "softplus":
            return -F.softplus(w)
        case "inv_square":
            return -1 / (w.square() + OFFSET)
        case "clip":
            return w
