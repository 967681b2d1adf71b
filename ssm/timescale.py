"""Step sizes of the time-invariant layers, from how long they are to remember.

Paper: Gu, Johnson, Timalsina, Rudra & Re 2023, "How to Train Your HiPPO: State Space Models with
Generalized Orthogonal Basis Projections", on the time scale of a basis: a system that remembers a
window W of its own time remembers W / dt steps, so that the range of dt says which dependencies a
layer starts with, from W / dt_max to W / dt_min steps.

W, the window that holds 75 to 97 % of the energy of the impulse response, is 1 for LegS, whose
basis is warped exponentially; 2 for LegT and Fourier in the scaling of `ssm/hippo.py`, whose window
is sharp; 2 for diagonal starts with real parts -1/2, which fall by e in that time; 1 for S4D-Real.
"""

from math import isfinite

MEASURE_WINDOW = {"legs": 1.0, "legt": 2.0, "fourier": 2.0}
SPECTRUM_WINDOW = {"lin": 2.0, "inv": 2.0, "legs": 2.0, "quad": 2.0, "real": 1.0, "ptd": 1.0}
DT_MIN, DT_MAX = 1e-3, 0.1

MemorySteps = tuple[float, float]


def check_steps(
    dt_min: float, dt_max: float, dt_scale: float, memory_steps: MemorySteps | None = None
) -> None:
    """Check the settings of the step sizes.

    Raises:
        ValueError: a value is out of its range, or `memory_steps` would hide another setting.
    """
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min: expected 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
    if not (dt_scale > 0 and isfinite(dt_scale)):
        raise ValueError(f"dt_scale: expected a positive number, got {dt_scale}")
    if memory_steps is None:
        return
    shortest, longest = memory_steps
    if not (1 <= shortest <= longest and isfinite(longest)):
        raise ValueError(
            f"memory_steps: expected 1 <= shortest <= longest, got {shortest} and {longest}"
        )
    if (dt_min, dt_max) != (DT_MIN, DT_MAX):
        raise ValueError(
            f"dt_min: would be ignored with memory_steps {shortest:g} {longest:g}: remove dt_min "
            "and dt_max, or memory_steps"
        )


def step_range(
    window: float, dt_min: float, dt_max: float, memory_steps: MemorySteps | None
) -> tuple[float, float]:
    """Return the range of dt: as given, or that of the shortest and longest memory in steps.

    Args:
        window: > 0, what the layer's start remembers, in its own time.
        dt_min: > 0, smallest dt without `memory_steps`.
        dt_max: largest.
        memory_steps: shortest and longest dependency to start with, in steps.
    """
    if memory_steps is None:
        return dt_min, dt_max
    shortest, longest = memory_steps
    return window / longest, window / shortest
