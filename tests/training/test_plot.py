import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from statewise.training import plot
from statewise.training.plot import aggregate, plot_runs
from statewise.training.plot_curves import METRIC, Curve, read_curves
from statewise.training.run import RunDirectory, RunError, write_json

CONFIG = "system: ppo\nenv: {{id: {env}{trial}}}\nagent: {{sequence: {{kind: {kind}}}}}\n"


def make(
    path: Path,
    points: list[tuple[int, float | None]],
    *,
    env: str = "popgym-X-v0",
    kind: str = "s5",
    preset: str | None = None,
    trial: str = "",
) -> Path:
    manifest = {} if preset is None else {"command": ["statewise", "train", preset]}
    run = RunDirectory.create(path, CONFIG.format(env=env, kind=kind, trial=trial), manifest)
    rows = [{"step": step, "wall_s": 1.0, METRIC: value} for step, value in points]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def curve_of(path: Path) -> Curve:
    [curve] = read_curves([path])
    return curve


def texts(figure: plot.Figure) -> list[str]:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def lines(figure: plot.Figure) -> list[list[list[float]]]:
    return [np.asarray(line.get_xydata()).tolist() for line in figure.axes[0].get_lines()]


def test_one_run_is_drawn_into_its_plots_folder_as_800_by_500_pixels(tmp_path: Path) -> None:
    path = make(tmp_path / "run", [(10, 0.0), (20, 1.0)])
    out = plot_runs([path])
    assert out == path / "plots" / "learning_curve.png"
    image = imread(out)
    assert image.shape[:2] == (500, 800)
    blue = np.array([0, 0x72, 0xB2]) / 255
    assert (np.abs(image[..., :3] - blue).max(-1) < 0.02).sum() > 500


def test_the_axes_are_labelled_and_the_title_names_the_environment(tmp_path: Path) -> None:
    curve = curve_of(make(tmp_path / "run", [(10, 0.0)], preset="ppo/x"))
    figure = plot._plot_one(curve)
    axes = figure.axes[0]
    assert axes.get_title() == "popgym-X-v0"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("environment steps", "episode return")
    assert texts(figure) == ["ppo/x, s5, training"]


def test_points_without_a_return_are_left_out(tmp_path: Path) -> None:
    path = make(tmp_path / "run", [(10, None), (20, 0.5), (30, math.nan), (40, 0.7)])
    assert lines(plot._plot_one(curve_of(path))) == [[[20, 0.5], [40, 0.7]]]


def test_the_evaluation_is_a_dashed_line_at_its_mean(tmp_path: Path) -> None:
    path = make(tmp_path / "run", [(10, 0.0), (20, 1.0)])
    write_json(path / "eval.json", {"step": 20_000, "return_mean": 0.75, "return_ci95": [0.5, 1.0]})
    figure = plot._plot_one(curve_of(path))
    line = figure.axes[0].get_lines()[1]
    assert line.get_linestyle() == "--"
    assert list(line.get_ydata()) == [0.75, 0.75]
    assert texts(figure)[1:] == ["evaluation at 20,000 steps: 0.75", "its 95 % interval"]


def test_an_evaluation_of_one_episode_has_no_interval_to_draw(tmp_path: Path) -> None:
    path = make(tmp_path / "run", [(10, 0.0)])
    write_json(path / "eval.json", {"step": 10, "return_mean": 1, "return_ci95": [math.nan] * 2})
    assert len(texts(plot._plot_one(curve_of(path)))) == 2


def test_a_broken_evaluation_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "run", [(10, 0.0)])
    (path / "eval.json").write_text("{}")
    with pytest.raises(RunError, match=r"eval\.json: expected step, return_mean and return_ci95"):
        plot_runs([path])


def test_several_runs_are_grouped_by_environment_preset_and_model(tmp_path: Path) -> None:
    same = [(10, 0.0), (20, 1.0)]
    paths = [
        make(tmp_path / "a", same, kind="s5"),
        make(tmp_path / "b", same, kind="gru"),
        make(tmp_path / "c", same, kind="s5"),
        make(tmp_path / "d", same, kind="s5", preset="ppo/y"),
        make(tmp_path / "e", same, kind="s5", env="popgym-Z-v0"),
    ]
    figure = plot._plot_groups(read_curves(paths))
    assert texts(figure) == [
        "popgym-X-v0: ppo, s5 (2 runs, mean and range)",
        "popgym-X-v0: ppo, gru",
        "popgym-X-v0: ppo/y, s5",
        "popgym-Z-v0: ppo, s5",
    ]
    assert figure.axes[0].get_title() == "popgym-X-v0, popgym-Z-v0"


def test_a_control_is_not_averaged_with_what_it_controls(tmp_path: Path) -> None:
    same = [(10, 0.0), (20, 1.0)]
    paths = [
        make(tmp_path / "a", same),
        make(tmp_path / "b", same, kind="s5, memory: none"),
        make(tmp_path / "c", same, trial=", trial: {episodes: 2, memory: episode}"),
        make(tmp_path / "d", same, trial=", trial: {episodes: 2, memory: trial}"),
    ]
    assert texts(plot._plot_groups(read_curves(paths))) == [
        "ppo, s5 (2 runs, mean and range)",
        "ppo, s5, without memory",
        "ppo, s5, memory of an episode",
    ]


def test_a_world_model_without_memory_is_no_other_either(tmp_path: Path) -> None:
    paths = []
    for memory in ("kept", "none"):
        path = make(tmp_path / memory, [(10, 0.0), (20, 1.0)])
        world = f"{{core: parallel, parallel: {{sequence: {{kind: s5, memory: {memory}}}}}}}"
        config = f"system: r2i\nenv: {{id: popgym-X-v0}}\nagent: {{world: {world}}}\n"
        RunDirectory(path).config_path.write_text(config)
        paths.append(path)
    assert texts(plot._plot_groups(read_curves(paths))) == ["r2i, s5", "r2i, s5, without memory"]


def test_two_runs_are_averaged_where_both_are_with_their_range(tmp_path: Path) -> None:
    curves = [
        curve_of(make(tmp_path / "a", [(0, 0.0), (10, 1.0), (20, 2.0)])),
        curve_of(make(tmp_path / "b", [(5, 2.5), (15, 3.5), (99, 9.0)])),
    ]
    # The first run at 5 and 15 lies halfway between its points; so does the second at 10;
    # at 20 the second is at 3.5 + 5 * 5.5 / 84.
    last = 3.5 + 5 * 5.5 / 84
    steps, mean, low, high = aggregate(curves)
    assert steps.tolist() == [5, 10, 15, 20]
    assert low.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert high == pytest.approx([2.5, 3.0, 3.5, last])
    assert mean == pytest.approx([1.5, 2.0, 2.5, (2 + last) / 2])


def test_five_runs_get_the_interval_of_their_mean_fewer_their_range(tmp_path: Path) -> None:
    values = (1.0, 1.0, 2.0, 3.0, 3.0)
    curves = [curve_of(make(tmp_path / str(i), [(10, x)])) for i, x in enumerate(values)]
    _, mean, low, high = aggregate(curves)
    # standard error 1 / sqrt(5), t(4) = 2.7764
    half = 2.7764 / math.sqrt(5)
    assert (*mean, *low, *high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-4)
    _, mean, low, high = aggregate(curves[:4])
    assert (*mean, *low, *high) == (1.75, 1.0, 3.0)


def test_runs_that_share_no_step_are_refused(tmp_path: Path) -> None:
    paths = [make(tmp_path / "a", [(10, 0.0)]), make(tmp_path / "b", [(20, 0.0)])]
    with pytest.raises(RunError, match="have no step in common"):
        plot_runs(paths, tmp_path / "x.png")


def test_several_runs_are_drawn_where_asked_or_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [(10, 0.0), (20, 1.0)]
    paths = [make(tmp_path / name, points) for name in ("a", "b")]
    assert plot_runs(paths, tmp_path / "new" / "fig.svg").read_text().startswith("<?xml")
    monkeypatch.chdir(tmp_path)
    assert plot_runs(paths) == Path("learning_curves.png")
    assert (tmp_path / "learning_curves.png").stat().st_size > 0


def test_what_cannot_be_drawn_is_told_in_one_line(tmp_path: Path) -> None:
    empty = make(tmp_path / "empty", [])
    with pytest.raises(RunError, match=r"empty has no rollout/ep_rew_mean yet"):
        plot_runs([empty])
    with pytest.raises(RunError, match="at least one run"):
        plot_runs([])
    good = make(tmp_path / "good", [(10, 0.0)])
    with pytest.raises(RunError, match=r"fig\.xyz: expected a suffix among .*png"):
        plot_runs([good], tmp_path / "fig.xyz")
    (tmp_path / "fig.png").mkdir()
    with pytest.raises(RunError, match="cannot be written: Is a directory"):
        plot_runs([good], tmp_path / "fig.png")
    (good / "config.yaml").write_text("env: {}\n")
    with pytest.raises(RunError, match=r"config\.yaml: expected system, env\.id"):
        plot_runs([good])


# --- runs on data


def make_on_data(
    path: Path,
    rows: list[dict[str, float | None]],
    *,
    data: str = "datasets/x/expert.hdf5",
    agent: str = "{}",
    changes: str = "",
    manifest: dict[str, Any] | None = None,
) -> Path:
    text = f"system: bc\nenv: {{id: X-v0}}\nagent: {agent}\ndata: {{paths: [{data}]{changes}}}\n"
    run = RunDirectory.create(path, text, manifest or {})
    lines = [json.dumps({"wall_s": 1.0, **row}) + "\n" for row in rows]
    run.metrics_path.write_text("".join(lines))
    return path


EVALUATED: list[dict[str, float | None]] = [
    {"step": 5, "offline/grad_norm": 1, "offline/action_loss": 0.5},
    {"step": 10, "offline/action_loss": 0.4, "eval/return_mean": 12, "eval/score": 10},
    {"step": 20, "offline/action_loss": None, "eval/return_mean": 14, "eval/score": 20},
]


@pytest.mark.parametrize(
    ("hidden", "label", "points"),
    [
        ("", "score", [[10, 10], [20, 20]]),
        ("eval/score", "episode return", [[10, 12], [20, 14]]),
        ("eval/", "action loss", [[5, 0.5], [10, 0.4]]),
    ],
)
def test_a_run_on_data_shows_scores_else_returns_else_its_loss(
    hidden: str, label: str, points: list[list[float]], tmp_path: Path
) -> None:
    rows = [
        {k: v for k, v in r.items() if not (hidden and k.startswith(hidden))} for r in EVALUATED
    ]
    figure = plot._plot_one(curve_of(make_on_data(tmp_path / "run", rows)))
    assert lines(figure) == [points]
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("updates", label)
    what = "training" if "loss" in label else "evaluations on the way"
    assert texts(figure) == [f"bc, expert, {what}"]


REPORT: dict[str, Any] = {
    "step": 1200,
    "return_mean": 15.0,
    "return_ci95": [12.0, 18.0],
    "target": -3.5,
    "score": 25.0,
    "reference": {"name": "data", "min": 10.0, "max": 30.0},
    "data_sha256": [],
}


@pytest.mark.parametrize("metric", ["eval/score", "eval/return_mean", "offline/action_loss"])
def test_its_evaluation_is_a_line_in_the_unit_of_the_curve(metric: str, tmp_path: Path) -> None:
    path = make_on_data(tmp_path / "run", [{"step": 1, metric: 2.0}, {"step": 2, metric: 3.0}])
    write_json(path / "eval.json", REPORT)
    figure = plot._plot_one(curve_of(path))
    value, low, high = (15, 12, 18) if metric == "eval/return_mean" else (25, 10, 40)
    legend = figure.axes[-1].get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[1:] == [f"evaluation at 1,200 updates, target -3.5: {value}", "its 95 % interval"]
    line = figure.axes[-1].get_lines()[-1]
    assert list(line.get_ydata()) == [value, value]
    band = (
        figure.axes[-1].patches[-1].get_extents().transformed(figure.axes[-1].transData.inverted())
    )
    assert (band.y0, band.y1) == (pytest.approx(low), pytest.approx(high))
    # A loss has no unit in common with a score, which gets an axis of its own.
    assert len(figure.axes) == (2 if "loss" in metric else 1)
    assert figure.axes[-1].get_ylabel() == ("episode return" if "return" in metric else "score")


def test_a_score_without_its_reference_is_named(tmp_path: Path) -> None:
    path = make_on_data(tmp_path / "run", EVALUATED)
    write_json(path / "eval.json", REPORT | {"reference": None})
    with pytest.raises(RunError, match=r"eval\.json: expected step, .*, and reference: run"):
        plot_runs([path])


def test_runs_on_other_data_are_never_averaged(tmp_path: Path) -> None:
    paths = [
        make_on_data(tmp_path / "a", EVALUATED),
        make_on_data(tmp_path / "b", EVALUATED),
        make_on_data(tmp_path / "c", EVALUATED, data="a/medium.hdf5, a/minari/random-v0"),
        make_on_data(tmp_path / "d", EVALUATED, changes=", keep_best: 0.1, reward: delayed"),
        make_on_data(tmp_path / "e", EVALUATED, agent="{sequence: {kind: s4d}}"),
    ]
    assert texts(plot._plot_groups(read_curves(paths))) == [
        "bc, expert (2 runs, mean and range)",
        "bc, medium + random-v0",
        "bc, expert, best 10 %, delayed reward",
        "bc, s4d, expert",
    ]


def test_runs_are_drawn_by_what_all_of_them_have(tmp_path: Path) -> None:
    scored = make_on_data(tmp_path / "scored", EVALUATED)
    played = make_on_data(tmp_path / "played", [{"step": 10, "eval/return_mean": 1}])
    plain = make_on_data(
        tmp_path / "plain", [{"step": 5, "offline/critic_loss": 1, "offline/action_loss": 2}]
    )
    found = {
        names: {curve.metric for curve in read_curves(names)}
        for names in ((scored, scored), (scored, played), (scored, plain), (plain,))
    }
    assert list(found.values()) == [
        {"eval/score"}, {"eval/return_mean"}, {"offline/action_loss"}, {"offline/critic_loss"}
    ]  # fmt: skip
    with pytest.raises(RunError, match=r"share none: plot them one by one, or train with --eval"):
        read_curves([plain, played])


def test_runs_on_data_and_in_an_environment_are_not_drawn_together(tmp_path: Path) -> None:
    paths = [make(tmp_path / "a", [(10, 0.0)]), make_on_data(tmp_path / "b", EVALUATED)]
    with pytest.raises(RunError, match=r"a over environment steps and .*b over updates: plot th"):
        plot_runs(paths, tmp_path / "x.png")
    empty = make_on_data(tmp_path / "empty", [])
    with pytest.raises(RunError, match=r"empty has no evaluation and no loss yet"):
        plot_runs([empty])


def test_a_fine_tuned_run_is_one_in_an_environment(tmp_path: Path) -> None:
    path = make_on_data(
        tmp_path / "run",
        [{"step": 40, METRIC: 3.0, "eval/score": 5.0}],
        manifest={"command": ["statewise", "finetune", "runs/x-1"], "finetune": {}},
    )
    write_json(path / "eval.json", REPORT)
    figure = plot._plot_one(curve_of(path))
    assert lines(figure)[0] == [[40, 3]]
    assert figure.axes[0].get_xlabel() == "environment steps"
    assert texts(figure)[:2] == [
        "bc fine-tuned, expert, training",
        "evaluation at 1,200 updates, target -3.5: 15",
    ]


def test_no_figure_is_left_with_pyplot(tmp_path: Path) -> None:
    plot_runs([make(tmp_path / "run", [(10, 0.0)])])
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []
