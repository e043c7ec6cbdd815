# SPDX-License-Identifier: Apache-2.0
"""The whole model out: a plain Hugging Face checkpoint, adapters merged into the weights.

`AutoModelForSequenceClassification` loads one with pooling "cls" and computes the same logits.
transformers has no classifier that pools otherwise, so one that does announces itself as the bare
encoder; its head is in the file all the same. `jaxdp.json` says which it is.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
from flax import nnx

from .checkpoints import Description, WeightsError, write_json
from .classifier import ReportClassifier, relayout
from .lora import adapted_layers
from .pretrained import load_classifier
from .tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def save_checkpoint(
    directory: Path,
    model: ReportClassifier,
    config: "PreTrainedConfig",
    label_names: Iterable[str],
) -> None:
    """Writes config.json, model.safetensors and jaxdp.json; `model` is left as it is.

    Args:
        directory: created if missing.
        config: the backbone's.
        label_names: of the head's rows, in order; they become id2label.
    """
    label_names = tuple(label_names)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = model.tensors(nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    for path, module in adapted_layers(model).items():
        kernel = (*path, "kernel")
        tensors[model.name_of(kernel)] = relayout(kernel, np.asarray(module.merged_kernel()))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    family = type(config).__name__.removesuffix("Config")
    task = "ForSequenceClassification" if model.pooling == "cls" else "Model"
    write_json(
        directory / "config.json",
        {
            **config.to_diff_dict(),
            "architectures": [family + task],
            "problem_type": TASKS[model.task].problem_type,
            "id2label": {str(i): name for i, name in enumerate(label_names)},
            "label2id": {name: i for i, name in enumerate(label_names)},
        },
    )
    description = Description(model.pooling, label_names, window=model.window, task=model.task)
    description.write(directory)


def load_checkpoint(directory: Path) -> tuple[ReportClassifier, tuple[str, ...]]:
    """(model, label names) of a directory that `save_checkpoint` wrote; WeightsError otherwise."""
    described = Description.read(directory)
    labels = described.label_names
    model, report = load_classifier(directory, len(labels), described.pooling, rngs=nnx.Rngs(0))
    if report.initialised:
        raise WeightsError(f"{directory} lacks {', '.join(report.initialised)}")
    model.window, model.task = described.window, described.task
    return model, labels
