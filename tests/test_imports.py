# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the source; and that torch is not needed to import anything."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_everything_imports_without_torch():
    core = {m for m in MODULES if m.startswith("jaxdp")} - NEED_TORCH
    result = run_without_torch(f"for name in {sorted(core)}:\n    importlib.import_module(name)\n")
    assert result.returncode == 0, result.stderr
    blocked = run_without_torch("import torch")
    assert blocked.returncode != 0, "the block does not block"


def test_a_backbone_is_read_without_torch_and_without_a_word(workspace):
    result = run_without_torch(
        "from flax import nnx\n"
        "from jaxdp.data.tokens import load_tokenizer\n"
        "from jaxdp.models.pretrained import load_classifier\n"
        f"directory = {str(workspace / 'backbone')!r}\n"
        "load_classifier(directory, 3, 'cls', rngs=nnx.Rngs(0))\n"
        "print(load_tokenizer(directory).encode('heart').ids, 'torch' in sys.modules)\n"
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert result.stdout.endswith("] False\n") and result.stdout.count(",") == 2
