"""What every sequence layer, block and stack offers."""

from typing import Protocol, runtime_checkable

from torch import Tensor

State = dict[str, Tensor]
Cache = dict[str, Tensor]


@runtime_checkable
class SequenceModel(Protocol):
    """A causal map over time with a parallel mode and a step mode that agree.

    A state is a flat dictionary of float32 tensors (float64 in a float64 module), batch
    first; complex values are real pairs with a trailing axis of 2; stacks prefix the keys
    with the layer number. The caller owns it and nothing changes it in place.

    `reset[b, t]` means: the memory of row b is cleared, that is set back to
    `initial_state`, before `x[b, t]` is read.
    """

    d_in: int
    d_out: int

    def initial_state(self, batch_size: int) -> State:
        """Return what a reset restores, on the module's device."""
        ...

    def __call__(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once.

        Args:
            x: (B, T, d_in).
            state: state before x[:, 0]; None means `initial_state(B)`.
            reset: (B, T) bool; True clears the state before x[:, t] is read.
                None means no reset inside the window.

        Returns:
            y (B, T, d_out) and the state after x[:, T - 1], both differentiable.
        """
        ...

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step: x (B, d_in), reset (B,) bool, y (B, d_out).

        `cache` is what `prepare_step` returned for the present parameters.
        """
        ...

    def prepare_step(self) -> Cache:
        """Return what `step` would otherwise recompute from the parameters each time.

        Without gradient; stale after any change of the parameters.
        """
        ...

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Like a call, with the states after steps every - 1, 2 * every - 1, ...

        Returns:
            y, the final state, and a state whose tensors are (B, T // every, ...).
        """
        ...
