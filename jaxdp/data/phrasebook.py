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

Whoever writes one must not look at the private reports: then it is public, and so is what a model
learns from it.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from .dataset import DataError

SHIPPED = ("chest_en", "chest_es", "mimic_en", "ct_en")
"""Names of the phrasebooks that come with the package."""

NORMAL = 0.35
"""Share of reports without any finding."""
FINDINGS = 1.5
"""Expected number of findings in the others, all equally likely."""
DENIED = 0.65
"""Chance that a finding which is absent, and can be denied, is."""
REPEATED = 0.6
"""Chance that a finding comes again at the end, as in an impression."""
OTHER = 0.35
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

    @classmethod
    def read(cls, name: str) -> "Phrasebook":
        """One that is shipped, by its name, or a file.

        Raises:
            DataError: there is none, or a field is missing, unknown or malformed; names the field.
        """
        if name in SHIPPED:
            shipped = resources.files(__package__) / "phrasebooks" / f"{name}.json"
            text = shipped.read_text(encoding="utf-8")
        elif Path(name).is_file():
            text = Path(name).read_text(encoding="utf-8")
        else:
            raise DataError(f"{name} is no phrasebook here ({', '.join(SHIPPED)}) and no file")
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}, line {error.lineno}: not JSON") from None
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or value.keys() != fields:
            raise DataError(f"{name} must hold exactly {', '.join(sorted(fields))}")
        book = cls(**value)
        book._check(name)
        return book

    def _check(self, name: str) -> None:
        lists = {field: getattr(self, field) for field in _LISTS}
        lists |= {f"slots.{word}": choices for word, choices in self.slots.items()}
        for label, phrases in self.labels.items():
            if phrases.keys() != {"present", "absent"}:
                raise DataError(f"{name}: labels.{label} must hold present and absent")
            lists |= {f"labels.{label}.{key}": said for key, said in phrases.items()}
        for field, said in lists.items():
            may_be_empty = field.endswith(".absent")
            if not isinstance(said, list) or not (said or may_be_empty):
                raise DataError(f"{name}: {field} must be a list of sentences")
            for sentence in said:
                unknown = set(re.findall(r"\{(\w+)\}", sentence)) - self.slots.keys()
                if unknown:
                    raise DataError(f"{name}: {field} uses {', '.join(unknown)}, no word of slots")

    def write_reports(
        self, count: int, label_names: Sequence[str], seed: int = 0
    ) -> tuple[list[str], np.ndarray]:
        """(texts, labels [count, num_labels] int8): a pure function of book, names and seed.

        Findings are drawn independently; sentences come in any order, then a last one, then some of
        the findings again.

        Raises:
            DataError: the book lacks a label.
        """
        findings = [label for label in label_names if label != self.normal]
        if missing := [label for label in findings if label not in self.labels]:
            raise DataError(f"the phrasebook has no sentences for {', '.join(missing)}")
        rng = np.random.default_rng(seed)
        texts, labels = [], np.zeros((count, len(label_names)), np.int8)
        for row in labels:
            normal = rng.random() < NORMAL
            has = {label: rng.random() < FINDINGS / max(len(findings), 1) for label in findings}
            has = dict.fromkeys(findings, False) if normal else has
            said = [
                self._say(rng, self.labels[label]["present"]) for label in findings if has[label]
            ]
            if not normal and (not said or rng.random() < OTHER):
                said.append(self._say(rng, self.other))
            said += [
                self._say(rng, self.labels[label]["absent"])
                for label in findings
                if not has[label] and self.labels[label]["absent"] and rng.random() < DENIED
            ]
            said = [said[i] for i in rng.permutation(len(said))]
            said.append(self._say(rng, self.close_normal if normal else self.close_abnormal))
            said += [
                self._say(rng, self.labels[label]["present"])
                for label in findings
                if has[label] and rng.random() < REPEATED
            ]
            texts.append(" ".join(said))
            row[:] = [normal if label == self.normal else has[label] for label in label_names]
        return texts, labels

    def _say(self, rng: np.random.Generator, sentences: list[str]) -> str:
        """One of them, its slots filled, its first letter large."""
        sentence = re.sub(
            r"\{(\w+)\}",
            lambda slot: self.slots[slot[1]][rng.integers(len(self.slots[slot[1]]))],
            sentences[rng.integers(len(sentences))],
        )
        return sentence[0].upper() + sentence[1:]
