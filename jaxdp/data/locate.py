# SPDX-License-Identifier: Apache-2.0
"""Finding a data set's files below the folder that a user named."""

import filecmp
import os
import re
from collections.abc import Mapping
from pathlib import Path

from .dataset import DataError

_DEPTH = 5  # physionet.org/files/mimic-cxr/2.0.0/files is what `wget -r` makes


def find(root: Path, patterns: Mapping[str, str], skip: str) -> dict[str, list[Path]]:
    """Key of `patterns` -> files and folders, at most five levels below `root`, whose whole name is
    matched by its pattern, folder by folder in order.

    Does not enter folders whose whole name matches `skip`: they hold a hundred thousand others.
    """
    found: dict[str, list[Path]] = {key: [] for key in patterns}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        for name in sorted([*subfolders, *files]):
            for key, pattern in patterns.items():
                if re.fullmatch(pattern, name):
                    found[key].append(here / name)
        deep = len(here.relative_to(root).parts) >= _DEPTH
        subfolders[:] = [] if deep else sorted(n for n in subfolders if not re.fullmatch(skip, n))
    return found


def require_found(root: Path, source: str, found: Mapping[str, bool], where: str) -> None:
    """DataError unless all was found; it says what is missing, what is there, where to get it.

    Args:
        root: as the user gave it.
        source: name of the data set.
        found: what was looked for -> whether it is there.
        where: to get it.
    """
    if all(found.values()):
        return
    wanted = "; ".join(f"{name} ({'found' if ok else 'MISSING'})" for name, ok in found.items())
    raise DataError(
        f"data.root = {root} does not hold {source}. Expected at most {_DEPTH} folders below: "
        f"{wanted}. At its top: {_listing(root)}. Where to get it: {where}"
    )


def _listing(root: Path) -> str:
    """The first names in a folder, without any that could hold a patient's or study's number."""
    if not root.is_dir():
        return "it is not a folder" if root.exists() else "it does not exist"
    names = sorted(p.name for p in root.iterdir())
    shown = [name for name in names if not re.search(r"\d{5}|_\d", name)][:10]
    others = len(names) - len(shown)
    return ", ".join(shown + [f"{others} other(s)"] * bool(others)) or "nothing"


def one_version(paths: list[Path]) -> Path:
    """The one file found, of which an unpacked and a packed copy may lie side by side. It may also
    be there several times, as where two revisions in the hub's cache link to it.

    Raises:
        DataError: there are several that differ.
    """
    apart = {path.with_name(path.name.removesuffix(".gz")): path for path in sorted(paths)[::-1]}
    first, *others = sorted(apart.values())
    if differ := [path for path in others if not filecmp.cmp(first, path, shallow=False)]:
        names = ", ".join(map(str, (first, *differ)))
        raise DataError(
            f"{names} are several versions of one file, whose bytes differ; leave one below "
            "data.root"
        )
    return first
