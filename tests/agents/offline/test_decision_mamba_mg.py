"""Multi-grained Decision Mamba: what leaks and what does not, its losses, its past, acting."""

from typing import Any

import pytest
import torch

from statewise.agents.offline.acting import RecurrentActing, WindowActing
from statewise.agents.offline.decision_mamba_mg import (
    DecisionMambaMG,
    DecisionMambaMGConfig,
    LossWeights,
    followed,
    smooth_error,
)
from statewise.agents.offline.self_evolution import SelfEvolutionConfig
from statewise.agents.offline.tokens import PolicyRows
from statewise.data.samplers import SampledBatch, WindowConfig
from tests.agents.offline.leaks import assert_no_leak, influence, leaked
from tests.agents.offline.mg_cases import WHOLE, mg
from tests.agents.offline.sequence_cases import (
    BOX,
    DISCRETE,
    batch_of,
    double,
    gradients,
    make_dataset,
    rows_of,
)
from tests.agents.offline.test_acting import CLOSE, Recorder
from tests.agents.ppo_cases import assert_same_tree, copied
from tests.tolerance import ORACLE_FLOAT64, assert_within

CAUSAL = ["causal_window", "shifted_triplet"]
LEAKS = "ignore:fine 'paper_release' lets most predictions"


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("fine", CAUSAL)
def test_no_prediction_sees_its_action_or_what_comes_later(fine: str, depth: int) -> None:
    policy = double(mg(depth, fine=fine, fusion="gate" if depth == 2 else "sum"))
    assert_no_leak(policy, rows_of(policy, batch_of(make_dataset((5, 5)), [0, 1])))


@pytest.mark.filterwarnings(LEAKS)
@pytest.mark.parametrize(("depth", "seen"), [(1, 10), (2, 19)])
def test_the_release_sees_the_actions_that_it_is_to_predict(depth: int, seen: int) -> None:
    policy = double(mg(depth, parity="release"))
    rows = rows_of(policy, batch_of(make_dataset((20,)), [0]))
    own = influence(policy, rows)["action"].diagonal()
    assert int((own > 0).sum()) == seen
    assert float(own[-1]) == 0  # the one prediction that acting uses
    if depth == 1:  # token 3 t + 1 reads the summaries up to (3 t + 1) mod 20
        expected = [t < 19 and (3 * t + 1) % 20 >= t for t in range(20)]
        assert (own > 0).tolist() == expected
    assert leaked(policy, rows)["action"] > 0


@pytest.mark.parametrize("fine", CAUSAL)
def test_packed_episodes_are_predicted_as_alone(fine: str) -> None:
    policy, dataset = double(mg(fine=fine)), make_dataset((3, 1, 4))
    with torch.no_grad():
        packed = policy(policy.rows(batch_of(dataset, [0, 1, 2], packed=True)))
        begin = 0
        for episode, steps in enumerate((3, 1, 4)):
            alone = policy(policy.rows(batch_of(dataset, [episode])))
            assert_within(packed[0, begin : begin + steps], alone[0], ORACLE_FLOAT64)
            begin += steps


def total_and_gradients(agent: DecisionMambaMG, batch: SampledBatch) -> dict[str, torch.Tensor]:
    losses = agent.losses(agent.policy.rows(batch), batch)
    return losses | gradients(agent.policy, torch.stack(list(losses.values())).sum())


@pytest.mark.parametrize("fine", CAUSAL)
def test_padding_changes_neither_losses_nor_gradients(fine: str) -> None:
    agent, dataset = mg(1, fine=fine), make_dataset((5, 2, 4))
    double(agent)
    expected = total_and_gradients(agent, batch_of(dataset, [0, 1, 2]))
    wide = batch_of(dataset, [0, 1, 2], width=11)
    padding = ~wide.step.valid
    wide.step.obs["obs"][padding] = float("nan")
    wide.step.action[padding] = float("inf")
    wide.rtg[padding] = float("nan")
    found = total_and_gradients(agent, wide)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert_within(value, expected[key], ORACLE_FLOAT64)


def test_pairs_are_steps_of_one_episode() -> None:
    step = batch_of(make_dataset((3, 1, 2)), [0, 1, 2], width=8, packed=True).step
    assert followed(step)[0].tolist() == [True, True, False, False, True, False, False]


def test_the_smooth_error_is_square_near_zero_and_straight_beyond() -> None:
    predicted = torch.tensor([[0.5, -3.0]], requires_grad=True)
    target = torch.zeros(1, 2, requires_grad=True)
    error = smooth_error(predicted, target)
    assert error.tolist() == pytest.approx([(0.125 + 2.5) / 2])
    error.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[0.25, -0.5]]
    assert target.grad is None


def test_action_tokens_predict_the_next_observation_and_return() -> None:
    agent, dataset = mg(1), make_dataset((4, 1, 3))
    policy = double(agent)
    with torch.no_grad():
        agent.policy.next_return.bias.fill_(0.3)
        errors: dict[str, list[float]] = {"next_obs": [], "next_return": []}
        for index in range(3):
            rows = policy.rows(batch_of(dataset, [index]))
            at_action = policy.outputs(rows)[0, 2::3]
            for t in range(rows.rtg.shape[1] - 1):
                obs = at_action[t] @ agent.policy.next_obs.weight.T + agent.policy.next_obs.bias
                value = at_action[t] @ agent.policy.next_return.weight[0] + 0.3
                for name, gap in (
                    ("next_obs", obs - rows.obs[0, t + 1]),
                    ("next_return", (value - rows.rtg[0, t + 1] / 5.0).view(1)),
                ):
                    d = gap.abs()
                    errors[name].append(torch.where(d < 1, d**2 / 2, d - 0.5).mean().item())
        for batch in (
            batch_of(dataset, [0, 1, 2], width=6),
            batch_of(dataset, [0, 1, 2], packed=True),
        ):
            losses = agent.losses(policy.rows(batch), batch)
            for name, expected in errors.items():
                assert len(expected) == 5
                mean = torch.tensor(expected).double().mean()
                assert_within(losses[name], mean, 1e-6)  # the list went through float32


def test_terms_are_weighted_as_in_the_release() -> None:
    agent = mg(1)
    assert agent.weights == {"action": 0.9, "next_obs": 0.05, "next_return": 0.05}
    report = agent.update(batch_of(make_dataset(), [0, 2]))
    terms = {"action_loss", "next_obs_loss", "next_return_loss"}
    assert report.keys() == terms | {"grad_norm", "learning_rate", "beta"}


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
def test_labels_are_refined_by_the_past_once_there_is_one(space: Any) -> None:
    evolution = SelfEvolutionConfig(iterations=25, beta_final=10.0, beta_max=0.4)
    agent = mg(1, space, self_evolution=evolution, learning_rate=0.05, warmup_updates=0)
    batch = batch_of(make_dataset((4, 4), discrete=space is DISCRETE), [0, 1])
    betas = [agent.update(batch)["beta"] for _ in range(3)]  # a part is 2 of 50 updates
    assert betas == [0.0, 0.0, pytest.approx(0.4)]
    assert agent.teacher is not None
    rows = rows_of(agent.policy, batch)
    with torch.no_grad():
        past = agent.teacher.network(agent.teacher.network.rows(batch))
        predicted = agent.policy(rows)
        assert not torch.allclose(past, predicted, atol=1e-3)
        found = agent.losses(rows, batch)["action"]
        if space is DISCRETE:
            target = 0.6 * rows.action + 0.4 * past.softmax(-1)
            expected = -(target * predicted.log_softmax(-1)).sum(-1).mean()
        else:
            expected = (predicted - 0.6 * rows.action - 0.4 * past).square().mean()
    assert_within(found, expected, 1e-5)


@pytest.mark.parametrize("teacher", ["prev_iteration", "prev_step", "ema"])
def test_a_saved_agent_goes_on_bit_by_bit_with_its_past(teacher: Any) -> None:
    evolution = SelfEvolutionConfig(teacher=teacher, iterations=25, beta_final=10.0)
    dataset = make_dataset()

    def make() -> DecisionMambaMG:
        return mg(1, dropout=0.2, self_evolution=evolution, learning_rate=0.01)

    agent, other = make(), make()
    for episodes in ([0, 1], [2, 3], [1, 2]):
        agent.update(batch_of(dataset, episodes))
    saved = copied(agent.state_dict())
    other.update(batch_of(dataset, [3]))
    other.load_state_dict(saved)
    assert_same_tree(other.state_dict(), saved)
    reports = [[a.update(batch_of(dataset, [i])) for i in (0, 2)] for a in (agent, other)]
    assert reports[0] == reports[1]
    assert reports[0][0]["beta"] == pytest.approx(0.4)
    assert_same_tree(agent.state_dict(), other.state_dict())


def test_a_past_that_is_missing_or_not_wanted_is_named() -> None:
    with_past, without = mg(1), mg(1, self_evolution=SelfEvolutionConfig(beta_max=0.0))
    assert without.teacher is None
    assert "beta" not in without.update(batch_of(make_dataset(), [0]))
    with pytest.raises(ValueError, match=r"expected the keys .*'teacher'.*, got \["):
        with_past.load_state_dict(without.state_dict())
    with pytest.raises(ValueError, match="expected the keys"):
        without.load_state_dict(with_past.state_dict())


def test_the_release_warns_once_and_refines_nothing() -> None:
    with pytest.warns(UserWarning, match="fine 'paper_release' lets most") as caught:
        agent = mg(1, parity="release")
    assert len(caught) == 1
    assert agent.teacher is None
    assert agent.share() == 0.0
    with pytest.warns(UserWarning, match="keep it out of result tables"):
        assert mg(1, fine="paper_release").teacher is not None


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
def test_acting_step_by_step_equals_the_parallel_pass(space: object) -> None:
    agent = mg(2, space, **WHOLE)
    policy = double(agent)
    assert isinstance(agent.acting, RecurrentActing)
    dataset = make_dataset((5, 2, 7, 4, 3), discrete=space is DISCRETE)
    recorder = Recorder(agent, dataset, [[0, 1, 3], [2, 3]])
    found = recorder.play(11)
    for line, batch in enumerate(recorder.batches):
        with torch.no_grad():
            assert_within(found[line], policy(policy.rows(batch))[0, :11], CLOSE)


@pytest.mark.parametrize("fine", CAUSAL)
def test_acting_on_a_window_equals_encoding_the_last_steps_again(fine: str) -> None:
    K = 4
    agent = mg(1, fine=fine, context=K)
    policy, dataset = double(agent), make_dataset((7, 2))
    assert isinstance(agent.acting, WindowActing)
    assert agent.sampling == WindowConfig(length=K, batch_size=3)
    found = Recorder(agent, dataset, [[0]]).play(7)
    rows = policy.rows(batch_of(dataset, [0]))
    for t in range(7):
        window = PolicyRows(*(x[:, max(0, t + 1 - K) : t + 1].clone() for x in rows))
        window.action[:, -1] = 0
        with torch.no_grad():
            expected = policy(window._replace(reset=torch.zeros_like(window.reset)))
        assert_within(found[0, t], expected[0, -1], CLOSE)


@pytest.mark.parametrize("fine", CAUSAL)
def test_three_short_episodes_are_learnt_by_heart(fine: str) -> None:
    fast = {"learning_rate": 0.03, "max_grad_norm": 10.0, "return_scale": 1.0, "d_model": 16}
    agent = mg(1, fine=fine, self_evolution=SelfEvolutionConfig(beta_max=0.0), **fast)
    batch = batch_of(make_dataset((5, 2, 4)), [0, 1, 2])
    losses = [agent.update(batch) for _ in range(50)]
    assert losses[0]["action_loss"] > 0.1
    assert losses[-1]["action_loss"] < 1e-3, losses[-1]
    assert losses[-1]["next_obs_loss"] < 0.2 * losses[0]["next_obs_loss"]
    assert losses[-1]["next_return_loss"] < 0.2 * losses[0]["next_return_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fine": "paper_release", "train_on": "trajectories"}, "train_on: expected 'windows'"),
        ({"fine": "shifted_triplet"} | WHOLE, "inference: expected 'window' with a fine branch"),
        ({"fusion": "gate", "parity": "release"}, "fusion: would be ignored with parity"),
        (
            {"self_evolution": SelfEvolutionConfig(beta_max=0.1), "parity": "release"},
            "self_evolution: would be ignored with parity 'release'",
        ),
        ({"fine": "shifted_triplet", "parity": "release"}, "fine: expected 'paper_release' or"),
        ({"context": 0}, "context: expected at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionMambaMGConfig(**changes)


def test_coefficients_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="action: expected a positive number, got 0"):
        LossWeights(action=0)
    with pytest.raises(ValueError, match="next_return: expected 0 or more, got -1"):
        LossWeights(next_return=-1)
