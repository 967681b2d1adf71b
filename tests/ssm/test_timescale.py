"""Step sizes: a scale at run time is another sampling rate; memory in steps sets their range."""

import math

import pytest
import torch

from statewise.ssm.dss import DSSConfig, DSSLayer
from statewise.ssm.lssl import LSSLConfig, LSSLLayer
from statewise.ssm.s4 import S4Config, S4Layer
from statewise.ssm.s4d import S4DConfig, S4DLayer
from statewise.ssm.s5 import S5Config, S5Layer
from statewise.ssm.timescale import step_range
from tests.tolerance import assert_close

WIDTH, T = 6, 20
DOUBLE = torch.float64
LAYERS = {
    "s5": lambda **options: S5Layer(WIDTH, S5Config(**options)),
    "s5-bilinear": lambda **options: S5Layer(WIDTH, S5Config(discretization="bilinear", **options)),
    "s4d": lambda **options: S4DLayer(WIDTH, S4DConfig(state_size=8, **options)),
    "s4d-bilinear": lambda **options: S4DLayer(
        WIDTH, S4DConfig(state_size=8, discretization="bilinear", dt_tie=False, **options)
    ),
    "dss": lambda **options: DSSLayer(WIDTH, DSSConfig(state_size=8, **options)),
    "s4": lambda **options: S4Layer(WIDTH, S4Config(state_size=8, **options)),
    "s4-cauchy": lambda **options: S4Layer(
        WIDTH, S4Config(state_size=8, kernel="cauchy", **options)
    ),
    "lssl": lambda **options: LSSLLayer(WIDTH, LSSLConfig(state_size=8, **options)),
    "dss-softmax": lambda **options: DSSLayer(
        WIDTH, DSSConfig(state_size=8, kernel="softmax", length=T, **options)
    ),
}
STARTS = {
    **{
        f"s4-{measure}": lambda W, measure=measure: S4Layer(
            128, S4Config(measure=measure, memory_steps=(W, W))
        )
        for measure in ("legs", "legt", "fourier")
    },
    **{
        f"s4d-{init}": lambda W, init=init: S4DLayer(
            128, S4DConfig(init=init, memory_steps=(W, W), num_copies=1)
        )
        for init in ("lin", "inv", "legs", "real", "quad", "ptd")
    },
}


@pytest.mark.parametrize("name", ["s5", "s4d", "dss"])
def test_a_signal_sampled_twice_as_fast_gives_the_same_states_with_half_the_step(name):
    # Exact for a zero-order hold and an input that is constant between the slow samples.
    slow, fast = LAYERS[name]().double(), LAYERS[name](dt_scale=0.5).double()
    fast.load_state_dict(slow.state_dict())
    x = torch.randn(3, T, WIDTH, dtype=DOUBLE)
    y, last, states = slow.trace(x)
    y_fast, last_fast, states_fast = fast.trace(x.repeat_interleave(2, 1), every=2)
    assert_close(y_fast[:, 1::2], y, DOUBLE, 2 * T)
    assert_close(states_fast["h"], states["h"], DOUBLE, 2 * T)
    assert_close(last_fast["h"], last["h"], DOUBLE, 2 * T)


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_scale_multiplies_every_step_size_in_every_mode(name):
    plain, scaled = LAYERS[name]().double(), LAYERS[name](dt_scale=1.7).double()
    tensors = plain.state_dict()
    log_step = "log_step" if name.startswith("s5") else "log_dt"
    scaled.load_state_dict(tensors)
    x = torch.randn(3, T, WIDTH, dtype=DOUBLE)
    before, _ = plain(x)
    plain.load_state_dict(tensors | {log_step: tensors[log_step] + math.log(1.7)})
    expected, _ = plain(x)
    assert (expected - before).abs().max() > 1e-4
    assert_close(scaled(x)[0], expected, DOUBLE, T)
    if not name.startswith("s5"):
        assert_close(scaled.kernel(T), plain.kernel(T), DOUBLE, T)
    if name != "dss-softmax":
        state = {"h": torch.randn_like(plain.initial_state(3)["h"])}
        y, after = scaled.step(x[:, 0], state, cache=scaled.prepare_step())
        expected, expected_after = plain.step(x[:, 0], state)
        assert_close(y, expected, DOUBLE, 1)
        assert_close(after["h"], expected_after["h"], DOUBLE, 1)


@pytest.mark.parametrize("name", list(STARTS))
def test_most_of_the_impulse_response_lies_within_the_memory_asked_for(name):
    torch.manual_seed(0)
    W = 100
    energy = STARTS[name](W).double().kernel(20 * W).detach().square().sum(0)
    share = (energy.cumsum(0) / energy.sum())[[W // 4, W, 3 * W]]
    assert 0.74 <= share[1] <= 0.97, share
    assert share[0] < 0.77
    assert share[2] > 0.95


@pytest.mark.parametrize("init", ["legs", "ptd"])
def test_most_of_the_impulse_response_of_s5_lies_within_the_memory_asked_for(init):
    torch.manual_seed(0)
    W, H = 100, 16
    layer = S5Layer(H, S5Config(state_size=64, init=init, memory_steps=(W, W))).double()
    x = torch.zeros(H, 10 * W, H, dtype=DOUBLE)
    x[torch.arange(H), 0, torch.arange(H)] = 1
    y, _ = layer(x)
    energy = (y - x * layer.D).detach().square().sum((0, 2))
    share = (energy.cumsum(0) / energy.sum())[[W // 4, W, 3 * W]]
    assert 0.74 <= share[1] <= 0.97, share
    assert share[0] < 0.77
    assert share[2] > 0.95


@pytest.mark.parametrize(
    ("make", "window"),
    [
        (lambda memory: S5Layer(256, S5Config(memory_steps=memory)).log_step, 2.0),
        (lambda memory: S4DLayer(256, S4DConfig(memory_steps=memory)).log_dt, 2.0),
        (lambda memory: S4DLayer(256, S4DConfig(init="real", memory_steps=memory)).log_dt, 1.0),
        (lambda memory: S4Layer(256, S4Config(memory_steps=memory)).log_dt, 1.0),
        (
            lambda memory: S4Layer(256, S4Config(measure="legt", memory_steps=memory)).log_dt,
            2.0,
        ),
    ],
)
def test_memories_spread_over_the_whole_range_asked_for(make, window):
    steps = window / make((5.0, 5000.0)).detach().exp()
    assert steps.min() >= 5 * (1 - 1e-5)
    assert steps.max() <= 5000 * (1 + 1e-5)
    # log-uniform: both ends are visited by 128 or more draws
    assert steps.min() < 8
    assert steps.max() > 3000


def test_the_longest_memory_has_the_smallest_step():
    assert step_range(2.0, 1e-3, 0.1, (10.0, 500.0)) == (2 / 500, 2 / 10)
    assert step_range(2.0, 1e-3, 0.1, None) == (1e-3, 0.1)


@pytest.mark.parametrize("config", [S5Config, S4DConfig, S4Config])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_steps": (0.5, 9.0)}, "memory_steps: expected 1 <= shortest <= longest, got 0.5"),
        ({"memory_steps": (9.0, 3.0)}, "memory_steps: expected 1 <= shortest <= longest, got 9.0"),
        ({"memory_steps": (1.0, math.inf)}, "memory_steps"),
        ({"memory_steps": (2.0, 9.0), "dt_max": 0.2}, "dt_min: would be ignored with memory_steps"),
    ],
)
def test_a_memory_out_of_range_or_beside_step_sizes_is_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize("config", [S5Config, S4DConfig, S4Config, DSSConfig, LSSLConfig])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt_scale": 0.0}, "dt_scale: expected a positive number, got 0.0"),
        ({"dt_scale": math.nan}, "dt_scale"),
        ({"dt_min": 0.0}, "dt_min: expected 0 < dt_min"),
        ({"dt_min": 0.2, "dt_max": 0.1}, "dt_min"),
    ],
)
def test_a_step_size_out_of_range_is_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)
