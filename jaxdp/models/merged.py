# SPDX-License-Identifier: Apache-2.0
"""The whole model out: a plain Hugging Face checkpoint, adapters merged into the weights.

`AutoModelForSequenceClassification` loads one with pooling "cls" and computes the same logits.
transformers has no classifier that pools otherwise, so one that does announces itself as the bare
encoder; its head is in the file all the same. `jaxdp.json` says which it is. Of several readers
each is a checkpoint, the first in the directory itself, and their logits add up to the model's.
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
from .peft import reader_folders
from .pretrained import load_classifier
from .readers import part
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
    for number, folder in enumerate(reader_folders(directory, model.readers)[1:], 1):
        save_checkpoint(folder, part(model, number), config, label_names)
    readers, model = model.readers, part(model, 0)
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
    about = (model.pooling, label_names, None, model.window, model.task, readers)
    Description(*about).write(directory)


def load_checkpoint(directory: Path) -> tuple[ReportClassifier, tuple[str, ...]]:
    """(model, label names) of a directory that `save_checkpoint` wrote, of a model with one reader;
    WeightsError otherwise."""
    described = Description.read(directory)
    if described.readers > 1:
        raise WeightsError(f"{directory} is one of {described.readers} readers; use their adapter")
    labels = described.label_names
    model, report = load_classifier(directory, len(labels), described.pooling, rngs=nnx.Rngs(0))
    if report.initialised:
        raise WeightsError(f"{directory} lacks {', '.join(report.initialised)}")
    model.window, model.task = described.window, described.task
    return model, labels
