# SPDX-License-Identifier: Apache-2.0
"""Shows what a configuration's data are: counts, lengths and labels, never a report.

    jaxdp inspect --config openi_eps8
    jaxdp inspect --config mimic_eps1 --config.data.root=/data/mimic --json inspected/summary.json

Reads the data as `jaxdp train` would and prints tables; --output also saves two plots. All of it
is exact counts of the reports, under no privacy guarantee: keep it where the reports are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.markup import escape

from jaxdp.backbone import resolve_backbone
from jaxdp.config import Config
from jaxdp.data.load import load_reports
from jaxdp.data.summary import summarize
from jaxdp.data.tokens import load_tokenizer, most_tokens, tokenize
from jaxdp.report.draw import COLOURS, LINE, SOFT, new_figure, styled

from . import table
from .define import Define

DEFINE = Define()
_CONFIG = DEFINE.config()
_OUTPUT = DEFINE.string("output", None, "Folder for lengths.png and labels.png.")
DEFINE.json("File for the counts, for programs.")

_NO_LIMIT = 2**20  # tokens: lengths are counted before reports are cut


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Tables of the splits and of the labels."""
    splits = summary["splits"]
    console.print(f"[bold]{escape(summary['source'])}[/]: {summary['reports']:,} reports")
    for what, number in summary["loader"].items():
        console.print(f"  {escape(what)}: {number:,}")
    console.print(f"  labels made by: {escape(summary['labels_made_by'])}")

    def cells(row):
        known = summary["patients_known"]
        yield "reports", f"{row['reports']:,}"
        yield "patients", f"{row['patients']:,}" if known else "not known"
        for what, number in row["reports_per_patient"].items():
            yield f"reports per patient, {what}", f"{number:,}" if known else "not known"
        for what, number in row["tokens"].items():
            name = what.replace("_", " ")
            yield name if what == "reports_cut" else f"tokens, {name}", f"{number:,.0f}"
        for maker, number in row.get("labelled_by", {}).items():
            yield f"labelled by {escape(maker)}", f"{number:,}"

    columns = {split: dict(cells(row)) for split, row in splits.items()}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[n, *(column.get(n, "0") for column in columns.values())] for n in names]
    title = f"splits (cut to {summary['max_length']} tokens)"
    console.print(table(title, ("", *splits), rows, left=1))

    rows = []
    for name in next(iter(splits.values()))["labels"]:
        counts = [row["labels"][name] for row in splits.values()]
        shares = (f"{c['positive']:,} ({share(c):.1%})" for c in counts)
        rows.append([escape(name), *shares])
    title = "reports with the label (and share of those labelled)"
    console.print(table(title, ("label", *splits), rows, left=1))
    for warning in summary["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def share(counts: Mapping[str, int]) -> float:
    """Of positive ones among the labelled; 0 if none is."""
    return counts["positive"] / max(counts["positive"] + counts["negative"], 1)


@styled
def lengths_plot(lengths: np.ndarray, max_length: int) -> Figure:
    """Histogram of tokens per report; what max_length cuts is shaded."""
    figure, (axes,) = new_figure(7, 3.5)
    # the longest percent would squeeze the rest; what is beyond the end is in the last bar
    end = max(int(np.percentile(lengths, 99)), max_length) * 9 // 8 + 2
    bins = np.arange(0, end + 1, max(end // 80, 1))
    axes.hist(np.minimum(lengths, bins[-1]), bins=bins, color=COLOURS[0])
    axes.axvspan(max_length, bins[-1], color=LINE, zorder=0)
    axes.axvline(max_length, color=SOFT, linewidth=1)
    cut = (lengths > max_length).mean()
    place = {"xy": (max_length, 1), "xycoords": ("data", "axes fraction"), "xytext": (-4, -4)}
    place |= {"textcoords": "offset points", "ha": "right", "va": "top"}
    axes.annotate(f"max_length {max_length}\n{cut:.1%} cut", **place)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    label = "tokens per report (the last bar: and more)"
    axes.set(xlabel=label, ylabel="reports", xlim=(0, bins[-1]))
    return figure


@styled
def labels_plot(summary: Mapping[str, Any]) -> Figure:
    """Share of positive reports, by label and split; the most frequent label on top."""
    splits = summary["splits"]
    first = next(iter(splits.values()))["labels"]
    names = sorted(first, key=lambda name: share(first[name]))
    figure, (axes,) = new_figure(7, 1.2 + 0.28 * len(names))
    places = np.arange(len(names))
    for i, (split, row) in enumerate(splits.items()):
        shares = [share(row["labels"][name]) for name in names]
        look = {"color": COLOURS[i], "label": split}
        if i == 0:
            axes.barh(places, shares, height=0.6, alpha=0.35, **look)
        else:  # one a little above the middle of the bar, one a little below
            axes.plot(shares, places + 0.3 * (1.5 - i), "oD"[i - 1], markersize=4, **look)
    axes.set_yticks(places, names)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="reports with the label", xlim=(0, None))
    axes.grid(axis="x")
    axes.legend(loc="lower right")
    return figure


def inspect(config: Config) -> tuple[dict[str, Any], np.ndarray, int]:
    """(the counts, [n] tokens of each report before cutting, what they are cut to)."""
    dataset = load_reports(config.data, config.teacher)
    backbone = resolve_backbone(config.model.backbone, revision=config.model.revision)
    tokenizer = load_tokenizer(backbone.directory)
    tokens, _ = tokenize(dataset.texts, tokenizer, _NO_LIMIT)
    most = most_tokens(tokenizer, config.data.max_length, config.data.windows)
    return summarize(dataset, tokens.lengths, most), tokens.lengths, most


def main() -> None:
    # Of training nothing is asked: its numbers are chosen after looking.
    values = {name: _CONFIG.value[name].to_dict() for name in ("data", "teacher")}
    backbone = {name: _CONFIG.value.model[name] for name in ("backbone", "revision")}
    config = Config.from_dict({**values, "model": backbone, "privacy": {"epsilon": None}})
    summary, lengths, most = inspect(config)
    print_summary(summary, Console())
    if _OUTPUT.value:
        folder = Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        lengths_plot(lengths, most).savefig(folder / "lengths.png", dpi=150)
        labels_plot(summary).savefig(folder / "labels.png", dpi=150)
        print(f"saved lengths.png and labels.png in {_OUTPUT.value}")
    DEFINE.write_json(summary)
