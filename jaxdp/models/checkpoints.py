# SPDX-License-Identifier: Apache-2.0
"""Files of a model directory -> Python values; errors name the file and what would help."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import safetensors

from .classifier import LEAVES, POOLINGS, relayout
from .tasks import TASKS

Tensors = Mapping[str, Callable[[], np.ndarray]]
"""Name -> function that reads the tensor: a model need not be in memory twice to be loaded."""


class WeightsError(ValueError):
    """A checkpoint that cannot be used; the message names file and tensors."""


def first_of(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; WeightsError if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path} must hold a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented, with a final newline."""
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Description:
    """jaxdp.json: what a classifier needs and neither PEFT nor config.json has a field for."""

    pooling: str
    label_names: tuple[str, ...]
    """Of the head's rows, in order."""
    base_fingerprint: str | None = None
    """Of the weights an adapter was trained on, see `pretrained.load_classifier`; or not known."""
    window: tuple[int, int] | None = None
    """See `classifier.ReportClassifier.window`."""
    task: str = "multi-label"
    """See `tasks.TASKS`. In the file it is transformers' problem_type, where it is not this one."""
    readers: int = 1
    """See `readers`; all but the first are in folders beside the file."""

    def write(self, directory: Path) -> None:
        value = dataclasses.asdict(self)
        if value.pop("task") != Description.task:
            value["problem_type"] = TASKS[self.task].problem_type
        if self.readers == 1:
            del value["readers"]
        write_json(Path(directory) / "jaxdp.json", value)

    @classmethod
    def read(cls, directory: Path) -> "Description":
        """WeightsError if the file is absent, or lacks what it must hold."""
        path = Path(directory) / "jaxdp.json"
        value = read_json(path)
        pooling, labels = value.get("pooling"), value.get("label_names")
        named = isinstance(labels, list) and all(isinstance(name, str) for name in labels)
        if pooling not in POOLINGS or not named:
            raise WeightsError(
                f"{path} must hold pooling ({' or '.join(POOLINGS)}) and label_names"
            )
        window = value.get("window")
        whole = isinstance(window, list) and [type(part) for part in window] == [int, int]
        if window is not None and not whole:
            raise WeightsError(f"{path}: window must be two whole numbers")
        tasks = {task.problem_type: name for name, task in TASKS.items()}
        problem = value.get("problem_type", TASKS[cls.task].problem_type)
        if problem not in tasks:
            raise WeightsError(f"{path}: problem_type must be {' or '.join(tasks)}")
        readers = value.get("readers", 1)
        if type(readers) is not int or not 1 <= readers <= 8:
            raise WeightsError(f"{path}: readers must be a whole number from 1 to 8")
        return cls(
            pooling,
            tuple(labels),
            value.get("base_fingerprint"),
            None if window is None else tuple(window),
            tasks[problem],
            readers,
        )


def read_tensors(directory: Path) -> Tensors:
    """The tensors of a model directory, named and laid out ([out, in]) as PyTorch does.

    The first of these that exists is read: model.safetensors, its sharded form
    (model.safetensors.index.json), flax_model.msgpack of transformers' former Flax classes, and
    pytorch_model.bin, which needs torch.

    Raises:
        WeightsError: none is there, or the file is damaged or unsafe.
    """
    for name, read in FORMATS.items():
        path = Path(directory) / name
        if path.exists():
            return read(path)
    raise WeightsError(f"{directory} holds no weights; expected one of {', '.join(FORMATS)}")


def read_safetensors(path: Path) -> Tensors:
    """The tensors of one .safetensors file; WeightsError for a damaged one."""
    with _open(path) as file:
        return {name: functools.partial(_read_one, path, name) for name in file.keys()}


def _open(path: Path):
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise WeightsError(f"{path} is not a complete safetensors file: {error}") from None


def _read_one(path: Path, name: str) -> np.ndarray:
    # Opened anew for each tensor, so that the pages of those already read do not stay mapped.
    with _open(path) as file:
        return file.get_tensor(name)


def _read_sharded(path: Path) -> Tensors:
    """The tensors that an index file distributes over its neighbours."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict):
        raise WeightsError(f"{path} has no weight_map")
    tensors = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise WeightsError(f"{path} names {shard!r}, which is not a file beside it")
        tensors |= read_safetensors(path.parent / shard)
    absent = sorted(set(shards) - set(tensors))
    if absent:
        raise WeightsError(f"{path} promises {first_of(absent)}, which its shards lack")
    return tensors


def _read_msgpack(path: Path) -> Tensors:
    """The nested parameters that flax's `to_bytes` wrote, under the names PyTorch would use."""
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        flat = flax.traverse_util.flatten_dict(tree)
    except Exception as error:  # msgpack raises a dozen unrelated types for damaged input
        raise WeightsError(f"{path} is not a complete Flax checkpoint: {error}") from None
    return {
        ".".join([*keys[:-1], LEAVES.get(keys[-1], keys[-1])]): functools.partial(
            relayout, keys, np.asarray(value)
        )
        for keys, value in flat.items()
    }


def _read_torch(path: Path) -> Tensors:
    """torch.load with weights_only=True: it builds tensors and nothing else from the pickle."""
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path} needs PyTorch to be read safely: pip install torch, or convert it to "
            "model.safetensors on another machine"
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: functools.partial(_to_numpy, value) for name, value in tensors.items()}
    except Exception as error:  # damaged archive, or a pickle that asks for more than tensors
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} is damaged, or holds more than tensors: {reason}") from None


def _to_numpy(tensor) -> np.ndarray:
    # numpy has no bfloat16 of its own.
    return (tensor.float() if tensor.element_size() < 4 else tensor).numpy()


FORMATS: dict[str, Callable[[Path], Tensors]] = {
    "model.safetensors": read_safetensors,
    "model.safetensors.index.json": _read_sharded,
    "flax_model.msgpack": _read_msgpack,
    "pytorch_model.bin": _read_torch,
}
"""File name -> reader, in the order of preference."""
