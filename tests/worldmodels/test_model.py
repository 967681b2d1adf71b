"""The skeleton: which rows are learned from, what the heads are told, and that it stays bounded."""

import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces

from statewise.data.shift import to_arrival
from statewise.data.step import Step
from statewise.nets.latents import kl_divergence
from statewise.worldmodels.config import WorldModelConfig
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.state import policy_features
from tests.agents.imagination.world_cases import batch as windows
from tests.worldmodels import cases
from tests.worldmodels.cases import model


def replayed(made: WorldModel, T: int = 11):  # type: ignore[no-untyped-def]
    batch = windows(T=T)
    double = {key: x.double() for key, x in batch.step.obs.items()}
    step = batch.step._replace(obs=double, reward=batch.step.reward.double())
    arrival = to_arrival(step)  # of rows 0 that start no episode nothing is known
    assert not arrival.counts.all()
    noise = made.noise(3, T, generator=torch.Generator().manual_seed(0))
    action = made.action_in(arrival)
    return step, arrival, made.observe(step.obs, action, None, step.reset, noise)


@torch.no_grad()
def test_the_loss_is_the_mean_over_rows_that_count_of_terms_with_their_coefficients() -> None:
    made = model("s5")
    step, arrival, seen = replayed(made)
    total, means = made.loss(step.obs, arrival, seen)
    rows = arrival.counts.nonzero().tolist()
    assert len(rows) > 0
    heads = torch.cat((seen.deter, seen.stoch.flatten(-2)), -1)
    sums = dict.fromkeys(("decoder", "reward", "cont", "dyn", "rep"), 0.0)
    for b, t in rows:
        sums["decoder"] += float(
            made.decoder.loss(heads[b, t], {k: x[b, t] for k, x in step.obs.items()})["obs"]
        )
        logits = made.reward(heads[b, t])
        sums["reward"] += float(made.two_hot.loss(logits, arrival.reward_in[b, t]))
        logit, goes_on = made.cont(heads[b, t])[0], not bool(arrival.is_terminal[b, t])
        sums["cont"] += float(-F.logsigmoid(logit if goes_on else -logit))
        kl = float(kl_divergence(seen.log_q[b, t], seen.log_p[b, t]))
        sums["dyn"] += max(1.0, kl)
        sums["rep"] += max(1.0, kl)
    for name, value in sums.items():
        assert float(means[name]) == pytest.approx(value / len(rows), rel=1e-9)
    scale = made.config.loss_scale
    wanted = sum(getattr(scale, name) * value for name, value in sums.items()) / len(rows)
    assert float(total) == pytest.approx(wanted, rel=1e-9)


def test_an_episode_that_is_cut_off_goes_on_and_one_that_ends_does_not() -> None:
    made = model("s5")
    step, arrival, seen = replayed(made)
    assert step.truncated.any()
    assert step.terminated.any()
    terms = made.terms(step.obs, arrival, seen)
    logit = made.continue_logit(seen.stoch, seen.deter)
    final = arrival.is_last
    ended = F.softplus(logit)  # -log(1 - sigmoid)
    goes_on = F.softplus(-logit)
    wanted = torch.where(arrival.is_terminal, ended, goes_on)
    torch.testing.assert_close(terms["cont"], wanted)
    assert (final & ~arrival.is_terminal & arrival.counts).any()  # cut off: told that it goes on


def test_the_horizon_is_folded_into_the_targets_of_the_continue_head() -> None:
    made = model("s5", cont_horizon=20.0)
    step, arrival, seen = replayed(made)
    logit = made.continue_logit(seen.stoch, seen.deter)
    target = (~arrival.is_terminal).double() * 0.95
    wanted = target * F.softplus(-logit) + (1 - target) * F.softplus(logit)
    torch.testing.assert_close(made.terms(step.obs, arrival, seen)["cont"], wanted)


def test_rewards_are_scaled_for_the_head_and_scaled_back_for_those_who_ask() -> None:
    torch.manual_seed(0)
    plain, scaled = (model("s5", reward_scale=c, reward_outscale=1.0) for c in (1.0, 50.0))
    scaled.load_state_dict(plain.state_dict())
    step, arrival, seen = replayed(plain)
    larger = arrival._replace(reward_in=50.0 * arrival.reward_in)
    terms = scaled.terms(step.obs, arrival, seen)
    torch.testing.assert_close(terms["reward"], plain.terms(step.obs, larger, seen)["reward"])
    known = seen.stoch, seen.deter
    torch.testing.assert_close(50.0 * scaled.predict_reward(*known), plain.predict_reward(*known))
    assert torch.equal(scaled.scaled_reward(*known), plain.predict_reward(*known))
    assert scaled.scaled_reward(*known).abs().max() > 0


def test_rows_that_do_not_count_give_no_gradient_even_if_they_are_nan() -> None:
    made = model("s5")
    batch = windows(T=6)
    obs = batch.step.obs["obs"].double()
    padded = torch.cat((obs, torch.full((3, 2, 3), torch.nan).double()), 1)
    flags = {
        name: torch.cat((getattr(batch.step, name), torch.zeros(3, 2, dtype=torch.bool)), 1)
        for name in ("is_first", "reset", "terminated", "truncated", "valid")
    }
    flags["is_first"][:, 6:] = True
    step = Step(
        obs={"obs": padded},
        action=torch.cat((batch.step.action, torch.zeros(3, 2, dtype=torch.long)), 1),
        reward=torch.cat((batch.step.reward, torch.zeros(3, 2)), 1).double(),
        **flags,
    )
    arrival = to_arrival(step)
    assert not arrival.counts[:, 6:].any()
    noise = made.noise(3, 8, generator=torch.Generator().manual_seed(0))
    grads = []
    for rows in (6, 8):
        part = to_arrival(Step({"obs": padded[:, :rows]}, *(x[:, :rows] for x in step[1:])))  # type: ignore[arg-type]
        seen = made.observe(
            {"obs": torch.where(arrival.counts[:, :rows, None], padded[:, :rows], 0.0)},
            made.action_in(part), None, step.reset[:, :rows], noise[:, :rows],
        )  # fmt: skip
        total, _ = made.loss({"obs": padded[:, :rows]}, part, seen)
        made.zero_grad(set_to_none=True)
        total.backward()
        grads.append([p.grad.clone() for p in made.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_first_observations_may_only_condition() -> None:
    counted, conditioned = model("s5"), model("s5", first_rows="context")
    step, arrival, seen = replayed(counted)
    rows = arrival.counts & ~arrival.is_first
    terms = counted.terms(step.obs, arrival, seen)
    _, means = conditioned.loss(step.obs, arrival, seen)
    for name, term in terms.items():
        assert float(means[name]) == pytest.approx(float(term[rows].mean()), rel=1e-9)


def test_free_nats_over_the_batch_leave_no_gradient_below_the_bar() -> None:
    made = model("s5", free_over="batch", free_nats=50.0)
    step, arrival, seen = replayed(made)
    _, means = made.loss(step.obs, arrival, seen)
    assert means["dyn"].item() == means["rep"].item() == 50.0
    assert means["kl"].item() < 50.0
    prior = list(made.dynamics.prior.parameters())  # type: ignore[attr-defined]
    assert all(
        g is None or not g.any()
        for g in torch.autograd.grad(means["dyn"] + means["rep"], prior, allow_unused=True)
    )


def test_decoder_and_heads_read_what_they_are_told_to() -> None:
    made = model("s5", decoder_reads="stoch", heads_read="deter")
    step, arrival, seen = replayed(made)
    terms = made.terms(step.obs, arrival, seen)
    decoder = torch.autograd.grad(
        terms["decoder"].sum(), seen.deter, retain_graph=True, allow_unused=True
    )
    assert decoder == (None,)
    (by_deter,) = torch.autograd.grad(terms["reward"].sum(), seen.deter, retain_graph=True)
    assert by_deter.any()
    assert torch.equal(
        made.predict_reward(torch.zeros_like(seen.stoch), seen.deter),
        made.predict_reward(seen.stoch, seen.deter),
    )


@pytest.mark.parametrize("core", ["s5", "rssm", "mamba"])
def test_memory_stays_bounded_far_beyond_any_window(core: str) -> None:
    made = model(core)
    window = cases.Window(made, 1, 2000)
    with torch.no_grad():
        seen = made.observe(window.obs, window.action, None, None, window.noise)
    assert seen.deter.isfinite().all()
    sizes = [seen.deter[:, rows].abs().max() for rows in (slice(0, 500), slice(1500, 2000))]
    assert sizes[1] < 3 * sizes[0] + 1


def test_eigenvalues_stay_inside_the_circle_whatever_the_gradient() -> None:
    made = model("s5")
    layers = [block.layer for block in made.dynamics.sequence.blocks]  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam(made.parameters(), lr=0.03)
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        for p in made.parameters():
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=draw)
        optimizer.step()
    for layer in layers:
        pole = torch.view_as_complex(layer.discretize().a.detach().contiguous())
        assert (pole.abs() < 1).all()


def test_imagination_keeps_what_it_is_asked_to_keep() -> None:
    made = model("s5")
    start = made.initial_state(2)
    noise = torch.stack([made.noise(2) for _ in range(3)])
    action = F.one_hot(torch.tensor([0, 2]), 3).double()
    seen = made.imagine(start, lambda state, i: action, noise, keep=("stoch", "deter"))
    assert set(seen.states) == {"stoch", "deter"}
    assert seen.states["deter"].shape[:2] == (2, 4)
    assert torch.equal(seen.states["stoch"][:, 0], start["stoch"])
    assert torch.equal(seen.action, torch.stack([action] * 3, 1))
    full = made.imagine(start, lambda state, i: action, noise)
    assert policy_features(full.states, "full").shape[:2] == (2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core": "rssm", "parallel": cases.config("s5").parallel}, "parallel: would be ignored"),
        ({"cont_horizon": 0.5}, "cont_horizon: expected 0 or more than 1"),
        ({"free_nats": -1.0}, "free_nats: expected 0 or more"),
        ({"reward_scale": 0.0}, "reward_scale: expected a positive number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelConfig(**changes)  # type: ignore[arg-type]


def test_an_encoder_of_ones_own_needs_a_width() -> None:
    with pytest.raises(ValueError, match="encoder: expected a module with d_out"):
        WorldModel(cases.OBS_SPACE, cases.ACTIONS, cases.config("s5"), torch.nn.Identity())
    encoder = torch.nn.Linear(3, 5)
    encoder.d_out = 5  # type: ignore[assignment]
    made = WorldModel(
        spaces.Dict(cases.OBS_SPACE.spaces), cases.ACTIONS, cases.config("s5"), encoder
    )
    assert made.dynamics.posterior.layers.linears[0].in_features == 5  # type: ignore[attr-defined]
