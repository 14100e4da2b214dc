"""The report page in a headless Chromium: no error, no request, sliders that move what they say; and the energy beside its arithmetic."""

import json

import pytest

from browser import EXECUTABLE, Page
from teas.study.explore import pareto
from teas.study.page import energy_tables
from test_cli import teas

needs_browser = pytest.mark.skipif(EXECUTABLE is None, reason="there is no Chromium on this machine")
BARS = "[...document.querySelectorAll('#bars rect[data-steps]')].map((bar) => Number(bar.dataset.steps))"
TALL, ARROW_RIGHT, TAB, HOME = 900, 39, 9, 36


EXPERIMENT = """
name = "page"
seeds = [0]
controls = []
[data]
validation = 300
batch = 32
[network]
hidden = [32]
reset = "subtract"
surrogate = "arctan"
[training]
window = 6
pretrain_epochs = 4
pretrain_rate = 5e-3
retrain_epochs = 1
finetune_epochs = 1
scale = 10.0
[windows]
mean = 4
exponent = 0.5
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("page")
    (path / "page.toml").write_text(EXPERIMENT)
    for command in (["run", "page.toml", "--out", "page"], ["explore", "page", "--max-loss", "30"], ["report", "page"]):
        done = teas(*command, cwd=path)
        assert done.returncode == 0, done.stderr
    return path / "page/report.html"


@pytest.fixture
def page(report, tmp_path):
    opened = Page(report, tmp_path)
    yield opened
    opened.close()


@needs_browser
def test_the_page_loads_without_errors_and_asks_for_nothing(page, report):
    assert page.errors == []
    assert page.requests == []
    points = json.loads((report.parent / "explore/points.json").read_text())["points"]
    assert page.run("document.querySelectorAll('#tradeoff-plot .mark').length") == len(points)
    assert report.stat().st_size < 6_000_000
    assert page.run("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    assert page.requests == []  # the page's own policy refused, not the network


@needs_browser
def test_the_slider_moves_along_the_front_and_redraws_the_bars(page, report):
    points = json.loads((report.parent / "explore/points.json").read_text())["points"]
    front = pareto(points, "sum")
    page.run("document.getElementById('slider').focus()")
    page.press("Home", HOME)
    seen = []
    for _ in front:
        seen.append(page.run(BARS))
        page.press("ArrowRight", ARROW_RIGHT)
    assert seen == [list(points[i]["windows"].values()) for i in front]
    assert len({tuple(bars) for bars in seen}) > 1
    assert f"{points[front[-1]]['accuracy']:.2f} %" in page.run("document.getElementById('chosen').textContent")
    page.run("document.getElementById('axis').value = 'INT8'; document.getElementById('axis').dispatchEvent(new Event('change'))")
    assert page.run("Number(document.getElementById('slider').max)") == len(pareto(points, "INT8")) - 1
    assert page.errors == []


@needs_browser
def test_the_raster_is_stepped_through(page, report):
    layers = json.loads((report.parent / "raster.json").read_text())["layers"]
    counts = "[...document.querySelectorAll('#raster figcaption')].map((caption) => Number(caption.textContent.match(/; (\\d+) spikes/)[1]))"
    page.run("document.getElementById('step').focus()")
    page.press("Home", HOME)
    for step in range(max(layer["window"] for layer in layers.values()) + 1):
        assert page.run(counts) == [sum(t < step for train in layer["spikes"] for t in train) for layer in layers.values()]
        page.press("ArrowRight", ARROW_RIGHT)


@needs_browser
def test_every_control_is_reached_by_the_keyboard(page):
    reached = set()
    for _ in range(20):
        page.press("Tab", TAB)
        reached.add(page.run("document.activeElement.id"))
    assert {"axis", "slider", "step", "play"} <= reached


@needs_browser
@pytest.mark.parametrize("width", [400, 1000])
def test_nothing_is_cut_off_on_a_phone_or_a_screen(report, tmp_path, width):
    page = Page(report, tmp_path, width=width)
    assert page.run("document.documentElement.scrollWidth") <= width
    outside = "[...document.querySelectorAll('.plot svg')].filter((svg) => { const box = svg.getBBox(); return box.x < -1 || box.x + box.width > 721; }).length"
    assert page.run(outside) == 0
    page.close()


@needs_browser
def test_dark_and_light_have_their_own_colours(report, tmp_path):
    colours = []
    for dark in (False, True):
        page = Page(report, tmp_path / str(dark), dark=dark)
        colours.append(page.run("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert colours == ["rgb(255, 255, 255)", "rgb(22, 22, 22)"]


def test_the_energy_table_by_hand():
    found = {
        "energy": {"FP32": 2.0, "FP16": 1.0, "INT32": 1.0, "INT8": 0.5}, "memory": {"FP32": 8.0, "FP16": 1.0, "INT32": 1.0, "INT8": 0.5},
        "ann_energy": {"FP32": 4.0, "FP16": 1.0, "INT32": 3.0, "INT8": 1.0}, "ann_memory": {"FP32": 1.0, "FP16": 1.0, "INT32": 1.0, "INT8": 1.0},
        "quantised_ann_energy": {"INT32": 2.0, "INT8": 0.5},
    }  # fmt: skip
    (plain, first), (whole, second) = energy_tables({"arms": {"full": {}}, "seeds": {"0": {"full": found}}})
    assert plain == "without memory"
    assert first == [
        ["ANN of the same shape", "4.0", "1.0", "3.0", "1.0"],
        ["full", "2.0 (2.00x)", "1.0 (1.00x)", "1.0 (3.00x)", "0.5 (2.00x)"],
        ["ANN of as many levels as full", "", "", "2.0", "0.5"],
    ]
    assert whole.startswith("with memory")
    assert second[1] == ["full", "10.0 (0.50x)", "2.0 (1.00x)", "2.0 (2.00x)", "1.0 (2.00x)"]
