# SPDX-License-Identifier: Apache-2.0
"""Made-up reports with known labels, from sentences that somebody wrote down: public data.

A phrasebook is a JSON file:

    labels         label -> {"present": sentences that say it, "absent": sentences that deny it}
    normal         the label of a report without any finding, or null
    other          sentences about what no label stands for
    close_normal   last sentences of a report without findings
    close_abnormal last sentences of any other
    slots          word -> what a sentence may have in place of {word}
    origin         who wrote it, and from what; goes into the privacy statement

Where nobody has written one, `Phrasebook.of_labels` makes one of the labels' names: sentences of a
fixed form around each, and those that shipped files have for a finding of that name.

Whoever writes one must not look at the private reports: then it is public, and so is what a model
learns from it.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .dataset import DataError, require_choice

SHIPPED = ("chest_en", "chest_es", "mimic_en", "ct_en")
"""Names of the phrasebooks that come with the package."""

LANGUAGES = ("en", "es")
"""Those that `Phrasebook.of_labels` knows sentences of."""


class Shape(NamedTuple):
    """What made-up reports look like: public knowledge of the reports that they stand for."""

    normal: float
    """Share of reports without any finding."""
    findings: float
    """Expected number of findings in the others, all equally likely."""
    denied: float
    """Chance that a finding which is absent, and can be denied, is."""
    repeated: float
    """Chance that a finding comes again at the end, as in an impression."""
    other: float
    """Chance of a sentence about something else in a report with findings."""


_LISTS = ("other", "close_normal", "close_abnormal")


@dataclasses.dataclass(frozen=True)
class Phrasebook:
    """See the module. Attributes are the file's fields."""

    labels: dict[str, dict[str, list[str]]]
    normal: str | None
    other: list[str]
    close_normal: list[str]
    close_abnormal: list[str]
    slots: dict[str, list[str]]
    origin: str
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    """Label -> what sentences call it, where they are made of that; else empty."""

    @classmethod
    def read(cls, name: str) -> "Phrasebook":
        """One that is shipped, by its name, or a file.

        Raises:
            DataError: there is none, or a field is missing, unknown or malformed; names the field.
        """
        if name not in SHIPPED and not Path(name).is_file():
            raise DataError(
                f"{name} is no phrasebook here ({', '.join(SHIPPED)}), not labels, and no file"
            )
        try:
            value = _shipped(name) if name in SHIPPED else json.loads(Path(name).read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{name}, line {error.lineno}: not JSON") from None
        except UnicodeDecodeError:
            raise DataError(f"{name} is not in UTF-8") from None
        fields = {field.name for field in dataclasses.fields(cls)} - {"names"}
        if not isinstance(value, dict) or value.keys() != fields:
            raise DataError(f"{name} must hold exactly {', '.join(sorted(fields))}")
        book = cls(**value)
        book._check(name)
        return book

    @classmethod
    def of_labels(
        cls,
        label_names: Sequence[str],
        language: str,
        synonyms: Sequence[str] = (),
        lexicon: bool = False,
    ) -> "Phrasebook":
        """Sentences of a fixed form around the labels' names, and those of the lexicon.

        Args:
            label_names: "_" stands for a space, and "hernia, hiatal" for a hiatal hernia. One that
                means that there is nothing, such as "No Finding", becomes the label of normal
                reports.
            language: one of LANGUAGES.
            synonyms: "label: name, name": what to call a label instead, for labels in another
                language, or with several names.
            lexicon: sentences that shipped files have for a finding of such a name come in as well.

        Raises:
            DataError: unknown language, or synonyms of no label.
        """
        require_choice("warm_start.language", language, LANGUAGES)
        rule = _shipped(f"rule_{language}")
        names = {label: [_spoken(label)] for label in label_names}
        for line in synonyms:
            label, _, listed = line.partition(":")
            said = [name.strip() for name in listed.split(",") if name.strip()]
            if label not in names or not said:
                raise DataError(
                    f"warm_start.synonyms: {line!r} is not a label, a colon, and what to call it"
                )
            names[label] = said
        normal = next((label for label in names if set(names[label]) & set(rule["normal"])), None)
        known, slots = _lexicon(language) if lexicon else ({}, {})
        labels = {}
        for label, said in names.items():
            findings = {id(known[name]): known[name] for name in said if name in known}.values()
            labels[label] = {
                key: [sentence.replace("{name}", name) for name in said for sentence in rule[key]]
                + [sentence for finding in findings for sentence in finding[key]]
                for key in ("present", "absent")
            }
        labels.pop(normal, None)
        more = "; where a name is known, those of the phrasebooks that come with jaxdp as well"
        return cls(
            labels=labels,
            normal=normal,
            slots=rule["slots"] | slots,
            origin=rule["origin"] + (more if lexicon else ""),
            names={label: said[0] for label, said in names.items()},
            **{field: rule[field] for field in _LISTS},
        )

    def _check(self, name: str) -> None:
        for field in ("labels", "slots"):
            if not isinstance(getattr(self, field), dict):
                raise DataError(f"{name}: {field} must be an object")
        for field, kinds in (("origin", str), ("normal", str | None)):
            if not isinstance(getattr(self, field), kinds):
                raise DataError(f"{name}: {field} must be a text")
        lists = {field: getattr(self, field) for field in _LISTS}
        lists |= {f"slots.{word}": choices for word, choices in self.slots.items()}
        for label, phrases in self.labels.items():
            if not isinstance(phrases, dict) or phrases.keys() != {"present", "absent"}:
                raise DataError(f"{name}: labels.{label} must hold present and absent")
            lists |= {f"labels.{label}.{key}": said for key, said in phrases.items()}
        for field, said in lists.items():
            may_be_empty = field.endswith(".absent")
            optional = field.startswith("slots.")  # a word may be left out, a sentence may not
            right = isinstance(said, list) and all(
                isinstance(s, str) and (s or optional) for s in said
            )
            if not right or not (said or may_be_empty):
                raise DataError(f"{name}: {field} must be a list of sentences")
            for sentence in said:
                words = () if optional else self.slots  # in a slot's own, none is filled
                unknown = set(re.findall(r"\{(\w+)\}", sentence)).difference(words)
                if unknown:
                    raise DataError(f"{name}: {field} uses {', '.join(unknown)}, no word of slots")

    def findings(self, label_names: Sequence[str]) -> list[str]:
        """The labels but that of normal reports; DataError if the book lacks one."""
        findings = [label for label in label_names if label != self.normal]
        if missing := [label for label in findings if label not in self.labels]:
            raise DataError(
                f"the phrasebook has no sentences for {', '.join(map(repr, missing))}; "
                "warm_start.phrasebook = labels makes some of the labels' names"
            )
        return findings

    def write_reports(
        self,
        count: int,
        label_names: Sequence[str],
        shape: Shape,
        seed: int = 0,
        *,
        one_class: bool = False,
    ) -> tuple[list[str], np.ndarray]:
        """(texts, labels [count, num_labels] int8): a pure function of book, names, shape and seed.

        Findings are drawn independently, or with `one_class` one for each report that is not
        normal, and reports are normal only if that is a class. Sentences come in any order, then a
        last one, then some of the findings again.

        Raises:
            DataError: the book lacks a label.
        """
        findings = self.findings(label_names)
        rng, chance = np.random.default_rng(seed), shape.findings / max(len(findings), 1)

        def say(key: str, chosen: Iterable[str]) -> list[str]:
            return [self._say(rng, self.labels[label][key]) for label in chosen]

        texts, labels = [], np.zeros((count, len(label_names)), np.int8)
        for row in labels:
            normal = rng.random() < shape.normal
            found = [label for label in findings if rng.random() < chance]
            if one_class:
                normal = normal and self.normal in label_names
                found = [findings[rng.integers(len(findings))]]
            found = [] if normal else found
            deniable = [
                label for label in findings if label not in found and self.labels[label]["absent"]
            ]
            said = say("present", found)
            if not normal and (not said or rng.random() < shape.other):
                said.append(self._say(rng, self.other))
            said += say("absent", (label for label in deniable if rng.random() < shape.denied))
            said = [said[i] for i in rng.permutation(len(said))]
            said.append(self._say(rng, self.close_normal if normal else self.close_abnormal))
            said += say("present", (label for label in found if rng.random() < shape.repeated))
            texts.append(" ".join(said))
            row[:] = [normal if label == self.normal else label in found for label in label_names]
        return texts, labels

    def _say(self, rng: np.random.Generator, sentences: list[str]) -> str:
        """One of them, its slots filled, its first letter large."""
        sentence = re.sub(
            r"\{(\w+)\}",
            lambda slot: self.slots[slot[1]][rng.integers(len(self.slots[slot[1]]))],
            sentences[rng.integers(len(sentences))],
        )
        return sentence[:1].upper() + sentence[1:]


def _shipped(name: str) -> dict[str, Any]:
    file = resources.files(__package__) / "phrasebooks" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


@functools.cache
def _lexicon(language: str) -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]]]:
    """(what a finding may be called -> {"present", "absent"}, slots), of all shipped files in a
    language. A slot is called after its file: two files may mean different things by a word."""
    known: dict[str, dict[str, list[str]]] = {}
    slots: dict[str, list[str]] = {}
    for file in (f"findings_{language}", *(b for b in SHIPPED if b.endswith(f"_{language}"))):
        book = _shipped(file)
        slots |= {f"{file}_{word}": choices for word, choices in book["slots"].items()}
        for label, phrases in (book.get("findings") or book["labels"]).items():
            names = [_spoken(name) for name in phrases.get("names", [label])]
            empty = {"present": [], "absent": []}
            finding = next((known[name] for name in names if name in known), empty)
            for key, said in finding.items():
                said += [re.sub(r"\{(\w+)\}", rf"{{{file}_\1}}", s) for s in phrases.get(key, [])]
            known |= dict.fromkeys(names, finding)
    return known, slots


def _spoken(label: str) -> str:
    """As a sentence says it: "Hernia, Hiatal" is a hiatal hernia."""
    return " ".join(reversed(label.replace("_", " ").strip().lower().split(", ")))
