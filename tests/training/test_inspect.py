"""`statewise inspect`: closed forms of the influence, and parallel mode against acting."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from torch import Tensor

import statewise
from statewise.__main__ import main
from statewise.ssm.decays import Read, selective_decays
from statewise.ssm.lru import LRUConfig, LRULayer
from statewise.training.inspect import (
    Influence,
    describe_layers,
    influence,
    influence_by_lag,
    inspect_agent,
    spread,
)
from statewise.training.inspect_draw import write_figure
from statewise.training.inspect_play import norms_of, play
from statewise.training.inspect_policy import (
    LOG_PROB,
    VECTOR,
    Played,
    Reader,
    Unrolled,
    last_set,
    read_played,
)
from statewise.training.playing import PlayingAgent
from statewise.training.run import RunError
from tests.tolerance import ORACLE_FLOAT32_MAX, assert_within
from tests.training import offline_cases as cases
from tests.training import world_data_cases
from tests.training.toys import CounterEnv

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")
PPO: dict[str, Any] = {
    "agent__encoder__hidden": [8],
    "agent__head_hidden": [8],
    "agent__sequence__num_layers": 2,
    "agent__sequence__d_model": 8,
}
SAC = PPO | {"env__kwargs": {"max_episode_steps": 7}}
WORLD: dict[str, Any] = {
    "agent__world": {
        **{k.removeprefix("agent__world__"): v for k, v in world_data_cases.TINY.items()
           if k.startswith("agent__world__")},
    },
    "agent__behavior__actor_hidden": [8],
    "agent__behavior__critic_hidden": [8],
    "env__kwargs": {},
}  # fmt: skip
RSSM: dict[str, Any] = {
    "env__kwargs": {},
    "agent__world__encoder": {"hidden": [8], "depth": 1},
    "agent__world__decoder": {"hidden": [8], "depth": 1},
    "agent__world__rssm": {"deter": 8, "units": 8, "prior_hidden": [8], "posterior_hidden": [8]},
    "agent__world__latents": {"num": 2, "classes": 3},
    "agent__behavior__actor_hidden": [8],
    "agent__behavior__critic_hidden": [8],
}
MAMBA = cases.TINY["decision_mamba"] | {"agent__context": 4}
WHOLE = {"agent__train_on": "trajectories", "agent__inference": "recurrent"}
SYSTEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ppo": ("ppo/cartpole", LOG_PROB, PPO | {"env": CounterEnv}),
    "ppo, boxes": ("ppo/pendulum", VECTOR, PPO | {"env__kwargs": {"max_episode_steps": 7}}),
    "sac": ("sac/pendulum_position", VECTOR, SAC),
    "decision_s4": ("decision_s4/pendulum", LOG_PROB, cases.S4),
    "decision_mamba": ("decision_mamba/pendulum", LOG_PROB, MAMBA),
    "decision_mamba, recurrent": (
        "decision_mamba/pendulum",
        LOG_PROB,
        cases.TINY["decision_mamba"] | WHOLE,
    ),
    "decision_mamba_mg": ("decision_mamba_mg/pendulum", LOG_PROB, MAMBA),
    "dt": ("dt/pendulum", LOG_PROB, cases.DT),
    "r2i": ("r2i/delayed_offer", LOG_PROB, WORLD | {"env": CounterEnv}),
    "dreamer": ("dreamer/delayed_offer", LOG_PROB, RSSM | {"env": CounterEnv}),
}
HEADS = {
    "ppo": lambda agent: agent.network.policy,
    "sac": lambda agent: agent.actor.head,
    "r2i": lambda agent: agent.behavior.actor,
    "dreamer": lambda agent: agent.behavior.actor,
}


def make(name: str, **changes: Any) -> PlayingAgent:
    preset, _, settings = SYSTEMS[name]
    settings = settings | changes
    if "total_updates" in settings:
        cases.register()
        settings |= {"data": cases.counter_data(count=6)}
    return statewise.make(preset, **settings)


def numbers(output: Any) -> Tensor:
    """Return what a head said as numbers."""
    if isinstance(output, Tensor):
        return output
    for name in ("log_p", "mean"):
        if hasattr(output, name):
            return getattr(output, name)
    return torch.cat(output.log_ps, -1)


# --- influence


def linear(reset: Tensor) -> tuple[LRULayer, Reader, Played]:
    """Return a layer of one state and one channel that is its own policy, on T rows."""
    layer = LRULayer(1, LRUConfig(state_size=1)).double()
    with torch.no_grad():
        layer.D.zero_()
    T = len(reset)

    def run(x: Tensor) -> Tensor:
        return layer(x, None, reset[None].expand(len(x), -1))[0]

    x = torch.randn(1, T, 1, dtype=torch.float64)
    reader = Unrolled(
        memory=layer,
        quantity=VECTOR,
        begins=last_set(reset),
        inputs=x,
        run=run,
        answer=lambda features, at: features,
    )
    yes = torch.ones(T, dtype=torch.bool)
    return layer, reader, Played({}, x[0], reset, reset, yes, {}, None, torch.zeros(0))


def response(layer: LRULayer, lags: int) -> Tensor:
    """Return |Re(C a^k B)| for lags 0, 1, ..."""
    system = layer.discretize()
    a, b = torch.view_as_complex(system.a)[0], torch.complex(*system.w_in[:, 0])
    c = torch.complex(system.w_out[0, 0], -system.w_out[0, 1])
    k = torch.arange(lags)
    return (c * a**k * b).real.abs().detach()


def test_the_influence_of_a_linear_layer_is_its_response_and_ends_at_a_reset() -> None:
    reset = torch.tensor([1, 0, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
    layer, reader, played = linear(reset)
    found = influence(reader.read(torch.arange(8)))
    wanted, begins = response(layer, 8), [0] * 5 + [5] * 3
    for t in range(8):
        for s in range(8):
            inside = begins[t] <= s <= t
            assert found[t, s] == pytest.approx(wanted[t - s] if inside else 0.0, abs=1e-12)
            assert inside or found[t, s] == 0
    by_lag = influence_by_lag(reader, played)
    assert by_lag.pairs.tolist() == [8, 6, 4, 2, 1]
    torch.testing.assert_close(by_lag.mean, wanted[:5], rtol=1e-9, atol=1e-12)


def test_only_rows_with_an_action_are_asked_and_not_more_than_wanted() -> None:
    reset = torch.tensor([1] + [0] * 9, dtype=torch.bool)
    layer, reader, played = linear(reset)
    valid = torch.ones(10, dtype=torch.bool)
    valid[3] = False
    by_lag = influence_by_lag(reader, played._replace(valid=valid), most=4)
    assert spread(valid.nonzero().flatten(), 4).tolist() == [0, 4, 6, 9]
    assert by_lag.pairs.tolist() == [4, 3, 3, 3, 3, 2, 2, 1, 1, 1]
    wanted = response(layer, 10)
    torch.testing.assert_close(by_lag.mean, wanted, rtol=1e-9, atol=1e-12)
    shares = [wanted[: t + 1] / wanted[: t + 1].sum() for t in (0, 4, 6, 9)]
    expected = [float(np.mean([x[k] for x in shares if len(x) > k])) for k in range(10)]
    torch.testing.assert_close(by_lag.share, torch.tensor(expected, dtype=torch.float64))


# --- every system


@pytest.mark.parametrize("name", SYSTEMS)
def test_parallel_mode_reads_what_was_acted_on(name: str) -> None:
    made = make(name)
    agent = made.agent
    find = HEADS.get(name.partition(",")[0], lambda agent: agent.policy.head)
    said: list[Tensor] = []
    hook = find(agent).register_forward_hook(
        lambda module, args, output: said.append(numbers(output).detach().clone())
    )
    played = play(made, 2, seed=3)
    acted, T = torch.cat(said), len(played.valid)
    reader = read_played(agent, played)
    said.clear()
    with torch.no_grad():
        reading = reader.read(torch.arange(T))
        answer = reading.respond(reading.inputs)
    hook.remove()
    assert reader.quantity == SYSTEMS[name][1]
    assert played.reset.sum() == 2
    if acted.dim() == 3:  # a window (T, K, A): the present step is the one before the padding
        place = (reading.steps >= 0).sum(1) - 1
        acted = acted[torch.arange(T), place]
    assert_within(said[0], acted, ORACLE_FLOAT32_MAX)
    if reader.quantity == LOG_PROB:
        log_p = acted.log_softmax(-1)
        expected = log_p.gather(-1, played.action[:, None].long())
        assert_within(answer, expected, ORACLE_FLOAT32_MAX)
    found = influence_by_lag(reader, played)
    assert found.mean.isfinite().all()
    assert found.mean[0] > 0
    assert found.mean[1:].max() > 0
    longest = int(torch.bincount(played.reset.cumsum(0)).max())
    assert len(found.mean) == min(longest, reader.context or longest)


def test_norms_are_those_of_the_traced_states() -> None:
    made = make("ppo", agent__sequence__kind="mamba2")
    played, network = play(made, 2, seed=0), made.agent.network
    with torch.no_grad():
        x = network.project(network.encoder(played.obs))[None]
        _, _, states = network.sequence.trace(x, None, played.reset[None])
    assert sorted(played.norms) == ["0", "1"]
    for layer, norm in played.norms.items():
        expected = states[f"{layer}.ssm"][0].flatten(1).norm(dim=1)
        assert_within(norm, expected, ORACLE_FLOAT32_MAX)


def test_the_norm_of_a_layer_joins_its_states_and_leaves_out_what_is_none() -> None:
    ones = torch.ones(1, 4)
    state = {"core.0.h": 3 * ones, "core.0.c": 4 * ones, "core.0.conv": ones, "core.1.begun": ones}
    assert norms_of(state | {"stoch": ones, "timestep": ones}) == {"0": 10.0}
    both = {"actor.1.h": ones, "critic.1.h": ones, "actor.2.coarse.ssm": 2 * ones}
    assert norms_of(both) == {"1": 2.0, "2.coarse": 4.0}
    assert norms_of({"obs": ones, "count": ones}) == {}


def test_a_selective_layer_is_asked_at_the_steps_played() -> None:
    made = make("decision_mamba")
    played = play(made, 1, seed=0)
    reader = read_played(made.agent, played)
    [report] = describe_layers(reader, played).values()
    reading = reader.read(torch.arange(len(played.valid)))
    known = (reading.steps >= 0).sum() * 3  # tokens
    core = reader.memory
    layer = core.layer.blocks[0].layer.layer
    assert report.num_states == known * layer.inner * layer.num_states
    with torch.no_grad():
        x = core.layer.blocks[0].layer.before(reading.inputs)
    first = selective_decays(layer, Read(x[:1, :3], None, None))
    low = float((-1 / first.log()).min())
    assert report.time_constants[0] <= low <= report.time_constants[-1]


def test_a_trial_marks_its_episodes_and_its_ignored_actions() -> None:
    trial = {"env__trial": {"episodes": 2}, "env__kwargs": {"size": 3, "steps": 4}}
    made = statewise.make("ppo/dark_room", **PPO, **trial, env__autoreset="next_step")
    played = play(made, 2, seed=0)
    assert played.reset.nonzero().flatten().tolist() == [0, 9]
    assert played.is_first.nonzero().flatten().tolist() == [0, 5, 9, 14]
    assert (~played.valid).nonzero().flatten().tolist() == [4, 13]
    assert len(play(made, 2, seed=0, most_rows=7).valid) == 7


# --- the command


def test_the_command_writes_a_figure_and_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases.register()
    run = make("decision_s4").save(tmp_path / "run")
    assert main(["inspect", str(run), "--episodes", "2", "--seed", "5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("layer 0, s4d: time constants ")
    assert out[-1] == str(run / "plots" / "inspect.png")
    assert imageio.imread(run / "plots" / "inspect.png").ndim == 3
    found = json.loads((run / "plots" / "inspect.json").read_text())
    lengths = []
    for seed in (5, 6):
        env = gymnasium.make(cases.COUNTER)
        lengths.append(int(env.reset(seed=seed)[0][1]))
    assert found["rows"] == sum(lengths)
    assert found["memory_starts"] == found["episode_starts"] == [0, lengths[0]]
    layer = found["layers"]["0"]
    assert layer["kind"] == "s4d"
    assert len(layer["time_constants"]) == layer["num_states"] == 16
    assert layer["time_constants"] == sorted(layer["time_constants"])
    assert len(found["state_norm"]["0"]) == found["rows"]
    assert len(found["influence"]["mean"]) == max(lengths)
    assert found["influence"]["pairs"][0] == found["rows"]


@pytest.mark.parametrize("kind", ["gru", "attention", "rg_lru"])
def test_what_has_no_eigenvalues_says_why(kind: str) -> None:
    made = make("ppo", agent__sequence__kind=kind)
    found = inspect_agent(made.agent, play(made, 1, seed=0))
    notes = [layer.note for layer in found.layers.values()]
    assert all(notes) if kind != "rg_lru" else not any(notes)
    assert any(
        ("no eigenvalues" in line or "nothing decays" in line) for line in found.lines()
    ) == (kind != "rg_lru")


def test_a_memory_that_is_cleared_at_every_step_has_no_past() -> None:
    made = make("ppo", agent__sequence__memory="none")
    found: Influence = inspect_agent(made.agent, play(made, 1, seed=0)).influence
    assert found.mean[0] > 0
    assert (found.mean[1:] == 0).all()


def test_wrong_words_and_agents_without_memory_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases.register()
    bc = statewise.make("bc/pendulum", data=cases.counter_data(count=6), **cases.BC)
    run = bc.save(tmp_path / "bc")
    assert main(["inspect", str(run)]) == 2
    assert "got one of bc, which has none" in capsys.readouterr().err
    run = make("decision_s4").save(tmp_path / "s4")
    assert main(["inspect", str(run), "--out", str(tmp_path / "a.doc")]) == 2
    assert "expected a suffix among" in capsys.readouterr().err
    assert not (run / "plots").exists()
    cleared = make("ppo", agent__sequence__memory="none").save(tmp_path / "none")
    assert main(["inspect", str(cleared)]) == 2
    assert "agent.sequence.memory none, which is cleared" in capsys.readouterr().err
    cleared = make("r2i", agent__world__parallel__sequence__memory="none").save(tmp_path / "world")
    assert main(["inspect", str(cleared)]) == 2
    assert "agent.world.parallel.sequence.memory none" in capsys.readouterr().err


def test_the_numbers_never_replace_another_file(tmp_path: Path) -> None:
    made = make("ppo")
    found = inspect_agent(made.agent, play(made, 1, seed=0))
    head = {"env": "e", "preset": "p", "step": 3, "seed": 0}
    other = tmp_path / "manifest.json"
    for content in ("{}", "not json", "[]"):
        other.write_text(content)
        with pytest.raises(RunError, match=r"whose manifest\.json is free .* choose another$"):
            write_figure(found, head, tmp_path / "manifest.png")
        assert other.read_text() == content
        assert list(tmp_path.iterdir()) == [other]
    other.unlink()
    for _ in range(2):  # its own numbers are written anew
        assert write_figure(found, head, tmp_path / "manifest.png").exists()
