# SPDX-License-Identifier: Apache-2.0
"""A sweep as one self-contained page."""

import math
from collections.abc import Iterable
from typing import Any

from jaxdp import page
from jaxdp.dp.statement import rounded_up
from jaxdp.page import Html, element

from .analysis import Collection, SweepReport, flat
from .panels import calibration, curve, interval_text, setting_names, title, training
from .svg import line_chart
from .theme import SCRIPT, STYLE


def sweep_page(report: SweepReport) -> str:
    """The HTML; deterministic for the same folder."""
    parts = [*_head(report), element("h2", "Privacy and utility")]
    parts.append(
        element(
            "p",
            "Means over seeds; bars and bands are 95 % bootstrap intervals over test reports and "
            f"seeds together ({report.draws:,} resamples); beside them Student's for other seeds "
            "on these reports. Test scores are not covered by the guarantee.",
            class_="soft",
        )
    )
    for i, collection in enumerate(report.collections):
        parts += [line_chart(curve(collection), f"curve{i}"), _scores(collection)]
    parts += [*_joint(report), element("h2", "Per label")]
    for collection in report.collections:
        parts += [element("h3", title(collection)), _heatmap(collection)]
    parts.append(element("h2", "Which differences are more than chance"))
    for collection in report.collections:
        parts += [element("h3", title(collection)), *_matrix(collection, report.draws)]
    parts.append(element("h2", "What a probability is worth"))
    for i, collection in enumerate(report.collections):
        parts.append(line_chart(calibration(collection), f"calibration{i}"))
    parts.append(element("h2", "Training"))
    for i, collection in enumerate(report.collections):
        panel = training(report, collection)
        if panel.lines:
            parts.append(line_chart(panel, f"training{i}"))
    parts += [element("h2", "Time and memory"), _costs(report), *_settings(report)]
    return page.document(f"{report.name}: sweep", parts, style=STYLE, script=SCRIPT)


def _head(report: SweepReport) -> list[Html]:
    cards = [(f"{len(report.finished)} of {len(report.members)}", "members finished")]
    for collection in report.collections:
        best = max(
            (s for s in collection.settings if s.epsilon is not None),
            key=lambda s: s.scores["weighted_f1"][0],
            default=None,
        )
        if best:
            score = f"{best.scores['weighted_f1'][0]:.3f}"
            cards.append((score, f"best private weighted F1, {title(collection)}, {best.level}"))
    for joint in report.description["joint"]:
        cards.append((_epsilon(joint["epsilon"]), _of_all(joint)))
    made = [element("div", [element("b", b), element("span", s)], class_="card") for b, s in cards]
    parts = [
        element("h1", ["Sweep ", element("code", report.name)]),
        element("div", made, class_="cards"),
    ]
    if len(report.finished) < len(report.members):
        missing = len(report.members) - len(report.finished)
        parts.append(
            element("p", f"{missing} members are not finished, and not shown.", class_="warn")
        )
    return parts


def _of_all(joint: dict[str, Any]) -> str:
    return f"epsilon of publishing the best, or all, of {len(joint['members'])} private members"


def _joint(report: SweepReport) -> list[Html]:
    parts = [element("h2", "What it costs in privacy")]
    shared = report.description["share_sampling"]
    for joint in report.description["joint"]:
        count, epsilon = len(joint["members"]), joint["epsilon"]
        what = f"{count} members trained with privacy on {joint['source']}"
        if epsilon is None:
            parts.append(element("p", f"For {what}, no joint guarantee can be claimed."))
            continue
        how = (
            "Members of a group share the sample of each step, so a step of all of them is one "
            "subsampled Gaussian mechanism with the noise below; groups compose."
            if shared
            else "Every member draws its own samples; all of them compose."
        )
        odds = rounded_up(math.exp(epsilon)) if epsilon < 700 else "more than 10^300"
        parts += [
            element(
                "p",
                [
                    f"Publishing the best of the {what}, or all of them, is ",
                    element(
                        "strong", f"(epsilon = {_epsilon(epsilon)}, delta = {joint['delta']:g})"
                    ),
                    f"-differentially private for adding or removing one {joint['unit']}: the odds "
                    f"of any conclusion about a {joint['unit']} change by a factor of at most "
                    f"{odds}, except with probability delta. {how}",
                ],
            ),
            element(
                "details",
                [
                    element("summary", f"The {len(joint['mechanisms'])} mechanisms"),
                    page.table(
                        ["mechanism", "probability", "noise multiplier", "steps"],
                        [
                            [n, f"{m['expected_batch_size'] / m['units']:.4g}"]
                            + [f"{m['noise_multiplier']:.4g}", m["steps"]]
                            for n, m in joint["mechanisms"].items()
                        ],
                    ),
                ],
            ),
        ]
    outside = [n for n, m in report.description["members"].items() if m["epsilon"] is None]
    if outside:
        parts.append(
            element(
                "p",
                f"{len(outside)} members are trained without privacy: no guarantee covers them, "
                "nor the choice of one of them as the best.",
                class_="warn",
            )
        )
    seeds = {m.config.run.research_seed for m in report.members.values()} - {None}
    if seeds:
        parts.append(
            element(
                "p",
                "Samples and noise come from a research seed: whoever knows it can undo the noise, "
                "so these adapters must be treated as unprotected.",
                class_="warn",
            )
        )
    parts.append(
        element(
            "p",
            "Not covered: this page's test and validation scores, and a choice of member by "
            "held-out reports, unless those are public.",
            class_="soft",
        )
    )
    return parts


def _scores(collection: Collection) -> Html:
    rows = []
    for s in collection.settings:
        seeds = s.seeds["weighted_f1"]
        over = f"{seeds[1]:.3f} to {seeds[2]:.3f}" if math.isfinite(seeds[1]) else "-"
        rows.append(
            [s.series, "none" if s.epsilon is None else f"{s.epsilon:g}", len(s.members)]
            + [interval_text(s.scores["weighted_f1"]), over]
            + [f"{s.scores[average][0]:.3f}" for average in ("micro_f1", "macro_f1")]
        )
    header = ["trained", "epsilon", "seeds", "weighted F1 (95 %)", "other seeds alone"]
    return page.table([*header, "micro F1", "macro F1"], rows)


def _heatmap(collection: Collection) -> Html:
    header = ["label (positives)", *setting_names(collection)]
    rows = []
    for i in sorted(range(len(collection.label_names)), key=lambda i: -collection.support[i]):
        name = f"{collection.label_names[i].replace('_', ' ')} ({collection.support[i]:,})"
        cells = []
        for s in collection.settings:
            value = float(s.per_label[i])
            tip = f"{name}, {s.series}, {s.level}: F1 {value:.3f}"
            cells.append(element("td", f"{value:.2f}", style=_shade(value), data_tip=tip))
        rows.append([element("th", name, scope="row"), *cells])
    return page.table(header, rows, numbers=False, class_="heat")


def _shade(value: float) -> str:
    """Light to dark blue, with ink that can be read on it; the same in both themes."""
    low, high = (236, 243, 249), (8, 58, 112)
    colour = [round(a + (b - a) * value) for a, b in zip(low, high, strict=True)]
    ink = "#fff" if value > 0.5 else "#111"
    return f"background:rgb({','.join(map(str, colour))});color:{ink}"


def _matrix(collection: Collection, permutations: int) -> Iterable[Html]:
    if not collection.comparisons:
        yield element("p", "There is only one setting.")
        return
    names = setting_names(collection)
    cells = {}
    for c in collection.comparisons:
        effect = "" if c.effect is None else f", Hedges' g over seeds {c.effect:+.1f}"
        for row, column, sign in ((c.row, c.column, 1), (c.column, c.row, -1)):
            tip = (
                f"{names[row]} minus {names[column]}: {sign * c.difference:+.3f}, "
                f"p {c.p:.2g}, after Holm {c.adjusted_p:.2g}{effect}"
            )
            cells[row, column] = element(
                "td",
                [f"{sign * c.difference:+.3f}", Html("<br>"), element("small", _p(c.adjusted_p))],
                class_="sure" if c.adjusted_p <= 0.05 else None,
                data_tip=tip,
            )
    blank = element("td", "", class_="none")
    rows = [
        [element("th", name, scope="row"), *(cells.get((i, j), blank) for j in range(len(names)))]
        for i, name in enumerate(names)
    ]
    yield page.table(["row minus column", *names], rows, numbers=False, class_="matrix")
    yield element(
        "p",
        f"Difference in weighted F1, and p by paired permutation of {collection.unit}s' answers "
        f"({permutations:,} permutations, two-sided), after Holm's correction over "
        f"{len(collection.comparisons)} pairs; shaded at 0.05. The test is about these trained "
        "models on other reports; how much seeds differ is in the table above.",
        class_="soft",
    )


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def _costs(report: SweepReport) -> Html:
    rows = []
    for collection in report.collections:
        for s in collection.settings:
            config = report.members[s.members[0]].config
            steps = config.head_stage.steps + config.train.steps
            seconds = "-" if s.seconds is None else f"{s.seconds:,.0f}"
            memory = "-" if s.peak_memory is None else f"{s.peak_memory / 1e9:.2f}"
            name = f"{title(collection)}: {s.series}, {s.level}"
            rows.append([name, len(s.members), steps, seconds, memory])
    return page.table(["trained", "seeds", "steps", "seconds per member", "peak GB"], rows)


def _settings(report: SweepReport) -> list[Html]:
    settings = {name: flat(member.config) for name, member in report.members.items()}
    hidden = {"run.dir", "run.name", "data.root", "data.cache", "teacher.path", "run.research_seed"}
    fields = [f for f in next(iter(settings.values())) if f not in hidden]
    differ = [f for f in fields if len({str(s[f]) for s in settings.values()}) > 1]
    same = [[f, _value(next(iter(settings.values()))[f])] for f in fields if f not in differ]
    described = report.description["members"]
    rows = [
        [name, described[name]["group"] + 1, _epsilon(described[name]["epsilon"])]
        + [_value(s[f]) for f in differ]
        for name, s in settings.items()
    ]
    return [
        element("h2", "Settings"),
        page.table(["member", "group", "stated epsilon", *differ], rows),
        element(
            "details",
            [
                element("summary", f"The {len(same)} settings that all members have"),
                page.table(["setting", "value"], same, numbers=False),
            ],
        ),
    ]


def _value(value: Any) -> str:
    """A setting for people; of a path only its last name."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rstrip("/").split("/")[-1] if text.startswith(("/", "~", ".")) else text


def _epsilon(value: float | None) -> str:
    return "none" if value is None else rounded_up(value)
