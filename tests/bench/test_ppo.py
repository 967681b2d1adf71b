import json
from pathlib import Path

import pytest
import torch

from statewise.bench import cli, ppo, worker
from statewise.bench.update_systems import GRU, SYSTEMS, StepByStep
from statewise.ssm.build import build_sequence


def test_the_step_by_step_network_computes_what_the_fused_one_does() -> None:
    model = build_sequence(GRU)
    x, reset = torch.randn(3, 20, 64), torch.rand(3, 20) < 0.2
    state = model.initial_state(3)
    fused, _ = model(x, state, reset)
    stepped, _ = StepByStep(model)(x, state, reset)
    torch.testing.assert_close(stepped, fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_an_update_of_every_memory_is_timed(system: str) -> None:
    job = {"kind": "update", "system": system, "num_envs": 8, "T": 5, "reps": 2, "seconds": 0.01}
    wall, cpu = worker.run_job(job)["timing"]
    assert len(wall) == len(cpu) >= 1
    assert min(wall) > 0


def test_quick_run_compares_systems_of_about_equal_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sb3_contrib")
    pytest.importorskip("popgym")
    monkeypatch.setattr(ppo, "launch", lambda job: worker.run_job(job))
    out = tmp_path / "rows.json"
    assert cli.bench(["ppo", "--quick", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    case = "CartPole-v1, equal size, rollout 4"
    found = {(r["system"], r["metric"]): r for r in rows if r["case"] == case}
    sizes = [found[name, "parameters"]["value"] for name in ("statewise S5", ppo.PEER)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.2
    for metric in ("env steps", "env steps, update only"):
        ours, peer = (found[name, metric] for name in ("statewise S5", ppo.PEER))
        assert ours["speedup"] == 1
        assert peer["speedup"] == pytest.approx(ours["value"] / peer["value"])
    default = [r for r in rows if "own default size" in r["case"] and r["metric"] == "env steps"]
    # The default size of RecurrentPPO is the one that the equal case has: measured once.
    assert default[1]["value"] == found[ppo.PEER, "env steps"]["value"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    assert cases[2:] == ["RepeatPreviousEasy, preset", "one update, d = 64, 32 x 8"]


def test_without_the_peer_ours_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(job: dict[str, object]) -> dict[str, object]:
        if job["system"] == ppo.PEER:
            return {"missing": "sb3_contrib is not installed: pip install 'statewise[bench]'"}
        if job["kind"] == "update":
            return {"timing": [[1.0], [1.0]]}
        seconds = {"collect": [9.0, 1.0, 1.0], "update": [9.0, 1.0, 3.0]}
        return {"steps": [8, 8, 8], "wall": seconds, "cpu": seconds, "parameters": 5}

    monkeypatch.setattr(ppo, "launch", launch)
    outcome = ppo.run_ppo(ppo.PPOOptions(), lambda line: None)
    assert len(outcome.missing) == 1
    whole = [f.value for f in outcome.figures if f.metric == "env steps"]
    # The first iteration is left out: median of 8 / 2 and 8 / 4.
    assert whole == [3.0] * 4
