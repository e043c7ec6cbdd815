# SPDX-License-Identifier: Apache-2.0
"""What an audit leaves on disk: two figures, a short report, and the numbers as JSON."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from jaxdp.audit.run import HEADINGS, Finding
from jaxdp.files import write_json

from .draw import COLOURS, INK, SOFT, new_figure, render, styled

TITLES = {
    "gradient": "gradient canaries, all releases seen",
    "input": "rare-token reports, final model asked",
}


def write_report(directory: Path, summary: Mapping[str, Any], findings: list[Finding]) -> None:
    """audit.json, report.md, roc.png and epsilon.png in `directory`, which exists; `summary` is
    that of `audit.run`."""
    write_json(directory / "audit.json", summary)
    roc_plot(findings).savefig(directory / "roc.png", dpi=150)
    bars = epsilon_plot(findings, summary["delta"], summary["confidence"])
    bars.savefig(directory / "epsilon.png", dpi=150)
    text = render(
        "audit.md",
        config=summary["config"],
        headings=HEADINGS,
        rows=[finding.cells() for finding in findings],
        broken=dict.fromkeys(f.variant.name for f in findings if f.variant.broken),
        showings=summary["showings"],
        rarer=f"{1 - summary['confidence']:.2g}",
    )
    (directory / "report.md").write_text(text, encoding="utf-8")


def _panels(
    findings: list[Finding], height: float
) -> tuple[Figure, list[tuple[Axes, list[Finding]]]]:
    """A figure and, for each kind of canary, its axes and findings."""
    kinds = list(dict.fromkeys(f.kind for f in findings))
    figure, axes = new_figure(7.4, height, columns=len(kinds))
    for ax, kind in zip(axes, kinds, strict=True):
        ax.set_title(TITLES[kind])
    members = [[f for f in findings if f.kind == kind] for kind in kinds]
    return figure, list(zip(axes, members, strict=True))


@styled
def roc_plot(findings: list[Finding]) -> Figure:
    """One curve per variant: how many canaries that are in an attacker finds, at which price."""
    figure, panels = _panels(findings, 4.4)
    for ax, members in panels:
        ax.plot([0, 1], [0, 1], color=SOFT, linestyle=":", label="guessing")
        for finding, color in zip(members, COLOURS, strict=False):
            false, true, _ = roc_curve(finding.included, finding.scores)
            style = "--" if finding.variant.broken else "-"
            label = f"{finding.variant.name} ({finding.bounds.auroc:.3f})"
            ax.plot(false, true, style, color=color, linewidth=1.4, label=label)
        ax.set(xlabel="false positive rate", ylabel="true positive rate")
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=2,
            title="trained (AUROC); dashed: deliberately broken",
        )
    return figure


@styled
def epsilon_plot(findings: list[Finding], delta: float, confidence: float) -> Figure:
    """Bars: what is proven. Lines: what is claimed."""
    figure, panels = _panels(findings, 2.9)
    reached = [value for f in findings for value in (f.bounds.epsilon, f.claim)]
    for ax, members in panels:
        for place, finding in enumerate(members):
            color = COLOURS[1] if finding.violated else COLOURS[0]
            bound, claim = finding.bounds.epsilon, finding.claim
            ax.barh(place, bound, color=color, height=0.6)
            if math.isfinite(claim):
                ax.vlines(claim, place - 0.42, place + 0.42, color=INK, linewidth=3)
                reach, text = max(bound, claim), f"{bound:.2f}, claimed {claim:.2f}"
            else:
                reach, text = bound, f"{bound:.2f}, nothing claimed"
            ax.text(reach + 0.15, place, text, va="center")
        ax.set_yticks(range(len(members)), [f.variant.name for f in members])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.75 * (max(filter(math.isfinite, reached)) or 1))
        ax.set_xlabel(f"epsilon at delta {delta:g}")
    figure.suptitle(f"bars: lower bound at {confidence:.0%} confidence; black: claimed epsilon")
    return figure
