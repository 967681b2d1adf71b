"""Minari: what the package writes is what we read, and what we write is what it reads."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from statewise.data import ArraySpec, DatasetInfo, Episode, EpisodeDataset
from statewise.data.minari import MinariMetadata, MinariSource, read_minari, write_minari
from statewise.envs.spaces import flatten_action_space, flatten_space
from tests.data.episodes import integrate, integrator_episodes
from tests.data.minari_sets import (
    ABOUT,
    TREE,
    assert_equal,
    collect,
    expected_episodes,
    load,
    toy_info,
    tree_env,
)

FORMATS = ("hdf5", "arrow", "parquet")
WRITTEN = ("hdf5", "arrow")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def both_modes(dataset_id: str) -> tuple[Any, Any]:
    return read_minari(dataset_id), read_minari(dataset_id, mode="lazy")


def assert_specs(info: DatasetInfo, dataset: minari.MinariDataset) -> None:
    """Compare with the spaces that the environment adapter makes."""
    flat = flatten_space(dataset.observation_space)
    assert set(info.obs_specs) == set(flat.spaces)
    for key, space in flat.spaces.items():
        spec = info.obs_specs[key]
        assert (spec.shape, spec.dtype) == (space.shape, str(space.dtype)), key
        if isinstance(space, spaces.Box):
            np.testing.assert_array_equal(-np.inf if spec.low is None else spec.low, space.low)
            np.testing.assert_array_equal(np.inf if spec.high is None else spec.high, space.high)
        elif isinstance(space, spaces.Discrete):
            assert spec.num_choices == (space.n,)
    action = flatten_action_space(dataset.action_space)
    assert info.action_spec is not None
    assert info.action_spec.shape == action.shape


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(("env_id", "limit"), [("CartPole-v1", None), ("Pendulum-v1", 7)])
def test_episodes_that_minari_recorded_are_read_bit_for_bit(
    root: Path, data_format: str, env_id: str, limit: int | None
) -> None:
    dataset = collect(env_id, "set/toy-v0", data_format, limit=limit)
    expected = expected_episodes(dataset)
    for source in both_modes("set/toy-v0"):
        assert_equal(source, expected)
        assert source.info.env_id == env_id
        assert source.info.max_episode_steps == (limit or 500)
        assert_specs(source.info, dataset)
        assert source.has_final.all()
        assert source.lengths[-1] == 2
    assert source.truncated[-1]
    assert not source.terminated[-1]


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("jpeg", [True, False])
def test_trees_of_spaces_are_read_as_the_environment_adapter_flattens_them(
    root: Path, data_format: str, jpeg: bool
) -> None:
    with tree_env():
        dataset = collect(TREE, "tree-v3", data_format, jpeg_encoding=jpeg, record_infos=True)
        expected = expected_episodes(dataset)
        for source in both_modes("tree-v3"):
            assert_equal(source, expected)
            assert_specs(source.info, dataset)
            assert "observations/inner.pair.1" in source.names


@pytest.mark.parametrize("data_format", FORMATS)
def test_numeric_infos_are_read_and_text_is_not(root: Path, data_format: str) -> None:
    with tree_env():
        collect(TREE, "tree-v3", data_format, record_infos=True)
    for source in both_modes("tree-v3"):
        infos = {name for name in source.names if name.startswith("infos/")}
        assert infos == {"infos/count", "infos/at/pos"}
        assert source.read("infos/count", 0, 0, 9).tolist() == [0, 1, 2, 3]
        assert source.read("infos/at/pos", 1, 2, 4).tolist() == [[2, -2], [3, -3]]


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_space_of_tuples_made_from_buffers_is_read(root: Path, data_format: str) -> None:
    space = spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(3)))
    generator = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            observations=(generator.uniform(-1, 1, (n + 1, 2)), generator.integers(0, 3, n + 1)),
            actions=list(generator.uniform(-1, 1, (n, 2)).astype(np.float32)),
            rewards=list(range(n)),
            terminations=[False] * n,
            truncations=[*[False] * (n - 1), True],
        )
        for n in (1, 4)
    ]
    dataset = minari.create_dataset_from_buffers(
        "tuple-v0",
        buffers,
        env="CartPole-v1",
        eval_env="CartPole-v1",
        observation_space=space,
        action_space=spaces.Box(-1, 1, (2,), np.float32),
        data_format=data_format,
        **ABOUT,
    )
    expected = expected_episodes(dataset)
    assert set(expected[0].observations) == {"0", "1"}
    for source in both_modes("tuple-v0"):
        assert_equal(source, expected)


def test_reference_scores_and_descriptions_are_read(root: Path) -> None:
    dataset = collect("CartPole-v1", "toy-v0", "hdf5")
    dataset.storage.update_metadata({"ref_min_score": 10.5, "ref_max_score": 500.0})
    info = read_minari("toy-v0").info
    assert (info.ref_min, info.ref_max) == (10.5, 500.0)
    assert info.generator["algorithm_name"] == "random"
    assert info.generator["dataset_id"] == "toy-v0"
    assert len(info.sha256) == 64


def test_a_set_is_found_by_id_root_and_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect("CartPole-v1", "set/b/toy-v0", "hdf5")
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(root / "nobody"))
    lengths = read_minari("set/b/toy-v0", root=root).lengths.tolist()
    for folder in (root / "set/b/toy-v0", root / "set/b/toy-v0/data"):
        assert read_minari(folder).lengths.tolist() == lengths
    (root / "nobody/.minari").mkdir(parents=True)
    (root / "nobody/.minari/datasets").symlink_to(root)
    assert read_minari("set/b/toy-v0").lengths.tolist() == lengths


def written(root: Path, data_format: Any, **settings: Any) -> list[Episode]:
    """Write three episodes of the integrator; the arrow format wants T + 1 rows of infos."""
    episodes = integrator_episodes((4, 1, 6))
    if data_format != "hdf5":
        energies = [np.square(e.observations["obs"][:, 1]) for e in episodes]
        episodes = [
            Episode(**{**vars(e), "infos": {"energy": energy}})
            for e, energy in zip(episodes, energies, strict=True)
        ]
    info = settings.pop("info", toy_info())
    write_minari(episodes, info, "set/toy-v1", data_format=data_format, **settings)
    return episodes


@pytest.mark.parametrize("data_format", WRITTEN)
def test_minari_opens_iterates_and_samples_what_we_write(root: Path, data_format: str) -> None:
    episodes = written(root, data_format)
    dataset = load("set/toy-v1")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 11)
    assert list(minari.list_local_datasets(compatible_minari_version=True)) == ["set/toy-v1"]
    for ours, theirs in zip(episodes, dataset.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(theirs.observations, ours.observations["obs"])
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        np.testing.assert_array_equal(theirs.rewards, ours.rewards)
        np.testing.assert_array_equal(theirs.infos["energy"], ours.infos["energy"])
        assert theirs.observations.dtype == theirs.rewards.dtype == np.float32
        assert (theirs.terminations[-1], theirs.truncations[-1]) == (
            ours.terminated,
            ours.truncated,
        )
        assert not theirs.terminations[:-1].any()
    assert sorted(len(e) for e in dataset.sample_episodes(3)) == [1, 4, 6]
    assert [len(e) for e in dataset.filter_episodes(lambda e: len(e) > 1)] == [4, 6]
    assert [m["total_steps"] for m in dataset.storage.get_episode_metadata(range(3))] == [4, 1, 6]


@pytest.mark.parametrize("data_format", WRITTEN)
def test_what_we_write_is_read_back_bit_for_bit(root: Path, data_format: str) -> None:
    generator = {"algorithm": "push", "seed": 3}
    info = toy_info(ref_min=-9.0, ref_max=0.0, max_episode_steps=6, generator=generator)
    episodes = written(root, data_format, info=info)
    for source in both_modes("set/toy-v1"):
        assert_equal(source, episodes)
        assert source.info.generator == generator
        for name in ("env_id", "ref_min", "ref_max", "max_episode_steps"):
            assert getattr(source.info, name) == getattr(info, name)


@pytest.mark.parametrize("data_format", WRITTEN)
def test_actions_lead_from_observation_to_observation_in_every_episode(
    root: Path, data_format: str
) -> None:
    written(root, data_format)
    source = read_minari("set/toy-v1")
    for index, steps in enumerate(source.lengths.tolist()):
        states = source.read("observations/obs", index, 0, steps + 1)
        actions = source.read("actions", index, 0, steps)
        for t in range(steps):
            np.testing.assert_array_equal(integrate(states[t], actions[t]), states[t + 1])


@pytest.mark.parametrize("mode", ["memory", "lazy"])
def test_cartpole_can_be_simulated_again_across_the_borders_of_episodes(
    root: Path, mode: Any
) -> None:
    collect("CartPole-v1", "toy-v0", "hdf5", episodes=4)
    dataset = EpisodeDataset(read_minari("toy-v0", mode=mode))
    env: Any = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    for episode in dataset.episodes():
        for t, action in enumerate(episode.actions.tolist()):
            env.state = tuple(episode.observations["obs"][t].astype(np.float64))
            env.steps_beyond_terminated = None
            found, _, terminated, _, _ = env.step(action)
            np.testing.assert_allclose(found, episode.observations["obs"][t + 1], atol=1e-5)
        assert terminated == episode.terminated


@pytest.mark.parametrize("mode", ["memory", "lazy"])
def test_observations_do_not_drift_by_a_row_per_episode(root: Path, mode: Any) -> None:
    # One array of all T + 1 observations beside one of all T actions is off by one row after the
    # first episode, by two after the second, ...
    episodes = integrator_episodes((3, 2, 5, 4))
    write_minari(episodes, toy_info(), "toy-v1")
    dataset = EpisodeDataset(read_minari("toy-v1", mode=mode))
    for actual, wanted in zip(dataset.episodes(), episodes, strict=True):
        first = wanted.observations["obs"][0]
        np.testing.assert_array_equal(actual.observations["obs"][0], first)
        assert len(actual.observations["obs"]) == len(actual.actions) + 1
    rows = np.concatenate([dataset.steps(i).obs["obs"][0] for i in range(4)])
    valid = np.concatenate([dataset.steps(i).valid[0] for i in range(4)])
    states = np.concatenate([e.observations["obs"][:-1] for e in episodes])
    np.testing.assert_array_equal(rows[valid], states)
    drifted = np.concatenate([e.observations["obs"] for e in episodes])[: len(states)]
    assert (drifted[:3] == states[:3]).all()
    assert (drifted[3:] != states[3:]).any(1).all()


@pytest.mark.parametrize("data_format", WRITTEN)
def test_trees_and_pictures_survive_our_writing_and_minari_reads_them(
    root: Path, data_format: Any
) -> None:
    with tree_env():
        collect(TREE, "tree-v0", "hdf5", jpeg_encoding=False)
        dataset = EpisodeDataset(read_minari("tree-v0"))
        wanted = list(dataset.episodes())
        write_minari(dataset.episodes(), dataset.info, "flat-v0", data_format=data_format)
        for source in both_modes("flat-v0"):
            assert_equal(source, wanted)
        theirs = load("flat-v0")
        assert_equal(read_minari("flat-v0"), expected_episodes(theirs))
        assert theirs.minari_version == "0.5.4"
        assert set(theirs.observation_space.spaces) == set(wanted[0].observations)
        assert isinstance(theirs.recover_environment().unwrapped, gymnasium.Env)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_minari_recovers_an_environment_by_its_id(root: Path, env_id: str) -> None:
    collect(env_id, "toy-v0", "hdf5", limit=5)
    source = read_minari("toy-v0")
    episodes = list(EpisodeDataset(source).episodes())
    info = DatasetInfo(env_id=env_id, action_spec=source.info.action_spec, max_episode_steps=5)
    write_minari(episodes, info, "ours-v0")
    env = load("ours-v0").recover_environment()
    env.reset(seed=0)
    assert type(env.unwrapped) is type(gymnasium.make(env_id).unwrapped)
    ends = [env.step(env.action_space.sample())[3] for _ in range(5)]
    assert ends == [False] * 4 + [True]


def test_the_environment_that_was_read_or_given_is_written(root: Path) -> None:
    original = collect("CartPole-v1", "toy-v0", "hdf5")
    dataset = EpisodeDataset(read_minari("toy-v0"))
    write_minari(dataset.episodes(), dataset.info, "again-v0")
    assert load("again-v0").env_spec == original.env_spec
    spec = gymnasium.spec("CartPole-v1").to_json()
    info = DatasetInfo(env_id="CartPole-v1", action_spec=dataset.info.action_spec)
    about = MinariMetadata(
        env_spec=spec, eval_env_spec=spec, author=("me",), requirements=("numpy",)
    )
    write_minari(dataset.episodes(), info, "given-v0", metadata=about)
    given = load("given-v0")
    assert given.env_spec == gymnasium.spec("CartPole-v1")
    assert given.recover_environment(eval_env=True).spec is not None
    assert given.storage.metadata["author"] == {"me"}


def test_an_id_that_gymnasium_does_not_take_is_kept_without_an_environment(root: Path) -> None:
    info = DatasetInfo(env_id="dmc:walker/walk/x")
    write_minari(integrator_episodes((3,)), info, "toy-v0")
    assert load("toy-v0").env_spec is None
    assert read_minari("toy-v0").info.env_id == "dmc:walker/walk/x"


def test_minari_can_add_to_and_combine_what_we_write(root: Path) -> None:
    written(root, "hdf5")
    episodes = integrator_episodes((2,), seed=9)
    dataset = load("set/toy-v1")
    dataset.update_dataset_from_buffer(
        [
            EpisodeBuffer(
                observations=list(e.observations["obs"]),
                actions=list(e.actions),
                rewards=list(e.rewards),
                terminations=[False, True],
                truncations=[False, False],
                infos={"energy": list(e.infos["energy"])},
            )
            for e in episodes
        ]
    )
    assert read_minari("set/toy-v1").lengths.tolist() == [4, 1, 6, 2]
    minari.combine_datasets([load("set/toy-v1"), load("set/toy-v1")], "both-v0")
    assert read_minari("both-v0").lengths.tolist() == [4, 1, 6, 2] * 2


def test_choices_with_several_entries_survive(root: Path) -> None:
    generator = np.random.default_rng(0)
    actions = generator.integers(0, [3, 5], (4, 2))
    episode = Episode(
        observations={"obs": generator.integers(0, 2, (5, 3)).astype(np.int8)},
        actions=actions,
        rewards=np.arange(4, dtype=np.float32),
        terminated=False,
        truncated=True,
    )
    info = DatasetInfo(
        obs_specs={"obs": ArraySpec((3,), "int8", num_choices=(2, 2, 2))},
        action_spec=ArraySpec((2,), "int64", num_choices=(3, 5)),
    )
    write_minari([episode], info, "toy-v0")
    source = read_minari("toy-v0")
    assert_equal(source, [episode])
    assert source.info.obs_specs == info.obs_specs
    assert source.info.action_spec == info.action_spec
    assert isinstance(load("toy-v0").observation_space, spaces.MultiBinary)


def test_a_lazy_source_reads_only_the_rows_that_are_asked_for(root: Path) -> None:
    episodes = written(root, "hdf5")
    source = read_minari("set/toy-v1", mode="lazy")
    assert isinstance(source, MinariSource)
    wanted = episodes[2].observations["obs"]
    np.testing.assert_array_equal(source.read("observations/obs", 2, 2, 4), wanted[2:4])
    np.testing.assert_array_equal(source.read("observations/obs", 2, 6, 99), wanted[6:])
    assert source.read("actions", 1, 1, 5).shape == (0, 1)


def test_images_of_old_sets_that_are_not_encoded_are_read_as_they_are(root: Path) -> None:
    with tree_env():
        dataset = collect(TREE, "tree-v0", "hdf5", jpeg_encoding=False)
        expected = expected_episodes(dataset)
    file = root / "tree-v0/data/metadata.json"
    content = json.loads(file.read_text())
    del content["jpeg_encoding"]
    file.write_text(json.dumps({**content, "minari_version": "0.4.3"}))
    assert_equal(read_minari("tree-v0"), expected)


def test_episodes_are_written_one_by_one_and_a_failure_leaves_nothing(root: Path) -> None:
    alive = []

    def stream() -> Any:
        for episode in integrator_episodes((3, 3)):
            alive.append(len(list(root.glob("set/.toy-v1.*.tmp"))))
            yield episode
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        write_minari(stream(), toy_info(), "set/toy-v1")
    assert alive == [0, 1]
    assert [p for p in root.rglob("*") if p.is_file()] == []


def test_a_failed_overwrite_keeps_what_was_there(root: Path) -> None:
    episodes = written(root, "hdf5")
    broken = integrator_episodes((2, 2))
    broken[1].observations["obs"][1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        write_minari(broken, toy_info(), "set/toy-v1", overwrite=True)
    assert_equal(read_minari("set/toy-v1"), episodes)
    write_minari(integrator_episodes((2,)), toy_info(), "set/toy-v1", overwrite=True)
    assert read_minari("set/toy-v1").lengths.tolist() == [2]
    assert sorted(p.name for p in (root / "set").iterdir()) == ["namespace_metadata.json", "toy-v1"]
