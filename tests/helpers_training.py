# SPDX-License-Identifier: Apache-2.0
"""A tiny synthetic collection and a tiny random BERT, for whole runs in seconds."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import jax.export
import numpy as np
import safetensors.numpy
from helpers_data import openi_xml, write_openi
from ml_collections import config_dict

from jaxdp.commands import COMMANDS
from jaxdp.config import Config, inherit
from jaxdp.run.interrupt import Interrupt

REPOSITORY = Path(__file__).parents[1]
WORDS = "heart lungs clear normal enlarged opacity effusion small large left right no acute".split()
ON_ONE_DEVICE = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
"""As this process is, so that what both release is the same to the last bit."""

_SETTINGS = ON_ONE_DEVICE | {"HF_HUB_OFFLINE": "1"}
_FORKS = multiprocessing.get_context("forkserver")
# With what commands import as they run, torch among it; nothing that starts JAX's backend, which
# does not survive a fork.
_FORKS.set_forkserver_preload(
    [
        *("absl.app", "datasets", "jaxdp.cli", "matplotlib.pyplot", "pyarrow.parquet"),
        *(f"transformers.models.auto.{name}_auto" for name in ("configuration", "tokenization")),
        *(f"jaxdp.commands.{name.replace('-', '_')}" for name in COMMANDS),
    ]
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]


def write_collection(path: Path, reports: int = 120) -> Path:
    """An Open-I archive in which the words of a report decide its labels; synthetic."""
    rng = np.random.default_rng(0)
    members = {}
    for number in range(reports):
        words = list(rng.choice(WORDS, rng.integers(1, 12)))
        majors = [heading for word, heading in _HEADINGS.items() if word in words]
        content = openi_xml(None, " ".join(words) + ".", tuple(majors), str(number))
        members[f"reports/{number}.xml"] = content
    return write_openi(path, members)


_HEADINGS = {"normal": "normal", "enlarged": "Cardiomegaly", "effusion": "Pleural Effusion"}
LABELS = ("normal", "cardiomegaly", "pleural_effusion")


def write_workspace(folder: Path) -> Path:
    """The folder, with NLMCXR_reports.tgz and backbone/, both tiny and synthetic."""
    write_collection(folder / "NLMCXR_reports.tgz")
    write_backbone(folder / "backbone")
    return folder


def write_backbone(directory: Path, hidden: int = 16, layers: int = 2, seed: int = 0) -> Path:
    """A random BERT in Hugging Face format, with a vocabulary that fits the collection."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}

    def add(name, *shape):
        tensors[name] = (0.2 * rng.standard_normal(shape)).astype(np.float32)

    def norm(name):
        tensors[f"{name}.weight"] = np.ones(hidden, np.float32)
        tensors[f"{name}.bias"] = np.zeros(hidden, np.float32)

    def linear(name, outputs, inputs):
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    add("bert.embeddings.word_embeddings.weight", len(VOCABULARY), hidden)
    add("bert.embeddings.position_embeddings.weight", 32, hidden)
    add("bert.embeddings.token_type_embeddings.weight", 2, hidden)
    norm("bert.embeddings.LayerNorm")
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", 2 * hidden, hidden)
        linear(f"{layer}.output.dense", hidden, 2 * hidden)
        norm(f"{layer}.output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    config = {
        "model_type": "bert",
        "vocab_size": len(VOCABULARY),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return directory


def smoke_settings(workspace: Path, **changes) -> config_dict.ConfigDict:
    """configs/smoke.py on the tiny data and model; changes are section__field=value."""
    config = inherit(str(REPOSITORY / "configs" / "smoke.py"), "smoke")
    config.data.root = str(workspace / "NLMCXR_reports.tgz")
    config.data.labels = LABELS
    config.model.backbone = str(workspace / "backbone")
    config.run.dir = str(workspace / "runs")
    config.run.research_seed = 7
    config.run.devices = 1  # also where a test process simulates several
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


def smoke_config(workspace: Path, **changes) -> Config:
    """`smoke_settings`, validated."""
    return Config.from_dict(smoke_settings(workspace, **changes).to_dict())


def as_flags(settings: config_dict.ConfigDict) -> list[str]:
    """Flags that make scripts/train.py --config configs/smoke.py run `settings`."""
    base = inherit(str(REPOSITORY / "configs" / "smoke.py"), "smoke")
    flags = [f"--config={REPOSITORY / 'configs' / 'smoke.py'}"]
    for section in settings:
        for field in settings[section]:
            value = settings[section][field]
            if value != base[section][field]:
                flags.append(f"--config.{section}.{field}={value}")
    return flags


class AtTheFirstStep(Interrupt):
    """Asked to stop once everything is ready for a step, which is the last one then."""

    @contextmanager
    def raising(self, error):
        with super().raising(error):
            yield
        self.received = signal.SIGINT


def exported(trainer, platforms: list[str]):
    """A stage's step, lowered for "cpu", "cuda" or "tpu" and the mesh's number of devices, whatever
    there is here; nothing is compiled."""
    step = trainer._arguments(trainer.initial_state, 0, trainer.plan(0))
    return jax.export.export(trainer._step, platforms=platforms)(*step[0], **step[1])


def start_script(name: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """Starts scripts/<name> as a user does."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "scripts" / name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ON_ONE_DEVICE | environment,
    )


def start_processes(*arguments: list[str], **environment: str) -> list[subprocess.Popen]:
    """Starts scripts/train.py as processes of one run; each has its own arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(arguments))}
    return [
        start_script("train.py", *own, **together, JAX_PROCESS_ID=str(i), **environment)
        for i, own in enumerate(arguments)
    ]


def start_fork(target: Callable, *arguments) -> multiprocessing.Process:
    """Starts it in a fork of a process that has imported the libraries."""
    # Libraries read theirs as they are imported, which is when the first fork is started.
    with mock.patch.dict(os.environ, _SETTINGS):
        process = _FORKS.Process(target=target, args=arguments)
        process.start()
    return process


AFRESH = """
import sys
for name in list(sys.modules):
    if name.partition(".")[0] in ("huggingface_hub", "jaxdp"):
        del sys.modules[name]
"""
"""How a program begins for which a fork is to import our package and the hub's client anew."""


def run_script(name: str | Path, *arguments, **environment: str) -> subprocess.CompletedProcess:
    """Runs scripts/<name>, or the program at a path, to its end, in a fork of a process that has
    imported the libraries: importing takes longer than most of what is run."""
    line = [str(REPOSITORY / "scripts" / name), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        process = start_fork(_run, line, os.environ | _SETTINGS | environment, folder)
        process.join(timeout=600)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(line, 600)
        stdout, stderr = (Path(folder, stream).read_text() for stream in ("stdout", "stderr"))
    return subprocess.CompletedProcess(line, process.exitcode, stdout, stderr)


def _run(line: list[str], settings: dict[str, str], folder: str) -> None:
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{stream}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(settings)
    sys.argv = line
    runpy.run_path(line[0], run_name="__main__")
