# SPDX-License-Identifier: Apache-2.0
"""Takes a released adapter elsewhere; or the whole model that train.mode full released.

    jaxdp export --adapter runs/openi_eps8/release/adapter --format merged --output out

Formats:
    adapter     PEFT's, which the release already is, with the base model's name or place replaced
                by --base_model for whoever receives it.
    merged      one plain Hugging Face checkpoint: AutoModelForSequenceClassification loads it where
                pooling is "cls". Of several readers one for each, whose logits add up.
    stablehlo   one file, model.jax_export, with the weights inside: token ids [batch, length] int32
                and lengths [batch] int32 -> probabilities [batch, labels], for CPU, CUDA and TPU;
                `jax.export.deserialize` reads it. Needs the package flatbuffers.
"""

import importlib.util
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from jaxdp.backbone import load_finetuned
from jaxdp.models.checkpoints import read_json, write_json
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.merged import save_checkpoint
from jaxdp.models.pretrained import positions_of, read_config
from jaxdp.models.tasks import TASKS
from jaxdp.settings import ConfigError

from .define import Define

FORMATS = ("adapter", "merged", "stablehlo")
# Of the adapter or of the whole model; what stays is the tokenizer and the labels.
_REPLACED = shutil.ignore_patterns(
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    "config.json",
    "model.*",
    "reader_*",
)

DEFINE = Define()
_ADAPTER = DEFINE.string("adapter", None, "Directory in PEFT's format.", required=True)
_OUTPUT = DEFINE.string("output", None, "Directory to create.", required=True)
_FORMAT = DEFINE.enum("format", "merged", FORMATS, "What to write.")
_BASE_MODEL = DEFINE.string(
    "base_model", None, "Preset, directory or hub id of the frozen weights, if not what it names."
)


def write_stablehlo(path: Path, model: ReportClassifier, positions: int) -> None:
    """Serialises batched inference for any batch size and reports of up to `positions` tokens."""
    graphdef, state = nnx.split(model)

    def probabilities(token_ids, lengths):
        logits = jax.vmap(nnx.merge(graphdef, state))(token_ids, lengths)
        return TASKS[model.task].activation(logits)

    batch, length = export.symbolic_shape("batch, length", constraints=[f"length <= {positions}"])
    exported = export.export(jax.jit(probabilities), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    path.write_bytes(exported.serialize())


def run(adapter: Path, output: Path, form: str, base_model: str | None) -> None:
    """Does what the flags ask for; ConfigError or another user error says what is wrong."""
    if output.exists():
        raise ConfigError(f"{output} exists already")
    if form == "stablehlo" and not importlib.util.find_spec("flatbuffers"):
        raise ConfigError("--format=stablehlo needs a package: pip install flatbuffers")
    if form == "adapter":
        if (adapter / "model.safetensors").exists():
            raise ConfigError(f"{adapter} is a whole model, not an adapter; use --format=merged")
        read_json(adapter / "adapter_config.json")
        shutil.copytree(adapter, output)
        if base_model:
            for folder in (output, *output.glob("reader_*")):
                path = folder / "adapter_config.json"
                write_json(path, read_json(path) | {"base_model_name_or_path": base_model})
        return

    model, label_names, directory = load_finetuned(adapter, base_model)
    config = read_config(directory)
    if form == "stablehlo" and model.window is not None:
        raise ConfigError(f"{adapter} reads by windows, which --format=stablehlo has not")
    shutil.copytree(adapter, output, ignore=_REPLACED)
    if form == "merged":
        save_checkpoint(output, model, config, label_names)
    else:
        write_stablehlo(output / "model.jax_export", model, positions_of(config))


def main() -> None:
    run(Path(_ADAPTER.value), Path(_OUTPUT.value), _FORMAT.value, _BASE_MODEL.value)
    print(f"wrote {_OUTPUT.value}")
