# SPDX-License-Identifier: Apache-2.0
"""The release checker passes what training writes, and nothing that was tampered with."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from helpers_training import run_script, write_backbone

from jaxdp import dp
from jaxdp.backbone import Backbone
from jaxdp.models import lora
from jaxdp.models.pretrained import load_classifier
from jaxdp.run.release import write_release
from jaxdp.run.release_check import ReleaseError, check_release

LABELS = ("normal", "effusion", "opacity")
MECHANISM = dp.SubsampledGaussian(60, 60, 20, 0.1, 20.0)


def statement(private: bool = True):
    return dp.privacy_statement(
        {"main stage": MECHANISM} if private else {},
        delta=1e-3,
        privacy_unit="patient",
        seed_policy="os-entropy",
        label_origin="made up",
        noise_generator="a test",
    )


def trained(base, mode: str, pooling: str = "cls", skip: str = "nothing"):
    """A model whose trained parameters have all moved, but those with `skip` in their path."""
    model, report = load_classifier(base, len(LABELS), pooling, rngs=nnx.Rngs(0))
    if mode in ("lora", "lora-ffa"):
        lora.add_lora(model, rank=2, alpha=4.0, targets=["query", "value"], rngs=nnx.Rngs(1))
    _, adapters, _ = lora.split(model, mode)
    rng = np.random.default_rng(0)
    moved = [
        (path, variable.replace(variable[...] + np.float32(rng.normal(0, 0.01, variable.shape))))
        for path, variable in nnx.to_flat_state(adapters)
        if skip not in ".".join(map(str, path))
    ]
    nnx.update(model, nnx.from_flat_state(moved))
    return model, report


def write(folder, base, mode="lora", *, private=True, pooling="cls", skip="nothing"):
    model, report = trained(base, mode, pooling, skip)
    write_release(
        folder / "release",
        model,
        mode,
        backbone=Backbone("backbone", base, pooling),
        label_names=LABELS,
        max_length=16,
        initialised=report.initialised,
        statement=statement(private),
    )
    return folder / "release"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("release") / "backbone")


@pytest.fixture(scope="module")
def sound(base, tmp_path_factory):
    return write(tmp_path_factory.mktemp("sound"), base)


@pytest.fixture
def release(sound, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(sound, tmp_path / "release")


def failures(release, base=None) -> dict[str, str]:
    return {f.check: f.text for f in check_release(release, base) if not f.passed}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("mode", lora.MODES)
def test_what_training_writes_passes(tmp_path, base, mode, private):
    release = write(tmp_path, base, mode, private=private)  # checks it, against the backbone
    findings = check_release(release)
    assert [f.check for f in findings] == [
        "files", "statement", "settings", "tensors", "trained", "tokenizer",
    ]  # fmt: skip
    assert all(f.passed for f in findings), findings


def test_a_mean_pooled_adapter_and_one_with_a_new_pooler_pass(tmp_path, base):
    for pooling in ("mean", "mean-last2"):
        write(tmp_path / pooling, base, pooling=pooling)
    headless = shutil.copytree(base, tmp_path / "headless")
    weights = safetensors.numpy.load_file(headless / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    safetensors.numpy.save_file(kept, headless / "model.safetensors")
    release = write(tmp_path / "pooler", headless)
    names = safetensors.numpy.load_file(release / "adapter" / "adapter_model.safetensors")
    assert any("pooler" in name for name in names) and not failures(release, headless)


def surplus(name):
    return lambda release: (release / name).write_text("The lungs are clear.")


def edit(name, change):
    """Changes a JSON file by a function of its value."""

    def spoil(release):
        path = release / name
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value, indent=2) + "\n")

    return spoil


def tensors(change, metadata=None):
    """Changes the tensors of the adapter by a function of them."""

    def spoil(release):
        path = release / "adapter" / "adapter_model.safetensors"
        value = safetensors.numpy.load_file(path)
        change(value)
        safetensors.numpy.save_file(value, path, metadata or {"format": "pt"})

    return spoil


def restate(**fields):
    """Changes privacy.json, and PRIVACY.md with it."""

    def spoil(release):
        value = json.loads((release / "privacy.json").read_text()) | fields
        (release / "privacy.json").write_text(json.dumps(value, indent=2) + "\n")
        (release / "PRIVACY.md").write_text(dp.statement_markdown(value))

    return spoil


def fill(name, value):
    return tensors(lambda t: t[name].fill(value))


def add(name, value):
    return tensors(lambda t: t.update({name: np.asarray(value)}))


def appended(name, content):
    def spoil(release):
        with (release / name).open("ab") as file:
            file.write(content)

    return spoil


PREFIX = "base_model.model."
HEAD = f"{PREFIX}classifier"
LAYER = f"{PREFIX}bert.encoder.layer.0.attention.self.query"
PEFT, JAXDP = "adapter/adapter_config.json", "adapter/jaxdp.json"

SPOILS = [
    ("files", "reports.csv", surplus("reports.csv")),
    ("files", "adapter/.hidden", surplus("adapter/.hidden")),
    ("files", "adapter/checkpoint", lambda r: (r / "adapter/checkpoint").mkdir()),
    ("files", "adapter/optimizer.pt", surplus("adapter/optimizer.pt")),
    ("files", "missing: PRIVACY.md", lambda r: (r / "PRIVACY.md").unlink()),
    ("files", "missing: adapter/jaxdp.json", lambda r: (r / JAXDP).unlink()),
    ("files", "links", lambda r: os.symlink("/etc/hostname", r / "adapter/tokenizer.json")),
    ("files", "none of sentencepiece.bpe.model", lambda r: (r / "adapter/vocab.txt").unlink()),
    ("statement", "epsilon", restate(epsilon=0.1)),
    ("statement", "epsilon", restate(delta=1e-2)),
    ("statement", "epsilon_rdp", restate(epsilon_rdp=0.1)),
    ("statement", "surplus", restate(surplus="The lungs are clear.")),
    ("statement", "warnings", restate(warnings=["none"])),
    ("statement", "not_covered", restate(not_covered=[])),
    ("statement", "malformed", edit("privacy.json", lambda s: s["mechanisms"][0].pop("steps"))),
    ("statement", "dp_event", edit("privacy.json", lambda s: s["mechanisms"][0].update(steps=40))),
    ("statement", "dp_event", edit("privacy.json", lambda s: s["dp_event"].update(count=1))),
    ("statement", "malformed", edit("privacy.json", lambda s: s.pop("units"))),
    ("statement", "not JSON", lambda r: (r / "privacy.json").write_text("{")),
    ("statement", "PRIVACY.md", appended("PRIVACY.md", b"The lungs are clear.\n")),
    ("settings", "unknown fields note", edit(PEFT, lambda c: c.update(note="The lungs"))),
    ("settings", "unknown fields note", edit(JAXDP, lambda c: c.update(note="The lungs"))),
    ("settings", "fields r are missing", edit(PEFT, lambda c: c.pop("r"))),
    ("settings", "base_model", edit(PEFT, lambda c: c.update(base_model_name_or_path="/me/bert"))),
    ("settings", "rank_pattern", edit(PEFT, lambda c: c.update(rank_pattern={"a": "The lungs"}))),
    ("settings", "alpha_pattern", edit(PEFT, lambda c: c.update(alpha_pattern={"The lungs": 1}))),
    ("settings", "target_modules", edit(PEFT, lambda c: c.update(target_modules=["The lungs"]))),
    ("settings", "base_fingerprint", edit(JAXDP, lambda c: c.update(base_fingerprint="lungs"))),
    ("settings", "label_names", edit(JAXDP, lambda c: c.update(label_names=["x" * 300, "", ""]))),
    ("tensors", "row for each", edit(JAXDP, lambda c: c.update(label_names=["one"]))),
    ("tensors", "'texts'", add("texts", np.zeros(9, np.float32))),
    ("tensors", "declares", add(f"{PREFIX}bert.x.weight", np.zeros(9, np.float32))),
    ("tensors", "declares", add(f"{LAYER}.bias", np.zeros(16, np.float32))),
    ("tensors", "declares", add(f"{HEAD}.texts", np.zeros(9, np.float32))),
    ("tensors", "declares", add(f"{HEAD}.bias", np.ones((3, 9), np.float32))),
    ("tensors", "declares", add(f"{PREFIX}bert.pooler.dense.bias", np.ones(16, np.float32))),
    ("tensors", "declares", tensors(lambda t: t.pop(f"{LAYER}.lora_B.weight"))),
    ("tensors", "declares", edit(PEFT, lambda c: c.update(target_modules=["value"]))),
    ("tensors", "declares", edit(PEFT, lambda c: c.update(r=3))),
    ("tensors", "metadata", tensors(lambda t: None, {"format": "pt", "note": "The lungs"})),
    ("tensors", "", appended("adapter/adapter_model.safetensors", b"The lungs are clear.")),
    ("tensors", "not finite", fill(f"{LAYER}.lora_A.weight", np.nan)),
    ("tensors", "float16", add(f"{HEAD}.bias", np.ones(3, np.float16))),
    ("trained", "LoRA of", fill(f"{LAYER}.lora_B.weight", 0)),
    ("trained", "LoRA of", fill(f"{LAYER}.lora_A.weight", 0)),
    ("trained", "head", fill(f"{HEAD}.bias", 0)),
    ("tokenizer", "cannot read", lambda r: (r / "adapter/tokenizer.json").write_text("The lungs")),
    ("tokenizer", "not JSON", lambda r: (r / "adapter/tokenizer_config.json").write_text("x")),
    (
        "tokenizer",
        "paths",
        edit("adapter/tokenizer_config.json", lambda c: c.update(name_or_path="/home/me")),
    ),
    ("files", "links", lambda r: ((r / JAXDP).unlink(), os.symlink("/dev/zero", r / JAXDP))),
    ("files", "links", lambda r: ((r / JAXDP).unlink(), (r / JAXDP).mkdir())),
    ("files", "links", lambda r: ((r / JAXDP).unlink(), os.mkfifo(r / JAXDP))),
    ("files", "readers must be", edit(JAXDP, lambda c: c.update(readers=10**9))),
    ("files", "readers must be", edit(JAXDP, lambda c: c.update(readers=True))),
    ("files", "missing: adapter/reader_2", edit(JAXDP, lambda c: c.update(readers=2))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "words", "spoil"), SPOILS, ids=[f"{i}-{s[0]}-{s[1]}" for i, s in enumerate(SPOILS)]
)
def test_a_spoilt_bundle_fails_its_check(release, check, words, spoil):
    assert not failures(release)
    spoil(release)
    found = failures(release)
    assert words in found[check], found
    assert not any("lungs" in text for text in found.values()), "a report's text in a message"


def test_a_bundle_that_differs_from_its_backbone_fails(release, base):
    assert not failures(release, base)
    appended("adapter/vocab.txt", b"pneumothorax\n")(release)
    edit("adapter/tokenizer_config.json", lambda c: c.update(unk_token="pneumothorax"))(release)
    assert not failures(release)
    assert "vocab.txt is not the backbone's" in failures(release, base)["tokenizer"]


def test_a_whole_model_holds_the_backbones_parameters_and_no_others(tmp_path, base):
    release = write(tmp_path, base, "full")
    path = release / "adapter" / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    for surplus in ("texts", "bert.embeddings.word_embeddings.weight"):
        spoilt = {**weights, surplus: np.zeros(9, np.float32)}
        safetensors.numpy.save_file(spoilt, path, {"format": "pt"})
        assert "is no parameter of the backbone" in failures(release, base)["tensors"]


@pytest.mark.parametrize(
    ("mode", "skip", "words"),
    [
        ("lora", "query.lora_b", "unchanged by training: LoRA of .*query"),
        ("lora", "classifier", "head was never trained"),
        ("bitfit", "layer.1.output.dense.bias", "unchanged by training: .*output.dense.bias"),
        ("full", "word_embeddings", "unchanged by training: .*word_embeddings"),
    ],
)
def test_what_was_not_trained_is_not_released(tmp_path, base, mode, skip, words):
    with pytest.raises(ReleaseError, match=words):
        write(tmp_path, base, mode, skip=skip)
    assert not (tmp_path / "release").exists()


def test_without_noise_some_updates_may_be_zero_but_not_all(tmp_path, base):
    write(tmp_path / "some", base, private=False, skip="query.lora_b")
    with pytest.raises(ReleaseError, match="unchanged by training"):
        write(tmp_path / "all", base, private=False, skip="lora_b")


def test_a_backbone_with_a_head_of_its_own_is_compared_with_it(tmp_path, base):
    own = shutil.copytree(base, tmp_path / "base")
    weights = safetensors.numpy.load_file(own / "model.safetensors")
    weights["classifier.weight"] = np.ones((3, 16), np.float32)
    weights["classifier.bias"] = np.ones(3, np.float32)
    safetensors.numpy.save_file(weights, own / "model.safetensors")
    with pytest.raises(ReleaseError, match="head was never trained"):
        write(tmp_path, own, skip="classifier")
    # Trained to zero, by chance, it has still moved.
    release = write(tmp_path, own)
    fill(f"{HEAD}.bias", 0)(release)
    assert not failures(release, own)


def test_an_old_bundle_is_replaced_whole_and_leftovers_go(tmp_path, base):
    for name in (".release.tmp", ".release.old", "release"):
        surplus_file = tmp_path / name / "adapter" / "reports.csv"
        surplus_file.parent.mkdir(parents=True)
        surplus_file.write_text("The lungs are clear.")
    release = write(tmp_path, base)
    assert not failures(release, base)
    assert [p.name for p in tmp_path.iterdir()] == ["release"]


def test_the_script_shows_a_table_writes_json_and_fails_in_one_line_each(release, base, tmp_path):
    out = tmp_path / "out.json"
    fill(f"{HEAD}.bias", 0)(release)
    done = run_script("check_release.py", str(release), f"--base={base}", f"--json={out}")
    assert done.returncode == 1 and "passed" in done.stdout and "FAILED" in done.stdout
    assert done.stderr == (
        "error: trained: the head was never trained: its bias is what it was before\n"
    )
    failed = [row["check"] for row in json.loads(out.read_text()) if not row["passed"]]
    assert failed == ["trained"]
