# SPDX-License-Identifier: Apache-2.0
"""The recipe: what a run does where its configuration leaves that open, from public numbers alone.

Nothing here looks at a report, so nothing here costs privacy. Where the numbers come from, and what
each was measured on: docs/measurements/recipe.md.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

PHRASEBOOKS = {"openi": "chest_en", "padchest": "chest_es", "mimic": "mimic_en", "ctrate": "ct_en"}
"""Source -> the book that is written for its labels; a table's is made of its labels' names."""
SHAPES = {
    # Short notes of what is there; what is not there is rarely said.
    "padchest": {"normal": 0.3, "denied": 0.12, "repeated": 0.05, "other": 0.3},
    # CT shows several findings in most patients, and reports go through the organs.
    "ctrate": {"normal": 0.1, "findings": 3.5},
}
"""Source -> settings of warm_start: what its reports look like, as its makers describe them."""
RATES = ((0, 0.003), (150, 0.03), (1_500, 0.05), (5_000, 0.1))
"""units x epsilon, at least -> learning rate of the head: the less the reports can tell through the
noise, the less far from its public start a head should move."""
DIMENSIONS = ((0, 128), (30_000, 256), (200_000, 512))
"""units x epsilon, at least -> model.label_dimensions, or all of the feature where it has fewer."""
READERS = 2
"""Of a private run after a public start: two differ from another two by less than one from one."""
QUERIES = 5_000
"""units x epsilon, at least -> with labels' names alone, a query stage instead of a second reader:
a head knows better what to look for than names do."""
QUERY_SHARE = 0.35  # of epsilon: some 15 % of what can be told through the noise
TEMPERATURE = 1.5
"""Of a private head: lowers calibration error and log loss at epsilon 8, 1 and 0.1."""


class Choice(NamedTuple):
    """One setting that the recipe fills in."""

    section: str
    field: str
    value: Any
    reason: str


def learning_rate(units: int, epsilon: float) -> float:
    """Of a private head after a public start, see `RATES`."""
    return _from(RATES, units * epsilon)


def _from(table: tuple[tuple[int, Any], ...], value: float) -> Any:
    return [choice for least, choice in table if value >= least][-1]


def choices(config: Mapping[str, Mapping[str, Any]]) -> list[Choice]:
    """What the recipe is for these settings; of a run without privacy, adapters learn as well.

    Args:
        config: all settings, by section.
    """
    source, privacy = config["data"]["source"], config["privacy"]
    units, epsilon = privacy["units"], privacy["epsilon"]
    book = config["warm_start"]["phrasebook"] or PHRASEBOOKS.get(source, "labels")
    made_up = "findings are put in words before a private report is seen"
    classes = config["data"]["labels"] if config["data"]["task"] == "multi-class" else None
    if book == "labels" and classes and not config["warm_start"]["synonyms"]:
        if not any(letter.isalpha() for name in classes for letter in str(name)):
            book, made_up = None, "numbers of classes say nothing; warm_start.synonyms would"
    found = [
        Choice("model", "pooling", "label-attention", "each label reads its own tokens"),
        Choice("warm_start", "phrasebook", book, made_up),
    ]
    if book == "labels":
        found.append(Choice("warm_start", "noise", 1.0, "sentences of a fixed form say one thing"))
    shape = SHAPES.get(source, {})
    found += [Choice("warm_start", f, v, f"reports of {source}") for f, v in shape.items()]
    if not epsilon or epsilon == float("inf"):
        return found + [
            Choice("train", "queries", True, "nothing is noised"),
            Choice("train", "expected_batch_size", 64.0, "nothing is noised"),
        ]
    if not all(isinstance(number, int | float) and number > 0 for number in (units, epsilon)):
        return found  # `Config` says what is wrong
    train, rate, why = config["train"], learning_rate(units, epsilon), "units x epsilon"
    attention = config["model"]["pooling"] in (None, "label-attention")
    alone = train["mode"] in (None, "head") and not train["queries"]
    alone &= config["centering"]["l2_clip_norm"] is None and not config["head_stage"]["steps"]
    alone &= privacy["noise_multiplier"] is None and train["query_share"] != 0
    names = book == "labels" and not config["warm_start"]["lexicon"] and classes is None
    if names and attention and alone and units * epsilon >= QUERIES:
        reason = "what a head has found, queries can look for"
        found.append(Choice("train", "query_share", QUERY_SHARE, reason))
        rate, why = 2 * rate, "units x epsilon, and twice that with a query stage"
    elif book is not None and attention and config["warm_start"]["adapters"]:
        found.append(Choice("warm_start", "readers", READERS, "chance decides what one learns"))
    # Sentences of a fixed form do not show along which directions real ones vary.
    dimensions = None if book in ("labels", None) else _from(DIMENSIONS, units * epsilon)
    return found + [
        Choice("model", "label_dimensions", dimensions, "units x epsilon, and the phrasebook"),
        Choice("train", "mode", "head", "fewest numbers to noise"),
        Choice("train", "steps", 200, "of the head alone"),
        Choice("train", "expected_batch_size", float(units), "every unit at every step"),
        Choice("train", "schedule", "linear", "less noise at the end"),
        Choice("train", "learning_rate", rate, why),
        Choice("train", "temperature", TEMPERATURE, "clipped and noised, a head is too sure"),
        Choice("privacy", "l2_clip_norm", 0.03, "Adam does not see the scale"),
    ]
