# SPDX-License-Identifier: Apache-2.0
"""What the package imports and what it declares are the same, so a fresh install runs."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from helpers_training import REPOSITORY

# What transformers reads spiece.model with, but does not ask for.
INDIRECT = {"protobuf", "sentencepiece"}
# Of extras; whoever needs one of them says so.
OPTIONAL = {"torch", "jax_privacy", "opacus", "openpyxl", "peft", "submitit"}


def imported() -> set[str]:
    """Third-party top-level modules that jaxdp/, scripts/ and configs/ import, anywhere."""
    found = set()
    for folder in ("jaxdp", "scripts", "configs"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"jaxdp"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_declared_and_every_dependency_imported():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {normalised(re.match(r"[\w.-]+", d).group()) for d in project["dependencies"]}
    provided_by = packages_distributions()
    needed = {
        module: {normalised(name) for name in provided_by[module]}
        for module in imported() - OPTIONAL
    }
    undeclared = {module for module, names in needed.items() if not names & declared}
    assert not undeclared
    assert not declared - INDIRECT - set.union(*needed.values()), "declared, but never imported"
