# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the source; and that torch is not needed to import anything."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdp.config import Config

ROOT = Path(__file__).resolve().parent.parent
# Downhill only: a package imports packages of a lower level. Equal levels do not know each other.
LEVELS = {
    "scripts": 10,
    "commands": 9,
    "estimator": 8,
    "released": 7,
    "cli": 7,
    "report": 7,
    "sweep": 6,
    "audit": 6,
    "peers": 6,
    "run": 5,
    "training": 4,
    "evaluation": 3,
    "data": 2,
    "backbone": 1,
    "models": 0,
    "dp": 0,
    "config": 0,
    "settings": -1,
    "recipe": -1,
    "assets": 0,
    "compiled": 0,
    "runtime": 1,
    "files": 0,
    "progress": 0,
    "memory": 0,
}
ALONE = ("models", "dp")  # import nothing else of jaxdp, at any level
NEED_TORCH = {
    "jaxdp.models.label_attention_torch",  # ships beside adapters
    *(f"jaxdp.peers.{name}" for name in ("torch_model", "torch_side", "comparison")),
}
"""All others do without, those that make a job to be compared among them."""


def sources() -> list[Path]:
    files = [*ROOT.glob("jaxdp/**/*.py"), *ROOT.glob("scripts/*.py")]
    assert len(files) > 100, "the tests do not stand beside the package"
    return files


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """'jaxdp.dp.noise' -> 'dp', 'scripts.train' -> 'scripts', 'jaxdp' -> ''."""
    parts = module.split(".")
    return "scripts" if parts[0] == "scripts" else ".".join(parts[1:2])


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, anywhere in it, as absolute dotted names."""
    module = module_name(path)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            for alias in node.names:
                full = ".".join([*base, alias.name])
                found.add(full if full in MODULES else ".".join(base))
    return {name for name in found if name.split(".")[0] in ("jaxdp", "scripts")}


MODULES = {module_name(path) for path in sources()}


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_downhill(path):
    here = package_of(module_name(path))
    for imported in imports(path):
        there = package_of(imported)
        if there in ("", here):
            continue
        assert here not in ALONE, f"{here}/ stands alone, but imports {imported}"
        assert LEVELS[there] < LEVELS[here], f"{module_name(path)} must not import {imported}"


def test_no_import_cycles_between_modules():
    graph = {module_name(path): imports(path) & MODULES for path in sources()}
    graph = {m: {t for t in to if not m.startswith(t + ".")} for m, to in graph.items()}
    while leaves := [m for m, to in graph.items() if not to & graph.keys()]:
        for m in leaves:
            del graph[m]
    assert not graph, f"cycle among {sorted(graph)}"


SECTIONS = {
    field.name: {name for name in dir(field.default) if not name.startswith("_")}
    for field in dataclasses.fields(Config)
}
SECTION_TYPES = {type(field.default).__name__ for field in dataclasses.fields(Config)}
MOST_READERS = 15
"""Files that may know which settings there are; others are given the values that they need."""


def reads_settings(source: str) -> bool:
    """Whether it names a section's type, a section of something called config, or a section's
    field; whoever makes a `Config`, or hands one on, does not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("config"):
            if SECTION_TYPES & {alias.name for alias in node.names}:
                return True
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = getattr(owner, "id", getattr(owner, "attr", ""))
        if node.attr in SECTIONS and name.endswith("config"):
            return True
        if isinstance(owner, ast.Attribute) and node.attr in SECTIONS.get(owner.attr, ()):
            return True
    return False


def test_few_files_know_the_settings():
    files = [path for path in sources() if path.parts[-2:] != ("jaxdp", "config.py")]
    readers = [module_name(path) for path in files if reads_settings(path.read_text("utf-8"))]
    assert len(readers) <= MOST_READERS, sorted(readers)


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("def f(config):\n    return config.privacy.delta", True),
        ("def f(member):\n    return member.config.privacy", True),
        ("def f(each):\n    return each.run.name", True),
        ("from jaxdp.config import DataConfig", True),
        ("from .config import TrainConfig", True),
        (
            "from jaxdp.config import Config\nconfig = Config.from_dict({})\nprint(config.path)",
            False,
        ),
        ("def f(run, inputs):\n    return run.plan.delta, inputs.units.unit", False),
    ],
)
def test_the_reader_of_settings_sees_every_form(source, reads):
    assert reads_settings(source) is reads


def test_every_package_has_a_level():
    assert {package_of(m) for m in MODULES} - {""} <= LEVELS.keys()


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "jaxdp" / "dp" / "noise.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import numpy\nimport jaxdp.config\nfrom jaxdp import training\nfrom .. import assets\n"
        "from ..models import lora\nfrom .clipping import x\n"
        "def f():\n    from jaxdp.data import y\n"
    )
    assert imports(file) == {
        "jaxdp.config",
        "jaxdp.training",
        "jaxdp.assets",
        "jaxdp.models.lora",
        "jaxdp.dp.clipping",
        "jaxdp.data",
    }


# As if it were not installed: a library that asks first whether it can be found is told no.
NO_TORCH = """
import importlib, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: (
    None if name.split(".")[0] == "torch" else find(name, *where)
)
"""


def run_without_torch(program: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", NO_TORCH + program]
    return subprocess.run(command, capture_output=True, text=True)


def test_everything_imports_and_a_backbone_is_read_without_torch_and_without_a_word(workspace):
    core = {m for m in MODULES if m.startswith("jaxdp")} - NEED_TORCH
    result = run_without_torch(
        f"for name in {sorted(core)}:\n    importlib.import_module(name)\n"
        "from flax import nnx\n"
        "from jaxdp.data.tokens import load_tokenizer\n"
        "from jaxdp.models.pretrained import load_classifier\n"
        f"directory = {str(workspace / 'backbone')!r}\n"
        "load_classifier(directory, 3, 'cls', rngs=nnx.Rngs(0))\n"
        "print(load_tokenizer(directory).encode('heart').ids, 'torch' in sys.modules)\n"
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert result.stdout.endswith("] False\n") and result.stdout.count(",") == 2
    assert run_without_torch("import torch").returncode != 0, "the block does not block"


def test_the_torch_side_names_no_jax():
    """Nor does what it imports of ours; tests/test_baseline.py imports it (slow)."""
    files = {module_name(path): path for path in sources()}
    seen, new = set(), {"jaxdp.peers.torch_side"}
    while new:
        seen |= new
        found = {m for name in new for m in (*imports(files[name]), name.rpartition(".")[0])}
        new = (found & MODULES) - seen
    for name in seen:
        named = re.findall(r"^ *(?:import|from) (\w+)", files[name].read_text("utf-8"), re.M)
        assert not {"jax", "flax", "optax", "chex"} & set(named), name
    assert len(seen) > 5
