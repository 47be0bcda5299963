"""The report page: everything inside one file, every name escaped, readable on any screen and by keyboard."""

import base64
import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib import image as images

import probgen as pg
from probgen.errors import Incomparable, ParameterError, StoreError
from probgen.evaluate.checks import check
from probgen.evaluate.compare import Comparison, Entry, compare
from probgen.evaluate.report import charts, report
from probgen.evaluate.report.markup import Html, scrolling, tag
from probgen.evaluate.report.pictures import png
from probgen.evaluate.report.style import STYLE
from probgen.events import Category, Real, Series, Table
from probgen.logprob import Kind, LogProb

EVIL = "<script>alert(1)</script>"
QUOTED = '"><img src=http://evil.example/x onerror=alert(2)>'
VOID = {"img", "meta", "br", "wbr"}
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class Page(HTMLParser):
    """Elements with their attributes, and whether all were closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.wrong = [], [], []
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes), tuple(self.open)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        if not self.open or self.open.pop() != name:
            self.wrong.append(name)

    def all(self, *names):
        return [attributes for name, attributes, _ in self.found if name in names]


def faults(text):
    """What a page must not be: with scripts, handlers, or addresses of other hosts; with broken structure or gaps."""
    page, found = Page(text), []
    found += [f"not closed: {name}" for name in page.wrong]
    found += [f"element {name}" for name, *_ in page.found if name in ("script", "link", "iframe", "object", "form")]
    for name, attributes, parents in page.found:
        for key, value in attributes.items():
            if key.startswith("on"):
                found.append(f"handler {key}")
            if key in ("src", "href", "action", "srcset", "poster") and not re.match(
                r"#|data:image/png;base64,", value or ""
            ):
                found.append(f"{key} {value[:40]}")
        if name == "img" and not attributes.get("alt"):
            found.append("img without alt")
        if name == "svg" and not (attributes.get("aria-label") and attributes.get("role") == "img"):
            found.append("svg without a text")
        if name == "table" and "div" not in parents:
            found.append("table outside a box")
    ids = [attributes["id"] for _, attributes, _ in page.found if "id" in attributes]
    found += [f"id {one} twice" for one in ids if ids.count(one) > 1]
    found += [f"no target {a['href']}" for a in page.all("a") if a["href"][1:] not in ids]
    levels = [int(name[1]) for name, *_ in page.found if re.fullmatch("h[1-6]", name)]
    if levels.count(1) != 1 or any(b - a > 1 for a, b in pairwise(levels)):
        found.append(f"headings {levels}")
    if re.search(r"url\(|@import", text):
        found.append("style that fetches")
    return found


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 2)) @ [[1, 0.8], [0, 0.6]]
    levels = rng.choice(["<b>red</b>", "</style><script>", "grün"], size=240)
    return pd.DataFrame({EVIL: x[:, 0], QUOTED: x[:, 1], "colour & co": levels})


@pytest.fixture(scope="module")
def compared(frame):
    """Models with names as bad as the columns', one of each kind, on 120 rows."""
    event = Table({EVIL: Real(), QUOTED: Real(), "colour & co": Category(("<b>red</b>", "</style><script>", "grün"))})
    train, held = frame[:120], frame[120:]
    models = {
        f"{EVIL} mixture": pg.Mixture(event, 2).fit(train, seed=0),
        "a\u202eb\x07": pg.Independent(event).fit(train, seed=0),
        "gan": pg.GAN.for_event(event).fit(train, seed=0, steps=2),
    }
    own = models[f"{EVIL} mixture"].log_prob(held)
    bound = LogProb(Kind.LOWER, own.nats - 0.05, by=QUOTED, stderr=np.full(120, 0.01), measure=own.measure)
    skipped = {"<svg onload=1>": "it's <b>bad</b>."}
    return compare({**models, "bound": bound}, held, skipped=skipped, seed=1), models, train, held


FACTS = {EVIL: QUOTED, "Model BayesianNetwork": "as long a name as families have"}


@pytest.fixture(scope="module")
def page(compared, tmp_path_factory):
    result, models, train, held = compared
    path = tmp_path_factory.mktemp("report") / "report.html"
    told = report(result, path, models=models, data=held, train=train, title=EVIL, facts=FACTS, seed=2)
    assert told == path
    return path.read_text()


# --- one file, safe -----------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_asks_nothing_of_any_host(page):
    assert faults(page) == []
    assert "default-src 'none'" in html.unescape(page)
    assert page.count("<!doctype html>") == 1


@pytest.mark.parametrize(
    "planted",
    [
        Html(EVIL), Html('<img src="http://evil.example/x.png" alt="x">'), Html('<p onclick="x()">x</p>'),
        Html("<div>"),
        Html("<h5>deep</h5>"), Html('<img src="data:image/png;base64,xx">'), Html("<p>url(x)</p>"),
        Html('<a href="#nowhere">x</a>'), Html("<svg></svg>"), Html("<table></table>"), Html('<p id="main">x</p>'),
    ],
)  # fmt: skip
def test_each_planted_fault_is_seen(page, planted):
    assert faults(page.replace("</main>", f"{planted}</main>")) != []


def test_names_of_anyone_are_text_wherever_they_stand(page):
    assert "<script" not in page
    assert "<b>red" not in page
    assert "<svg onload" not in page
    assert "\x07" not in page
    assert "\u202e" not in page  # a reversing mark would turn the words after it
    for text in (EVIL, QUOTED, "colour & co", "<b>red</b>", "</style><script>", "It's <b>bad</b>", "a\\u202eb\\x07"):
        assert html.escape(text) in page, text
    assert "&lt;script&gt;" in tag("p", EVIL, title=QUOTED)
    assert "<script>" in tag("p", Html(EVIL))  # markup is what it says it is


# --- what it holds ------------------------------------------------------------------------------------------------


def titles(text):
    return re.findall(r'<h2 id="([a-z-]+)">', text)


ALL = ["table", "claims", "mixture", "kinds", "left-out", "samples", "scatter", "calibration", "checks", "rows", "fits",
       "provenance"]  # fmt: skip


def test_the_page_has_every_part_and_a_link_to_each(page):
    assert titles(page) == ALL
    assert all(f'href="#{anchor}"' in page for anchor in ALL)


def test_numbers_claims_kinds_and_reasons_are_those_of_the_comparison(page, compared):
    result = compared[0]
    shown = html.unescape(page)
    for row in result.texts():
        assert row["nats/row"] in shown
    for one in result.claims():
        assert one.text.split(" (")[-1].replace("\x07", "\\x07").replace("\u202e", "\\u202e") in shown
    assert "A lower bound: the true log-likelihood is at least this" in shown
    assert "An upper bound" not in shown
    assert result.entries[-1].log_prob.instead in shown


def test_the_most_surprising_rows_are_the_least_likely_ones_with_their_values(page, compared):
    result, _, _, held = compared
    part = page[page.index('id="rows"') : page.index('id="fits"')]
    best = result.entries[0].log_prob
    rows = re.findall(r'<tr><th scope="row">(\d+)</th><td class="number">(.*?)</td>', part)
    order = np.argsort(best.nats)[:8]
    assert [int(key) for key, _ in rows] == best.event.keys[order].tolist()
    assert [value for _, value in rows] == [f"{v:.2f}" for v in best.nats[order]]
    assert f"{held[EVIL].to_numpy()[order[0]]:.5g}" in part


def test_where_it_comes_from_is_kept(page, compared):
    part = html.unescape(page[page.index('id="provenance"') :].replace("<wbr>", ""))
    for word in ("SHA-256", "torch", "pyro-ppl", "numpy", "Python", "Written", "Seed of scoring", EVIL, QUOTED, "120"):
        assert word in part, word
    held = re.search(r"Held-out rows</th><td>120, SHA-256 of their content ([0-9a-f]{16})", part)[1]
    trained = re.search(r"Training rows</th><td>120, SHA-256 of their content ([0-9a-f]{16})", part)[1]
    assert held != trained


def test_a_comparison_alone_makes_a_page_without_what_it_does_not_know(compared, tmp_path):
    text = report(compared[0], tmp_path / "alone.html").read_text()
    assert faults(text) == []
    assert titles(text) == [name for name in ALL if name not in ("calibration", "checks", "fits")]
    assert "base64" not in text


def plain(nats, kind=Kind.EXACT, **about):
    return LogProb(kind, np.asarray(nats, dtype=float), **{"by": "test", "measure": "counting"} | about)


def test_one_answer_and_impossible_rows_are_no_reason_to_break(tmp_path):
    one = Comparison((Entry("only", plain([-1.0])),))
    assert faults(report(one, tmp_path / "one.html").read_text()) == []
    a, b = np.arange(120.0), np.arange(120.0)
    a[3], b[4:6] = -math.inf, -math.inf
    text = report(Comparison((Entry("a", plain(a)), Entry("b", plain(b)))), tmp_path / "inf.html").read_text()
    assert "3 rows that one of the two calls impossible lie at −∞" in text
    assert faults(text) == []
    refused = Comparison((Entry("gan", LogProb.refuse(3, "none", "sample it")),))
    assert "No two models" in report(refused, tmp_path / "none.html").read_text()


def test_pictures_are_shown_as_pictures(tmp_path):
    digits = pg.datasets.load("digits")
    train, held = digits.x[:150], digits.x[150:190]
    models = {"independent": pg.Independent(digits.event).fit(train, seed=0)}
    result = compare(models, held, samples=False, seed=0)
    text = report(result, tmp_path / "digits.html", models=models, data=held).read_text()
    assert faults(text) == []
    part = text[text.index('id="rows"') :]
    raws = re.findall(r'class="pixels"', part)
    assert len(raws) == 8
    raw = re.search(r"base64,([A-Za-z0-9+/=]+)", part)[1]
    drawn = images.imread(BytesIO(base64.b64decode(raw)))
    lowest = held[np.argsort(result.entries[0].log_prob.nats)[0]]
    np.testing.assert_allclose(1 - drawn, lowest / held.max(), atol=0.5 / 255 + 1e-6)
    assert "up to 12 are shown" in text


def test_coloured_pictures_keep_their_colours():
    cells = np.random.default_rng(0).random((3, 5, 3))
    drawn = images.imread(BytesIO(base64.b64decode(png(cells, 0.0, 1.0))))
    np.testing.assert_allclose(drawn, cells, atol=0.5 / 255 + 1e-6)


def test_sequences_whole_and_step_by_step_are_reported(tmp_path):
    quakes = pg.datasets.load("earthquakes")
    train, held = quakes.split(0.2)
    models = {"independent": pg.Independent(quakes.event).fit(train, seed=0)}
    steps = report(compare(models, held, history=train), tmp_path / "s.html", models=models, data=held).read_text()
    assert faults(steps) == []
    assert "held-out steps" in steps
    assert ">x0</th>" in steps
    chains = [np.random.default_rng(i).integers(3, size=9) for i in range(12)]
    models = {"independent": pg.Independent(Series(levels=3)).fit(chains, seed=0)}
    whole = report(compare(models, chains), tmp_path / "w.html", models=models, data=chains).read_text()
    assert faults(whole) == []
    assert "<td>9</td>" in whole
    assert "autocorrelation" in whole


# --- where it goes ------------------------------------------------------------------------------------------------


def test_a_reason_that_several_models_share_is_told_once(tmp_path):
    rng = np.random.default_rng(4)
    gaps = {"a": np.where(np.arange(60) % 5, rng.normal(size=60), np.nan), "b": rng.normal(size=60)}
    event = Table({"a": Real(), "b": Real()})
    both = {name: pg.Independent(event).fit(gaps, seed=0) for name in ("one", "two")}
    why = {name: f"Row 0, column a is missing: {name} needs every cell" for name in ("Kernel", "Flow")}
    result = compare(both, gaps, seed=0, skipped=why)
    text = html.unescape(report(result, tmp_path / "page.html").read_text())
    assert text.count("The rows have missing cells.") == 1
    assert "<dt>one, two: not judged by samples</dt>" in text
    assert "<dt>Kernel, Flow: left out</dt><dd>Row 0, column a is missing: it needs every cell.</dd>" in text
    assert text.count("is missing: it needs") == 1


def test_what_p_means_and_what_chance_decides_is_told(page, compared):
    found = check(next(iter(compared[1].values())), compared[3], "mean", n=50)
    low, middle = replace(found, p=np.array([0.0003, 0.5])), replace(found, p=np.array([0.9999, 0.1234]))
    assert [row["p"] for row in low.texts()] == ["< 0.02 !", f"0.500 ± {found.stderr[1]:.3f}"]
    assert middle.texts()[0]["p"] == "> 0.98 !"
    assert "p: share of the 50 data sets with as much of it or more, ± its Monte Carlo error" in str(found)
    part = html.unescape(page[page.index('id="checks"') : page.index('id="rows"')])
    assert "± its\nMonte Carlo error" in part
    assert "stderr" not in part


def test_a_report_that_exists_is_replaced_only_when_asked(compared, tmp_path):
    path = tmp_path / "mine.html"
    path.write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        report(compared[0], path)
    assert path.read_text() == "mine"
    report(compared[0], path, overwrite=True)
    assert "<!doctype html>" in path.read_text()
    (tmp_path / "folder.html").mkdir()
    for place, text in ((tmp_path / "folder.html", "exists already"), (tmp_path / "report.pdf", "ends in .html"),
                        (tmp_path / "no" / "r.html", "can't be written")):  # fmt: skip
        with pytest.raises(StoreError, match=text):
            report(compared[0], place, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.html", "mine.html"]


def test_what_does_not_belong_to_the_comparison_is_refused(compared, tmp_path):
    result, models, train, held = compared
    with pytest.raises(ParameterError, match=r"'gna' is not in the comparison.*Did you mean 'gan'"):
        report(result, tmp_path / "r.html", models={"gna": models["gan"]})
    with pytest.raises(ParameterError, match="data= without models"):
        report(result, tmp_path / "r.html", data=held)
    with pytest.raises(Incomparable, match="not those of the comparison"):
        report(result, tmp_path / "r.html", models=models, data=train)
    with pytest.raises(ParameterError, match="A dict"):
        report({}, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


# --- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-7.5, 0.2), (1e-7, 3e-7), (-1e6, 2e6), (5, 5.0001), (-3, -2.99)])
def test_ticks_are_few_round_and_inside(low, high):
    found = np.array(charts.ticks(low, high))
    assert 2 <= len(found) <= 7
    assert (found >= low - 1e-9 * abs(low)).all()
    assert (found <= high + 1e-9 * abs(high)).all()
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0] * (1 + 1e-9)))) in (1, 2, 5)


def test_charts_put_numbers_where_they_belong():
    chart = charts.scatter(np.array([0.0, 10.0]), np.array([0.0, 10.0]), "a", "b", "two rows")
    (x0, y0), (x1, y1) = [map(float, pair) for pair in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)]
    line = [
        float(v)
        for v in re.search(
            r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="zero"', chart
        ).groups()
    ]
    assert x0 < x1
    assert y0 > y1
    slope = (line[3] - line[1]) / (line[2] - line[0])
    assert y0 == pytest.approx(line[1] + slope * (x0 - line[0]), abs=0.3)  # equal rows lie on the diagonal
    bound = charts.differences([("a", "b", -3.0, 1.0, 1), ("c", "b", -math.inf, math.nan, 0)], "two")
    assert bound.count("<polygon") == 1
    assert "−∞" in bound


def contrast(one, two):
    """Of two colours (Web Content Accessibility Guidelines 2.1)."""

    def light(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((light(one), light(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_both_colour_schemes():
    schemes = [dict(re.findall(r"--(\w+):(#\w+)", block)) for block in re.findall(r":root\{(.*?)\}", STYLE, re.DOTALL)]
    assert len(schemes) == 2
    for scheme in schemes:
        for name in ("ink", "faint", "accent", "second", "good", "warn"):
            for paper in ("paper", "shade"):
                assert contrast(scheme[name], scheme[paper]) >= 4.5, (name, paper)
    assert contrast("#999999", "#ffffff") < 4.5  # the twin


# --- in a browser -------------------------------------------------------------------------------------------------

_PROBE = """<body style="margin:0"><iframe id="f" style="border:0;width:%dpx;height:800px"></iframe><pre id="out"></pre>
<script>
const f = document.getElementById("f");
f.srcdoc = %s;
f.onload = () => {
  const d = f.contentDocument, w = f.contentWindow, root = d.documentElement;
  const wide = [...d.querySelectorAll("main *")].filter(e => !e.closest(".scroll") && !e.closest("svg")
    && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName);
  const boxes = [...d.querySelectorAll(".scroll")];
  const focused = boxes.slice(0, 3).map(e => { e.focus(); return d.activeElement === e; });
  const torn = [...d.querySelectorAll(".wrap th[scope=row]")].flatMap(e => [...e.textContent.matchAll(/\\S+/g)]
    .filter(word => {
      const range = d.createRange();
      range.setStart(e.firstChild, word.index);
      range.setEnd(e.firstChild, word.index + word[0].length);
      return word[0].length < 20 && new Set([...range.getClientRects()].map(r => r.top)).size > 1;
    }).map(word => word[0]));
  document.getElementById("out").textContent = JSON.stringify({
    page: root.scrollWidth, room: root.clientWidth, wide, scripts: d.scripts.length,
    requests: w.performance.getEntriesByType("resource").map(e => e.name),
    broken: [...d.images].filter(e => !e.naturalWidth).length, images: d.images.length,
    rolling: boxes.some(e => e.scrollWidth > e.clientWidth), focused, torn, title: d.title,
    links: d.querySelectorAll("a[href], summary, [tabindex='0']").length,
    small: Math.min(...[...d.querySelectorAll("svg text")].filter(e => e.getBoundingClientRect().height > 0)
      .map(e => e.getBoundingClientRect().height)),
  });
};
</script>"""


def seen(text, width, folder):
    """What a browser makes of a page of that width."""
    probe = folder / f"probe-{width}.html"
    probe.write_text(_PROBE % (width, json.dumps(text).replace("<", "\\u003c")))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
               "--virtual-time-budget=4000", "--dump-dom", f"file://{probe}"]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', answer, re.DOTALL)[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_the_page_on_narrow_and_wide_screens(page, tmp_path, width):
    found = seen(page, width, tmp_path)
    assert found["page"] <= found["room"]
    assert found["wide"] == []
    assert found["scripts"] == 0
    assert [name for name in found["requests"] if not name.startswith("data:")] == []
    assert found["broken"] == 0
    assert found["images"] == 4
    assert found["title"] == EVIL
    assert found["links"] > 15
    assert found["focused"] == [True] * 3
    assert found["rolling"] or width == 1280  # wide tables roll in their own boxes
    assert found["small"] >= 9
    assert found["torn"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_a_browser_sees_a_page_that_is_too_wide(page, tmp_path):
    box = scrolling("wide", [f"column {i}" for i in range(40)], [["x"] * 40], [False] * 40)
    assert seen(page.replace("</main>", f"{box}</main>"), 400, tmp_path)["page"] <= 400
    found = seen(page.replace("</main>", '<p style="width:900px">x</p></main>'), 400, tmp_path)
    assert found["page"] > found["room"]
    assert "P" in found["wide"]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_a_browser_sees_words_that_are_torn_apart(page, tmp_path):
    torn = page.replace("</style>", ".wrap tbody th{overflow-wrap:anywhere}</style>")
    assert "BayesianNetwork" in seen(torn, 400, tmp_path)["torn"]
