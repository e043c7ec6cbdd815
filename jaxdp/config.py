# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run: typed, frozen, validated once. Defaults live here and nowhere else.

A file in configs/ starts from `default_config()`, an `ml_collections.ConfigDict`, changes it, and
returns it; `--config.section.field=value` changes it further; `Config.from_dict` validates it.
"""

import dataclasses
import math
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from ml_collections import config_dict

from . import recipe
from .settings import (
    ABOVE_0,
    CHANCE,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Check,
    Plain,
    Settings,
    at_least,
    one_of,
)
from .settings import ConfigError as ConfigError  # where config files and callers look for it


class PlatformDefaults(NamedTuple):
    """What settings that are None mean; see `training.setup.platform_defaults`."""

    dtype: str
    microbatch_tokens: int
    widths: int


ON_CPU = PlatformDefaults("float32", 512, 8)
"""512 positions keep two cores busy and their arrays near the caches; fewer pad less at the end."""
ON_ACCELERATOR = PlatformDefaults("bfloat16", 16_384, 4)
"""Some 5 GB of activations for a BERT-small; compiling takes longest there."""

TASKS = ("multi-label", "multi-class")
POLICY = one_of("zeros", "ones", "ignore")
POOLINGS = ("cls", "first", "mean", "mean-last2", "label-attention")
DTYPES = ("float32", "tensorfloat32", "bfloat16")
MODES = ("lora", "lora-ffa", "head", "bitfit", "full")
OPTIMIZER = one_of("adam", "sgd")
SCHEDULE = one_of("constant", "linear", "cosine")
LAYERS = Check("all or last:k with k at least 1", re.compile("all|last:0*[1-9][0-9]*").fullmatch)
EPSILON = Check("positive, or None for training without privacy", lambda epsilon: epsilon > 0)
READERS = Check("from 1 to 8", lambda readers: 1 <= readers <= 8)
SEED = Check("in [0, 2^63)", lambda seed: 0 <= seed < 2**63)
QUERY_SHARE = Check("at least 0 and below 1", lambda share: 0 <= share < 1)
FOLDER = Check("a folder name without /", lambda n: n not in ("", ".", "..") and "/" not in n)


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings, path="config.data"):
    """Which reports, which text of them, which labels."""

    source: str = "openi"
    root: str | None = None  # file or folder of the source; None fetches what can be fetched
    text: str = "findings+impression"  # sections to classify; the choices are the source's
    task: Annotated[str, one_of(*TASKS)] = "multi-label"
    """multi-label: any number of labels for a report; multi-class: one class, named in a column of
    a table. See `models.tasks`."""
    labels: Annotated[tuple[str, ...] | None, NOT_EMPTY] = None
    """Or classes; None is the source's own list."""
    max_length: Annotated[int, at_least(3)] = 128
    """Tokens per report, special tokens included; longer reports are cut and counted."""
    windows: Annotated[int, at_least(1)] = 1
    """Where a report is longer than max_length: split it into at most so many windows of that size,
    which overlap by an eighth. The backbone reads each by itself, the head all of them as one."""
    split_seed: int = 0  # public seed of the split, for sources without an official one
    validation_fraction: Annotated[float, SHARE] = 0.05
    """Chance of a training patient to be held out, for sources without a validation split."""
    cache: str | None = None
    """Folder that keeps token ids and the frozen layers' outputs for other runs; as private as the
    reports. None keeps nothing."""
    labeler: Annotated[str, one_of("chexpert", "negbio")] = "chexpert"  # mimic: whose labels
    uncertain: Annotated[str, POLICY] = "zeros"
    """What becomes of uncertain labels, or of blank ones."""
    blank: Annotated[str, POLICY] = "zeros"
    evaluate_on: Annotated[str, one_of("all", "physician")] = "all"
    """padchest: all, or physician: validate and test on physician-labelled reports only."""
    text_columns: tuple[str, ...] = ("text",)  # table: joined in this order
    label_column: str | None = None
    """table: lists the positive labels, or names the class; None: each label has its own column."""
    id_column: str | None = None
    patient_column: str | None = None
    """table: None makes every report its own patient, which then cannot be the privacy unit."""
    split_column: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.task == "multi-class":
            wanted = "table where data.task is multi-class: no other has one class per report"
            self.require(self.source == "table", "source", wanted)
            enough = self.labels is None or len(self.labels) >= 2
            self.require(enough, "labels", "at least two classes where data.task is multi-class")


@dataclasses.dataclass(frozen=True)
class TeacherConfig(Settings, path="config.teacher"):
    """Labels from a larger model, joined to the reports by id. Off where path is None."""

    path: str | None = None  # CSV or TSV table of labels by report id
    origin: str = ""  # who made them; goes into the privacy statement
    mode: Annotated[str, one_of("replace", "fill")] = "replace"
    """replace, or fill: only labels that the source leaves unknown (uncertain or blank: ignore)."""
    id_column: str = "study_id"
    max_missing: int = 0  # reports that the teacher may lack
    max_surplus: int = 0  # rows of the teacher that may match no report

    def __post_init__(self):
        super().__post_init__()
        self.require(self.path is None or self.origin != "", "origin", "set, for the statement")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings, path="config.model"):
    """The frozen backbone."""

    backbone: str = "minilm-l6"  # preset, directory in Hugging Face format, or hub id
    revision: str | None = None  # commit, tag or branch of a hub id
    pooling: Annotated[str | None, one_of(*POOLINGS)] = None
    """"cls" (as transformers' classifier of the family), "first" (token, as it is), "mean",
    "mean-last2" (over tokens, and over the last two layers) or "label-attention" (every label reads
    its own tokens of those); None is the preset's or the checkpoint's own, or "cls"."""
    label_dimensions: Annotated[int | None, at_least(1)] = None
    """Label attention after a public start: train the head along so many directions of each label's
    feature, which the made-up reports choose; None is all of it. Where a recipe stands, None is its
    to choose, and a number as large as the feature is all."""
    dtype: Annotated[str | None, one_of(*DTYPES)] = None
    """Type of matrix products: "float32", everywhere; "tensorfloat32", float32 whose operands a GPU
    rounds to 10 bits and a TPU splits into two bfloat16; or "bfloat16". Norms, sums and noise stay
    float32. None is the platform's, see `PlatformDefaults`."""
    shard_frozen: bool = False
    """Share the frozen weights out over the devices, and gather them for each step: less memory
    between steps, more traffic."""

    def __post_init__(self):
        super().__post_init__()
        possible = self.label_dimensions is None or self.pooling == "label-attention"
        wanted = "None where model.pooling is not label-attention"
        self.require(possible, "label_dimensions", wanted)


@dataclasses.dataclass(frozen=True)
class LoraConfig(Settings, path="config.lora"):
    """Where adapters sit and how large they are; used by train.mode lora and lora-ffa."""

    rank: Annotated[int, at_least(1)] = 8
    alpha: Annotated[float, POSITIVE] = 16.0  # the update is scaled by alpha / rank
    targets: Annotated[tuple[str, ...] | None, NOT_EMPTY] = None
    """Names of linear layers, or "all-linear"; None is queries and values, by whatever name the
    backbone's family has for them."""
    layers: Annotated[str, LAYERS] = "all"  # "all", or "last:k" for the k layers nearest the head

    def first_layer(self, depth: int) -> int:
        """Index of the lowest layer with adapters in a backbone of `depth` layers."""
        if self.layers == "all":
            return 0
        last = int(self.layers.partition(":")[2])
        self.require(last <= depth, "layers", f"at most last:{depth} here")
        return depth - last


@dataclasses.dataclass(frozen=True)
class WarmStartConfig(Settings, path="config.warm_start"):
    """An optional public start: the model first learns, without noise, from made-up reports.

    A phrasebook holds sentences that say or deny each finding. Nothing private is read, so this
    costs no epsilon; the statement names the phrasebook. Off where phrasebook is None. What else is
    None is the recipe's to choose, or without one what `Plain` says.
    """

    phrasebook: str | None = None
    """Name of one that is shipped, or a JSON file; "labels" makes one of the labels' names. See
    `data.phrasebook`."""
    language: str = "en"  # labels: of the reports, en or es
    synonyms: tuple[str, ...] = ()
    """labels: what to call a label instead of its name, each "label: name, name"."""
    lexicon: bool = True
    """labels: use the sentences that shipped files have for findings of such names as well."""
    normal: Annotated[float | None, CHANCE, Plain(0.35)] = None
    """Share of made-up reports without any finding. This and the next four say what the reports
    that they stand for look like: public knowledge, never measured on private ones."""
    findings: Annotated[float | None, ABOVE_0, Plain(1.5)] = None
    """Expected number of findings in the others."""
    denied: Annotated[float | None, CHANCE, Plain(0.65)] = None
    """Chance that a finding which is absent is denied."""
    repeated: Annotated[float | None, CHANCE, Plain(0.6)] = None
    """Chance that a finding comes again at the end, as in an impression."""
    other: Annotated[float | None, CHANCE, Plain(0.35)] = None
    """Chance of a sentence about something else in a report with findings."""
    from_adapter: str | None = None
    """Folder of an adapter, PEFT's or a release's, that the start begins at: adapters, and queries
    and head of labels that both know. It must owe nothing to the reports that are protected."""
    reports: Annotated[int, at_least(1)] = 10_000  # how many are made up
    steps: int = 400
    """Of all that learns in public, together, in each reader; 0 learns nothing more than
    from_adapter knows."""
    batch_size: Annotated[int, at_least(1)] = 32
    learning_rate: Annotated[float, POSITIVE] = 2e-3
    """Of adapters; of queries and head ten times as much. Falls to zero linearly."""
    adapters: bool = True  # adapters learn too, not queries and head alone
    readers: Annotated[int | None, READERS, Plain(1)] = None
    """So many times adapters and queries, each learnt from the made-up reports in an order of its
    own; the head reads what all of them make of a report. See `models.readers`."""
    noise: Annotated[float | None, NOT_NEGATIVE, Plain(0.0)] = None
    """Standard deviation of what is added to every token's state while it learns, in units of those
    states' root mean square: few sentences are then not learnt by heart."""

    def __post_init__(self):
        super().__post_init__()
        least = int(self.from_adapter is None)
        self.require(self.steps >= least, "steps", f"at least {least}")

    @property
    def trains_adapters(self) -> bool:
        return self.phrasebook is not None and self.adapters


@dataclasses.dataclass(frozen=True)
class CenteringConfig(Settings, path="config.centering"):
    """An optional private estimate of the mean feature, which training then subtracts.

    Features of similar reports point the same way; their common part dominates every head gradient
    and its clipping. One noisy mean removes it at little cost. The finished adapter is an ordinary
    one: the shift is folded into the head's bias. Off where l2_clip_norm is None.
    """

    l2_clip_norm: Annotated[float | None, POSITIVE] = None
    """Bound on a report's feature vector; a public guess of the usual feature norm."""
    epsilon_share: Annotated[float, SHARE] = 0.1
    """The mean alone costs this share of privacy.epsilon."""


@dataclasses.dataclass(frozen=True)
class HeadStageConfig(Settings, path="config.head_stage"):
    """An optional first stage: the head alone, on features computed once. Off at 0 steps.

    Its cost is part of privacy.epsilon: a share of it (epsilon_share), or a fixed noise_multiplier.
    """

    steps: Annotated[int, at_least(0)] = 0
    expected_batch_size: Annotated[float, POSITIVE] = 2048.0
    learning_rate: Annotated[float, POSITIVE] = 0.1
    optimizer: Annotated[str, OPTIMIZER] = "adam"
    schedule: Annotated[str, SCHEDULE] = "constant"
    l2_clip_norm: Annotated[float, POSITIVE] = 0.1
    epsilon_share: Annotated[float, SHARE] = 0.5
    """The head stage alone costs this share of privacy.epsilon, if noise_multiplier is None."""
    noise_multiplier: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings, path="config.train"):
    """The main stage. What is None is the recipe's to choose, or without one what `Plain` says."""

    recipe: Annotated[str | None, one_of("auto")] = None
    """"auto" chooses what is left open, here and in model, warm_start and privacy, by public
    numbers: see `recipe.choices`. None chooses nothing."""
    mode: Annotated[str | None, one_of(*MODES), Plain("lora")] = None
    """What is trained: see `models.lora.MODES`."""
    queries: Annotated[bool | None, Plain(False)] = None
    """Train the queries of label attention as well."""
    query_share: Annotated[float | None, QUERY_SHARE, Plain(0.0)] = None
    """Above 0, a query stage comes first: the head is trained in the same way at this share of
    privacy.epsilon, each label's query turns to what its head has found, and the main stage begins
    with the public start's head again. See `readers.turned_queries`."""
    steps: Annotated[int | None, at_least(1), Plain(100)] = None
    expected_batch_size: Annotated[float | None, POSITIVE, Plain(512.0)] = None
    """Expected reports (or patients) per step; the number drawn varies."""
    learning_rate: Annotated[float | None, POSITIVE, Plain(1e-3)] = None
    optimizer: Annotated[str, OPTIMIZER] = "adam"
    schedule: Annotated[str | None, SCHEDULE, Plain("constant")] = None
    """Of the learning rate: constant, or to zero linearly or by a half cosine."""
    temperature: Annotated[float | None, POSITIVE, Plain(1.0)] = None
    """The finished head's logits are divided by it: clipping and noise make a head over-confident.
    Decisions at 0.5 stay as they are, and a public number costs no privacy."""
    microbatch_tokens: Annotated[int | None, at_least(16)] = None
    """Token positions that a device computes at once, padding included; memory grows with it. None
    is the platform's, see `PlatformDefaults`."""
    widths: Annotated[int | None, at_least(1)] = None
    """A microbatch is as wide as its longest report needs, out of so many widths, which are chosen
    by the reports' lengths: more pad less, fewer compile fewer programs. None lets reports share
    rows of one or two widths where that can be done; elsewhere it is the platform's."""

    @property
    def trained(self) -> str:
        """Mode and queries, as `models.lora.split` takes them."""
        return f"{self.mode}+queries" if self.queries else self.mode


@dataclasses.dataclass(frozen=True)
class PrivacyConfig(Settings, path="config.privacy"):
    """The guarantee that is asked for."""

    epsilon: Annotated[float | None, EPSILON] = 8.0
    """Target for all stages together; None or infinity trains without privacy."""
    delta: Annotated[float, SHARE] = 1e-5
    unit: Annotated[str, one_of("report", "patient")] = "report"
    """What is protected: one "report", or one "patient" with all reports."""
    units: Annotated[int | None, at_least(1)] = None
    """Published number of units in the training split. Needed for private training: it is
    configuration, so that the true count is not released."""
    max_reports_per_patient: Annotated[int | None, at_least(1)] = None
    """Keep at most this many training reports of each patient; None keeps all."""
    l2_clip_norm: Annotated[float | None, POSITIVE, Plain(0.1)] = None
    """Of the main stage; None as in train."""
    noise_multiplier: Annotated[float | None, NOT_NEGATIVE] = None
    """Of the main stage; None is calibrated to epsilon."""
    secure_noise: bool = False
    """Draw noise on the host from a cryptographic generator and add it exactly: slower, and
    without the limits of a 64-bit key and of floating point."""
    ledger: str | None = None
    """File that records what is run on which data, before it is run; None records nothing."""
    total_budget: Annotated[float | None, ABOVE_0] = None
    """Epsilon, at delta, that all runs in the ledger on these data may cost together."""

    def __post_init__(self):
        if self.epsilon == math.inf:  # JSON has no infinity
            object.__setattr__(self, "epsilon", None)
        super().__post_init__()
        possible = self.total_budget is None or (self.ledger is not None and self.private)
        self.require(possible, "total_budget", "None without privacy.ledger, or without privacy")

    @property
    def private(self) -> bool:
        return self.epsilon is not None


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings, path="config.run"):
    """Where results go and how often."""

    dir: str = "runs"
    name: Annotated[str, FOLDER] = "run"
    research_seed: Annotated[int | None, SEED] = None
    """None draws all secrets from the operating system. A number makes the run repeatable, and
    its statement says that the adapter is then unprotected."""
    checkpoint_every: Annotated[int, at_least(1)] = 20  # steps between checkpoints
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    eval_every: Annotated[int, at_least(1)] = 20
    """Steps between evaluations on the validation split."""
    devices: Annotated[int | None, at_least(1)] = None
    """Devices that share the work; None is all, of all processes. Results differ by rounding."""


@dataclasses.dataclass(frozen=True)
class Config(Settings):
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
        super().__post_init__()
        train, model, start = self.train, self.model, self.warm_start
        holds = self.teacher.path is None or self.data.task == "multi-label"
        wanted = "None where data.task is multi-class: a teacher gives labels one by one"
        self.require(holds, "teacher.path", wanted)
        holds = train.mode in ("lora", "lora-ffa", "head") or not start.trains_adapters
        wanted = "lora, lora-ffa, head where warm_start.adapters are trained"
        self.require(holds, "train.mode", wanted)
        holds = start.trains_adapters or start.readers == 1
        wanted = "1 where warm_start.adapters are not trained: readers would be alike"
        self.require(holds, "warm_start.readers", wanted)
        holds = model.pooling == "label-attention" or not train.queries
        wanted = "false where model.pooling is not label-attention: there are none"
        self.require(holds, "train.queries", wanted)
        holds = model.pooling == "label-attention" and start.phrasebook is not None
        holds &= train.trained == "head" and self.head_stage.steps == 0
        holds &= self.centering.l2_clip_norm is None
        wanted = "0 unless a head alone is trained on label attention, right after a public start"
        self.require(holds or not train.query_share, "train.query_share", wanted)
        holds = start.phrasebook is not None or model.label_dimensions is None
        wanted = "set where model.label_dimensions is: made-up reports choose the directions"
        self.require(holds, "warm_start.phrasebook", wanted)
        holds = start.phrasebook is not None or start.from_adapter is None
        wanted = "set where warm_start.from_adapter is: made-up reports say where features lie"
        self.require(holds, "warm_start.phrasebook", wanted)
        if not self.privacy.private:
            return
        units = self.privacy.units
        wanted = "set for private training, to the number of training units you are willing to "
        self.require(units is not None, "privacy.units", wanted + "publish")
        wanted = f"at most privacy.units = {units}, so that the sampling probability is at most 1"
        for name, stage in (("head_stage", self.head_stage), ("train", train)):
            holds = stage.steps == 0 or stage.expected_batch_size <= units
            self.require(holds, f"{name}.expected_batch_size", wanted)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.run.dir) / self.run.name

    def below(self, parent: Path, name: str | None = None) -> Self:
        """With the run's folder in another one, and of another name if one is given."""
        run = dataclasses.replace(self.run, dir=str(parent), name=name or self.run.name)
        return dataclasses.replace(self, run=run)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Validates nested plain values; what the recipe chooses stands in for None."""
        return super().from_dict(_by_recipe(values))

    @classmethod
    def of_run(cls, values: Mapping[str, Any]) -> Self:
        """What a run began with: before 0.14 none had several readers, before 0.16 query stages."""
        for section, old in (("warm_start", {"readers": 1}), ("train", {"query_share": 0.0})):
            if isinstance(values.get(section), Mapping):
                values = {**values, section: old | dict(values[section])}
        return cls.from_dict(values)


def _by_recipe(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values with what the recipe chooses, where they ask for one, in place of None."""
    train = values.get("train")
    if not isinstance(train, Mapping) or train.get("recipe") != "auto":
        return values
    filled = {n: dict(v) if isinstance(v, Mapping) else v for n, v in values.items()}
    defaults = default_config()
    whole = {n: s.to_dict() | dict(values.get(n) or {}) for n, s in defaults.items()}
    for section, field, value, _ in recipe.choices(whole):
        if whole[section][field] is None:
            filled.setdefault(section, {})[field] = value
    return filled


def default_config() -> config_dict.ConfigDict:
    """All defaults, locked: assigning a field that does not exist is an error at once."""
    return Config.defaults()


def inherit(file: str, parent: str) -> config_dict.ConfigDict:
    """The config of a sibling file, to change: `inherit(__file__, "openi_eps8")`."""
    return runpy.run_path(str(Path(file).with_name(f"{parent}.py")))["get_config"]()
