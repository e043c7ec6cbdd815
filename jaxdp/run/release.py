# SPDX-License-Identifier: Apache-2.0
"""The release bundle: everything that may be shared under the statement, and nothing else."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdp.backbone import Backbone
from jaxdp.data.tokens import read_tokenizer
from jaxdp.dp import statement_markdown
from jaxdp.files import sync, sync_tree, write_json
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.merged import save_checkpoint
from jaxdp.models.peft import save_adapter
from jaxdp.models.pretrained import read_config

from .release_check import PATHS, TOKENIZER_FILES, ReleaseError, check_release, failures


def write_release(
    release: Path,
    model: ReportClassifier,
    mode: str,
    *,
    backbone: Backbone,
    label_names: Iterable[str],
    max_length: int,
    initialised: Iterable[str],
    statement: Mapping[str, Any],
) -> None:
    """Writes adapter/, privacy.json and PRIVACY.md; the directory appears checked and whole (fsync,
    then rename), or not at all.

    adapter/ is in PEFT's format (for mode "full": a whole checkpoint, there being no adapter), with
    the backbone's tokenizer (its `model_max_length` is what the model was trained with) and the
    label names.

    Args:
        release: replaced if it exists.
        model: with an ordinary head.
        mode: what was trained, see `models.lora.MODES`.
        initialised: parameters drawn at random because the checkpoint lacked them.
        statement: from `dp.privacy_statement`.

    Raises:
        ReleaseError: the bundle does not pass `check_release`.
    """
    scratch, old = release.with_name(".release.tmp"), release.with_name(".release.old")
    for leftover in (scratch, old):
        shutil.rmtree(leftover, ignore_errors=True)
    adapter = scratch / "adapter"
    adapter.mkdir(parents=True)
    if mode == "full":
        save_checkpoint(adapter, model, read_config(backbone.directory), label_names)
    else:
        save_adapter(
            adapter,
            model,
            mode,
            base_model=backbone.name,
            revision=backbone.revision,
            label_names=label_names,
            initialised=initialised,
        )
    for name in TOKENIZER_FILES:
        if (backbone.directory / name).exists():
            shutil.copyfile(backbone.directory / name, adapter / name)
    config_file = backbone.directory / "tokenizer_config.json"
    config = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
    config = {name: value for name, value in config.items() if name not in PATHS}
    # What the backbone's config.json says of the tokenizer, which an adapter has not.
    kind = {"tokenizer_class": type(read_tokenizer(backbone.directory)).__name__}
    write_json(adapter / "tokenizer_config.json", kind | config | {"model_max_length": max_length})
    write_json(scratch / "privacy.json", statement)
    (scratch / "PRIVACY.md").write_text(statement_markdown(statement), encoding="utf-8")
    sync_tree(scratch)
    failed = failures(check_release(scratch, backbone.directory))
    if failed:
        raise ReleaseError(f"not released: {failed}")
    if release.exists():
        release.rename(old)
    scratch.rename(release)
    sync(release.parent)
    shutil.rmtree(old, ignore_errors=True)
