# SPDX-License-Identifier: Apache-2.0
"""Adapters and merged checkpoints, exchanged with the real PEFT and transformers."""

import importlib.util
import json
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from helpers_models import (
    IGNORE_PEFT,
    load,
    mean_pooled,
    our_logits,
    randomise,
    reports,
    save_torch_model,
    torch_logits,
)
from safetensors.numpy import load_file, save_file

from jaxdp.models import lora
from jaxdp.models.checkpoints import Description, WeightsError
from jaxdp.models.merged import load_checkpoint, save_checkpoint
from jaxdp.models.peft import TORCH_CLASS, load_adapter, read_adapter_info, save_adapter
from jaxdp.models.pretrained import load_classifier, read_config

pytestmark = IGNORE_PEFT
ATOL = 2e-6  # float32 noise of these tiny models; the adapters below move logits by about 0.5
LABELS = ("Edema", "Mass", "Nodule", "Fracture", "No Finding")


@pytest.fixture(scope="module", params=["bert", pytest.param("albert", marks=pytest.mark.slow)])
def base(request, tmp_path_factory):
    """A model directory without a head of its own, so that adapters must bring one."""
    path = tmp_path_factory.mktemp(request.param)
    save_torch_model(path / "full", request.param)
    transformers.AutoModel.from_pretrained(path / "full").save_pretrained(path)
    return path


def torch_base(base, **kwargs):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=5, attn_implementation="eager", **kwargs
    )
    return model.eval()


def trained(base, mode="lora", pooling="cls", targets=("query", "value"), **kwargs):
    """Our model, off its starting point in all that `mode` trains."""
    model = load(base, pooling=pooling)
    if mode in ("lora", "lora-ffa"):
        settings = {"rank": 3, "alpha": 5.0} | kwargs
        lora.add_lora(model, **settings, targets=targets, rngs=nnx.Rngs(1))
    randomise(model, mode)
    return model


def save(directory, model, mode="lora", base="somewhere", **kwargs):
    save_adapter(directory, model, mode, base_model=str(base), label_names=LABELS, **kwargs)


@pytest.mark.parametrize("mode", ["lora", "lora-ffa", "head", "bitfit"])
def test_ours_gives_the_same_logits_in_peft_and_here(base, tmp_path, mode):
    model = trained(base, mode)
    save(tmp_path, model, mode, base)
    ids, lengths = reports()
    expected = our_logits(model, ids, lengths)
    theirs = peft.PeftModel.from_pretrained(torch_base(base), tmp_path).eval()
    np.testing.assert_allclose(torch_logits(theirs, ids, lengths), expected, atol=ATOL, rtol=0)
    again = load(base)
    load_adapter(tmp_path, again)
    np.testing.assert_array_equal(our_logits(again, ids, lengths), expected)


@pytest.mark.parametrize(
    ("targets", "first_layer"), [(("all-linear",), 0), (("dense",), 0), (("query",), 2)]
)
def test_only_the_targeted_layers_are_adapted_in_peft(base, tmp_path, targets, first_layer):
    model = trained(base, targets=targets, first_layer=first_layer)
    save(tmp_path, model)
    theirs = peft.PeftModel.from_pretrained(torch_base(base), tmp_path).eval()
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }
    ours = nnx.iter_modules(model)
    assert adapted == {".".join(map(str, p)) for p, m in ours if isinstance(m, lora.LoRALinear)}
    ids, lengths = reports()
    np.testing.assert_allclose(
        torch_logits(theirs, ids, lengths), our_logits(model, ids, lengths), atol=ATOL, rtol=0
    )


def test_mean_pooling_loads_on_a_class_that_averages(base, tmp_path):
    model = trained(base, pooling="mean", targets=["all-linear"])
    save(tmp_path, model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] is None
    assert read_adapter_info(tmp_path)[1].pooling == "mean"
    with pytest.raises(WeightsError, match="its pooling is mean, the model's cls"):
        load_adapter(tmp_path, load(base))
    theirs = peft.PeftModel.from_pretrained(mean_pooled(torch_base(base)), tmp_path).eval()
    ids, lengths = reports()
    np.testing.assert_allclose(
        torch_logits(theirs, ids, lengths), our_logits(model, ids, lengths), atol=ATOL, rtol=0
    )


@pytest.mark.parametrize("mode", ["head", "lora+queries"])
def test_label_attention_runs_in_pytorch_on_what_lies_beside_the_adapter(base, tmp_path, mode):
    model = trained(base, mode="lora", pooling="label-attention")
    randomise(model, "head+queries", noise=0.5)
    save(tmp_path, model, mode, base=str(base))
    code = importlib.util.spec_from_file_location("beside", tmp_path / TORCH_CLASS.name)
    beside = importlib.util.module_from_spec(code)
    code.loader.exec_module(beside)
    assert len(TORCH_CLASS.read_text().splitlines()) <= 60
    ids, lengths = reports()
    expected = our_logits(model, ids, lengths)
    found = torch_logits(beside.load(tmp_path), ids, lengths)
    np.testing.assert_allclose(found, expected, atol=ATOL, rtol=0)
    assert np.ptp(expected, axis=0).max() > 0.1
    again = load(base, pooling="label-attention")
    load_adapter(tmp_path, again)
    np.testing.assert_array_equal(our_logits(again, ids, lengths), expected)


def test_a_pooler_drawn_at_random_travels_with_the_adapter(base, tmp_path):
    bare = tmp_path / "bare"
    kept = load_file(base / "model.safetensors")
    bare.mkdir()
    shutil.copy(base / "config.json", bare)
    save_file({n: v for n, v in kept.items() if "pooler" not in n}, bare / "model.safetensors")
    model, report = load_classifier(bare, 5, "cls", rngs=nnx.Rngs(7))
    assert {name.split(".")[-2] for name in report.initialised} <= {"classifier", "pooler", "dense"}
    lora.add_lora(model, rank=2, alpha=2.0, targets=["query"], rngs=nnx.Rngs(0))
    randomise(model)
    save(tmp_path / "adapter", model, initialised=report.initialised)
    ids, lengths = reports()
    expected = our_logits(model, ids, lengths)
    theirs = peft.PeftModel.from_pretrained(torch_base(bare), tmp_path / "adapter").eval()
    np.testing.assert_allclose(torch_logits(theirs, ids, lengths), expected, atol=ATOL, rtol=0)
    again = load(bare)
    load_adapter(tmp_path / "adapter", again)
    np.testing.assert_array_equal(our_logits(again, ids, lengths), expected)


def test_what_the_files_say(base, tmp_path):
    save(tmp_path, trained(base, alpha=16.0), base="owner/name", revision="v1")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = {"r": 3, "lora_alpha": 16, "target_modules": ["query", "value"], "revision": "v1"}
    assert config | wanted == config
    assert isinstance(config["lora_alpha"], int)
    read, description = read_adapter_info(tmp_path)
    assert (read["base_model_name_or_path"], read["revision"]) == ("owner/name", "v1")
    assert description == Description("cls", LABELS, load(base).base_fingerprint)
    with pytest.raises(ValueError, match="2 label names for a head of 5 labels"):
        save_adapter(tmp_path, load(base), "head", base_model="", label_names="ab")
    with pytest.raises(ValueError, match="full has no adapter"):
        save(tmp_path, load(base), "full")


PEFT_SETTINGS = {
    "query-value": {"target_modules": ["query", "value"], "r": 8, "lora_alpha": 16},
    "all-linear": {"target_modules": "all-linear", "r": 2, "lora_alpha": 3},
    "rslora": {"target_modules": ["query"], "r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "target_modules": ["query", "value", "key"],
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"value": 2},
        "alpha_pattern": {"key": 1, "query": 7},
    },
    "biases": {"target_modules": ["value"], "r": 1, "lora_alpha": 1, "bias": "all"},
    "adapted-biases": {"target_modules": ["value"], "r": 1, "lora_alpha": 1, "bias": "lora_only"},
}


def save_peft_adapter(base, directory, **settings):
    """An adapter of PEFT's own making, all its trainable parameters random."""
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", **settings)
    model = peft.get_peft_model(torch_base(base), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("name", PEFT_SETTINGS)
def test_an_adapter_of_peft_gives_the_same_logits_here_and_after_resaving(base, tmp_path, name):
    theirs = save_peft_adapter(base, tmp_path / "theirs", **PEFT_SETTINGS[name])
    ids, lengths = reports()
    expected = torch_logits(theirs, ids, lengths)
    read, description = read_adapter_info(tmp_path / "theirs")
    assert read["base_model_name_or_path"] == str(base)
    assert description == Description("cls", tuple(f"LABEL_{i}" for i in range(5)))
    model = load(base)
    plain = our_logits(model, ids, lengths)
    load_adapter(tmp_path / "theirs", model)
    np.testing.assert_allclose(our_logits(model, ids, lengths), expected, atol=ATOL, rtol=0)
    assert np.abs(plain - expected).max() > 0.05

    if "bias" not in PEFT_SETTINGS[name]:  # as one of our modes, it can be written again
        save(tmp_path / "ours", model)
        back = peft.PeftModel.from_pretrained(torch_base(base), tmp_path / "ours").eval()
        np.testing.assert_allclose(torch_logits(back, ids, lengths), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"lora_bias": True}, "lora_bias = True is not supported"),
        ({"from_the_future": [1]}, r"from_the_future = \[1\] is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base weights"),
        ({"peft_type": "IA3"}, "peft_type must be LORA, not 'IA3'"),
    ],
)
def test_settings_with_other_arithmetic_are_refused_by_name(base, tmp_path, setting, message):
    save_peft_adapter(base, tmp_path, target_modules=["query"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | setting))
    with pytest.raises(WeightsError, match=message):
        load_adapter(tmp_path, load(base))


def test_an_adapter_for_other_labels_is_an_error(base, tmp_path):
    save(tmp_path, trained(base))
    with pytest.raises(WeightsError, match=r"classifier.weight is \(32, 5\), expected \(32, 7\)"):
        load_adapter(tmp_path, load(base, num_labels=7))


def test_an_adapter_for_another_backbone_is_an_error(base, tmp_path):
    save(tmp_path / "adapter", trained(base))
    kind = read_config(base).model_type
    save_torch_model(tmp_path / "wide", kind, hidden_size=40)
    with pytest.raises(WeightsError, match=r"A \(32, 3\) and B \(3, 32\) do not fit \(40, 40\)"):
        load_adapter(tmp_path / "adapter", load(tmp_path / "wide"))
    other = {"bert": "albert", "albert": "bert"}[kind]
    save_torch_model(tmp_path / "other", other)
    model = load(tmp_path / "other")
    before = our_logits(model, *reports())
    with pytest.raises(
        WeightsError, match=f"{kind}.encoder.* is no linear layer with an A and a B"
    ):
        load_adapter(tmp_path / "adapter", model)
    np.testing.assert_array_equal(our_logits(model, *reports()), before)  # nothing half done


def test_an_adapter_for_other_weights_of_the_same_shape_is_an_error(base, tmp_path):
    save(tmp_path / "adapter", trained(base))
    transformers.AutoModel.from_pretrained(base).save_pretrained(tmp_path / "other")
    load_adapter(tmp_path / "adapter", load(tmp_path / "other"))  # a copy is the same backbone
    tensors = load_file(base / "model.safetensors")
    name = next(n for n in tensors if n.endswith("word_embeddings.weight"))
    tensors[name][7, 3] += 1e-3
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    model = load(tmp_path / "other")
    before = our_logits(model, *reports())
    message = "it was trained on other weights, somewhere with fingerprint [0-9a-f]{32}, not "
    with pytest.raises(WeightsError, match=message) as info:
        load_adapter(tmp_path / "adapter", model)
    assert "\n" not in str(info.value)
    np.testing.assert_array_equal(our_logits(model, *reports()), before)  # nothing half done
    (tmp_path / "adapter" / "jaxdp.json").unlink()  # as PEFT writes it: nothing to compare
    load_adapter(tmp_path / "adapter", model)


def test_damaged_adapters_are_one_line_errors(base, tmp_path):
    save(tmp_path, trained(base))
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(WeightsError, match="adapter_model.safetensors is not a complete") as info:
        load_adapter(tmp_path, load(base))
    assert "\n" not in str(info.value)
    file.write_bytes(whole)
    tensors = load_file(file)
    save_file({n: v for n, v in tensors.items() if "classifier" not in n}, file)
    with pytest.raises(WeightsError, match="no classifier.weight"):
        load_adapter(tmp_path, load(base))
    file.unlink()
    with pytest.raises(WeightsError, match="adapter_model.safetensors"):
        load_adapter(tmp_path, load(base))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(WeightsError, match="adapter_config.json does not exist"):
        load_adapter(tmp_path, load(base))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_merged_checkpoint_is_a_plain_one(base, tmp_path, mode):
    model = trained(base, mode, targets=["all-linear"])
    config = read_config(base)
    config.name_or_path = "/home/someone/model"
    save_checkpoint(tmp_path, model, config, LABELS)
    assert "someone" not in (tmp_path / "config.json").read_text()
    ids, lengths = reports()
    expected = our_logits(model, ids, lengths)
    theirs = torch_base(tmp_path)
    assert tuple(theirs.config.id2label[i] for i in range(5)) == LABELS
    assert theirs.config.label2id["Mass"] == 1
    assert theirs.config.problem_type == "multi_label_classification"
    np.testing.assert_allclose(torch_logits(theirs, ids, lengths), expected, atol=ATOL, rtol=0)
    again, labels = load_checkpoint(tmp_path)
    assert labels == LABELS
    np.testing.assert_allclose(our_logits(again, ids, lengths), expected, atol=ATOL, rtol=0)


def test_a_merged_checkpoint_with_mean_pooling_says_so(base, tmp_path):
    model = trained(base, pooling="mean")
    save_checkpoint(tmp_path, model, read_config(base), LABELS)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"][0].endswith("Model")
    ids, lengths = reports()
    again, _ = load_checkpoint(tmp_path)
    np.testing.assert_allclose(
        our_logits(again, ids, lengths), our_logits(model, ids, lengths), atol=ATOL, rtol=0
    )
    (tmp_path / "jaxdp.json").write_text("{}")
    with pytest.raises(WeightsError, match="jaxdp.json must hold pooling"):
        load_checkpoint(tmp_path)
    for wrong, message in (
        ({"label_names": [1]}, "must hold pooling .* and label_names"),
        ({"window": 5}, "window must be two whole numbers"),
    ):
        value = {"pooling": "mean", "label_names": LABELS} | wrong
        (tmp_path / "jaxdp.json").write_text(json.dumps(value))
        with pytest.raises(WeightsError, match=message):
            load_checkpoint(tmp_path)
