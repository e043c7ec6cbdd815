# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, also after a crash or power loss."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Writes atomically: a reader, also after a crash or power loss, finds the old file or the
    whole new one; the new one once this has returned."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        sync(path.parent)
    except OSError as error:  # does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, last through power loss."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_tree(path: Path) -> None:
    """`sync` of a folder and of all that is below it."""
    for each in (path, *path.rglob("*")):
        sync(each)


def write_json(path: Path, value: Any) -> None:
    """Indented, atomically."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
