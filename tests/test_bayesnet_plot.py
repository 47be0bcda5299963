"""Pictures of graphs: nothing overlaps, no arrow hides, and every network can be drawn."""

import itertools
import os
import re
import shutil
import stat
import time
import xml.etree.ElementTree as ET
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from probgen import events as ev
from probgen import layout, plots
from probgen.errors import ParameterError
from probgen.layout import layers
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.bayesnet.pictures import Picture, plot

NO_YES = ev.Category(("no", "yes"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_edges(seed, n, share):
    rng = np.random.default_rng(seed)
    names = [f"n{i}" for i in range(n)]
    return names, [(a, b) for a, b in itertools.combinations(names, 2) if rng.random() < share]


def random_sizes(names, seed):
    rng = np.random.default_rng(seed)
    return {name: (0.4 + rng.random(), 0.3 + 0.3 * rng.random()) for name in names}


def overlaps(found, sizes):
    """Pairs of boxes that touch."""
    boxes = [(*found.places[name], *sizes[name]) for name in sizes]
    return sum(
        abs(x - u) < (w + p) / 2 and abs(y - v) < (h + q) / 2
        for (x, y, w, h), (u, v, p, q) in itertools.combinations(boxes, 2)
    )


def hidden(found, sizes, routes):
    """Edges that run under the box of a node which is not their end, on a fine walk along the corners."""
    bad = 0
    for (a, b), points in routes.items():
        ends, t = np.array(points), np.linspace(0, 1, 25)[:, None, None]
        walk = ((1 - t) * ends[:-1] + t * ends[1:]).reshape(-1, 1, 2)
        others = [name for name in sizes if name not in (a, b)]
        centres = np.array([found.places[name] for name in others]).reshape(-1, 2)
        half = np.array([sizes[name] for name in others]).reshape(-1, 2) / 2
        bad += bool((np.abs(walk - centres) < half - 1e-9).all(2).any())
    return bad


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 20), share=st.sampled_from((0.0, 0.05, 0.15, 0.4)))
def test_no_box_covers_another_and_no_edge_runs_under_a_box(seed, n, share):
    names, edges = random_edges(seed, n, share)
    sizes = random_sizes(names, seed)
    found = layout.arrange(names, edges, [], sizes)
    assert set(found.places) == set(names)
    assert overlaps(found, sizes) == 0
    assert hidden(found, sizes, found.routes) == 0
    for a, b in edges:
        assert found.places[a][1] > found.places[b][1]  # arrows point down
        tail, head = found.routes[a, b][0], found.routes[a, b][-1]
        assert tail[1] == pytest.approx(found.places[a][1] - sizes[a][1] / 2)
        assert head[1] == pytest.approx(found.places[b][1] + sizes[b][1] / 2)
        assert abs(head[0] - found.places[b][0]) < sizes[b][0] / 2
    for name, (x, y) in found.places.items():
        w, h = sizes[name]
        assert min(x - w / 2, y - h / 2) > -1e-9
        assert x + w / 2 < found.width + 1e-9
        assert y + h / 2 < found.height + 1e-9


def test_straight_lines_in_place_of_routes_are_caught():
    """The planted bug: edges that ignore what lies between."""
    names, edges = random_edges(3, 20, 0.2)
    sizes = random_sizes(names, 3)
    found = layout.arrange(names, edges, [], sizes)
    straight = {(a, b): [found.routes[a, b][0], found.routes[a, b][-1]] for a, b in edges}
    assert hidden(found, sizes, straight) > 0
    piled = layout.Layout(dict.fromkeys(names, (0.0, 0.0)), {}, 1.0, 1.0)
    assert overlaps(piled, sizes) == len(names) * (len(names) - 1) // 2


def test_sweeps_take_crossings_away():
    names, edges = random_edges(5, 30, 0.1)
    index = {name: i for i, name in enumerate(names)}
    down = [(index[a], index[b]) for a, b in edges]
    rows, chains = layers._rows(layers._levels(range(30), down), down)
    _, low = layers._beside(chains)
    before = layers._crossings(rows, low)
    layers._uncross(rows, chains)
    counted = sum(
        (row.index(a) - row.index(b)) * (under.index(v) - under.index(w)) < 0
        for row, under in itertools.pairwise(rows)
        for (a, v), (b, w) in itertools.combinations([(a, v) for a in row for v in low[a]], 2)
    )
    assert layers._crossings(rows, low) == counted < before / 2


def test_the_places_of_a_tree_cross_nowhere():
    names = [f"n{i}" for i in range(31)]
    edges = [(names[(i - 1) // 2], names[i]) for i in np.random.default_rng(0).permutation(np.arange(1, 31))]
    index = {name: i for i, name in enumerate(names)}
    rows, chains = layers._rows(layers._levels(range(31), down := [(index[a], index[b]) for a, b in edges]), down)
    layers._uncross(rows, chains)
    assert layers._crossings(rows, layers._beside(chains)[1]) == 0


def test_cycles_and_double_arrows_are_drawn_too():
    names = list("abcd")
    edges = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "c")]
    sizes = dict.fromkeys(names, (0.5, 0.3))
    found = layout.arrange(names, edges, [], sizes)
    assert set(found.routes) == set(edges)
    assert overlaps(found, sizes) == hidden(found, sizes, found.routes) == 0


def test_a_grid_without_directions_looks_like_one():
    names = [f"{i},{j}" for i in range(5) for j in range(5)]
    edges = [(f"{i},{j}", f"{i + a},{j + b}") for i in range(5) for j in range(5) for a, b in ((0, 1), (1, 0))]
    edges = [(a, b) for a, b in edges if b in names]
    found = layout.arrange(names, [], edges, sizes := dict.fromkeys(names, (0.4, 0.3)))
    lengths = [np.hypot(*np.subtract(found.places[a], found.places[b])) for a, b in edges]
    assert max(lengths) < 1.25 * min(lengths)
    assert overlaps(found, sizes) == 0


def test_the_same_graph_gives_the_same_places():
    names, edges = random_edges(8, 15, 0.2)
    sizes = random_sizes(names, 8)
    assert layout.arrange(names, edges, [], sizes) == layout.arrange(names, edges, [], sizes)
    assert layout.arrange(names, [], edges, sizes) == layout.arrange(names, [], edges, sizes)


def test_a_thousand_nodes_take_seconds():
    rng = np.random.default_rng(1)
    names = [f"n{i}" for i in range(1000)]
    edges = [(names[i], names[j]) for j in range(1, 1000) for i in set(rng.integers(0, j, 1 + (rng.random() < 0.2)))]
    start = time.process_time()
    found = layout.arrange(names, edges, [], dict.fromkeys(names, (0.5, 0.3)))
    assert time.process_time() - start < 15.0
    assert found.width < 500


# Networks


@pytest.fixture(scope="module")
def net():
    odd = 'odd "$x_{"\\ name'
    event = ev.Table({"a": NO_YES, "b": ev.Real(), odd: ev.Category(tuple("uvwxyzabcd")), "n": ev.Count()})
    edges = [("a", "b"), ("a", odd), ("a", "n")]
    made = BayesianNetwork(event, edges)
    made.conditional("a").set_table([0.9, 0.1])
    return made.imported()


def image(data):
    return np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)


def has(pixels, colour):
    """Pixels of about a colour "#rrggbb"."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(2) < 12).sum())


def test_a_network_is_drawn_in_every_form(net, tmp_path):
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".dot", b"digraph")):
        path = plot(net, tmp_path / f"net{ending}", engine="own")
        assert path.read_bytes().startswith(start)
    ET.parse(tmp_path / "net.svg")
    shown = plot(net, engine="own")
    assert isinstance(shown, Picture)
    assert shown._repr_png_().startswith(b"\x89PNG")
    assert net.plot(tmp_path / "again.png", engine="own").exists()


def test_nodes_have_the_colour_of_their_kind(net):
    pixels = image(plot(net, engine="own").png)
    for colour in plots.canvas.STATES[:3]:  # category, real, count
        assert has(pixels, colour) > 50
    assert has(pixels, plots.canvas.STATES[3]) == 0
    assert has(image(plot(net.do({"b": 1.0}), engine="own").png), plots.canvas.STATES[3]) > 50  # set


def test_bars_are_as_long_as_their_probabilities(net):
    nodes = ["a", "b"]
    long, short = (
        has(image(plots.network(nodes, bars={"a": [("yes", p)], "b": []}, engine="own")), plots.canvas.ACCENT)
        for p in (0.9, 0.1)
    )
    assert long > short + 500
    assert plot(net, marginals=True, engine="own").png != plot(net, engine="own").png
    assert plot(net, marginals=net.marginals({"a": ["yes"]}), engine="own").png != plot(net, marginals=True).png


def test_stronger_edges_are_wider():
    nodes, edges = list("abc"), [("a", "b"), ("a", "c")]
    dark = [
        has(image(plots.network(nodes, edges, weights=dict.fromkeys(edges, w), engine="own")), "#5b6670")
        for w in (0.05, 1.0)
    ]
    assert dark[1] > 1.5 * dark[0]


def test_the_text_for_graphviz_holds_every_node_and_edge(net):
    text = plots.network(
        net.variables, net.edges[:2], net.edges[2:], weights={net.edges[0]: 0.25}, bars={"a": [("no", 0.9)]}, form="dot"
    ).decode()
    names = [re.sub(r"\\(.)", r"\1", found) for found in re.findall(r'^"((?:[^"\\]|\\.)*)" \[', text, re.MULTILINE)]
    assert names == list(net.variables)
    assert text.count(" -> ") == 3
    assert text.count("dir=none") == 1
    assert 'label="0.25"' in text
    assert 'label="a\\nno  0.90"' in text


def program(folder, body):
    """A stand-in for Graphviz' dot."""
    path = folder / "dot"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_graphviz_draws_where_it_is_on_the_path(net, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program(tmp_path, f'echo "$@" > {tmp_path}/asked; cat > {tmp_path}/source; printf PICTURE')
    assert plot(net).png == b"PICTURE"
    assert (tmp_path / "asked").read_text().split()[0] == "-Tpng"
    assert (tmp_path / "source").read_bytes() == plot(net, tmp_path / "net.dot").read_bytes()
    assert plot(net, engine="own").png.startswith(b"\x89PNG")


def test_where_graphviz_fails_matplotlib_draws(net, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program(tmp_path, "cat > /dev/null; exit 1")
    assert plot(net).png.startswith(b"\x89PNG")
    with pytest.raises(ParameterError, match="Graphviz"):
        plot(net, engine="dot")


@pytest.mark.debian
@pytest.mark.skipif(shutil.which("dot") is None, reason="needs graphviz")
def test_the_real_graphviz_takes_the_text(net):
    assert plot(net, engine="dot").png.startswith(b"\x89PNG")
    assert plots.network(list("abc"), [], [("a", "b")], engine="dot").startswith(b"\x89PNG")


def test_the_equivalence_class_is_drawn_with_lines():
    net = BayesianNetwork(ev.Table(dict.fromkeys("abcd", NO_YES)), [("a", "b"), ("b", "c"), ("d", "c")]).imported()
    text = plots.network(net.variables, *net.cpdag(), form="dot").decode()
    assert '"a" -> "b" [dir=none]' in text
    assert plot(net, equivalence=True, engine="own").png != plot(net, engine="own").png


@pytest.mark.parametrize(
    "ask",
    [
        lambda net: plot(net, "net.gif"), lambda net: plot(net, "net"), lambda net: plot(net, engine="daft"),
        lambda net: plot(net, weights={("b", "n"): 0.5}), lambda net: plot(net, weights={("a", "b"): 1.5}),
        lambda net: plot(net, weights={("a", "b"): float("nan")}), lambda net: plot(net, marginals={"a": [0.5, 0.5]}),
        lambda net: plot(net, marginals=net.marginals({"a": ["no", "yes"]})),
        lambda net: plots.network(["a"], form="gif"),
    ],
)  # fmt: skip
def test_pictures_that_make_no_sense_are_refused(net, ask):
    with pytest.raises(ParameterError):
        ask(net)


def test_one_node_and_no_edges_are_a_picture_too():
    assert plots.network(["alone"], engine="own").startswith(b"\x89PNG")
    assert plots.network([f"n{i}" for i in range(40)], engine="own").startswith(b"\x89PNG")
