# SPDX-License-Identifier: Apache-2.0
"""Files of a model directory -> Python values; errors name the file."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

Tensors = Mapping[str, Callable[[], np.ndarray]]
"""Name -> function that reads the tensor: a model need not be in memory twice to be loaded."""


class WeightsError(ValueError):
    """A checkpoint that cannot be used; the message names file and tensors."""


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
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_safetensors(path: Path) -> Tensors:
    """The tensors of one .safetensors file; WeightsError for a damaged one."""
    return {name: functools.partial(_read_one, path, name) for name in _open(path).keys()}


def _open(path: Path):
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a complete safetensors file: {error}") from None


def _read_one(path: Path, name: str) -> np.ndarray:
    # Opened anew for each tensor, so that the pages of those already read do not stay mapped.
    with _open(path) as file:
        return file.get_tensor(name)
