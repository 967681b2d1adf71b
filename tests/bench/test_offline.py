import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statewise.agents.offline.decision_transformer import (
    DecisionTransformer,
    DecisionTransformerConfig,
)
from statewise.agents.recurrent_ppo import masked_mean
from statewise.bench import cli, offline, offline_peer, offline_systems, rounds, worker
from statewise.bench.offline import ACTING, BESIDE, DS4, DT, MAMBA, PEER, TRAINED, OfflineOptions
from statewise.bench.offline_systems import (
    ACTION_SPACE,
    NUM_ACTIONS,
    NUM_LAYERS,
    NUM_OBS,
    OBS_SPACE,
    act_through,
    make_agent,
    make_batch,
    make_twins,
    own_refusal,
    peer_refusal,
    peer_update,
    spread,
)
from statewise.bench.table import Figure
from tests.tolerance import ORACLE_FLOAT64, assert_close, assert_within

WIDTH = 8
TINY = OfflineOptions(contexts=(3, 5), batch=2, rounds=2)


def figures_by_name(figures: list[Figure]) -> dict[tuple[str, str, str], float]:
    return {(f.case, f.system, f.metric): f.value for f in figures}


@pytest.fixture
def _transformers() -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")


# ---------------------------------------------------------------- the command


@pytest.mark.usefixtures("_transformers")
def test_a_quick_run_measures_every_system_ours_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "launch", lambda job: worker.run_job(job))
    out = tmp_path / "rows.json"
    assert cli.bench(["offline", "--quick", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        assert row["bench"] == "offline"
        cases.setdefault(row["case"], []).append(row)
    *training, acting, size = cases.values()
    assert list(cases) == [
        "training, K = 3, batch 2, threads 2",
        "training, K = 5, batch 2, threads 2",
        "acting after 7 steps, K = 3, threads 2",
        "size",
    ]
    for case, systems, metric in (
        *((case, TRAINED, "env steps median") for case in training),
        (acting, ACTING, "action median"),
    ):
        found = [row for row in case if row["metric"] == metric]
        assert [row["system"] for row in found] == list(systems)
        assert found[0]["speedup"] == 1
        beside = {row["system"]: row["value"] for row in case if row["metric"] == BESIDE}
        assert beside.keys() == set(systems) - {PEER}
        assert beside[DS4] == pytest.approx(found[-1]["speedup"])
    assert [row["system"] for row in size if row["metric"] == "parameters"] == list(TRAINED)
    assert all(row["speedup"] is None for row in size)


def launch_without_transformers(job: dict[str, Any]) -> dict[str, Any]:
    if job["system"] == PEER:
        return {"missing": "transformers is not installed: pip install 'statewise[bench]'"}
    if job["system"] == f"{MAMBA}, window":
        return {"refused": "an action is 1 off"}
    seconds = {DS4: [1.0, 4.0, 2.0], MAMBA: [4.0]}.get(job["system"], [8.0])
    count = {DS4: 30, MAMBA: 90}.get(job["system"], 60)
    return {"refused": "", "timing": [seconds, seconds], "parameters": count}


def test_rates_and_shares_are_those_of_the_median_and_no_peer_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "launch", launch_without_transformers)
    outcome = offline.run_offline(TINY, lambda line: None)
    found = figures_by_name(outcome.figures)
    case = "training, K = 5, batch 2, threads 2"
    assert found[case, DS4, "env steps median"] == 2 * 5 / 2.0
    assert found[case, DS4, "env steps best"] == 2 * 5 / 1.0
    assert found["acting after 1000 steps, K = 3, threads 2", DS4, "action median"] == 2000.0
    assert found["size", DS4, "of Decision Transformer"] == 50.0
    assert found["size", MAMBA, "of Decision Transformer"] == 150.0
    assert BESIDE not in {metric for _, _, metric in found}
    # A system that is missing or wrong takes no second turn.
    assert [line.split(",")[0] for line in outcome.missing] == ["training"] * 2 + [
        "acting after 1000 steps"
    ]
    assert len(outcome.refused) == 1
    assert not any(system == f"{MAMBA}, window" for _, system, _ in found)


def test_figures_beside_transformers_are_ratios_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(job: dict[str, Any]) -> dict[str, Any]:
        seconds = [6.0] if job["system"] == PEER else [2.0]
        return {"refused": "", "timing": [seconds, seconds], "parameters": 1}

    monkeypatch.setattr(rounds, "launch", launch)
    figures = offline.run_offline(TINY, lambda line: None).figures
    assert {f.value for f in figures if f.metric == BESIDE} == {3.0}


def test_without_transformers_the_worker_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    job = {"kind": "offline", "mode": "train", "system": PEER, "steps": 2, "batch": 1}
    job |= {"width": WIDTH, "check": False, "reps": 1, "seconds": 0.0}
    answer = worker.run_job(job)
    assert answer == {"missing": f"transformers is not installed: {worker.INSTALL}"}


def test_our_kernels_are_never_imported_by_their_bare_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def import_module(name: str) -> types.SimpleNamespace:
        seen.append((name, sys.modules["kernels"]))
        return types.SimpleNamespace(DecisionTransformerModel=None)

    monkeypatch.setattr(offline_peer, "import_module", import_module)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    offline_peer._transformers()
    assert "kernels" not in sys.modules
    other = types.ModuleType("kernels")
    monkeypatch.setitem(sys.modules, "kernels", other)
    offline_peer._transformers()
    assert sys.modules["kernels"] is other
    assert seen == [("transformers", None)] * 2


# ---------------------------------------------------------------- the peer


@pytest.mark.usefixtures("_transformers")
@pytest.mark.parametrize("mode", ["train", "act"])
def test_with_the_weights_of_transformers_our_network_is_theirs(mode: str) -> None:
    peer, policy = make_twins(WIDTH, mode)
    batch = make_batch(3, 4)
    lengths = torch.tensor([[4], [2], [3]])
    batch = batch._replace(step=batch.step._replace(valid=torch.arange(4) < lengths))
    valid, rows = batch.step.valid, policy.rows(batch)
    theirs = offline_peer.predict(peer, rows, return_scale=1000.0)
    ours = policy(rows)
    assert theirs[valid].std() > 0.1
    assert_within(theirs[valid], ours[valid], ORACLE_FLOAT64)
    for predicted in (theirs, ours):
        masked_mean(policy.code.loss(predicted, rows.action), valid).backward()
    for name, parameter in policy.named_parameters():
        gradient = peer.get_parameter(offline_peer.peer_name(name)).grad
        assert gradient is not None, name
        assert parameter.grad is not None, name
        shaped = offline_peer.as_ours(name, gradient)
        assert_within(shaped, parameter.grad, 3 * ORACLE_FLOAT64)
    # What is theirs alone: the position of all tokens, which is our bias, and two heads.
    grad = {name: p.grad for name, p in peer.named_parameters()}
    positions: Any = grad[offline_peer.POSITIONS]
    bias: Any = policy.get_parameter("tokens.norm.bias").grad
    assert_within(positions[0], bias, 3 * ORACLE_FLOAT64)
    assert positions[1:].count_nonzero() == 0
    names = {offline_peer.peer_name(name) for name, _ in policy.named_parameters()}
    heads = {f"predict_{head}.{k}" for head in ("state", "return") for k in ("weight", "bias")}
    assert grad.keys() - names == heads | {offline_peer.POSITIONS, "encoder.wte.weight"}


@pytest.mark.usefixtures("_transformers")
@pytest.mark.parametrize("name", ["core.blocks.2.qkv.weight", "tokens.norm.bias"])
def test_a_peer_that_is_another_network_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    batch = make_batch(2, 3)
    assert peer_refusal(WIDTH, "train", batch) == ""
    copy = offline_peer.copy_weights

    def copy_wrongly(peer: nn.Module, policy: nn.Module) -> None:
        copy(peer, policy)  # type: ignore[arg-type]
        with torch.no_grad():
            policy.get_parameter(name).view(-1)[0] += 0.01

    monkeypatch.setattr(offline_systems, "copy_weights", copy_wrongly)
    assert "an action is" in peer_refusal(WIDTH, "train", batch)


@pytest.mark.usefixtures("_transformers")
def test_the_peer_takes_the_gradient_step_that_our_agent_takes() -> None:
    batch = make_batch(3, 4)
    config = DecisionTransformerConfig(context=4, d_model=WIDTH, num_layers=NUM_LAYERS, dropout=0.0)
    agent = DecisionTransformer(
        config, OBS_SPACE, ACTION_SPACE, statistics=None, total_updates=1, seed=0
    )
    peer = offline_peer.make_peer(NUM_OBS, NUM_ACTIONS, WIDTH, NUM_LAYERS, "train")
    for layer in peer.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    offline_peer.copy_weights(peer, agent.policy)
    weight = peer.get_parameter("predict_action.0.weight")
    before = weight.detach().clone()
    theirs, ours = peer_update(peer, batch)(), agent.update(batch)
    assert theirs["learning_rate"] == ours["learning_rate"]
    assert not torch.equal(weight, before)
    assert_close(weight, agent.policy.head.linear.weight, torch.float32, 4)
    # The position of all tokens has the gradient of our bias, which was clipped.
    clipped = min(1.0, config.max_grad_norm / (ours["grad_norm"] + 1e-6))
    bias: Any = agent.policy.get_parameter("tokens.norm.bias").grad
    expected = (ours["grad_norm"] ** 2 + (bias / clipped).square().sum()).sqrt()
    assert_close(torch.tensor(theirs["grad_norm"]), expected, torch.float32, 100)


# ---------------------------------------------------------------- ours


@pytest.mark.parametrize("system", ACTING[:-1])
def test_the_timed_action_follows_the_whole_history(system: str) -> None:
    agent, batch = make_agent(system, 3, WIDTH), make_batch(1, 3)
    actions, act = act_through(agent, batch, 5)
    assert actions.shape == (1, 5, NUM_ACTIONS)
    _, _, state = act()
    assert state["timestep"].tolist() == [5.0]
    assert act()[2]["timestep"].tolist() == [5.0]  # the same action again


@pytest.mark.parametrize("system", ACTING[:-1])
def test_a_system_that_forgets_is_refused(system: str) -> None:
    agent, batch = make_agent(system, 4, WIDTH), make_batch(2, 4)
    spread(agent.policy)
    assert own_refusal(agent, batch) == ""
    act = agent.acting.act

    def forgetful(arrived: Any, state: Any) -> Any:
        return act(arrived._replace(reset=torch.ones_like(arrived.reset)), state)

    agent.acting.act = forgetful  # type: ignore[method-assign]
    assert "off its prediction" in own_refusal(agent, batch)


def test_decision_s4_is_a_fifth_of_decision_transformer() -> None:
    sizes = {
        system: sum(p.numel() for p in make_agent(system, 20, 128).policy.parameters())
        for system in (DS4, DT)
    }
    # The paper's network without the heads that no loss trains.
    S, A, D, T = NUM_OBS, NUM_ACTIONS, 128, 1000
    block = 4 * D * D + 4 * D + 8 * D * D + 5 * D + 4 * D
    tokens = T * D + 2 * D + (S + 1) * D + (A + 1) * D + 2 * D
    assert sizes[DT] == tokens + 3 * block + 2 * D + (D + 1) * A
    assert sizes[DS4] <= 0.2 * sizes[DT]


@pytest.mark.parametrize("system", TRAINED)
def test_every_system_drops_the_same_share(system: str, request: pytest.FixtureRequest) -> None:
    if system == PEER:
        request.getfixturevalue("_transformers")
        network = offline_peer.make_peer(NUM_OBS, NUM_ACTIONS, WIDTH, NUM_LAYERS, "train")
    else:
        network = make_agent(system, 3, WIDTH).policy
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.1}


def test_decision_s4_is_compared_at_its_own_width_and_at_that_of_the_others() -> None:
    widths = {system: make_agent(system, 3, 24).policy.core.d_out for system in TRAINED[:-1]}
    assert widths == {DS4: 64, offline.WIDE: 24, MAMBA: 24, DT: 24}


def test_a_training_batch_is_whole_episodes_with_their_returns() -> None:
    step, to_go, timestep, _ = make_batch(2, 4)
    for b in range(2):
        for t in range(4):
            assert to_go[b, t] == pytest.approx(float(step.reward[b, t:].sum()))
            assert timestep[b, t] == t
            assert bool(step.reset[b, t]) == bool(step.is_first[b, t]) == (t == 0)
            assert bool(step.truncated[b, t]) == (t == 3)
    assert step.action.abs().max() <= 1
