# SPDX-License-Identifier: Apache-2.0
"""Opens a release bundle and proves what can be proven of it; trusts nothing that wrote it."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from jaxdp import dp
from jaxdp.data.dataset import DataError
from jaxdp.data.tokens import load_tokenizer
from jaxdp.models.checkpoints import Description, WeightsError, first_of, read_json, read_tensors
from jaxdp.models.classifier import HEAD
from jaxdp.models.hub import TOKENIZER_FILES, VOCABULARIES
from jaxdp.models.peft import (
    HEAD_BIASES,
    HEAD_WEIGHTS,
    TORCH_CLASS,
    WEIGHTS,
    reader_folders,
    torch_class,
)
from jaxdp.models.pretrained import read_config
from jaxdp.models.tasks import TASKS

_BUNDLE = {"PRIVACY.md", "privacy.json"}
_ADAPTER = {"adapter_config.json", WEIGHTS}
_WHOLE = {"config.json", "model.safetensors"}
_BESIDE_WEIGHTS = {"jaxdp.json", "tokenizer_config.json"}

PATHS = {"_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file"}
"""Where transformers keeps paths of whoever saved a file."""
_NAME = r"[^/\\\s][^/\\\n]{0,199}"
_PREFIX = "base_model.model."
_HEAD = (*HEAD_WEIGHTS, *HEAD_BIASES)
_QUERIES = "label_attention.queries"
_POOLER = re.compile(
    r"(\.pooler(\.dense)?|^(classifier\.dense|pre_classifier|head\.(dense|norm)))\.(weight|bias)$"
)


def _layers(names: Any) -> bool:
    return all(re.fullmatch(r"[\w.-]+", name) for name in names)


def _layer_numbers(value: Any) -> bool:
    return _layers(value) and all(isinstance(v, int | float) for v in value.values())


_POOLERS = {"pooler", "pre_classifier", "head"}
_PEFT_FIELDS: dict[str, Callable[[Any], bool]] = {
    "peft_type": lambda v: v == "LORA",
    "task_type": lambda v: v in ("SEQ_CLS", None),
    # A folder's name or a hub id: a path tells about the machine and its users.
    "base_model_name_or_path": lambda v: bool(re.fullmatch(f"{_NAME}(/{_NAME})?", v)),
    "revision": lambda v: v is None or bool(re.fullmatch(f"{_NAME}(/{_NAME}){{0,2}}", v)),
    "inference_mode": lambda v: v is True,
    "r": lambda v: isinstance(v, int) and v >= 1,
    "lora_alpha": lambda v: isinstance(v, int | float) and v > 0,
    "lora_dropout": lambda v: v == 0,
    "bias": lambda v: v in ("none", "all"),
    "target_modules": lambda v: _layers([v] if isinstance(v, str) else v),
    "modules_to_save": lambda v: "classifier" in v and set(v) <= {*_POOLERS, *HEAD},
    "rank_pattern": _layer_numbers,
    "alpha_pattern": _layer_numbers,
}
"""Field of adapter_config.json -> whether a value may stand there."""


class ReleaseError(ValueError):
    """A release bundle holds what it must not, or does not hold what it claims."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    passed: bool
    text: str  # what was seen, or what is wrong; never a report's text


def failures(findings: list[Finding]) -> str:
    """What did not pass, in one line; empty if all did."""
    return "; ".join(f"{f.check}: {f.text}" for f in findings if not f.passed)


def check_release(release: Path, base: Path | None = None) -> list[Finding]:
    """Checks a bundle against the design's release contract; read only.

    files       exactly the files of the contract, no links, nothing hidden; if not, the rest of
                the checks is left out
    statement   privacy.json, its epsilon and dp_event above all, is recomputed from the mechanisms
                it lists; PRIVACY.md says the same and no more
    settings    adapter_config.json and jaxdp.json hold known fields with values of their kind
    tensors     those that the settings declare and no others, of the right shape, all finite, and
                no further metadata
    trained     the head has moved from its first value, and no LoRA update B A (with `base`: no
                trained bias or matrix) is as it was before training. Of a run with noise, that
                holds for each of them; of one without, a layer may have no gradient.
    tokenizer   with `base`: unchanged; without, only that it can be read

    Settings, tensors and trained are those of every reader.

    Args:
        release: the directory.
        base: the backbone's directory, for what can only be seen by comparing.

    Raises:
        OSError: `base` is not there.
    """
    release, base = Path(release), None if base is None else Path(base)
    bundle = _Bundle(release, base, release / "adapter")
    findings = []
    for name in ("files", "statement", "settings", "tensors", "trained", "tokenizer"):
        where, texts = "", []
        try:
            texts.append(getattr(bundle, name)())
            others = bundle.readers()[1:] if name in ("settings", "tensors", "trained") else ()
            for folder in others:
                where = f"{folder.name}: "
                texts.append(where + getattr(_Bundle(release, base, folder), name)())
            findings.append(Finding(name, True, "; ".join(texts)))
        except (ReleaseError, DataError, WeightsError, safetensors.SafetensorError) as error:
            findings.append(Finding(name, False, f"{where}{error}"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # Fields of another kind than they should be.
            text = f"{where}malformed: {type(error).__name__} {error}"
            findings.append(Finding(name, False, text))
        if name == "files" and not findings[0].passed:
            break  # the other checks open these files
    return findings


class _Bundle:
    """One method for each check: what was seen, or ReleaseError. `adapter` is a reader's folder."""

    def __init__(self, release: Path, base: Path | None, adapter: Path):
        self.release = release
        self.adapter = adapter
        self.base = base
        self.whole = (self.adapter / "model.safetensors").exists()

    def files(self) -> str:
        if not self.release.is_dir():
            raise ReleaseError(f"{self.release} is no directory")
        weights = _WHOLE if self.whole else _ADAPTER
        needed = _BUNDLE | {f"adapter/{name}" for name in weights | _BESIDE_WEIGHTS}
        code = f"adapter/{TORCH_CLASS.name}"
        found = {str(path.relative_to(self.release)): path for path in self.release.rglob("*")}
        folders, about = {"adapter"}, found.get("adapter/jaxdp.json")
        if about and about.is_file() and not about.is_symlink():
            folders = {str(folder.relative_to(self.release)) for folder in self.readers()}
        needed |= {f"{f}/{n}" for f in folders - {"adapter"} for n in _ADAPTER | {"jaxdp.json"}}
        allowed = needed | folders | {code} | {f"adapter/{name}" for name in TOKENIZER_FILES}
        if surplus := sorted(found.keys() - allowed):
            raise ReleaseError(f"does not belong in a release: {first_of(surplus)}")
        if missing := sorted(needed - found.keys()):
            raise ReleaseError(f"missing: {', '.join(missing)}")

        def right(name: str, path: Path) -> bool:
            kind = path.is_dir() if name in folders else path.is_file()
            return kind and not path.is_symlink()

        if odd := [name for name, path in found.items() if not right(name, path)]:
            raise ReleaseError(f"links or folders where files belong: {', '.join(sorted(odd))}")
        if code in found and found[code].read_bytes() not in map(torch_class, TASKS):
            raise ReleaseError(f"{code} is not the class that belongs there")
        if not {f"adapter/{name}" for name in VOCABULARIES} & found.keys():
            raise ReleaseError(f"none of {', '.join(sorted(VOCABULARIES))} is there")
        return f"{len(found) - len(folders)} files, each of them allowed"

    def readers(self) -> list[Path]:
        """The folder of each; the first is adapter/ itself."""
        readers = Description.read(self.adapter).readers
        if readers > 1 and self.whole:
            raise ReleaseError("jaxdp.json: a whole model has one reader")
        return reader_folders(self.adapter, readers)

    def statement(self) -> str:
        stated = read_json(self.release / "privacy.json")
        names = {field.name for field in dataclasses.fields(dp.SubsampledGaussian)} - {"units"}
        again = dp.privacy_statement(
            {
                m["stage"]: dp.SubsampledGaussian(stated["units"], **{n: m[n] for n in names})
                for m in stated["mechanisms"]
            },
            delta=stated["delta"],
            privacy_unit=stated["privacy_unit"],
            seed_policy=stated["seed_policy"],
            label_origin=stated["labels"],
            noise_generator=stated["noise_generator"],
            max_reports_per_patient=stated["max_reports_per_patient"],
            public_start=stated.get("public_start"),  # absent before version 0.3
        )
        for field in sorted(again.keys() | stated.keys()):
            if field != "accountant_version" and not _close(stated.get(field), again.get(field)):
                raise ReleaseError(f"privacy.json: {field} does not follow from its mechanisms")
        words = (self.release / "PRIVACY.md").read_text(encoding="utf-8")
        if words != dp.statement_markdown(stated):
            raise ReleaseError("PRIVACY.md does not say what privacy.json does, or says more")
        if not again["mechanisms"]:
            return "trained without privacy, and says so"
        return f"epsilon {stated['epsilon']} at delta {stated['delta']:g}, recomputed"

    def settings(self) -> str:
        stated = read_json(self.adapter / "jaxdp.json")
        needed = {"pooling", "label_names", "base_fingerprint"}
        _known("jaxdp.json", stated, needed, {"window", "problem_type", "readers"})
        description = Description.read(self.adapter)
        labels, fingerprint = list(description.label_names), description.base_fingerprint
        if not all(isinstance(name, str) and len(name) <= 200 for name in labels):
            raise ReleaseError("jaxdp.json: label_names must be short names")
        if fingerprint is not None and not re.fullmatch("[0-9a-f]{32}", fingerprint):
            raise ReleaseError("jaxdp.json: base_fingerprint must be 32 hexadecimal digits")
        if self.adapter != self.release / "adapter":
            # All else of a further reader is the first's.
            first = Description.read(self.release / "adapter")
            config, wanted = (
                read_json(folder / "adapter_config.json")
                for folder in (self.adapter, self.release / "adapter")
            )
            if description != dataclasses.replace(first, readers=1) or config != wanted:
                raise ReleaseError("other settings than the first reader's")
            return "the same"
        if self.whole:
            config = read_json(self.adapter / "config.json")
            _no_paths("config.json", config)
            if list(config["id2label"].values()) != labels:
                raise ReleaseError("config.json: id2label must be the label names")
            if config["problem_type"] != TASKS[description.task].problem_type:
                raise ReleaseError("config.json: problem_type must be that of jaxdp.json")
            if self.base is not None:
                own = {"architectures", "problem_type", "id2label", "label2id"} | PATHS
                ours, theirs = (read_config(d).to_dict() for d in (self.adapter, self.base))
                if _without(ours, own) != _without(theirs, own):
                    raise ReleaseError("config.json differs from the backbone's")
            return f"whole model, {len(labels)} labels"
        config = read_json(self.adapter / "adapter_config.json")
        patterns = {"rank_pattern", "alpha_pattern"}
        _known("adapter_config.json", config, _PEFT_FIELDS.keys() - patterns, patterns)
        for field, value in config.items():
            if not _PEFT_FIELDS[field](value):
                raise ReleaseError(f"adapter_config.json: {field} has a value of another kind")
        return f"PEFT adapter of {config['base_model_name_or_path']}, {len(labels)} labels"

    def tensors(self) -> str:
        tensors, labels = self._tensors, Description.read(self.adapter).label_names
        shapes = {name: tensors[name].shape for name in _HEAD if name in tensors}
        if [shape[:1] for shape in shapes.values()] != 2 * [(len(labels),)]:
            raise ReleaseError(f"the head must have a row for each of {len(labels)} labels")
        if not self.whole:
            self._check_declared(tensors)
        elif self.base is not None:
            before = read_tensors(self.base)
            for name, value in tensors.items():
                old = _find(before, name)
                new = old is None and (name in (*_HEAD, _QUERIES) or _POOLER.search(name))
                if not new and (old is None or old.shape != value.shape):
                    raise ReleaseError(f"{name!r} is no parameter of the backbone")
        for name, value in tensors.items():
            if value.dtype not in (np.float32, np.float64):
                raise ReleaseError(f"{name} is {value.dtype}, not float32 or float64")
            if not np.isfinite(value).all():
                raise ReleaseError(f"{name} holds numbers that are not finite")
        return f"{len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} finite numbers"

    @functools.cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        """By the names of the model's parameters."""
        path = self.adapter / ("model.safetensors" if self.whole else WEIGHTS)
        # The library refuses a file with bytes that belong to no tensor.
        with safetensors.safe_open(path, framework="numpy") as file:
            if file.metadata() != {"format": "pt"}:
                raise ReleaseError(f"{path.name} carries metadata beside its format")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if self.whole:
            return tensors
        if foreign := [name for name in tensors if not name.startswith(_PREFIX)]:
            raise ReleaseError(f"{foreign[0]!r} is not declared by adapter_config.json")
        return {name.removeprefix(_PREFIX): value for name, value in tensors.items()}

    def _check_declared(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Every tensor is a factor of a targeted layer, a saved module's, or a trained bias."""
        config = read_json(self.adapter / "adapter_config.json")
        targets = config["target_modules"]
        targets = [] if isinstance(targets, str) else targets
        for name, value in tensors.items():
            layer, is_factor, which = name.partition(".lora_")
            if is_factor:
                rank = config.get("rank_pattern", {}).get(layer, config["r"])
                axis = {"A.weight": 0, "B.weight": 1}.get(which)
                declared = (
                    axis is not None
                    and any(layer == t or layer.endswith(f".{t}") for t in targets)
                    and value.ndim == 2
                    and value.shape[axis] == rank
                    and {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"} <= tensors.keys()
                )
            elif name in _HEAD:
                declared = value.ndim == 1 + name.endswith("weight")
            elif name == _QUERIES and "label_attention" in config["modules_to_save"]:
                declared = value.shape == tensors["classifier.weight"].shape
            else:
                saved = {*config["modules_to_save"]} & set(name.split("."))
                declared = (config["bias"] == "all" and name.endswith(".bias")) or (
                    bool(saved and _POOLER.search(name))
                )
            if not declared:
                raise ReleaseError(f"{name!r} is not what adapter_config.json declares")

    def trained(self) -> str:
        tensors = self._tensors
        before = {} if self.base is None else read_tensors(self.base)
        changed: dict[str, bool] = {}
        for name, value in tensors.items():
            layer, is_factor, which = name.partition(".lora_")
            if which == "A.weight":
                product = tensors[f"{layer}.lora_B.weight"] @ value
                changed[f"LoRA of {layer}"] = bool(np.any(product))
            elif is_factor or _POOLER.search(name) and not self.whole:
                continue
            elif (old := _find(before, name)) is not None:
                changed[name] = not np.array_equal(value, old)
            elif name in HEAD_BIASES:
                changed[name] = bool(np.any(value))  # a new head's bias starts at zero
        same = [name for name, moved in changed.items() if not moved]
        if set(same) & set(HEAD_BIASES):
            raise ReleaseError("the head was never trained: its bias is what it was before")
        noised = isinstance(read_json(self.release / "privacy.json")["epsilon"], float | int)
        lora = {name for name in changed if name.startswith("LoRA")}
        if same and (noised or (lora and lora <= set(same))):
            raise ReleaseError(f"unchanged by training: {first_of(same, 4)}")
        return f"{len(changed) - len(same)} of {len(changed)} updates are not zero"

    def tokenizer(self) -> str:
        config = read_json(self.adapter / "tokenizer_config.json")
        _no_paths("tokenizer_config.json", config)
        if not isinstance(config.get("model_max_length"), int):
            raise ReleaseError("tokenizer_config.json has no model_max_length")
        present = [n for n in sorted(TOKENIZER_FILES) if (self.adapter / n).exists()]
        load_tokenizer(self.adapter)
        if self.base is None:
            return f"{', '.join(present)}: readable, not compared"
        for name in present:
            theirs = self.base / name
            if not theirs.exists() or theirs.read_bytes() != (self.adapter / name).read_bytes():
                raise ReleaseError(f"{name} is not the backbone's")
        path = self.base / "tokenizer_config.json"
        theirs = read_json(path) if path.exists() else {}
        own = PATHS | {"model_max_length"} | ({"tokenizer_class"} - theirs.keys())
        if _without(config, own) != _without(theirs, own):
            raise ReleaseError("tokenizer_config.json differs from the backbone's")
        return f"{', '.join(present)}: the backbone's"


def _known(file: str, value: Mapping[str, Any], needed: set[str], optional: set[str]) -> None:
    if surplus := sorted(value.keys() - needed - optional):
        raise ReleaseError(f"{file}: unknown fields {', '.join(surplus)}")
    if missing := sorted(needed - value.keys()):
        raise ReleaseError(f"{file}: fields {', '.join(missing)} are missing")


def _no_paths(file: str, value: Mapping[str, Any]) -> None:
    if found := sorted(value.keys() & PATHS):
        raise ReleaseError(f"{file}: {', '.join(found)} may be paths of this machine")


def _without(value: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in fields}


def _close(left: Any, right: Any) -> bool:
    """Equal; numbers up to what a newer dp-accounting may discretise differently."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-3)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_close(left[k], right[k]) for k in left)
    return left == right


def _find(before: Mapping[str, Callable[[], np.ndarray]], name: str) -> np.ndarray | None:
    """The parameter in a backbone's checkpoint, whatever its habits of naming."""
    for known in (name, name.partition(".")[2]):
        older = known.replace("LayerNorm.weight", "LayerNorm.gamma")
        for candidate in (known, older.replace("LayerNorm.bias", "LayerNorm.beta")):
            if candidate in before:
                return before[candidate]()
    return None
