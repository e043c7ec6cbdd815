# SPDX-License-Identifier: Apache-2.0
"""scripts/export.py from the outside, and the errors of what it calls."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
import transformers
from flax import nnx
from helpers_models import (
    IGNORE_PEFT,
    load,
    our_logits,
    randomise,
    reports,
    save_torch_model,
    torch_logits,
)
from helpers_training import run_script

from jaxdp.commands import export as command
from jaxdp.config import ConfigError
from jaxdp.models import lora
from jaxdp.models.checkpoints import WeightsError
from jaxdp.models.merged import load_checkpoint
from jaxdp.models.peft import read_adapter_info, save_adapter

pytestmark = IGNORE_PEFT
LABELS = ["Edema", "Mass", "Nodule", "Fracture", "No Finding"]
export = partial(run_script, "export.py")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(adapter directory with a tokenizer file, its logits on the standard reports)."""
    path = tmp_path_factory.mktemp("released")
    save_torch_model(path / "base", "bert")
    model = load(path / "base")
    lora.add_lora(model, rank=2, alpha=4.0, targets=["query"], rngs=nnx.Rngs(0))
    randomise(model)
    adapter = path / "adapter"
    save_adapter(adapter, model, "lora", base_model=str(path / "base"), label_names=LABELS)
    (adapter / "vocab.txt").write_text("[PAD]\n")
    return adapter, our_logits(model, *reports())


def test_merged(released, tmp_path):
    result = export("--adapter", released[0], "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    assert list(model.config.id2label.values()) == LABELS
    np.testing.assert_allclose(torch_logits(model, *reports()), released[1], atol=2e-6)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "jaxdp.json", "vocab.txt"}


def test_an_adapter_that_does_not_say_how_it_pools_is_renamed_all_the_same(released, tmp_path):
    shutil.copytree(released[0], tmp_path / "adapter")
    (tmp_path / "adapter" / "jaxdp.json").unlink()
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": None}))
    with pytest.raises(WeightsError, match='does not say how it pools.*"pooling": "cls" or'):
        read_adapter_info(tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "adapter" / "reader_2")
    command.run(tmp_path / "adapter", tmp_path / "out", "adapter", "owner/name")
    for folder in ("", "reader_2"):
        config = json.loads((tmp_path / "out" / folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "owner/name"


def test_adapter_with_another_base_model(released, tmp_path):
    arguments = ("--format=adapter", "--base_model=owner/name")
    result = export("--adapter", released[0], "--output", tmp_path / "out", *arguments)
    assert result.returncode == 0, result.stderr
    for file in released[0].iterdir():
        copied = (tmp_path / "out" / file.name).read_bytes()
        if file.name == "adapter_config.json":
            assert json.loads(copied)["base_model_name_or_path"] == "owner/name"
        else:
            assert copied == file.read_bytes()


def test_stablehlo(released, tmp_path):
    pytest.importorskip("flatbuffers")
    arguments = ("--format=stablehlo", "--output", tmp_path / "out")
    result = export("--adapter", released[0], *arguments)
    assert result.returncode == 0, result.stderr
    exported = jax.export.deserialize((tmp_path / "out" / "model.jax_export").read_bytes())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    ids, lengths = reports()
    for rows, width in ((3, 9), (2, 20)):
        padded = np.zeros((rows, width), np.int32)
        padded[:, :9] = ids[:rows]
        probabilities = exported.call(padded, lengths[:rows].astype(np.int32))
        expected = 1 / (1 + np.exp(-released[1][:rows]))
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert json.loads((tmp_path / "out" / "jaxdp.json").read_text())["label_names"] == LABELS


def test_a_whole_model(released, tmp_path):
    # What a run with train.mode full has released: there is no adapter in it.
    whole = tmp_path / "whole"
    command.run(released[0], whole, "merged", None)
    command.run(whole, tmp_path / "out", "merged", None)
    np.testing.assert_allclose(
        our_logits(load_checkpoint(tmp_path / "out")[0], *reports()), released[1], atol=2e-6
    )
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "out")]
    assert names[0] == names[1]
    with pytest.raises(ValueError, match="is a whole model, not an adapter; use --format=merged"):
        command.run(whole, tmp_path / "adapter", "adapter", None)
    assert not (tmp_path / "adapter").exists()


def test_errors_are_one_line(released, tmp_path):
    result = export("--adapter", tmp_path / "absent", "--output", tmp_path / "out")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "adapter_config.json does not exist" in result.stderr
    result = export("--adapter", released[0], "--output", tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"error: {tmp_path} exists already\n"
    windowed, out = shutil.copytree(released[0], tmp_path / "windowed"), tmp_path / "out"
    about = json.loads((windowed / "jaxdp.json").read_text()) | {"window": [8, 2]}
    (windowed / "jaxdp.json").write_text(json.dumps(about))
    result = export("--adapter", windowed, "--output", out, "--format=stablehlo")
    assert "reads by windows" in result.stderr and not out.exists(), "nothing half done"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base", "backbone 'base' is no directory here, no hub id .* --base_model"),
        (None, "does not name its base model; give --base_model"),
    ],
)
def test_a_base_model_that_is_not_found(released, tmp_path, name, message):
    shutil.copytree(released[0], tmp_path / "adapter")
    config = json.loads((released[0] / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        command.run(tmp_path / "adapter", tmp_path / "out", "merged", None)
    base = str(released[0].parent / "base")
    command.run(tmp_path / "adapter", tmp_path / "out", "merged", base)
