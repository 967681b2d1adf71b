"""Reference returns: recorded ones of the authors, and the ends of the scale."""

from typing import Any

import numpy as np
import pytest

from statewise.data import (
    DatasetInfo,
    atari_scores,
    info_scores,
    normalized_score,
    reference_scores,
)
from statewise.data.errors import NoReferenceScore
from statewise.data.scores import ATARI_GAMER, ATARI_HUMAN, REFERENCE_SCORES
from tests.golden_files import FOLDER


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(FOLDER / "scores.npz", allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def test_d4rl_scores_are_those_of_the_authors(golden: dict[str, Any]) -> None:
    for index, name in enumerate(golden["d4rl_name"].tolist()):
        assert reference_scores(name) == (golden["d4rl_min"][index], golden["d4rl_max"][index])
        np.testing.assert_allclose(
            normalized_score(golden["d4rl_raw"][index], name),
            golden["d4rl_normalized"][index],
            rtol=1e-12,
            atol=1e-12,
        )


def test_atari_scores_are_those_of_the_authors_times_100(golden: dict[str, Any]) -> None:
    names = golden["atari_name"].tolist()
    assert set(ATARI_HUMAN) == set(names)
    for index, name in enumerate(names):
        scores = normalized_score(golden["atari_raw"][index], atari_scores(name))
        np.testing.assert_allclose(scores, 100 * golden["atari_hns"][index], rtol=1e-12)


@pytest.mark.parametrize("name", REFERENCE_SCORES)
def test_the_reference_returns_score_0_and_100_exactly(name: str) -> None:
    assert normalized_score(reference_scores(name), name).tolist() == [0.0, 100.0]


def test_numbers_worked_by_hand() -> None:
    assert normalized_score(3234.3, "hopper-medium-v2") == 100
    assert float(normalized_score(4770, "halfcheetah-medium-v2")) == pytest.approx(40.68, abs=5e-3)
    assert float(normalized_score(70, "kitchen-mixed-v0")) == 1750  # never clipped
    assert float(normalized_score(-2, (0.0, 4.0))) == -50
    assert float(normalized_score(2, atari_scores("breakout", table="gamer"))) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ant-full-replay-v2", (-325.6, 3879.7)),
        ("antmaze-large-diverse-v0", (0.0, 1.0)),
        ("door-cloned-v1", (-56.512833, 2880.5693087298737)),
        ("maze2d-umaze-dense-v1", (68.537689, 193.66285642381482)),
        ("bullet-walker2d-medium-v0", (16.523877, 1623.6476303317536)),
        ("flow-merge", (118.67993, 330.03179)),
    ],
)
def test_names_of_every_family_are_known(name: str, expected: tuple[float, float]) -> None:
    assert reference_scores(name) == expected


def test_the_scale_of_a_mean_is_the_mean_of_the_scale() -> None:
    returns = np.array([10.0, 250.0, 4000.0])
    scores = normalized_score(returns, "walker2d-expert-v2")
    mean = normalized_score(returns.mean(), "walker2d-expert-v2")
    assert float(scores.mean()) == pytest.approx(float(mean))


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(NoReferenceScore, match="did you mean hopper-medium-v2"):
        reference_scores("hoper-medium-v2")
    with pytest.raises(NoReferenceScore, match="gamer table, got 'alien'"):
        atari_scores("alien", table="gamer")
    with pytest.raises(NoReferenceScore, match="expected one of human, gamer"):
        atari_scores("pong", table="best")
    assert set(ATARI_GAMER) <= set(ATARI_HUMAN)


@pytest.mark.parametrize("pair", [(1.0, 1.0), (2.0, 1.0), (0.0, float("nan"))])
def test_a_scale_without_length_is_an_error(pair: tuple[float, float]) -> None:
    with pytest.raises(NoReferenceScore, match="expected finite min < max"):
        normalized_score(0.0, pair)


def test_a_data_set_without_reference_returns_says_so() -> None:
    with pytest.raises(NoReferenceScore, match=r"a\.hdf5: expected ref_min and ref_max, got none"):
        info_scores(DatasetInfo(source="a.hdf5", ref_min=0.0))
    assert info_scores(DatasetInfo(ref_min=-1.0, ref_max=3.0)) == (-1.0, 3.0)
