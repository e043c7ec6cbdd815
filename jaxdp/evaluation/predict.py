# SPDX-License-Identifier: Apache-2.0
"""A release, ready to label texts."""

import dataclasses
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jaxdp.backbone import load_finetuned
from jaxdp.data.arrays import texts_of
from jaxdp.data.batching import Buckets, any_lengths
from jaxdp.data.dataset import DataError
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.dp import statement_markdown
from jaxdp.models import lora
from jaxdp.models.checkpoints import read_json
from jaxdp.models.tasks import TASKS, Task

from .evidence import Evidence
from .inference import Predictor

_MICROBATCH_TOKENS, _TOGETHER, _WIDTHS = 2048, 16, 8
"""Positions computed at once, on each device; how many texts share a row, or where none do, how
many widths are told apart."""


class ReleasedClassifier:
    """A release bundle, ready to label texts: what `jaxdp.load` returns.

    Attributes:
        labels: names, in the order of the columns of what is predicted.
        task: what is predicted.
        privacy: the statement, as in privacy.json.

    Args:
        release: a run's release/ directory.
        base_model: directory of the frozen weights, if they are not where the adapter says.
        mesh: devices to share the reports; None is the default device alone.

    Raises:
        WeightsError, ConfigError, DataError: the bundle or its base model cannot be used.
    """

    def __init__(self, release: Path, *, base_model: str | None = None, mesh: Mesh | None = None):
        adapter = Path(release) / "adapter"
        if not adapter.is_dir():
            raise DataError(f"{adapter} does not exist; expected the release/ of a finished run")
        self.privacy: dict[str, Any] = read_json(Path(release) / "privacy.json")
        model, self.labels, _ = load_finetuned(adapter, base_model)
        self._tokenizer: Tokenizer = load_tokenizer(adapter)
        config = read_json(adapter / "tokenizer_config.json")
        self._max_length = int(config["model_max_length"])
        self.task: Task = TASKS[model.task]
        graphdef, *self._states = lora.split(model, "head")
        self._windows = 1 if model.window is None else model.window[1]
        lengths = any_lengths(self._max_length * self._windows)
        buckets = Buckets.shared(lengths, _MICROBATCH_TOKENS) if self._windows == 1 else None
        if buckets:  # texts may be shorter, and without gradients a place costs nothing
            buckets = dataclasses.replace(buckets, reports=(_TOGETHER,) * len(buckets.widths))
        buckets = buckets or Buckets.for_lengths(lengths, _MICROBATCH_TOKENS, _WIDTHS)
        self._logits = Predictor(graphdef, 0, buckets, mesh, activation=lambda logits: logits)
        self._evidence = cache(partial(Evidence, model, self._tokenizer, self._max_length, buckets))

    def predict_proba(self, texts: Any) -> np.ndarray:
        """Probabilities [n, labels], float64: none is 0 or 1, as it would be in fewer bits.

        `texts` is a list, an array or a column, see `arrays.texts_of`; DataError if one is empty.
        """
        tokens, _ = tokenize(texts_of(texts), self._tokenizer, self._max_length, self._windows)
        logits = self._logits(*self._states, tokens).astype(np.float64)
        probabilities = self.task.probabilities(logits)
        return np.clip(probabilities, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))

    def predict(self, texts: Any) -> np.ndarray:
        """Decisions [n, labels], 0 or 1; or where a text has one class, its name [n]."""
        decided = self.task.decide(self.predict_proba(texts))
        return self.task.answers(decided, np.array(self.labels))

    def evidence(self, texts: Any) -> list[list[str]]:
        """[n][labels] the sentence that each label read; DataError without label attention."""
        texts = texts_of(texts)
        return self._evidence()(texts)

    def explain_privacy(self) -> str:
        """The statement in words, as in PRIVACY.md."""
        return statement_markdown(self.privacy)
