# SPDX-License-Identifier: Apache-2.0
"""A disk that keeps through a power loss what was synced, and nothing else."""

import os
from pathlib import Path


class Disk:
    """Watches what is synced from its making on: contents by fsync of a file, names by fsync of
    their folder. What it does not know of was there before `root`."""

    def __init__(self, monkeypatch, root: Path):
        self._root = root
        self._contents: dict[int, bytes] = {}  # inode -> synced
        self._names: dict[Path, dict[str, int]] = {}  # folder -> synced name -> inode
        self.torn: list[str] = []
        """Names that files were given before their contents were synced."""
        real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

        def fsync(descriptor):
            real["fsync"](descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self._names[path] = {p.name: p.stat().st_ino for p in path.iterdir()}
            else:
                self._contents[path.stat().st_ino] = path.read_bytes()

        def moving(name):
            def move(source, target):
                inode = os.stat(source).st_ino
                if (
                    Path(source).is_file()
                    and self._contents.get(inode) != Path(source).read_bytes()
                ):
                    self.torn.append(Path(target).name)
                real[name](source, target)

            return move

        monkeypatch.setattr(os, "fsync", fsync)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, moving(name))

    def kept(self, path: Path) -> bytes | None:
        """What a power loss now would leave of a file; None if not even its name."""
        inode = None
        while path != self._root:
            found = self._names.get(path.parent, {}).get(path.name)
            if found is None:
                return None
            inode, path = inode or found, path.parent
        return self._contents.get(inode, b"")
