"""The shift from departures to arrivals, on tables small enough to check by eye."""

import torch
from torch import Tensor

from statewise.data import Arrival, Step, to_arrival

NAN = float("nan")


def bits(text: str) -> Tensor:
    """Read one row of flags: "1" is True, any other character False."""
    return torch.tensor([[letter == "1" for letter in text]])


def rows(
    *, first: str, valid: str, action: list[int], reward: list[float], ends: str, reset: str = ""
) -> Step:
    """Build one environment's rows; in `ends`, T is a termination and u a truncation."""
    length = len(first)
    assert {len(valid), len(action), len(reward), len(ends)} == {length}
    return Step(
        obs={"count": torch.arange(length)[None]},
        is_first=bits(first),
        reset=bits(reset or first),
        action=torch.tensor([action]),
        reward=torch.tensor([reward]),
        terminated=torch.tensor([[letter == "T" for letter in ends]]),
        truncated=torch.tensor([[letter == "u" for letter in ends]]),
        valid=bits(valid),
    )


def at(step: Step, index: int | slice) -> Step:
    """Take rows along time."""
    return Step({key: x[:, index] for key, x in step.obs.items()}, *(x[:, index] for x in step[1:]))


def check(
    arrival: Arrival,
    *,
    action: list[int],
    reward: list[float],
    terminal: str,
    last: str,
    counts: str,
) -> None:
    assert arrival.action_in.tolist() == [action]
    assert arrival.reward_in.tolist() == [reward]
    assert torch.equal(arrival.is_terminal, bits(terminal))
    assert torch.equal(arrival.is_last, bits(last))
    assert torch.equal(arrival.counts, bits(counts))


# Episode of 2 steps that terminates, its final observation (row 2), episode of 1 step that is
# cut off, its final observation (row 4), first row of a third episode.
NEXT_STEP = rows(
    first="100101",
    valid="110101",
    action=[7, 8, 9, 5, 6, 4],
    reward=[0.5, 1.0, 0.0, 2.0, 0.0, 3.0],
    ends=".T.u..",
)


def test_next_step_rows_give_final_observations_their_reward_and_flags() -> None:
    arrival = to_arrival(NEXT_STEP)
    check(
        arrival,
        action=[0, 7, 8, 0, 5, 0],
        reward=[0.0, 0.5, 1.0, 0.0, 2.0, 0.0],
        terminal="..1...",
        last="..1.1.",
        counts="111111",
    )
    assert torch.equal(arrival.is_first, NEXT_STEP.is_first)


def test_same_step_rows_never_carry_an_end_into_the_next_episode() -> None:
    step = rows(
        first="10011",
        valid="11111",
        action=[7, 8, 9, 5, 6],
        reward=[0.5, 1.0, 1.5, 2.0, 3.0],
        ends="..Tu.",
    )
    check(
        to_arrival(step),
        action=[0, 7, 8, 0, 0],
        reward=[0.0, 0.5, 1.0, 0.0, 0.0],
        terminal=".....",
        last=".....",
        counts="11111",
    )


def test_same_step_rows_arrive_like_next_step_rows_without_the_final_observations() -> None:
    same_step = rows(
        first="1011",
        valid="1111",
        action=[7, 8, 5, 4],
        reward=[0.5, 1.0, 2.0, 3.0],
        ends=".Tu.",
    )
    kept = torch.tensor([0, 1, 3, 5])
    for ours, theirs in zip(to_arrival(same_step), to_arrival(NEXT_STEP), strict=True):
        assert torch.equal(ours, theirs[:, kept])


def test_a_window_that_opens_in_mid_episode_does_not_count_its_first_row() -> None:
    # The memory is cleared at the left edge; that alone must not look like a new episode.
    step = rows(
        first="000", valid="111", action=[7, 8, 9], reward=[0.5, 1.0, 1.5], ends="...", reset="1.."
    )
    arrival = to_arrival(step)
    check(
        arrival,
        action=[0, 7, 8],
        reward=[0.0, 0.5, 1.0],
        terminal="...",
        last="...",
        counts=".11",
    )
    assert not arrival.is_first.any()


def test_a_window_that_opens_on_a_final_observation_counts_it_only_if_the_past_is_known() -> None:
    window, previous = at(NEXT_STEP, slice(2, 6)), at(NEXT_STEP, 1)
    unknown = to_arrival(window)
    assert torch.equal(unknown.counts, bits(".111"))
    assert not unknown.is_last[0, 0]
    known = to_arrival(window, previous=previous)
    check(
        known,
        action=[8, 0, 5, 0],
        reward=[1.0, 0.0, 2.0, 0.0],
        terminal="1...",
        last="1.1.",
        counts="1111",
    )


def test_windows_with_their_previous_row_equal_the_whole() -> None:
    whole = to_arrival(NEXT_STEP)
    for cut in range(1, 6):
        left = to_arrival(at(NEXT_STEP, slice(0, cut)))
        right = to_arrival(at(NEXT_STEP, slice(cut, 6)), previous=at(NEXT_STEP, cut - 1))
        for a, b, both in zip(left, right, whole, strict=True):
            assert torch.equal(torch.cat([a, b], 1), both)


def test_a_first_row_ignores_the_row_before_the_window() -> None:
    previous = at(NEXT_STEP, 1)
    start = at(NEXT_STEP, slice(0, 2))
    for a, b in zip(to_arrival(start, previous=previous), to_arrival(start), strict=True):
        assert torch.equal(a, b)


def test_padding_behind_an_unfinished_episode_does_not_count() -> None:
    step = rows(
        first="10000",
        valid="11100",
        action=[7, 8, 9, 0, 0],
        reward=[0.5, 1.0, 1.5, 0, 0],
        ends=".....",
    )
    check(
        to_arrival(step),
        action=[0, 7, 8, 0, 0],
        reward=[0.0, 0.5, 1.0, 0.0, 0.0],
        terminal=".....",
        last=".....",
        counts="111..",
    )


def test_padding_behind_a_final_observation_does_not_count() -> None:
    step = rows(
        first="10000",
        valid="11000",
        action=[7, 8, 9, 3, 3],
        reward=[0.5, 1.0, 0, 0, 0],
        ends=".T...",
    )
    check(
        to_arrival(step),
        action=[0, 7, 8, 0, 0],
        reward=[0.0, 0.5, 1.0, 0.0, 0.0],
        terminal="..1..",
        last="..1..",
        counts="111..",
    )


def test_padding_marked_as_first_is_no_final_observation() -> None:
    step = rows(
        first="1011", valid="1100", action=[7, 8, 0, 0], reward=[0.5, 1.0, 0, 0], ends=".T.."
    )
    check(
        to_arrival(step),
        action=[0, 7, 0, 0],
        reward=[0.0, 0.5, 0.0, 0.0],
        terminal="....",
        last="....",
        counts="11..",
    )


def test_padding_in_front_hides_what_came_before_the_first_real_row() -> None:
    step = rows(
        first="0000", valid="0011", action=[3, 3, 8, 9], reward=[4.0, 4.0, 1.0, 1.5], ends="TT.."
    )
    check(
        to_arrival(step),
        action=[0, 0, 0, 8],
        reward=[0.0, 0.0, 0.0, 1.0],
        terminal="....",
        last="....",
        counts="...1",
    )


def test_an_end_by_both_rules_is_terminal() -> None:
    step = rows(first="100", valid="110", action=[7, 8, 9], reward=[0.5, 1.0, 0.0], ends=".T.")
    arrival = to_arrival(step._replace(truncated=step.terminated))
    assert torch.equal(arrival.is_terminal, bits("..1"))
    assert torch.equal(arrival.is_last, bits("..1"))


def test_vector_actions_keep_their_shape_and_nothing_stale_gets_through() -> None:
    step = rows(
        first="10010", valid="11011", action=[0] * 5, reward=[0.5, 1.0, 0, 2, 3], ends=".T..."
    )
    action = torch.arange(1.0, 11.0).reshape(1, 5, 2)
    action[0, 2] = NAN  # the ignored action of the final observation's row
    reward = step.reward.clone()
    reward[0, 2] = NAN
    arrival = to_arrival(step._replace(action=action, reward=reward))
    expected = [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [7.0, 8.0]]
    assert arrival.action_in.tolist() == [expected]
    assert arrival.reward_in.tolist() == [[0.0, 0.5, 1.0, 0.0, 2.0]]


def test_rows_of_a_batch_are_independent() -> None:
    other = rows(first="010001", valid="111111", action=[1] * 6, reward=[1.0] * 6, ends="......")
    batch = Step(
        obs={"count": torch.cat([NEXT_STEP.obs["count"], other.obs["count"]])},
        **{
            name: torch.cat([getattr(NEXT_STEP, name), getattr(other, name)])
            for name in Step._fields[1:]
        },
    )
    together = to_arrival(batch)
    for index, single in enumerate([NEXT_STEP, other]):
        for ours, alone in zip(together, to_arrival(single), strict=True):
            assert torch.equal(ours[index : index + 1], alone)


def test_the_stored_rows_are_left_alone() -> None:
    before = [x.clone() for x in NEXT_STEP[1:]]
    arrival = to_arrival(NEXT_STEP)
    arrival.action_in.fill_(99)
    arrival.counts.fill_(False)
    assert all(torch.equal(x, y) for x, y in zip(before, NEXT_STEP[1:], strict=True))
