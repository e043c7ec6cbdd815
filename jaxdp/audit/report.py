# SPDX-License-Identifier: Apache-2.0
"""What an audit leaves on disk: two plots, a short report, and the numbers as JSON."""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from jaxdp.files import write_json

from .config import AuditConfig
from .run import Finding, showings

TITLES = {
    "gradient": "gradient canaries, all releases seen",
    "input": "rare-token reports, final model asked",
}
HEADINGS = ("canaries", "trained", "claimed epsilon", "lower bound", "general bound", "AUROC", "")
COLORS = ("#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#009E73", "#000000")
"""Okabe and Ito's: told apart by colour-blind readers too."""


def summary(config: AuditConfig, findings: list[Finding]) -> dict[str, Any]:
    """JSON-ready: settings, one row per finding, and what they show."""
    return {
        "delta": config.privacy.delta,
        "confidence": config.audit.confidence,
        "config": config.to_dict(),
        "findings": [finding.row() for finding in findings],
        "showings": showings(findings),
    }


def write_report(directory: Path, config: AuditConfig, findings: list[Finding]) -> None:
    """audit.json, report.md, roc.png and epsilon.png in `directory`, which exists."""
    write_json(directory / "audit.json", summary(config, findings))
    roc_plot(findings).savefig(directory / "roc.png", dpi=150)
    epsilon_plot(findings, config).savefig(directory / "epsilon.png", dpi=150)
    (directory / "report.md").write_text(markdown(config, findings), encoding="utf-8")


def cells(finding: Finding) -> list[str]:
    """A finding as a row under HEADINGS."""
    return [
        finding.kind,
        finding.variant.name,
        f"{finding.claim:.3g}" if math.isfinite(finding.claim) else "none",
        f"{finding.bounds.epsilon:.2f}",
        f"{finding.bounds.epsilon_any:.2f}",
        f"{finding.bounds.auroc:.3f}",
        "VIOLATED" if finding.violated else "",
    ]


def _panels(findings: list[Finding], size: tuple[float, float]):
    """A figure and, for each kind of canary, (its axes, its findings)."""
    figure = Figure(figsize=size, layout="constrained")
    kinds = list(dict.fromkeys(f.kind for f in findings))
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    panels: list[tuple[Axes, list[Finding]]] = []
    for ax, kind in zip(axes, kinds, strict=True):
        ax.set_title(TITLES[kind])
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
        panels.append((ax, [f for f in findings if f.kind == kind]))
    return figure, panels


def roc_plot(findings: list[Finding]) -> Figure:
    """One curve per variant: how many canaries that are in an attacker finds, at which price."""
    figure, panels = _panels(findings, (11, 6.6))
    for ax, members in panels:
        ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="guessing")
        for finding, color in zip(members, COLORS, strict=False):
            false, true, _ = roc_curve(finding.included, finding.scores)
            style = "--" if finding.variant.broken else "-"
            label = f"{finding.variant.name} ({finding.bounds.auroc:.3f})"
            ax.plot(false, true, style, color=color, linewidth=2, label=label)
        ax.set_xlabel("false positive rate")
        ax.set_ylabel("true positive rate")
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=2,
            title="trained (AUROC); dashed: deliberately broken",
        )
    return figure


def epsilon_plot(findings: list[Finding], config: AuditConfig) -> Figure:
    """Bars: what is proven. Lines: what is claimed."""
    figure, panels = _panels(findings, (11, 4.2))
    for ax, members in panels:
        for place, finding in enumerate(members):
            color = "#D55E00" if finding.violated else "#0072B2"
            bound, claim = finding.bounds.epsilon, finding.claim
            ax.barh(place, bound, color=color, height=0.6)
            if math.isfinite(claim):
                ax.vlines(claim, place - 0.42, place + 0.42, color="black", linewidth=3)
                reach, text = max(bound, claim), f"{bound:.2f}, claimed {claim:.2f}"
            else:
                reach, text = bound, f"{bound:.2f}, nothing claimed"
            ax.text(reach + 0.15, place, text, va="center")
        ax.set_yticks(range(len(members)), [f.variant.name for f in members])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.75 * max(f.bounds.epsilon for f in findings))
        ax.set_xlabel(f"epsilon at delta {config.privacy.delta:g}")
    figure.suptitle(
        f"bars: lower bound at {config.audit.confidence:.0%} confidence; black: claimed epsilon"
    )
    return figure


def markdown(config: AuditConfig, findings: list[Finding]) -> str:
    """The report; numbers of the public audit only, no report and no id."""
    audit, train = config.audit, config.train
    lines = [
        "# Audit of private training",
        "",
        f"Attacked: head on frozen features of {config.model.backbone}, data {config.data.source}, "
        f"{train.steps} steps, every report in every step, {train.optimizer}, "
        f"clip norm {config.privacy.l2_clip_norm:g}. Delta {config.privacy.delta:g}; "
        f"lower bounds at {audit.confidence:.0%} confidence each.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---" * len(HEADINGS) + "|",
    ]
    lines += [f"| {' | '.join(cells(finding))} |" for finding in findings]
    broken = dict.fromkeys(f.variant.name for f in findings if f.variant.broken)
    lines += ["", f"Broken on purpose: {', '.join(broken)}."]
    lines += ["", "| shown | |", "|---|---|"]
    lines += [f"| {what} | {'yes' if did else 'NO'} |" for what, did in showings(findings).items()]
    lines += [
        "",
        "![ROC curves](roc.png)",
        "",
        "![lower bounds and claims](epsilon.png)",
        "",
        "## How to read it",
        "",
        "Each canary is in the training with probability one half, by a coin of its own. The "
        "attacker scores all of them without the coins, and guesses that the highest "
        f"{audit.guesses:.0%} are in. If the claim held, so many right guesses would be "
        f"rarer than {1 - audit.confidence:.2g} for every epsilon below the bound.",
        "",
        f"- **Gradient canaries** ({audit.gradient_canaries:,} in each of {audit.gradient_runs} "
        "runs): hostile features and labels whose gradient has a direction of its own and "
        "a norm far above the clip norm. The attacker sees every noisy mean that is released "
        "(equivalently, all intermediate adapters) and knows every honest report: the adversary "
        "that DP-SGD is analysed against.",
        f"- **Input canaries** ({audit.input_canaries:,}): reports of rare tokens with random "
        "labels. The attacker asks the final model for its loss on them. This is the weaker "
        "attack; that it does not catch a broken variant proves nothing.",
        "- **Lower bound**: one run with many canaries, for a Gaussian trade-off curve, which T "
        "steps without subsampling have exactly (Mahloujifar et al., 2024). **General bound**: "
        "without that assumption (Steinke et al., 2023). Both are looser than the truth: a bound "
        "below its claim is no proof of privacy, a bound above its claim proves a violation. Where "
        "every guess is right, the bound is the highest that so many guesses can prove.",
        "",
        "The numbers here are made with knowledge of who was in, and no guarantee covers them: "
        "audit on public reports.",
        "",
    ]
    return "\n".join(lines)
