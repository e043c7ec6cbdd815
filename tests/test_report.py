# SPDX-License-Identifier: Apache-2.0
"""A sweep's analysis, page and figures, from made-up runs; in a browser where there is one."""

import dataclasses
import html.parser
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from helpers_sweep import pretend_finished, tiny_sweep
from helpers_training import LABELS, run_script, smoke_settings

from jaxdp.report.draw import INK, LINE, SOFT, TEMPLATES
from jaxdp.report.lines import calibration, curve, training
from jaxdp.report.sweep import sweep_page, write_figures
from jaxdp.run.directory import RunError
from jaxdp.sweep.accounting import plan_sweep
from jaxdp.sweep.analysis import analyse
from jaxdp.sweep.directory import begin
from jaxdp.sweep.members import Grid
from jaxdp.sweep.results import results_table

AXES = {"model.backbone": ("bert-small", "albert-base-v2"), "privacy.epsilon": (0.1, 0.5, None)}
HOSTILE = "<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    plan = plan_sweep(tiny_sweep(tmp_path_factory.mktemp("report"), axes=AXES))
    begin(plan)
    pretend_finished(plan, hostile=HOSTILE)
    return plan


@pytest.fixture(scope="module")
def report(plan):
    return analyse(plan.sweep.path, draws=500)


def test_a_setting_is_what_differs_in_its_seed_alone(plan, report):
    (collection,) = report.collections
    assert [(s.model, s.epsilon, s.recipe) for s in collection.settings] == [
        (model, epsilon, "")
        for model in ("albert-base-v2", "bert-small")
        for epsilon in (0.1, 0.5, None)
    ]
    setting = collection.settings[0]
    assert len(setting.members) == 2 and (setting.seconds, setting.peak_memory) == (5.0, 10**9)
    tests = [
        json.loads((plan.members[n].path / "metrics.json").read_text())["test"]
        for n in setting.members
    ]
    for average in ("weighted_f1", "micro_f1", "macro_f1"):
        mean, low, high = setting.scores[average]
        assert mean == pytest.approx(np.mean([t[average] for t in tests]))
        assert low < mean < high
    assert setting.per_label == pytest.approx(
        np.mean([[r["f1"] for r in t["per_label"].values()] for t in tests], axis=0)
    )
    assert len(collection.comparisons) == 15
    for c in collection.comparisons:
        a, b = (collection.settings[i].scores["weighted_f1"][0] for i in (c.row, c.column))
        assert c.difference == pytest.approx(a - b) and c.adjusted_p >= c.p
    # No privacy against epsilon 0.1 is a large difference.
    first = next(c for c in collection.comparisons if (c.row, c.column) == (0, 2))
    assert first.difference < -0.2 and first.adjusted_p < 0.05 and first.effect < -1


def test_other_axes_name_the_series(tmp_path):
    plan = plan_sweep(tiny_sweep(tmp_path, axes={"train.learning_rate": (0.1, 0.2)}))
    begin(plan)
    pretend_finished(plan)
    (collection,) = analyse(plan.sweep.path, draws=100).collections
    assert [s.recipe for s in collection.settings] == ["learning rate 0.1", "learning rate 0.2"]
    assert len(curve(collection).lines) == 2
    assert collection.names == [f"{s.recipe}, {s.level}" for s in collection.settings]


def test_no_path_of_the_machine_names_a_series(tmp_path):
    roots = [f"{tmp_path}/{name}.tgz" for name in ("a", "b", "c/a")]
    bases = [smoke_settings(tmp_path, data__root=root, run__research_seed=None) for root in roots]
    grids = [Grid(f"g{i}", base, {"privacy.epsilon": (0.5,)}) for i, base in enumerate(bases)]
    plan = plan_sweep(tiny_sweep(tmp_path, grids=grids))
    begin(plan)
    pretend_finished(plan)
    report = analyse(plan.sweep.path, draws=100)
    found = {s.recipe for c in report.collections for s in c.settings}
    assert found == {"root a.tgz (1)", "root a.tgz (2)", "root b.tgz"}
    assert str(tmp_path) not in sweep_page(report)


def test_what_is_unfinished_is_left_out_and_said(tmp_path):
    plan = plan_sweep(tiny_sweep(tmp_path))
    begin(plan)
    with pytest.raises(RunError, match="no member is finished yet"):
        analyse(plan.sweep.path)
    pretend_finished(plan)
    (plan.members["tiny_nonprivate_seed1"].path / "metrics.json").unlink()
    report = analyse(plan.sweep.path, draws=100)
    assert len(report.finished) == 3
    assert "1 members are not finished" in sweep_page(report)
    # One run alone is compared with each of several, as what the page shows of both is.
    (collection,) = report.collections
    (pair,) = collection.comparisons
    first, second = (collection.settings[i] for i in (pair.row, pair.column))
    assert {len(first.members), len(second.members)} == {1, 2}
    apart = first.scores["weighted_f1"][0] - second.scores["weighted_f1"][0]
    assert pair.difference == pytest.approx(apart)
    with pytest.raises(RunError, match="holds no sweep"):
        analyse(tmp_path)


class Nesting(html.parser.HTMLParser):
    """Counts elements, and fails on one that is not closed where it should be."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_loads_nothing(report):
    text = sweep_page(report)
    found = Nesting()
    found.feed(text)
    assert not found.open
    assert found.seen.count("svg") == 3 and found.seen.count("script") == 1
    assert found.seen.count("th") > 20
    assert HOSTILE not in text and "&lt;script&gt;alert(1)" in text
    loaders = {"src", "href", "srcset", "action", "data", "poster"}
    outside = [a for a in found.attributes if not (a[1] == "href" and a[2].startswith("#"))]
    assert not [a for a in outside if a[1] in loaders or a[1].startswith("on")]
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|fetch\(|XMLHttp", text)
    ids = [a[2] for a in found.attributes if a[1] == "id"]
    named = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert len(ids) == len(set(ids)) and set(named) == set(ids)
    assert "default-src 'none'" in text


def test_the_page_says_what_it_costs(plan, report):
    text = sweep_page(report)
    (cost,) = plan.joint_costs()
    shown = re.search(r"\(epsilon = ([0-9.]+), delta = 0.001\)", text)
    # Rounded up, never down.
    assert cost.epsilon <= float(shown[1]) <= cost.epsilon * 1.002
    assert "8 members trained with privacy on openi" in text
    assert "4 members are trained without privacy" in text and "unprotected" in text
    assert "not covered by the guarantee" in text
    assert str(plan.sweep.path.parent) not in text, "a path of this machine"
    for label in LABELS:
        assert label.replace("_", " ") in text


def test_tables_escape_everything():
    macros = "{% from 'parts.html' import table %}{{ table(header, rows, numbers=numbers) }}"
    template = TEMPLATES.from_string(macros)
    cell = {"text": "<b>", "small": "<i>", "tip": '"<', "style": '"<s>', "class": '"<c>'}
    text = template.render(header=["<h>", 1], rows=[["<x>", 2], [cell, "&"]], numbers=True)
    assert "&lt;h&gt;" in text and "&lt;x&gt;" in text and "&lt;b&gt;<br><small>&lt;i&gt;" in text
    assert 'data-tip="&#34;&lt;"' in text and not re.search("<[xhbisc]>", text)
    assert '<td class="number">2</td>' in text and '<td class="number">&amp;</td>' in text


def test_of_one_class_the_page_has_accuracies_and_decides_by_the_likeliest(tmp_path):
    base = smoke_settings(
        tmp_path, data__source="table", data__root="t.csv", data__task="multi-class",
        data__label_column="class", run__research_seed=None,
    )  # fmt: skip
    plan = plan_sweep(
        tiny_sweep(tmp_path, grids=[Grid("g", base, {"privacy.epsilon": (0.5, 1.0)})])
    )
    begin(plan)
    pretend_finished(plan)
    found = analyse(plan.sweep.path, draws=200)
    (collection,) = found.collections
    assert collection.task == "multi-class" and calibration(collection).y_label.startswith(
        "share d"
    )
    for setting in collection.settings:
        tests = [
            json.loads((plan.members[n].path / "metrics.json").read_text())["test"]
            for n in setting.members
        ]
        for name in ("weighted_f1", "macro_f1", "micro_f1", "balanced_accuracy"):
            assert setting.scores[name][0] == pytest.approx(np.mean([t[name] for t in tests]))
        assert setting.scores["micro_f1"][0] == pytest.approx(
            np.mean([t["accuracy"] for t in tests])
        )
        assert setting.reliability[:, 0].sum() == 2 * 80, "one answer for each report and seed"
    text = sweep_page(found)
    heads = ("macro F1", "accuracy", "balanced accuracy")
    assert all(f">{head}</th>" in text for head in heads) and ">micro F1</th>" not in text
    table = results_table(plan.members).to_pylist()
    assert {"accuracy", "balanced_accuracy", "micro_f1"} <= {row["metric"] for row in table}


def test_points_are_drawn_where_they_belong(report):
    """In the page's own picture: logarithmic across, linear and upside down upwards."""
    panel = curve(report.collections[0])
    assert panel.ticks == (0.1, 0.5) and len(panel.lines) == 2
    picture = ElementTree.fromstring(panel.chart("c")["svg"])
    x, y, drawn, seen = [], [], [], {}
    for group in picture.iter("g"):
        if tip := group.get("data-tip"):
            seen[tip] = group
    for number, line in enumerate(panel.lines):
        assert line.level is not None and len(line.points) == 2
        assert seen[line.level.note].get("data-series") == f"c-{number}"
        for point in line.points:
            assert point.low <= point.y <= point.high
            group = seen[point.note]
            assert group.get("data-series") == f"c-{number}"
            (mark,) = group.iter("use")
            drawn.append((float(mark.get("x")), float(mark.get("y"))))
            x.append(math.log10(point.x))
            y.append(point.y)
    across, upwards = np.transpose(drawn)
    for values, places, sign in ((x, across, 1), (y, upwards, -1)):
        slope, offset = np.polyfit(values, places, 1)
        assert sign * slope > 0
        np.testing.assert_allclose(slope * np.array(values) + offset, places, atol=0.01)


def test_pictures_take_the_page_s_colours_and_font(report):
    chart = curve(report.collections[0]).chart("c")
    assert "var(--ink)" in chart["svg"] and "var(--line)" in chart["svg"]
    for fixed in (INK, SOFT, LINE, "font-family", "#000000", "#ffffff"):
        assert fixed not in chart["svg"]
    assert ">test weighted F1</text>" in chart["svg"]


def test_training_curves_put_stages_one_after_the_other(report):
    panel = training(report, report.collections[0])
    assert len(panel.lines) == 12 and panel.marks == ((4, "main stage"),)
    assert [p.x for p in panel.lines[0].points] == [2, 4, 7, 10]


def test_figures_are_files_for_a_paper(report, tmp_path):
    twice = dataclasses.replace(report, collections=report.collections * 2)
    written = write_figures(twice, tmp_path / "figures")
    kinds = ("curve", "labels", "differences", "calibration", "training")
    names = {f"{n}_openi_report{more}" for n in kinds for more in ("", "_2")}
    assert {p.stem for p in written} == names and len(written) == 2 * len(names)
    for path in written:
        magic = {".pdf": b"%PDF", ".png": b"\x89PNG"}[path.suffix]
        assert path.read_bytes().startswith(magic) and path.stat().st_size > 5000


def test_script_writes_page_figures_and_numbers(plan, tmp_path):
    numbers = tmp_path / "numbers.json"
    done = run_script(
        "report.py",
        f"--sweep={plan.sweep.path}",
        f"--output={tmp_path / 'out'}",
        "--draws=200",
        f"--json={numbers}",
    )
    assert done.returncode == 0, done.stderr
    assert "12 of 12 members, 10 figures" in done.stdout and done.stderr == ""
    assert (tmp_path / "out" / "report.html").stat().st_size > 20_000
    settings = json.loads(numbers.read_text())["collections"][0]["settings"]
    assert len(settings) == 6 and settings[0]["scores"]["weighted_f1"][0] > 0
    done = run_script("report.py", f"--sweep={tmp_path}")
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# In a browser: python -m pytest -m slow tests/test_report.py

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE = """
const boxes = [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect());
const button = document.querySelector('[data-toggle]');
const line = document.querySelector('[data-series="' + button.dataset.toggle + '"]');
button.click();
const hidden = getComputedStyle(line).display === 'none';
button.click();
const dot = document.querySelector('[data-tip]');
dot.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: 90, clientY: 90}));
document.title = JSON.stringify({
  drawn: boxes.filter(b => b.width > 200 && b.height > 100).length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  hidden, shown: getComputedStyle(line).display !== 'none',
  tip: document.getElementById('tip').textContent === dot.dataset.tip &&
    !document.getElementById('tip').hidden,
});
"""


def browse(file, profile, width: int) -> tuple[str, list[str]]:
    """(the page's elements after its scripts ran, lines on its console)."""
    quiet = "--disable-background-networking --disable-component-update --disable-sync"
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", *quiet.split(), "--enable-logging=stderr", "--dump-dom",
         f"--window-size={width},900", f"--user-data-dir={profile}", f"file://{file}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [500, 1280])
def test_in_a_browser_everything_is_drawn_and_works(report, tmp_path, width):
    text = sweep_page(report)
    file = tmp_path / "page.html"
    file.write_text(text)
    _, console = browse(file, tmp_path / "profile", width)
    assert console == []
    file.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    found, _ = browse(file, tmp_path / "profile", width)
    result = json.loads(re.search("<title>(.*?)</title>", found)[1])
    assert result == {"drawn": 3, "overflow": 0, "hidden": True, "shown": True, "tip": True}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    "wrong", ["<script>nothing.at.all</script>", "<img src='https://example.org/x.png'>"]
)
def test_in_a_browser_a_wrong_page_is_noticed(report, tmp_path, wrong):
    file = tmp_path / "page.html"
    file.write_text(sweep_page(report).replace("</main>", f"{wrong}</main>"))
    _, console = browse(file, tmp_path / "profile", 800)
    assert console
