"""The analytic data sets: closed forms, and their environments play them back exactly."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.data import ArraySpec, EpisodeDataset, toys
from statewise.data.errors import DataConfigError
from statewise.envs.tasks import double_integrator as integrator
from statewise.envs.tasks.delayed_cue import DelayedCueVector
from statewise.envs.tasks.double_integrator import DoubleIntegratorVector
from statewise.envs.tasks.rtg_dial import RtgDialVector


def stacked(dataset: EpisodeDataset, name: str) -> Any:
    """Return an array of episodes of equal lengths, (E, T or T + 1, ...)."""
    return np.stack([dataset.source.read(name, i, 0, 10**9) for i in range(len(dataset))])


def test_the_dial_returns_the_sum_of_the_clipped_actions() -> None:
    data = toys.rtg_dial(300, seed=1)
    actions = stacked(data, "actions")[..., 0]
    assert actions.shape == (300, 20)
    assert actions.min() < 0
    assert actions.max() > 1
    assert data.returns == pytest.approx(np.clip(actions, 0, 1).sum(1), abs=1e-4)
    obs = stacked(data, "observations/obs")
    assert np.allclose(obs[:, :, 0], np.arange(21) / 20)
    assert (obs[..., 1] == 1).all()


def test_the_dial_is_turned_to_every_level_and_its_noise_has_the_stated_size() -> None:
    actions = stacked(toys.rtg_dial(2000), "actions")[..., 0].astype(np.float64)
    level = actions.mean(1)
    # uniform in [0, 1]: each tenth holds 200 +- 4 * sqrt(180) of 2000 episodes
    assert np.abs(np.histogram(np.clip(level, 0, 0.999), 10, (0, 1))[0] - 200).max() < 54
    assert actions.std(1, ddof=1).mean() == pytest.approx(0.1, rel=0.02)


def test_the_references_of_the_dial_are_random_actions_and_the_maximum() -> None:
    info = toys.rtg_dial(5, length=8).info
    drawn = np.random.default_rng(0).uniform(toys.DIAL_LOW, toys.DIAL_HIGH, 200_000)
    assert info.ref_min == pytest.approx(8 * np.clip(drawn, 0, 1).mean(), rel=0.01)
    assert info.ref_max == 8


@pytest.mark.parametrize("length", [1, 5, 30])
def test_actions_before_the_answer_do_not_depend_on_the_cue(length: int) -> None:
    data = toys.delayed_cue(200, length=length, seed=2)
    obs, actions = stacked(data, "observations/obs"), stacked(data, "actions")
    cue = obs[:, 0, 0]
    assert set(cue) == {-1, 1}
    assert (actions[:, :-1] == toys.WAIT).all()
    assert (actions[:, -1] == np.where(cue > 0, toys.RIGHT, toys.LEFT)).all()
    assert not obs[:, 1:, 0].any()
    assert np.argwhere(obs[0, :, 1]).tolist() == [[length]]
    assert (data.returns == 1).all()
    assert data.info.ref_min == pytest.approx(1 / 3)
    assert data.info.ref_max == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 2))
def test_the_riccati_equation_holds_for_random_systems(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((n, n)) * 0.4, rng.standard_normal((n, m))
    Q, R = np.eye(n) + np.diag(rng.uniform(size=n)), np.eye(m) * rng.uniform(0.5, 2)
    P, K = toys.riccati(A, B, Q, R)
    # the same equation in another form, by the matrix inversion lemma
    residual = Q + A.T @ np.linalg.inv(np.linalg.inv(P) + B @ np.linalg.inv(R) @ B.T) @ A - P
    assert np.abs(residual).max() <= 1e-9 * np.abs(P).max()
    assert np.abs(np.linalg.eigvals(A - B @ K)).max() < 1


def test_a_scalar_riccati_equation_has_the_solution_of_its_quadratic() -> None:
    # p = q + a^2 p r / (r + b^2 p)
    a, b, q, r = 1.2, 0.5, 2.0, 3.0
    P, K = toys.riccati(*(np.array([[x]]) for x in (a, b, q, r)))
    roots = np.roots([b**2, r - a**2 * r - q * b**2, -q * r])
    assert P[0, 0] == pytest.approx(roots.max())
    assert K[0, 0] == pytest.approx(a * b * P[0, 0] / (r + b**2 * P[0, 0]))


def test_a_system_that_nothing_can_stabilise_is_refused() -> None:
    one = np.array([[1.0]])
    with pytest.raises(DataConfigError, match="no convergence: check that"):
        toys.riccati(2 * one, 0 * one, one, one)


def test_the_expert_costs_what_the_riccati_matrix_says() -> None:
    data = toys.double_integrator(50)
    P, K = toys.riccati(toys.A, toys.B, toys.Q, toys.R)
    obs = stacked(data, "observations/obs").astype(np.float64)
    cost = [np.einsum("ei,ij,ej->e", obs[:, t], P, obs[:, t]) for t in (0, -1)]
    assert -data.returns == pytest.approx(cost[0] - cost[1], rel=1e-4)
    assert np.allclose(stacked(data, "actions"), -obs[:, :-1] @ K.T, atol=1e-5)
    assert np.abs(stacked(data, "actions")).max() < toys.FORCE  # else it would be clipped


def test_the_references_of_the_integrator_are_the_means_of_what_is_played() -> None:
    expert, drawn = toys.double_integrator(1500), toys.double_integrator(1500, random_share=1)
    for data, mean in ((drawn, data_min(drawn)), (expert, expert.info.ref_max)):
        error = data.returns.std() / np.sqrt(len(data))
        assert data.returns.mean() == pytest.approx(mean, abs=4 * error)
    half = toys.double_integrator(500, random_share=0.5)
    assert data_min(drawn) < half.returns.mean() < expert.returns.mean()


def data_min(data: EpisodeDataset) -> Any:
    return data.info.ref_min


def test_the_stated_share_of_actions_is_random() -> None:
    data = toys.double_integrator(400, random_share=0.3)
    obs, actions = stacked(data, "observations/obs"), stacked(data, "actions")
    wanted = np.clip(-(obs[:, :-1] @ toys.riccati(toys.A, toys.B, toys.Q, toys.R)[1].T), -3, 3)
    other = np.abs(actions - wanted) > 1e-5
    assert other.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / other.size))


@pytest.mark.parametrize("name", ["dial", "cue", "integrator"])
def test_an_environment_plays_its_data_set_back_to_the_last_bit(name: str) -> None:
    count = 7
    env: Any
    if name == "dial":
        data, env = toys.rtg_dial(count, length=6), RtgDialVector(count, length=6)
    elif name == "cue":
        data, env = toys.delayed_cue(count, length=6), DelayedCueVector(count, length=6)
    else:
        data = toys.double_integrator(count, random_share=0.4)
        env = DoubleIntegratorVector(count)
    obs, actions = stacked(data, "observations/obs"), stacked(data, "actions")
    env.reset(seed=0)
    if name == "cue":
        env.arrays["cue"][:] = obs[:, 0, 0]
    if name == "integrator":
        env.arrays["state"][:] = obs[:, 0]
    assert np.array_equal(env.observe(), obs[:, 0])
    rewards = stacked(data, "rewards")
    for t in range(actions.shape[1]):
        found, reward, terminated, truncated, _ = env.step(actions[:, t])
        assert np.array_equal(found, obs[:, t + 1])
        assert np.array_equal(reward, rewards[:, t])
        last = t == actions.shape[1] - 1
        assert (terminated == (data.terminated & last)).all()
        assert (truncated == (data.truncated & last)).all()


def same_bounds(spec: ArraySpec, space: Any) -> None:
    assert spec.low is not None
    assert spec.high is not None
    assert spec.low.tolist() == space.low.tolist()
    assert spec.high.tolist() == space.high.tolist()


def test_specs_limits_and_ids_are_those_of_the_environments() -> None:
    cases: list[tuple[EpisodeDataset, Any]] = [
        (toys.rtg_dial(1), RtgDialVector()),
        (toys.delayed_cue(1), DelayedCueVector()),
        (toys.double_integrator(1), DoubleIntegratorVector()),
    ]
    for data, env in cases:
        assert data.info.env_id == f"statewise/{type(env).__name__.removesuffix('Vector')}-v0"
        same_bounds(data.info.obs_specs["obs"], env.single_observation_space)
        action, space = data.info.action_spec, env.single_action_space
        assert action is not None
        if action.num_choices is None:
            same_bounds(action, space)
        else:
            assert action.num_choices == (space.n,)
        assert data.info.max_episode_steps == data.lengths[0]
    assert np.array_equal(np.diag(toys.Q), [integrator.COST_P, integrator.COST_V])


def test_equal_seeds_give_equal_data_and_others_do_not() -> None:
    makers = (toys.rtg_dial, toys.delayed_cue, toys.double_integrator)
    for make in makers:
        first, same, other = (make(40, seed=seed) for seed in (3, 3, 4))
        for name in ("observations/obs", "actions", "rewards"):
            assert np.array_equal(stacked(first, name), stacked(same, name))
        assert not np.array_equal(stacked(first, "actions"), stacked(other, "actions"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: toys.rtg_dial(0),
        lambda: toys.rtg_dial(length=0),
        lambda: toys.delayed_cue(0),
        lambda: toys.delayed_cue(length=0),
        lambda: toys.double_integrator(0),
        lambda: toys.double_integrator(random_share=1.5),
    ],
)
def test_sizes_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(DataConfigError, match=r"expected .*, got"):
        make()
