# SPDX-License-Identifier: Apache-2.0
"""Draws recipes.png from the test scores in measurements/: python docs/recipes.py"""

from pathlib import Path

from matplotlib.figure import Figure

EPSILONS = (0.01, 0.1, 1, 8)
# collection -> (without privacy, {recipe: weighted F1 by epsilon})
SCORES = {
    "Open-I: 3,159 reports": (
        0.933,
        {
            "recipe, with a phrasebook": {0.01: 0.821, 0.1: 0.843, 1: 0.887, 8: 0.914},
            "recipe, labels' names alone": {0.1: 0.662, 1: 0.764, 8: 0.870},
            "recipe of 0.5: mean of tokens": {0.01: 0.717, 0.1: 0.748, 1: 0.803, 8: 0.862},
            "head, no public start": {0.1: 0.217, 1: 0.619, 8: 0.809},
            "LoRA in private": {8: 0.518},
        },
    ),
    "PadChest: 53,041 patients": (
        0.972,
        {
            "recipe, with a phrasebook": {0.01: 0.882, 0.1: 0.913, 1: 0.946, 8: 0.960},
            "recipe, labels' names alone": {1: 0.924, 8: 0.944},
            "recipe of 0.5: mean of tokens": {0.01: 0.704, 0.1: 0.811, 1: 0.917, 8: 0.946},
            "head, no public start": {0.1: 0.706, 1: 0.888, 8: 0.917},
        },
    ),
}
STYLES = {
    "recipe, with a phrasebook": ("#1b7837", "o-"),
    "recipe, labels' names alone": ("#7b3294", "D-"),
    "recipe of 0.5: mean of tokens": ("#d95f02", "v-"),
    "head, no public start": ("#2166ac", "s-"),
    "LoRA in private": ("#b2182b", "^-"),
}


def main() -> None:
    figure = Figure((8.4, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (collection, (nonprivate, recipes)) in zip(panels, SCORES.items(), strict=True):
        axes.axhline(nonprivate, color="black", linestyle="--", linewidth=1)
        axes.text(0.01, nonprivate + 0.01, "LoRA without privacy", fontsize=8)
        for recipe, scores in recipes.items():
            colour, style = STYLES[recipe]
            axes.plot(list(scores), list(scores.values()), style, color=colour, label=recipe)
        axes.set(xscale="log", xticks=EPSILONS, xticklabels=EPSILONS, title=collection)
        axes.set(xlabel="epsilon (delta 1e-5)", ylim=(0, 1.02))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test weighted F1")
    lines = {line.get_label(): line for axes in panels for line in axes.lines[1:]}
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(Path(__file__).with_name("recipes.png"), dpi=160)


if __name__ == "__main__":
    main()
