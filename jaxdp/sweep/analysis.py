# SPDX-License-Identifier: Apache-2.0
"""A finished sweep's numbers: scores with intervals, tests between settings, costs."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp.evaluation.metrics import reliability
from jaxdp.evaluation.predictions import TestPredictions
from jaxdp.evaluation.statistics import (
    F1_AVERAGES,
    Interval,
    bootstrap_scores,
    f1_scores,
    hedges_g,
    holm,
    mean_over_seeds,
    over_seeds,
    percentile_interval,
    permutation_test,
)
from jaxdp.models.tasks import TASKS
from jaxdp.run.directory import RunError

from .directory import read_begun
from .history import evaluations, peak_memory, read_history, seconds
from .members import Member, Place
from .paper import DATASETS

AVERAGES = (*F1_AVERAGES, "balanced_accuracy")
_NOT_RECIPE = {"run.name", "run.dir", "run.research_seed", "privacy.epsilon", "data.cache"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Members that differ in their seed alone.

    Attributes:
        model, mode: as configured.
        recipe: what else tells it from others of these and the same epsilon; mostly nothing.
        epsilon: target; None without privacy.
        members: finished ones, by seed.
        scores: of AVERAGES -> (mean over seeds, interval over reports and seeds).
        seeds: the same -> (mean, Student's interval over seeds).
        per_label: [num_labels] F1, mean over seeds.
        reliability: [bins, 3] of all members' answers, see `metrics.reliability`.
        seconds, peak_memory: mean and maximum over members; None if not recorded.
    """

    model: str
    mode: str
    recipe: str
    epsilon: float | None
    members: tuple[str, ...]
    scores: Mapping[str, Interval]
    seeds: Mapping[str, Interval]
    per_label: np.ndarray
    reliability: np.ndarray
    seconds: float | None
    peak_memory: int | None

    @property
    def series(self) -> str:
        """What a curve over epsilon is named."""
        return ", ".join(part for part in (self.model, self.mode, self.recipe) if part)

    @property
    def level(self) -> str:
        return "no privacy" if self.epsilon is None else f"epsilon {self.epsilon:g}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two settings on the same test reports: row minus column."""

    row: int
    column: int
    difference: float
    p: float
    adjusted_p: float
    effect: float | None


@dataclasses.dataclass(frozen=True)
class Collection:
    """Everything that was tested on the same reports."""

    source: str
    unit: str
    reports: int
    task: str
    label_names: tuple[str, ...]
    support: np.ndarray
    settings: tuple[Setting, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def title(self) -> str:
        """For people."""
        return f"{DATASETS.get(self.source, self.source)}, per {self.unit}"

    @property
    def one_class(self) -> bool:
        """Whether every text has one class."""
        return TASKS[self.task].one_class

    @property
    def names(self) -> list[str]:
        """Of each setting: what not all have in common, and its level."""
        series = [(s.model, s.mode, s.recipe) for s in self.settings]
        telling = [len(set(parts)) > 1 for parts in zip(*series, strict=True)]
        return [
            ", ".join([*filter(None, itertools.compress(parts, telling)), s.level])
            for parts, s in zip(series, self.settings, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """All that the page and the figures show."""

    description: Mapping[str, Any]
    """What sweep.json holds."""
    members: Mapping[str, Member]
    finished: tuple[str, ...]
    collections: tuple[Collection, ...]
    histories: Mapping[str, list[dict[str, Any]]]
    """Member -> its evaluations on validation reports."""
    draws: int


def analyse(folder: Path, draws: int = 10_000) -> SweepReport:
    """Reads a sweep's folder, whatever of it is finished.

    Args:
        draws: resampled test sets, and permutations of each test.

    Raises:
        RunError: no sweep, or no finished member.
        DataError: a finished member's predictions cannot be read.
    """
    description, members = read_begun(folder)
    done = {n: m for n, m in members.items() if (m.path / "metrics.json").exists()}
    if not done:
        raise RunError(f"{folder}: no member is finished yet; jaxdp sweep trains them")
    answers = {
        n: TestPredictions.read(m.path / "private" / "test_predictions.npz")
        for n, m in done.items()
    }
    tested: dict[tuple, list[Member]] = {}
    for name, member in done.items():
        a, place = answers[name], member.place
        same = (a.reports.tobytes(), a.labels.tobytes(), a.units.tobytes(), a.label_names)
        key = (place.source, place.unit, member.task, same)
        tested.setdefault(key, []).append(member)
    recipes = _recipes(done)
    histories = {n: evaluations(read_history(m.path)) for n, m in members.items()}
    return SweepReport(
        description=description,
        members=members,
        finished=tuple(done),
        collections=tuple(_collection(c, answers, recipes, draws) for c in tested.values()),
        histories={n: h for n, h in histories.items() if h},
        draws=draws,
    )


def _recipes(members: Mapping[str, Member]) -> dict[str, str]:
    """Member -> the settings that tell it from others of the same place in the table; none that
    follows from the phrasebook or those after it, as what a recipe has chosen does."""
    told = {name: member.place for name, member in members.items()}
    telling = []
    fields = reversed(list(next(iter(members.values())).settings))
    for field in sorted(fields, key=lambda field: field != "warm_start.phrasebook"):
        more = {name: (told[name], members[name].settings[field]) for name in told}
        if field not in _NOT_RECIPE and len(set(more.values())) > len(set(told.values())):
            telling.insert(0, field)
            told = more
    found = {f: {member.settings[f] for member in members.values()} for f in telling}
    return {
        name: ", ".join(_in_words(f, member.settings[f], found[f]) for f in telling)
        for name, member in members.items()
    }


def last_name(text: str) -> str:
    """Of a path, which is this machine's business; another text as it is."""
    return text.rstrip("/").split("/")[-1] if text.startswith(("/", "~", ".")) else text


def _in_words(field: str, value: Any, among: set[Any]) -> str:
    """A setting for people, and of several with one last name, which it is."""
    name, short = field.partition(".")[2].replace("_", " "), last_name(str(value))
    alike = sorted(text for text in map(str, among) if last_name(text) == short)
    return f"{name} {short}" + (f" ({alike.index(str(value)) + 1})" if len(alike) > 1 else "")


def _collection(
    members: Sequence[Member],
    answers: Mapping[str, TestPredictions],
    recipes: Mapping[str, str],
    draws: int,
) -> Collection:
    """Of members that were tested on the same reports."""
    common, task, first = members[0].place, members[0].task, answers[members[0].name]
    labels, units = first.labels, first.units
    alike: dict[tuple[Place, str], list[Member]] = {}
    for member in members:
        alike.setdefault((member.place, recipes[member.name]), []).append(member)

    def order(key):
        place, recipe = key
        return place.model, place.mode, recipe, place.epsilon is None, place.epsilon or 0.0

    settings, sides = [], []
    for place, recipe in sorted(alike, key=order):
        repeated = sorted(alike[place, recipe], key=lambda member: member.seed)
        probabilities = np.stack([answers[m.name].probabilities for m in repeated])
        decided = TASKS[task].decide(probabilities)
        sides.append(decided)
        estimate = f1_scores(decided, labels)
        resampled = bootstrap_scores(decided, labels, units=units, draws=draws)
        histories = [read_history(m.path) for m in repeated]
        times = [t for h in histories if (t := seconds(h)) > 0]
        peaks = [p for h in histories if (p := peak_memory(h)) is not None]
        setting = Setting(
            model=place.model,
            mode=place.mode,
            recipe=recipe,
            epsilon=place.epsilon,
            members=tuple(m.name for m in repeated),
            scores={
                average: percentile_interval(
                    estimate[average].mean(), mean_over_seeds(resampled[average], seed=1)
                )
                for average in AVERAGES
            },
            seeds={average: over_seeds(estimate[average].tolist()) for average in AVERAGES},
            per_label=estimate["per_label"].mean(0),
            reliability=reliability(probabilities, labels, task),
            seconds=float(np.mean(times)) if times else None,
            peak_memory=max(peaks, default=None),
        )
        settings.append(setting)
    return Collection(
        source=common.source,
        unit=common.unit,
        task=task,
        reports=len(labels),
        label_names=first.label_names,
        support=(labels == 1).sum(0),
        settings=tuple(settings),
        comparisons=tuple(_comparisons(sides, labels, units, draws)),
    )


def _comparisons(
    sides: Sequence[np.ndarray], labels: np.ndarray, units: np.ndarray, permutations: int
) -> list[Comparison]:
    """All pairs, with Holm's correction over all of them."""
    found = []
    for row, column in itertools.combinations(range(len(sides)), 2):
        a, b = sides[row], sides[column]
        least, most = sorted((len(a), len(b)))
        seeds = least if least > 1 else most  # one alone is compared with each
        paired = (np.resize(side, (seeds, *side.shape[1:])) for side in (a, b))
        difference, p = permutation_test(*paired, labels, units=units, permutations=permutations)
        scores = [f1_scores(side, labels)["weighted_f1"].tolist() for side in (a, b)]
        found.append((row, column, difference, p, hedges_g(*scores)))
    adjusted = holm([p for *_, p, _ in found])
    return [
        Comparison(row, column, difference, p, q, effect)
        for (row, column, difference, p, effect), q in zip(found, adjusted, strict=True)
    ]
