# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run: typed, frozen, validated once. Defaults live here and nowhere else.

A file in configs/ starts from `default_config()`, an `ml_collections.ConfigDict`, changes it, and
returns it; `--config.section.field=value` changes it further; `Config.from_dict` validates it.
"""

import dataclasses
import difflib
import importlib.util
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import config_dict

from . import recipe


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the field and what would be right."""


def _require(condition: bool, field: str, wanted: str, value: Any) -> None:
    if not condition:
        raise ConfigError(f"config.{field} must be {wanted}, not {value!r}")


class PlatformDefaults(NamedTuple):
    """What settings that are None mean; see `training.setup.platform_defaults`."""

    dtype: str
    microbatch_tokens: int


ON_CPU = PlatformDefaults("float32", 512)
"""512 positions keep two cores busy and their arrays near the caches; fewer pad less at the end."""
ON_ACCELERATOR = PlatformDefaults("bfloat16", 16_384)
"""Some 5 GB of activations for a BERT-small."""

TASKS = ("multi-label", "multi-class")
DTYPES = ("float32", "tensorfloat32", "bfloat16")
LABEL_POLICIES = ("zeros", "ones", "ignore")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which reports, which text of them, which labels."""

    source: str = "openi"
    root: str | None = None
    """File or folder of the source; None fetches what can be fetched."""
    text: str = "findings+impression"
    """Sections to classify; the choices are the source's."""
    task: str = "multi-label"
    """multi-label: any number of labels for a report; multi-class: one class, named in a column of
    a table. See `models.tasks`."""
    labels: tuple[str, ...] | None = None
    """Or classes; None is the source's own list."""
    max_length: int = 128
    """Tokens per report, special tokens included; longer reports are cut and counted."""
    windows: int = 1
    """Where a report is longer than max_length: split it into at most so many windows of that size,
    which overlap by an eighth. The backbone reads each by itself, the head all of them as one."""
    split_seed: int = 0
    """Public seed of the split, for sources without an official one."""
    validation_fraction: float = 0.05
    """Chance of a training patient to be held out, for sources without a validation split."""
    cache: str | None = None
    """Folder that keeps token ids and the frozen layers' outputs for other runs; as private as the
    reports. None keeps nothing."""
    labeler: str = "chexpert"
    """mimic: whose labels, chexpert or negbio."""
    uncertain: str = "zeros"
    """What becomes of uncertain labels: zeros, ones or ignore."""
    blank: str = "zeros"
    """What becomes of blank labels: zeros, ones or ignore."""
    evaluate_on: str = "all"
    """padchest: all, or physician: validate and test on physician-labelled reports only."""
    text_columns: tuple[str, ...] = ("text",)
    """table: joined in this order."""
    label_column: str | None = None
    """table: one column that lists the positive labels, or names the class; None: each label has
    its own column."""
    id_column: str | None = None
    patient_column: str | None = None
    """table: None makes every report its own patient, which then cannot be the privacy unit."""
    split_column: str | None = None

    def __post_init__(self):
        _require(self.max_length >= 3, "data.max_length", "at least 3", self.max_length)
        _require(self.windows >= 1, "data.windows", "at least 1", self.windows)
        _require(
            self.labels is None or len(self.labels) > 0, "data.labels", "non-empty or None", ()
        )
        fraction = self.validation_fraction
        _require(0 < fraction < 1, "data.validation_fraction", "in (0, 1)", fraction)
        for field, choices in (
            ("task", TASKS),
            ("labeler", ("chexpert", "negbio")),
            ("uncertain", LABEL_POLICIES),
            ("blank", LABEL_POLICIES),
            ("evaluate_on", ("all", "physician")),
        ):
            value = getattr(self, field)
            _require(value in choices, f"data.{field}", "one of " + ", ".join(choices), value)
        if self.task == "multi-class":
            _require(
                self.source == "table",
                "data.source",
                "table where data.task is multi-class: no other has one class per report",
                self.source,
            )
            labels = self.labels
            _require(
                labels is None or len(labels) >= 2,
                "data.labels",
                "at least two classes where data.task is multi-class",
                labels,
            )


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Labels from a larger model, joined to the reports by id. Off where path is None."""

    path: str | None = None
    """CSV or TSV table of labels by report id."""
    origin: str = ""
    """Who made them; goes into the privacy statement."""
    mode: str = "replace"
    """replace, or fill: only labels that the source leaves unknown (uncertain or blank: ignore)."""
    id_column: str = "study_id"
    max_missing: int = 0
    """Reports that the teacher may lack."""
    max_surplus: int = 0
    """Rows of the teacher that may match no report."""

    def __post_init__(self):
        _require(
            self.path is None or self.origin != "", "teacher.origin", "set, for the statement", ""
        )
        modes = ("replace", "fill")
        _require(self.mode in modes, "teacher.mode", "one of " + ", ".join(modes), self.mode)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The frozen backbone."""

    backbone: str = "minilm-l6"
    """Preset, directory in Hugging Face format, or hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    pooling: str | None = None
    """"cls" (as transformers' classifier of the family), "first" (token, as it is), "mean",
    "mean-last2" (over tokens, and over the last two layers) or "label-attention" (every label reads
    its own tokens of those); None is the preset's or the checkpoint's own, or "cls"."""
    label_dimensions: int | None = None
    """Label attention after a public start: train the head along so many directions of each label's
    feature, which the made-up reports choose; None is all of it."""
    dtype: str | None = None
    """Type of matrix products: "float32", everywhere; "tensorfloat32", float32 whose operands a GPU
    rounds to 10 bits and a TPU splits into two bfloat16; or "bfloat16". Norms, sums and noise stay
    float32. None is the platform's, see `PlatformDefaults`."""
    shard_frozen: bool = False
    """Share the frozen weights out over the devices, and gather each where it is used: less memory
    on each, more traffic between them."""

    def __post_init__(self):
        poolings = ("cls", "first", "mean", "mean-last2", "label-attention")
        _require(
            self.pooling in (None, *poolings),
            "model.pooling",
            f"{', '.join(poolings)} or None",
            self.pooling,
        )
        dimensions = self.label_dimensions
        _require(
            dimensions is None or (dimensions >= 1 and self.pooling == "label-attention"),
            "model.label_dimensions",
            "at least 1, and model.pooling label-attention, or None",
            dimensions,
        )
        _require(
            self.dtype in (None, *DTYPES),
            "model.dtype",
            f"{', '.join(DTYPES)} or None",
            self.dtype,
        )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Where adapters sit and how large they are; used by train.mode lora and lora-ffa."""

    rank: int = 8
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] | None = None
    """Names of linear layers, or "all-linear"; None is queries and values, by whatever name the
    backbone's family has for them."""
    layers: str = "all"
    """"all", or "last:k" for the k layers nearest the head."""

    def __post_init__(self):
        _require(self.rank >= 1, "lora.rank", "at least 1", self.rank)
        _require(0 < self.alpha < math.inf, "lora.alpha", "positive", self.alpha)
        _require(self.targets != (), "lora.targets", "non-empty or None", self.targets)
        kind, _, count = self.layers.partition(":")
        well_formed = self.layers == "all" or (
            kind == "last" and count.isdigit() and int(count) > 0
        )
        _require(well_formed, "lora.layers", "all or last:k with k at least 1", self.layers)

    def first_layer(self, depth: int) -> int:
        """Index of the lowest layer with adapters in a backbone of `depth` layers."""
        if self.layers == "all":
            return 0
        last = int(self.layers.partition(":")[2])
        _require(last <= depth, "lora.layers", f"at most last:{depth} here", self.layers)
        return depth - last


OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "linear", "cosine")
MODES = ("lora", "lora-ffa", "head", "bitfit", "full")
PLAIN = {
    "train": {
        "mode": "lora",
        "queries": False,
        "steps": 100,
        "expected_batch_size": 512.0,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "temperature": 1.0,
    },
    "privacy": {"l2_clip_norm": 0.1},
}
"""What settings are that are None, and that no recipe has chosen."""


def _fill(section: Any, values: Mapping[str, Any]) -> None:
    for field, value in values.items():
        if getattr(section, field) is None:
            object.__setattr__(section, field, value)


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """An optional public start: the model first learns, without noise, from made-up reports.

    A phrasebook holds sentences that say or deny each finding. Nothing private is read, so this
    costs no epsilon; the statement names the phrasebook. Off where phrasebook is None.
    """

    phrasebook: str | None = None
    """Name of one that is shipped, or a JSON file; "labels" makes one of the labels' names. See
    `data.phrasebook`."""
    language: str = "en"
    """labels: of the reports, en or es."""
    synonyms: tuple[str, ...] = ()
    """labels: what to call a label instead of its name, each "label: name, name"."""
    lexicon: bool = True
    """labels: use the sentences that shipped files have for findings of such names as well."""
    normal: float = 0.35
    """Share of made-up reports without any finding. This and the next four say what the reports
    that they stand for look like: public knowledge, never measured on private ones."""
    findings: float = 1.5
    """Expected number of findings in the others."""
    denied: float = 0.65
    """Chance that a finding which is absent is denied."""
    repeated: float = 0.6
    """Chance that a finding comes again at the end, as in an impression."""
    other: float = 0.35
    """Chance of a sentence about something else in a report with findings."""
    from_adapter: str | None = None
    """Folder of an adapter, PEFT's or a release's, that the start begins at: adapters, and queries
    and head of labels that both know. It must owe nothing to the reports that are protected."""
    reports: int = 10_000
    """How many are made up."""
    steps: int = 400
    """Of all that learns in public, together; 0 learns nothing more than from_adapter knows."""
    batch_size: int = 64
    learning_rate: float = 2e-3
    """Of adapters; of queries and head ten times as much. Falls to zero linearly."""
    adapters: bool = True
    """Adapters learn too, not queries and head alone."""
    noise: float = 0.0
    """Standard deviation of what is added to every token's state while it learns, in units of those
    states' root mean square: few sentences are then not learnt by heart."""

    def __post_init__(self):
        least = {"reports": 1, "steps": int(self.from_adapter is None), "batch_size": 1}
        for field, bound in least.items():
            value = getattr(self, field)
            _require(value >= bound, f"warm_start.{field}", f"at least {bound}", value)
        for field in ("normal", "denied", "repeated", "other"):
            value = getattr(self, field)
            _require(0 <= value <= 1, f"warm_start.{field}", "in [0, 1]", value)
        _require(self.findings > 0, "warm_start.findings", "positive", self.findings)
        _require(0 <= self.noise < math.inf, "warm_start.noise", "at least 0", self.noise)
        rate = self.learning_rate
        _require(0 < rate < math.inf, "warm_start.learning_rate", "positive", rate)

    @property
    def trains_adapters(self) -> bool:
        return self.phrasebook is not None and self.adapters


@dataclasses.dataclass(frozen=True)
class CenteringConfig:
    """An optional private estimate of the mean feature, which training then subtracts.

    Features of similar reports point the same way; their common part dominates every head gradient
    and its clipping. One noisy mean removes it at little cost. The finished adapter is an ordinary
    one: the shift is folded into the head's bias. Off where l2_clip_norm is None or infinite.
    """

    l2_clip_norm: float | None = None
    """Bound on a report's feature vector; a public guess of the usual feature norm."""
    epsilon_share: float = 0.1
    """The mean alone costs this share of privacy.epsilon."""

    def __post_init__(self):
        norm = self.l2_clip_norm
        if norm == math.inf:  # as flags say None
            object.__setattr__(self, "l2_clip_norm", None)
        _require(norm is None or norm > 0, "centering.l2_clip_norm", "positive or None", norm)
        _require(
            0 < self.epsilon_share < 1, "centering.epsilon_share", "in (0, 1)", self.epsilon_share
        )


@dataclasses.dataclass(frozen=True)
class HeadStageConfig:
    """An optional first stage: the head alone, on features computed once. Off at 0 steps.

    Its cost is part of privacy.epsilon: a share of it (epsilon_share), or a fixed noise_multiplier.
    """

    steps: int = 0
    expected_batch_size: float = 2048.0
    learning_rate: float = 0.1
    optimizer: str = "adam"
    schedule: str = "constant"
    l2_clip_norm: float = 0.1
    epsilon_share: float = 0.5
    """The head stage alone costs this share of privacy.epsilon, if noise_multiplier is None."""
    noise_multiplier: float | None = None

    def __post_init__(self):
        _check_stage("head_stage", self, least_steps=0)
        _require(
            0 < self.l2_clip_norm < math.inf,
            "head_stage.l2_clip_norm",
            "positive and finite",
            self.l2_clip_norm,
        )
        _require(
            0 < self.epsilon_share < 1, "head_stage.epsilon_share", "in (0, 1)", self.epsilon_share
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The main stage. What is None is the recipe's to choose, or without one `PLAIN`'s."""

    recipe: str | None = None
    """"auto" chooses what is left open, here and in model, warm_start and privacy, by public
    numbers: see `recipe.choices`. None chooses nothing."""
    mode: str | None = None
    """What is trained: see `models.lora.MODES`."""
    queries: bool | None = None
    """Train the queries of label attention as well."""
    steps: int | None = None
    expected_batch_size: float | None = None
    """Expected reports (or patients) per step; the number drawn varies."""
    learning_rate: float | None = None
    optimizer: str = "adam"
    schedule: str | None = None
    """Of the learning rate: constant, or to zero linearly or by a half cosine."""
    temperature: float | None = None
    """The finished head's logits are divided by it: clipping and noise make a head over-confident.
    Decisions at 0.5 stay as they are, and a public number costs no privacy."""
    microbatch_tokens: int | None = None
    """Token positions that a device computes at once, padding included; memory grows with it. None
    is the platform's, see `PlatformDefaults`."""
    width_ratio: float = 1.15
    """A microbatch is as wide as its longest report needs, out of widths that are each so much
    wider than the next: smaller pads less, larger compiles fewer programs."""

    def __post_init__(self):
        _fill(self, PLAIN["train"])
        _require(self.recipe in (None, "auto"), "train.recipe", "auto or None", self.recipe)
        _require(self.mode in MODES, "train.mode", "one of " + ", ".join(MODES), self.mode)
        _check_stage("train", self, least_steps=1)
        tokens = self.microbatch_tokens
        _require(
            tokens is None or tokens >= 16, "train.microbatch_tokens", ">= 16, or None", tokens
        )
        temperature = self.temperature
        _require(0 < temperature < math.inf, "train.temperature", "positive", temperature)
        ratio = self.width_ratio
        _require(1 < ratio < math.inf, "train.width_ratio", "larger than 1", ratio)

    @property
    def trained(self) -> str:
        """Mode and queries, as `models.lora.split` takes them."""
        return f"{self.mode}+queries" if self.queries else self.mode


def _check_stage(section: str, stage, least_steps: int) -> None:
    _require(stage.steps >= least_steps, f"{section}.steps", f">= {least_steps}", stage.steps)
    _require(
        0 < stage.expected_batch_size < math.inf,
        f"{section}.expected_batch_size",
        "positive",
        stage.expected_batch_size,
    )
    _require(
        0 < stage.learning_rate < math.inf,
        f"{section}.learning_rate",
        "positive",
        stage.learning_rate,
    )
    for field, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        value = getattr(stage, field)
        _require(value in choices, f"{section}.{field}", "one of " + ", ".join(choices), value)


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """The guarantee that is asked for."""

    epsilon: float | None = 8.0
    """Target for all stages together; None or infinity trains without privacy."""
    delta: float = 1e-5
    unit: str = "report"
    """What is protected: one "report", or one "patient" with all reports."""
    units: int | None = None
    """Published number of units in the training split. Needed for private training: it is
    configuration, so that the true count is not released (design rule 3)."""
    max_reports_per_patient: int | None = None
    """Keep at most this many training reports of each patient; None keeps all."""
    l2_clip_norm: float | None = None
    """Of the main stage; None as in train."""
    noise_multiplier: float | None = None
    """Of the main stage; None is calibrated to epsilon."""
    secure_noise: bool = False
    """Draw noise on the host from a cryptographic generator and add it exactly: slower, and
    without the limits of a 64-bit key and of floating point."""
    ledger: str | None = None
    """File that records what is run on which data, before it is run; None records nothing."""
    total_budget: float | None = None
    """Epsilon, at delta, that all runs in the ledger on these data may cost together."""

    def __post_init__(self):
        _fill(self, PLAIN["privacy"])
        if self.epsilon == math.inf:  # as flags say None; JSON has no infinity
            object.__setattr__(self, "epsilon", None)
        _require(
            self.epsilon is None or self.epsilon > 0,
            "privacy.epsilon",
            "positive, or None for training without privacy",
            self.epsilon,
        )
        _require(0 < self.delta < 1, "privacy.delta", "in (0, 1)", self.delta)
        _require(self.unit in ("report", "patient"), "privacy.unit", "report or patient", self.unit)
        _require(self.units is None or self.units >= 1, "privacy.units", ">= 1", self.units)
        _require(
            self.total_budget is None or (self.ledger is not None and self.total_budget > 0),
            "privacy.total_budget",
            "positive, and privacy.ledger set, or None",
            self.total_budget,
        )
        _require(
            0 < self.l2_clip_norm < math.inf,
            "privacy.l2_clip_norm",
            "positive and finite",
            self.l2_clip_norm,
        )
        _require(
            self.noise_multiplier is None or 0 <= self.noise_multiplier < math.inf,
            "privacy.noise_multiplier",
            "at least 0, or None to calibrate",
            self.noise_multiplier,
        )

    @property
    def private(self) -> bool:
        return self.epsilon is not None


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where results go and how often."""

    dir: str = "runs"
    name: str = "run"
    research_seed: int | None = None
    """None draws all secrets from the operating system. A number makes the run repeatable, and
    its statement says that the adapter is then unprotected."""
    checkpoint_every: int = 20
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    eval_every: int = 20
    """Steps between evaluations on the validation split."""
    devices: int | None = None
    """Devices that share the work; None is all, of all processes. The result is the same up to the
    rounding of sums."""

    def __post_init__(self):
        for field in ("checkpoint_every", "keep_checkpoints", "eval_every"):
            value = getattr(self, field)
            _require(value >= 1, f"run.{field}", "at least 1", value)
        enough = self.devices is None or self.devices >= 1
        _require(enough, "run.devices", "at least 1, or None for all", self.devices)
        _require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            "run.name",
            "a folder name without /",
            self.name,
        )
        _require(
            self.research_seed is None or 0 <= self.research_seed < 2**63,
            "run.research_seed",
            "None or in [0, 2^63)",
            self.research_seed,
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    centering: CenteringConfig = CenteringConfig()
    head_stage: HeadStageConfig = HeadStageConfig()
    train: TrainConfig = TrainConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        _require(
            self.teacher.path is None or self.data.task == "multi-label",
            "teacher.path",
            "None where data.task is multi-class: a teacher gives labels one by one",
            self.teacher.path,
        )
        modes = ("lora", "lora-ffa", "head")
        _require(
            not self.warm_start.trains_adapters or self.train.mode in modes,
            "train.mode",
            f"{', '.join(modes)} where warm_start.adapters are trained",
            self.train.mode,
        )
        _require(
            not self.train.queries or self.model.pooling == "label-attention",
            "train.queries",
            "false where model.pooling is not label-attention: there are none",
            self.train.queries,
        )
        _require(
            self.model.label_dimensions is None or self.warm_start.phrasebook is not None,
            "warm_start.phrasebook",
            "set where model.label_dimensions is: made-up reports choose the directions",
            None,
        )
        _require(
            self.warm_start.from_adapter is None or self.warm_start.phrasebook is not None,
            "warm_start.phrasebook",
            "set where warm_start.from_adapter is: made-up reports say where features lie",
            None,
        )
        if not self.privacy.private:
            return
        units = self.privacy.units
        _require(
            units is not None,
            "privacy.units",
            "set for private training, to the number of training units you are willing to publish",
            units,
        )
        for section in ("head_stage", "train"):
            batch = getattr(self, section).expected_batch_size
            active = getattr(self, section).steps > 0
            _require(
                not active or batch <= units,
                f"{section}.expected_batch_size",
                f"at most privacy.units = {units}, so that the sampling probability is at most 1",
                batch,
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Validates nested plain values; ConfigError names an unknown or ill-typed field."""
        return _build(cls, _by_recipe(values), "config")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready nested dictionaries."""
        return dataclasses.asdict(self)


def _by_recipe(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values with what the recipe chooses, where they ask for one, in place of None."""
    train = values.get("train")
    if not isinstance(train, Mapping) or train.get("recipe") != "auto":
        return values
    filled = {n: dict(v) if isinstance(v, Mapping) else v for n, v in values.items()}
    defaults = default_config()
    whole = {n: s.to_dict() | dict(values.get(n) or {}) for n, s in defaults.items()}
    for section, field, value, _ in recipe.choices(whole):
        if whole[section][field] in (None, defaults[section][field]):
            filled.setdefault(section, {})[field] = value
    return filled


def _build(cls, values: Mapping[str, Any], path: str):
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; fields are {', '.join(hints)}"
            raise ConfigError(f"{path}.{name} is not a setting{hint}")
    return cls(**{name: _cast(hints[name], v, f"{path}.{name}") for name, v in values.items()})


def _cast(hint, value: Any, path: str) -> Any:
    """The value as the type of the field; lossless conversions only."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a section with fields, not {value!r}")
        return _build(hint, value, path)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ConfigError(f"{path} must be a list of names, not {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path} must be of type {hint.__name__}, not {value!r}")
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{path} must be a number, not nan")
    return value


def default_config() -> config_dict.ConfigDict:
    """All defaults, locked: assigning a field that does not exist is an error at once."""

    result = config_dict.ConfigDict()
    for section in dataclasses.fields(Config):
        result[section.name] = config_dict.ConfigDict()
        for name, hint in typing.get_type_hints(section.type).items():
            if isinstance(hint, types.UnionType):
                # A typed placeholder, so that flags can set the field, to None too.
                (inner,) = (h for h in typing.get_args(hint) if h is not type(None))
                inner = typing.get_origin(inner) or inner
                result[section.name][name] = config_dict.placeholder(inner)
            field = section.type.__dataclass_fields__[name]
            result[section.name][name] = field.default
    return result.lock()


def inherit(file: str, parent: str) -> config_dict.ConfigDict:
    """The config of a sibling file, to change: `inherit(__file__, "openi_eps8")`."""
    path = Path(file).with_name(f"{parent}.py")
    spec = importlib.util.spec_from_file_location(f"jaxdp_config_{parent}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
