"""Pictures of sequences: what is drawn is what was given, and nothing needs a screen."""

import subprocess
import sys

import numpy as np
import pytest

from probgen import plots
from probgen.errors import ParameterError, StoreError
from probgen.plots import canvas

RNG = np.random.default_rng(2)
COUNTS = RNG.poisson(9, 60).astype(float)
DECODED = np.repeat([0, 2, 1, 0], 15)
MEANS = np.array([5.0, 9.0, 20.0])
MATRIX = np.array([[0.9, 0.1, 0.0], [0.3, 0.695, 0.005], [0.0, 0.25, 0.75]])


@pytest.fixture
def page(monkeypatch):
    """The last figure that was saved."""
    kept, save = [], canvas.save

    def keeping(figure, path):
        save(figure, path)
        kept[:] = [figure]

    monkeypatch.setattr(canvas, "save", keeping)
    return lambda: kept[0]


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and len(path.read_bytes()) > 2000


# Sequences


def test_a_series_is_drawn_in_its_order_with_the_place_where_the_held_out_part_begins(tmp_path, page):
    plots.series({"data": [COUNTS], "model": [COUNTS[::-1]]}, tmp_path / "x.png", begin=50)
    first, second = page().axes
    assert first.get_lines()[0].get_ydata().tolist() == COUNTS.tolist()
    assert second.get_lines()[0].get_ydata().tolist() == COUNTS[::-1].tolist()
    assert first.get_lines()[1].get_xdata() == [49.5, 49.5]
    assert first.get_ylim() == second.get_ylim()
    assert is_png(tmp_path / "x.png")


def test_cells_of_a_step_have_lanes_that_never_meet(tmp_path, page):
    x = np.stack([COUNTS, 1000 * COUNTS, np.ones(60)], axis=1)
    plots.series({"data": [x], "far": [100 * x]}, tmp_path / "x.png", names=["a", "b", "c"])
    for axis in page().axes:
        for j, line in enumerate(axis.get_lines()):
            assert ((line.get_ydata() > j - 0.1) & (line.get_ydata() < j + 0.9)).all()
    labels = [text.get_text() for text in page().axes[0].get_yticklabels()]
    assert [label.split("\n")[0] for label in labels] == ["a", "b", "c"]


def test_a_lane_of_categories_is_labelled_by_name_not_by_code(tmp_path, page):
    codes = np.array([[0.5, 2.0], [1.5, 1.0], [2.5, 2.0]])
    plots.series({"data": [codes]}, tmp_path / "x.png", names=["size", "k"], levels=[None, (7, 8, 19)])
    labels = [text.get_text() for text in page().axes[0].get_yticklabels()]
    assert labels == ["size\n0.5 to 2.5", "k\n8 to 19"]
    plots.series({"data": [codes[:, 1]]}, tmp_path / "x.png", levels=[("a", "b", "a long name of a level")])
    assert [text.get_text() for text in page().axes[0].get_yticklabels()] == ["a", "b", "a long name "]


ODD = {
    "gaps": [np.where(RNG.random(40) < 0.4, np.nan, 1.0)],
    "all gaps": [np.full(5, np.nan)],
    "one step": [np.ones(1)],
    "many sequences": [np.ones((n, 2)) for n in range(1, 10)],
    "images": [RNG.random((4, 3, 3))],
    "long": [RNG.normal(size=20_000)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_series_are_drawn(tmp_path, name):
    plots.series({"data": ODD[name]}, tmp_path / "x.png")
    assert is_png(tmp_path / "x.png")


# States


def test_the_ground_shows_the_decoded_state_and_bars_its_mean(tmp_path, page):
    plots.states(COUNTS, DECODED, MEANS, tmp_path / "x.png", names=["quakes"], first=1900, time="year")
    (axis,) = page().axes
    (ground,) = axis.get_images()
    assert ground.get_array()[0].tolist() == DECODED.tolist()
    assert ground.get_extent()[:2] == [1899.5, 1959.5]
    assert axis.get_lines()[0].get_xdata()[[0, -1]].tolist() == [1900, 1959]
    bars = [bar.tolist() for bar in axis.collections[0].get_segments()]
    assert bars == [[[1899.5 + 15 * i, mean], [1914.5 + 15 * i, mean]] for i, mean in enumerate([5.0, 20.0, 9.0, 5.0])]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("year", "quakes")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "state 0, mean 5", "state 1, mean 9", "state 2, mean 20",
    ]  # fmt: skip


def test_a_state_has_one_colour_in_every_view(tmp_path, page):
    plots.sequence(tmp_path / "x.png", states=(COUNTS, DECODED, MEANS), graph=(MATRIX, None))
    series, graph = page().axes
    nodes = [patch.get_facecolor() for patch in graph.patches if type(patch).__name__ == "Circle"]
    bars = series.collections[0].get_colors()
    assert [tuple(bars[i]) for i in (0, 2, 1)] == nodes


def test_several_cells_are_drawn_one_below_the_other(tmp_path, page):
    x = np.stack([COUNTS, -COUNTS], axis=1)
    plots.sequence(
        tmp_path / "x.png", states=(x, DECODED, np.stack([MEANS, -MEANS], axis=1)), heat=np.full((60, 3), 1 / 3)
    )
    lines = [axis.get_lines()[0].get_ydata().tolist() for axis in page().axes[:2]]
    assert lines == [COUNTS.tolist(), (-COUNTS).tolist()]
    assert len({axis.get_xlim() for axis in page().axes[:3]}) == 1


@pytest.mark.parametrize("states", [1, 2, 8, 9, 40])
def test_any_number_of_states_is_drawn(tmp_path, states):
    path, matrix = RNG.integers(states, size=60), RNG.dirichlet(np.ones(states), size=states)
    heat = RNG.dirichlet(np.ones(states), size=60)
    plots.sequence(tmp_path / "x.png", states=(COUNTS, path, None), heat=heat, graph=(matrix, None))
    assert is_png(tmp_path / "x.png")


# Moves and probabilities


def arrows(figure):
    return [patch for patch in figure.axes[0].patches if type(patch).__name__ == "FancyArrowPatch"]


def test_arrows_are_as_wide_as_their_probability_and_the_rarest_are_left_out(tmp_path, page):
    plots.graph(MATRIX, ["calm", "busy", "wild"], tmp_path / "x.png")
    widths = sorted(arrow.get_linewidth() for arrow in arrows(page()))
    kept = sorted(MATRIX[MATRIX >= 0.01])
    assert widths == pytest.approx([0.4 + 4 * p for p in kept])
    texts = [text.get_text() for text in page().axes[0].texts]
    assert {"calm", "busy", "wild", "0.90", "0.10", "0.30"} <= set(texts)
    assert "below 1 %" in page().axes[0].get_title()


def test_arrows_begin_and_end_at_their_states(tmp_path, page):
    plots.graph(np.array([[0.0, 1.0], [0.0, 1.0]]), None, tmp_path / "x.png")
    paths = [arrow.get_path() for arrow in arrows(page())]
    there, loop = (path.vertices[path.codes != path.CLOSEPOLY] for path in paths)  # state 0 stands left, 1 right
    assert there[0][0] < -0.7
    assert there[:, 0].max() > 0.7
    assert loop[:, 0].min() > 1


def test_the_map_holds_the_probabilities(tmp_path, page):
    heat = RNG.dirichlet(np.ones(3), size=60)
    plots.heat(heat, tmp_path / "x.png", first=1900, time="year")
    image = page().axes[0].get_images()[0]
    np.testing.assert_array_equal(image.get_array(), heat.T)
    assert image.get_extent() == [1899.5, 1959.5, 2.5, -0.5]
    assert image.get_clim() == (0, 1)


def test_a_page_without_a_panel_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="No panel"):
        plots.sequence(tmp_path / "x.png")


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(StoreError):
        plots.heat(np.ones((3, 1)), tmp_path / "nowhere" / "x.png")


def test_pictures_need_no_screen_and_no_pyplot(tmp_path):
    code = (
        "import sys, numpy as np; from probgen import plots\n"
        f"plots.sequence({str(tmp_path / 'x.png')!r}, heat=np.ones((3, 1)), graph=(np.ones((1, 1)), None))\n"
        "print('matplotlib.pyplot' in sys.modules, 'matplotlib' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "True"]
