"""The recurrent cell of DreamerV3 in its code of 2024: a GRU whose matrices are block-diagonal.

Paper: Hafner, Pasukonis, Ba and Lillicrap 2023, "Mastering Diverse Domains through World Models"
(the second version and its code).

    x   = [mlp(h), mlp(z), mlp(a)]                  one hidden layer each
    v   = silu(norm(M [h_g, x]))                    per block g of h
    r, c, u = W v_g                                 per block
    h'  = u' tanh(sigmoid(r) c) + (1 - u') h,  u' = sigmoid(u - 1)

A block of h is mixed with all of x, so blocks hear of each other through mlp(h). With G blocks
the recurrent matrices have 1 / G of the numbers of dense ones.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from statewise.nets.dreamer_layers import CUT_DEVIATION, FeatureNorm, Norm, normed_mlp


class BlockLinear(nn.Module):
    """G linear layers side by side, each from d_in to d_out numbers, with bias.

    Weights are those of a hidden layer (`nets.dreamer_layers`), by the fans of a block.
    """

    def __init__(self, blocks: int, d_in: int, d_out: int):
        super().__init__()
        deviation = math.sqrt(2.0 / (d_in + d_out)) / CUT_DEVIATION
        weight = torch.empty(blocks, d_in, d_out)
        nn.init.trunc_normal_(weight, std=deviation, a=-2.0 * deviation, b=2.0 * deviation)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(blocks, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, G, d_in) to (B, G, d_out)."""
        return torch.einsum("bgi,gio->bgo", x, self.weight) + self.bias


class BlockGRU(nn.Module):
    """The cell; h (B, D), z (B, S K) flat, action (B, A).

    Args:
        d_stoch: width of z.
        d_action: width of an action's vector.
        deter: D, a multiple of `blocks`.
        units: width of each hidden layer.
        blocks: G >= 1.
        norm: of the hidden layers.
    """

    def __init__(
        self, d_stoch: int, d_action: int, *, deter: int, units: int, blocks: int, norm: Norm
    ):
        super().__init__()
        self.blocks = blocks
        self.of_deter = normed_mlp(deter, (units,), norm=norm)
        self.of_stoch = normed_mlp(d_stoch, (units,), norm=norm)
        self.of_action = normed_mlp(d_action, (units,), norm=norm)
        self.mix = BlockLinear(blocks, deter // blocks + 3 * units, deter // blocks)
        self.norm = FeatureNorm(deter, norm)
        self.gates = BlockLinear(blocks, deter // blocks, 3 * (deter // blocks))

    def forward(self, z: Tensor, action: Tensor, h: Tensor) -> Tensor:
        """Return the next h."""
        return self._next(self.of_stoch(z), self.of_action(action), h)

    def loop(self, action: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the cell for the steps of a window with action (B, T, A): z and h to the next."""
        known = iter(self.of_action(action).unbind(1))
        return lambda z, h: self._next(self.of_stoch(z), next(known), h)

    def loop_known(self, z: Tensor, action: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the cell for a window with z (B, T, S K), too: h to the next."""
        known = zip(self.of_stoch(z).unbind(1), self.of_action(action).unbind(1), strict=True)
        return lambda h: self._next(*next(known), h)

    def _next(self, from_stoch: Tensor, from_action: Tensor, h: Tensor) -> Tensor:
        """Return the next h from what the hidden layers say of z and the action."""
        G = self.blocks
        seen = torch.cat((self.of_deter(h), from_stoch, from_action), -1)
        own = h.unflatten(-1, (G, -1))
        mixed = self.mix(torch.cat((own, seen[:, None].expand(-1, G, -1)), -1)).flatten(1)
        gates = self.gates(self.norm.silu(mixed).to(h.dtype).unflatten(-1, (G, -1)))
        r, c, u = (part.flatten(1) for part in gates.chunk(3, -1))
        return torch.lerp(h, torch.tanh(torch.sigmoid(r) * c), torch.sigmoid(u - 1))
