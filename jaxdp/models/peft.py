# SPDX-License-Identifier: Apache-2.0
"""Adapters in and out, in the file format of Hugging Face PEFT.

A directory holds `adapter_config.json` and `adapter_model.safetensors` as PEFT writes them, and
beside them `jaxdp.json` with what PEFT has no field for, see `checkpoints.Description`.

What each train mode becomes, all of it read by `PeftModel.from_pretrained`:

    lora, lora-ffa   LoRA, and modules_to_save = classifier
    head             the same without a LoRA layer (PEFT's own placeholder for "no targets")
    bitfit           the same without a LoRA layer and with bias = "all"
    full             no adapter exists; `merged.save_checkpoint` writes the whole model

transformers has no classifier that pools by "first", "mean" or "mean-last2", so such an adapter has
the same tensors but no task_type: in PyTorch it belongs on a class that pools likewise. An
adapter that PEFT made on such a class needs a jaxdp.json that says so. With label attention the
queries are in modules_to_save too, and the class is written beside the adapter.

Of several `readers` each is an adapter: the first in the directory itself, the others in folders of
it, see `reader_folders`. The logits of all of them add up to the model's.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from .checkpoints import (
    Description,
    WeightsError,
    first_of,
    read_json,
    read_safetensors,
    write_json,
)
from .classifier import HEAD, ReportClassifier, relayout
from .lora import adapt, adapted_layers, linear_layers, trainable
from .readers import OWN, join, own_of, part
from .tasks import TASKS

TORCH_CLASS = Path(__file__).with_name("label_attention_torch.py")
"""Runs an adapter with label attention in PyTorch; written beside each."""
WEIGHTS = "adapter_model.safetensors"
HEAD_WEIGHTS = ("classifier.weight", "classifier.out_proj.weight")
HEAD_BIASES = ("classifier.bias", "classifier.out_proj.bias")
"""Names of the head's parameters, of whatever family."""
_PREFIX = "base_model.model."
_NO_TARGETS = "dummy-target-modules"  # peft.utils.constants.DUMMY_TARGET_MODULES

# Fields of LoraConfig that we honour, or that do not change what the finished adapter computes.
# Any other field that is set means arithmetic we do not have.
_UNDERSTOOD = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules",
    "bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "qalora_group_size",
    "eva_config",
}  # fmt: skip
# The other initialisations (pissa, olora, loftq, ...) change the base weights as well.
_INITIALISATIONS = (True, False, "gaussian", "eva")


def save_adapter(
    directory: Path,
    model: ReportClassifier,
    mode: str,
    *,
    base_model: str,
    label_names: Iterable[str],
    revision: str | None = None,
    initialised: Iterable[str] = (),
) -> None:
    """Writes what `mode` trained; rank, alpha and targets are those of `model`.

    Args:
        directory: created if missing.
        model: the whole model.
        mode: of `lora.MODES`, but "full".
        base_model, revision: where the frozen weights come from, for the user of the adapter.
        label_names: of the head's rows, in order.
        initialised: `LoadReport.initialised`; a pooler among them is not in the base model, so it
            travels with the adapter, although it was never trained.

    Raises:
        ValueError: mode "full", or another number of names than the head has rows.
    """
    if mode == "full":
        raise ValueError("train.mode full has no adapter; save the whole model instead")
    label_names = tuple(label_names)
    if len(label_names) != model.classifier.out_features:
        raise ValueError(
            f"{len(label_names)} label names for a head of {model.classifier.out_features} labels"
        )
    saved_modules = [name for name in HEAD if hasattr(model, name)]
    chosen = [nnx.LoRAParam, trainable(mode), *map(nnx.PathContains, saved_modules)]
    pooler = nnx.PathContains("pooler")
    module = model.cls_names.get("pooler", "pooler").partition(".")[0]
    # PEFT wants all modules whose names end in "classifier": RoBERTa's pooler is part of one, and
    # DistilBERT's, pre_classifier, is another.
    if model.tensors(pooler).keys() & set(initialised) or module.endswith("classifier"):
        saved_modules = list(dict.fromkeys([*saved_modules, module]))
        chosen.append(pooler)

    for number, folder in enumerate(reader_folders(directory, model.readers)):
        folder.mkdir(parents=True, exist_ok=True)
        reader = part(model, number)
        tensors = {_PREFIX + name: x for name, x in reader.tensors(nnx.Any(*chosen)).items()}
        safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS" if model.pooling == "cls" else None,
            "base_model_name_or_path": base_model,
            "revision": revision,
            "inference_mode": True,
            **_lora_fields(reader),
            "lora_dropout": 0.0,
            "bias": "all" if mode == "bitfit" else "none",
            "modules_to_save": saved_modules,
        }
        write_json(folder / "adapter_config.json", config)
        readers = 1 if number else model.readers
        own = (model.base_fingerprint, model.window, model.task, readers)
        Description(model.pooling, label_names, *own).write(folder)
    if model.pooling == "label-attention":
        (Path(directory) / TORCH_CLASS.name).write_bytes(torch_class(model.task))


def reader_folders(directory: Path, readers: int) -> list[Path]:
    """Where each of the readers is."""
    return [Path(directory) / (f"reader_{i + 1}" if i else "") for i in range(readers)]


def torch_class(task: str) -> bytes:
    """`TORCH_CLASS`, whose first lines say how to use it."""
    activation = b".softmax(-1)" if TASKS[task].one_class else b".sigmoid()"
    return TORCH_CLASS.read_bytes().replace(b".sigmoid()", activation)


def read_adapter_info(directory: Path) -> tuple[dict[str, Any], Description]:
    """(adapter_config.json, what else is needed to rebuild the classifier).

    For an adapter of PEFT's own, without jaxdp.json, labels are numbered, and pooling is "cls" if
    its task_type is SEQ_CLS, which stands for the classes of transformers.

    Raises:
        WeightsError: damaged files, a setting whose arithmetic is not supported (by name), no
            classifier in the adapter, or nothing that says how it pools.
    """
    directory = Path(directory)
    config = read_json(directory / "adapter_config.json")
    _require_supported(config, directory / "adapter_config.json")
    if (directory / "jaxdp.json").exists():
        return config, Description.read(directory)
    if config.get("task_type") == "SEQ_CLS":
        tensors = _read_adapter(directory)
        rows = next(len(tensors[name]) for name in HEAD_BIASES if name in tensors)
        return config, Description("cls", tuple(f"LABEL_{i}" for i in range(rows)))
    raise WeightsError(
        f"{directory} does not say how it pools: task_type is not SEQ_CLS; write "
        '{"pooling": "cls" or "first" or "mean" or "mean-last2", "label_names": [...]} to '
        "jaxdp.json in it"
    )


def load_adapter(directory: Path, model: ReportClassifier) -> None:
    """Puts the adapter of `directory`, by us or by PEFT, on a model that has none, in place.

    Any ranks and alphas, rsLoRA, trained biases and saved modules are honoured, and all readers.

    Raises:
        WeightsError: damaged files, a setting whose arithmetic is not supported (by name), a
            head of another size, tensors that fit no layer of this backbone, or another backbone
            whose layers happen to fit.
    """
    bare = nnx.clone(model)
    readers = _load_reader(Path(directory), model)
    states = [own_of(model)]
    for folder in reader_folders(directory, readers)[1:]:
        _load_reader(folder, other := nnx.clone(bare))
        if not _alike(other, model):
            raise WeightsError(f"{folder}: not of the same form as the first reader")
        states.append(own_of(other))
    join(model, states)


def _alike(*readers: ReportClassifier) -> bool:
    """Whether they are of one form, and what is no reader's own is the same."""
    forms, owns, shared = zip(*(nnx.split(reader, OWN, ...) for reader in readers), strict=True)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(own)] for own in owns]
    common = zip(*map(jax.tree.leaves, shared), strict=True)
    return (
        forms[0] == forms[1]
        and shapes[0] == shapes[1]
        and all(a is b or np.array_equal(a, b) for a, b in common)
    )


def _load_reader(directory: Path, model: ReportClassifier) -> int:
    """One of them; how many there are."""
    config, description = read_adapter_info(directory)
    tensors = _read_adapter(directory)
    layers = {model.name_of(path): (path, layer) for path, layer in linear_layers(model).items()}
    parameters = {model.name_of(p): (p, v) for p, v in nnx.to_flat_state(nnx.state(model))}

    problems = []
    if description.pooling != model.pooling:
        problems.append(f"its pooling is {description.pooling}, the model's {model.pooling}")
    pairs = {}
    for name in sorted({name.partition(".lora_")[0] for name in tensors if ".lora_" in name}):
        a, b = (tensors.pop(f"{name}.lora_{which}.weight", None) for which in "AB")
        if name not in layers or a is None or b is None:
            problems.append(f"{name} is no linear layer with an A and a B")
            continue
        a, b = pairs[name] = a.T, b.T
        kernel = layers[name][1].kernel.shape
        if (a.shape[0], b.shape[1]) != kernel or a.shape[1] != b.shape[0]:
            problems.append(f"{name}: A {a.shape} and B {b.shape} do not fit {kernel}")
    replaced = []
    for name, value in tensors.items():
        if name not in parameters:
            problems.append(f"{name} names no parameter")
            continue
        path, variable = parameters[name]
        value = relayout(path, value)
        if value.shape != variable.shape:
            problems.append(f"{name} is {value.shape}, expected {variable.shape}")
        replaced.append((path, variable.replace(jnp.asarray(value, variable.dtype))))
    wanted, found = description.base_fingerprint, model.base_fingerprint
    if not problems and wanted not in (None, found):
        problems.append(
            f"it was trained on other weights, {config.get('base_model_name_or_path')} with "
            f"fingerprint {wanted}, not {found}"
        )
    if problems:
        raise WeightsError(
            f"{directory}: the adapter does not fit this model: {first_of(problems, 4)}"
        )

    model.window, model.task = description.window, description.task
    nnx.update(model, nnx.from_flat_state(replaced))
    for name, pair in pairs.items():
        path, layer = layers[name]
        a, b = (jnp.asarray(x, layer.kernel.dtype) for x in pair)
        adapt(model, path, a, b, _alpha(config, name, rank=a.shape[1]))
    return description.readers


def _lora_fields(model: ReportClassifier) -> dict[str, Any]:
    """r, lora_alpha and target_modules, with patterns where layers differ."""
    adapted = {model.name_of(path): module for path, module in adapted_layers(model).items()}
    if not adapted:
        return {"r": 1, "lora_alpha": 1, "target_modules": _NO_TARGETS}
    ranks = {name: module.rank for name, module in adapted.items()}
    # 16.0 as 16: PEFT declares alpha an integer, though it computes with any number.
    alphas = {
        name: int(m.alpha) if m.alpha == int(m.alpha) else m.alpha for name, m in adapted.items()
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    # PEFT adapts every layer whose name ends so: short names only where they hit these and no more.
    # transformers has a pooler even where we average.
    short = {name.rpartition(".")[2] for name in adapted}
    everything = {*map(model.name_of, linear_layers(model)), "pooler.dense"}
    hits = {name for name in everything if name.rpartition(".")[2] in short}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "target_modules": sorted(short if hits == adapted.keys() else adapted),
    }


def _require_supported(config: Mapping[str, Any], path: Path) -> None:
    """WeightsError names the first setting that we would compute wrongly."""
    if config.get("peft_type") != "LORA":
        raise WeightsError(f"{path}: peft_type must be LORA, not {config.get('peft_type')!r}")
    if config.get("init_lora_weights", True) not in _INITIALISATIONS:
        raise WeightsError(
            f"{path}: init_lora_weights {config['init_lora_weights']!r} changes the base weights "
            "too and is not supported; convert the adapter to plain LoRA when saving it in PEFT"
        )
    for field, value in config.items():
        if value and field not in _UNDERSTOOD:
            raise WeightsError(f"{path}: {field} = {value!r} is not supported")


def _read_adapter(directory: Path) -> dict[str, np.ndarray]:
    """The adapter's tensors by the names of the model's own parameters."""
    path = directory / WEIGHTS
    tensors = {
        name.removeprefix(_PREFIX).replace(".base_layer.", "."): value()
        for name, value in read_safetensors(path).items()
        # With bias = "all" PEFT writes the head's bias thrice, twice under its wrapper's names.
        if ".original_module." not in name and ".modules_to_save." not in name
    }
    for heads in (HEAD_WEIGHTS, HEAD_BIASES):
        if not tensors.keys() & set(heads):
            raise WeightsError(f"{path}: no {heads[0]}; was it trained as a sequence classifier?")
    return tensors


def _alpha(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """The alpha that makes alpha / rank PEFT's scale; patterns match the end of a name."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = value
            break
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
