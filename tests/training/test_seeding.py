import subprocess
import sys

import numpy as np
import pytest

from statewise.training.seeding import Seeds

NAMES = ("env", "policy", "init", "eval")


def test_the_same_root_and_name_give_the_same_stream() -> None:
    first, second = Seeds(3), Seeds(3)
    second.integer("eval")  # using another stream in between changes nothing
    second.generator("policy").random(5)
    assert first.integer("env") == second.integer("env")
    np.testing.assert_array_equal(
        first.generator("env").random(5), second.generator("env").random(5)
    )


def test_a_generator_starts_its_stream_anew_each_time() -> None:
    seeds = Seeds(0)
    assert seeds.generator("env").random() == seeds.generator("env").random()


def test_names_and_roots_give_different_streams() -> None:
    integers = {Seeds(root).integer(name) for root in range(50) for name in NAMES}
    assert len(integers) == 50 * len(NAMES)


def test_integers_have_31_bits_and_use_all_of_them() -> None:
    integers = [Seeds(root).integer("env") for root in range(200)]
    assert all(0 <= number < 2**31 for number in integers)
    assert np.bitwise_or.reduce(integers) == 2**31 - 1


def test_streams_are_uncorrelated() -> None:
    draws = np.stack([Seeds(1).generator(name).standard_normal(4000) for name in NAMES])
    off_diagonal = np.corrcoef(draws) - np.eye(len(NAMES))
    assert np.abs(off_diagonal).max() < 4 / np.sqrt(4000)


def test_another_process_with_another_hash_seed_gets_the_same_streams() -> None:
    code = "from statewise.training.seeding import Seeds; print(Seeds(5).integer('init'))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "123"},
    )
    assert int(result.stdout) == Seeds(5).integer("init")


def test_a_negative_root_is_refused() -> None:
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        Seeds(-1)
