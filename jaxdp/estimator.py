# SPDX-License-Identifier: Apache-2.0
"""Private training as scikit-learn's users know it: `fit`, `predict`, `save`."""

import contextlib
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich.console import Console
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from .backbone import resolve_backbone
from .config import Config, ConfigError
from .data.arrays import classes_of, groups_of, has_one_class, labels_of, texts_of
from .data.dataset import DataError, ReportDataset
from .evaluation.predict import ReleasedClassifier
from .models.pretrained import read_config, shares_layers
from .released import load
from .run.interrupt import Interrupt
from .run.monitor import Monitor, SilentMonitor
from .run.train import Interrupted, train
from .runtime import prepare

_FIELDS = {
    "epsilon": "privacy.epsilon",
    "delta": "privacy.delta",
    "unit": "privacy.unit",
    "units": "privacy.units",
    "label_names": "data.labels",
    "backbone": "model.backbone",
    "recipe": "train.recipe",
    "max_length": "data.max_length",
    "random_state": "run.research_seed",
}
"""Parameter -> the setting that it is."""
_OURS = {"run.dir": "run_dir", "run.name": "run_dir", "data.task": "Y"}
_OURS |= {field: parameter for parameter, field in _FIELDS.items()}
_REPEATING = tuple(
    f"sklearn.{part}"
    for part in ("model_selection", "ensemble", "calibration", "feature_selection", "inspection")
)
"""Parts of scikit-learn that fit copies of what they are given."""


class PrivacyWarning(UserWarning):
    """Something about the guarantee that whoever trains should know."""


class PrivateTextClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of texts that is fine-tuned with differential privacy; for any number of labels
    per text, or one class, as Y of `fit` has them.

    Guarantee: what `save`, pickle and `predict` give away about the texts and labels of `fit` is
    the output of the mechanisms in `privacy_`, as with `jaxdp train`, whose code this runs: the
    same settings and seed give the same adapter, bit for bit.

    Args:
        epsilon, delta: the guarantee; epsilon None trains without one.
        unit: what is protected: one "report", or one "patient" with all texts, see `fit`.
        units: the number of reports or patients that may be known to the public. None takes those
            given to `fit`, rounded down to two figures, and warns.
        label_names: all labels, in order; None is for a DataFrame, whose columns name them, or
            numbers them. Or all classes, which are sorted.
        backbone: preset, directory or hub id, see docs/backbones.md.
        recipe: "auto" chooses what is left open from public numbers, and has the last two layers
            learn in public (ALBERT: all, which are one); None does neither.
        max_length: tokens per text; longer ones are cut.
        settings: {"section.field": value} for anything else in `jaxdp.config`, say
            {"warm_start.phrasebook": "chest_en"}.
        random_state: None draws from the operating system's entropy. A number makes the fit
            repeatable, and unprotected.
        run_dir: keeps the run there, with checkpoints, which hold the noise key: as private as the
            texts. A fit that was stopped goes on there. None: a temporary folder, deleted.
        verbose: print what happens.

    Attributes:
        classes_: [labels] names; or the classes, in the order of `predict_proba`'s columns.
        privacy_: the statement, as in privacy.json.
        history_: one dict per step, NOT private: it never leaves with `save` or pickle.
    """

    def __init__(
        self,
        epsilon: float | None = 8.0,
        delta: float = 1e-5,
        unit: str = "report",
        units: int | None = None,
        label_names: Sequence[str] | None = None,
        backbone: str = "minilm-l6",
        recipe: str | None = "auto",
        max_length: int = 128,
        settings: Mapping[str, Any] | None = None,
        random_state: int | None = None,
        run_dir: str | Path | None = None,
        verbose: bool = False,
    ):
        self.epsilon = epsilon
        self.delta = delta
        self.unit = unit
        self.units = units
        self.label_names = label_names
        self.backbone = backbone
        self.recipe = recipe
        self.max_length = max_length
        self.settings = settings
        self.random_state = random_state
        self.run_dir = run_dir
        self.verbose = verbose

    def fit(self, X: Any, Y: Any, *, groups: Any = None) -> "PrivateTextClassifier":
        """Trains on all texts; each call spends epsilon anew on the people in them.

        Args:
            X: texts, see `arrays.texts_of`.
            Y: their labels, see `arrays.labels_of`; or the class of each, see `arrays.classes_of`.
            groups: the patient of each text; needed for unit "patient".

        Raises:
            ConfigError, DataError, and others of `run.train.train`: input that cannot be used.
            KeyboardInterrupt: stopped by Ctrl-C; with `run_dir`, the same call goes on from there.
        """
        if _inside_a_search():
            _warn(
                "scikit-learn fits this more than once: every fit spends epsilon "
                f"{self.epsilon} anew on the people in its texts, and the choice between fits is "
                "not free; see docs/library.md"
            )
        task = "multi-class" if has_one_class(Y) else "multi-label"
        dataset, classes = self._dataset(X, Y, groups, task)
        with self._folder() as folder:
            prepare()
            config = self._config(dataset, folder, task)
            monitor = _Shown(Console()) if self.verbose else _Silent()
            interrupt = _Interrupt()
            signals_come = threading.current_thread() is threading.main_thread()
            try:
                with interrupt if signals_come else contextlib.nullcontext():
                    train(
                        config, resume=True, interrupt=interrupt, monitor=monitor, dataset=dataset
                    )
            except ConfigError as error:
                _by_argument(error)
            except Interrupted as stop:
                self._stopped(interrupt, stop)
            release = folder / "release"
            files = {
                str(path.relative_to(release)): path.read_bytes()
                for path in release.rglob("*")
                if path.is_file()
            }
        self._release, self._base_model, self._loaded = files, str(self.backbone), None
        self.history_ = monitor.history
        self.classes_ = classes
        self.privacy_ = self._released().privacy
        for warning in self.privacy_["warnings"]:
            _warn(warning)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """[n, labels] decisions, 0 or 1; or [n] classes."""
        released = self._released()
        decided = released.task.decide(released.predict_proba(texts_of(X, "X")))
        return released.task.answers(decided, self.classes_)

    def predict_proba(self, X: Any) -> np.ndarray:
        """[n, labels] probability of each label or class."""
        return self._released().predict_proba(texts_of(X, "X"))

    def save(self, directory: str | Path) -> None:
        """Writes the release: what `jaxdp.load` and `jaxdp predict` read, and may be shared.

        DataError if the directory holds something already.
        """
        check_is_fitted(self)
        target = Path(directory)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DataError(f"directory {target} exists and is not empty")
        self._write(target)

    def _write(self, target: Path) -> None:
        for name, content in self._release.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)

    def _released(self) -> ReleasedClassifier:
        check_is_fitted(self)
        if self._loaded is None:
            with tempfile.TemporaryDirectory() as folder:
                self._write(Path(folder))
                self._loaded = load(folder, base_model=self._base_model)
        return self._loaded

    def _dataset(self, X: Any, Y: Any, groups: Any, task: str) -> tuple[ReportDataset, np.ndarray]:
        """The texts, and the labels' names or the classes."""
        texts, one_class = texts_of(X, "X"), task == "multi-class"
        if one_class:
            labels, classes = classes_of(Y, len(texts), self.label_names)
            names = tuple(map(str, classes.tolist()))
        else:
            names = None if self.label_names is None else list(map(str, self.label_names))
            labels, names = labels_of(Y, len(texts), names)
            classes = np.array(names)
        if self.unit == "patient" and groups is None:
            raise DataError("groups must give the patient of each text where unit is 'patient'")
        ids = np.arange(1, len(texts) + 1).astype(str)
        dataset = ReportDataset(
            name="X",
            texts=texts,
            labels=labels,
            label_names=names,
            report_ids=ids,
            patient_ids=ids if groups is None else groups_of(groups, len(texts)),
            splits=np.full(len(texts), "train"),
            counts={},
            label_origin="as given to fit" + one_class * ", one class for each text",
            patients_known=groups is not None,
        )
        return dataset, classes

    def _config(self, dataset: ReportDataset, folder: Path, task: str) -> Config:
        """The run's configuration; ConfigError names the argument."""
        given = {name: getattr(self, name) for name in _FIELDS}
        given["label_names"] = dataset.label_names
        if self.units is None and self.epsilon not in (None, float("inf")):
            ids = dataset.patient_ids if self.unit == "patient" else dataset.report_ids
            given["units"] = _two_figures(len(set(ids.tolist())))
            _warn(
                f"units is not given: {given['units']:,}, the number of {self.unit}s in X rounded "
                "down to two figures, is taken for public and stands in the statement",
                level=4,
            )
        values: dict[str, dict[str, Any]] = {
            "data": {"source": "table", "task": task},
            "run": {"dir": str(folder.parent), "name": folder.name},
        }
        extra = dict(self.settings or {})
        for name, value in ({_FIELDS[k]: v for k, v in given.items()} | extra).items():
            section, dot, field = str(name).partition(".")
            if not dot or (name in extra and name in _OURS):
                better = f"; it is the parameter {_OURS[name]}" if name in _OURS else ""
                raise ConfigError(f"settings: {name!r} is no 'section.field' to set here{better}")
            values.setdefault(section, {})[field] = getattr(value, "item", lambda v=value: v)()
        try:
            if self.recipe == "auto":
                revision = extra.get("model.revision")
                directory = resolve_backbone(str(self.backbone), "cls", revision).directory
                if not shares_layers(read_config(directory)):
                    # As in the shipped configs: a quicker public start.
                    values.setdefault("lora", {}).setdefault("layers", "last:2")
            return Config.from_dict(values)
        except ConfigError as error:
            _by_argument(error)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """Of the run; a temporary one is private to the user, and gone afterwards."""
        if self.run_dir is not None:
            yield Path(self.run_dir).absolute()
            return
        with tempfile.TemporaryDirectory(prefix="jaxdp-") as scratch:
            yield Path(scratch) / "run"

    def _stopped(self, interrupt: Interrupt, stop: Interrupted) -> NoReturn:
        if interrupt.received == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)  # for whoever handles it; by default it ends all
        kept = "nothing is kept: run_dir would keep it"
        if self.run_dir is not None:
            kept = f"kept in {self.run_dir}; fit with the same data goes on from there"
        raise KeyboardInterrupt(f"stopped after step {stop.position.step}; {kept}") from None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_loaded" in state:
            state = {**state, "_loaded": None}
        state.pop("history_", None)
        return state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.target_tags.multi_output = tags.classifier_tags.multi_label = True
        tags.non_deterministic = True
        return tags


class _Interrupt(Interrupt):
    """A second Ctrl-C does what it did before `fit`: it must not end somebody's notebook."""

    def _note(self, number, frame) -> None:
        try:
            super()._note(number, frame)
        finally:
            signal.signal(number, self._previous[number])


class _Kept:
    """Keeps the course of a fit, un-noised, for whoever trains."""

    keeps = False

    def __init__(self, *console: Console):
        super().__init__(*console)
        self.history: list[dict[str, float]] = []

    def stepped(self, done, diagnostics, reports: int, fill: float) -> None:
        loss = float(diagnostics.loss.mean()) if reports else float("nan")
        course = {"stage": done.stage, "step": done.step, "reports": reports}
        self.history.append(course | {"unnoised_loss": loss})
        super().stepped(done, diagnostics, reports, fill)


class _Silent(_Kept, SilentMonitor):
    pass


class _Shown(_Kept, Monitor):
    pass


def _two_figures(number: int) -> int:
    """3,159 -> 3,100."""
    step = 10 ** max(len(str(number)) - 2, 0)
    return number // step * step


def _by_argument(error: ConfigError) -> NoReturn:
    """The error, with the parameters' names in place of the settings'."""
    text = str(error)
    for argument, field in _FIELDS.items():
        text = re.sub(rf"(config\.)?\b{re.escape(field)}\b", argument, text)
    raise ConfigError(re.sub(r"\bconfig\.(\w+\.\w+)", r"settings['\1']", text)) from None


def _inside_a_search() -> bool:
    """Whether a part of scikit-learn that fits copies has called, in this process or a worker."""
    callers = (frame for frame, _ in traceback.walk_stack(sys._getframe()))
    return any(frame.f_globals.get("__name__", "").startswith(_REPEATING) for frame in callers)


def _warn(text: str, level: int = 3) -> None:
    """PrivacyWarning at the caller of `fit`, so many calls up."""
    warnings.warn(text, PrivacyWarning, stacklevel=level)
