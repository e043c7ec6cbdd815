# SPDX-License-Identifier: Apache-2.0
"""Releases in and out: `load` one to label texts, `push_to_hub` one that is sound."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from . import dp
from .data.dataset import DataError
from .evaluation.predict import ReleasedClassifier
from .models.checkpoints import Description, read_json
from .models.hub import download_folder, upload_folder
from .models.tasks import TASKS
from .run.release_check import ReleaseError, check_release, failures
from .runtime import prepare
from .training.mesh import make_mesh

_BUNDLE = ["adapter/*", "privacy.json", "PRIVACY.md"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load(
    source: str | Path, *, base_model: str | None = None, revision: str | None = None
) -> ReleasedClassifier:
    """A release, ready to label texts.

    Args:
        source: a release/ folder, the folder of a finished run, or the id of a hub repository that
            `push_to_hub` has filled, "owner/name".
        base_model: preset, directory or hub id of the frozen weights, if they are not where the
            adapter, or the run's configuration, says.
        revision: of a hub repository.

    Raises:
        DataError, ConfigError, WeightsError, AssetError: the release or its base model cannot be
            used; the message says why.
    """
    prepare()
    place = Path(source).expanduser()
    if (place / "release").is_dir():
        # A release names no path of this machine; the run's own configuration does.
        base_model = base_model or read_json(place / "config.json")["model"]["backbone"]
        place = place / "release"
    elif not place.exists() and _HUB_ID.fullmatch(str(source)):
        place = download_folder(str(source), _BUNDLE, revision)
    return ReleasedClassifier(place, base_model=base_model, mesh=make_mesh())


def push_to_hub(
    release: str | Path, repo_id: str, *, private: bool = True, unprotected: bool = False
) -> str:
    """Puts a release into a hub repository, with its statement as the model card.

    Guarantee: what is uploaded are the files of a release that has passed `check_release`, just as
    they were checked, and the card, which is made of them; nothing else that the folder of a run
    holds. What the repository held before is replaced.

    Args:
        release: a release/ folder, or that of a finished run.
        repo_id: "owner/name"; made if there is none.
        private: a new repository is seen by its owner alone.
        unprotected: push it although it was trained without privacy, or with a research seed.

    Returns:
        The commit's address.

    Raises:
        ReleaseError: a check failed, or nothing protects the reports.
        WeightsError: no access, or no network.
    """
    place = Path(release).expanduser()
    place = place / "release" if (place / "release").is_dir() else place
    if not place.is_dir():
        raise DataError(f"{place} is no directory; expected the release/ of a finished run")
    with tempfile.TemporaryDirectory() as scratch:
        # A copy, so that what is sent is what was checked; links stay links, which are refused.
        bundle = Path(shutil.copytree(place, Path(scratch) / "bundle", symlinks=True))
        failed = failures(check_release(bundle))
        if failed:
            raise ReleaseError(f"not pushed, {place} fails its checks: {failed}")
        statement = read_json(bundle / "privacy.json")
        protected = statement["mechanisms"] and statement["seed_policy"] == "os-entropy"
        if not protected and not unprotected:
            raise ReleaseError(
                "not pushed: it was trained without privacy or with a research seed, so it may "
                "reveal reports; push_to_hub(..., unprotected=True) pushes it all the same"
            )
        card = model_card(repo_id, statement, bundle / "adapter")
        (bundle / "README.md").write_text(card, encoding="utf-8")
        message = f"epsilon {statement['epsilon']} at delta {statement['delta']}"
        return upload_folder(repo_id, bundle, private=private, message=message)


def model_card(repo_id: str, statement: Mapping[str, Any], adapter: Path) -> str:
    """README.md of a repository: the statement, as fields and in words, and how to use it."""
    description = Description.read(adapter)
    labels = description.label_names
    kind = "classes, one for each text" if TASKS[description.task].one_class else "labels"
    base = None
    if (adapter / "adapter_config.json").exists():
        base = read_json(adapter / "adapter_config.json")["base_model_name_or_path"]
    fields = ("epsilon", "delta", "privacy_unit", "units", "neighboring_relation", "accountant")
    data = ModelCardData(
        library_name="jaxdp",
        pipeline_tag="text-classification",
        tags=["differential-privacy", "lora"],
        base_model=base if base and _HUB_ID.fullmatch(base) else None,
        differential_privacy={name: statement[name] for name in fields},
    )
    return f"""---
{data.to_yaml()}
---

# {repo_id}

A text classifier, fine-tuned by jaxdp. Its {len(labels)} {kind}: {", ".join(labels)}.

    import jaxdp  # pip install jaxdp-text

    jaxdp.load("{repo_id}").predict_proba(["..."])

`adapter/` is in PEFT's format. What protects the people whose texts it was trained on:

{dp.statement_markdown(statement)}"""
