# SPDX-License-Identifier: Apache-2.0
"""The notebooks of docs/: what is stored in them, and (slow) that they run and keep their word."""

import ast
import importlib
import importlib.util
import json
import re

import nbformat
import pytest
from helpers_training import REPOSITORY

FOLDER = REPOSITORY / "docs" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
ABSOLUTE = re.compile(r"""(?<![\w.~/])/(?!/)[\w.-]+/[\w./-]+|\b[A-Z]:\\\\|file://|site-packages""")


def executor():
    spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_are_on_the_site_and_run_by_name():
    site = (REPOSITORY / "mkdocs.yml").read_text()
    assert set(NAMES) == set(executor().NAMES) == set(ENDS)
    assert all(f"notebooks/{name}.ipynb" in site for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_one_whole_run_without_errors(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_tells_nothing_of_the_machine_that_ran_it(name):
    notebook, tidied = read(name), read(name)
    executor().tidy(tidied)
    assert notebook == tidied
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 150_000
    for cell in notebook.cells:
        texts = [cell.source]
        for output in cell.get("outputs", ()):
            texts += [output.get("text", "")]
            texts += [v for k, v in output.get("data", {}).items() if not k.startswith("image/")]
        for text in texts:
            found = ABSOLUTE.search(re.sub(r"</\w+>", "", text))  # no tags of HTML
            assert not found, found.group()


@pytest.mark.parametrize(
    "text", ["/tmp/x/y.py", " /home/a/b", "'/opt/z/q'", "C:\\\\Users", "file://"]
)
def test_absolute_paths_are_seen(text):
    assert ABSOLUTE.search(text)


def names_of_jaxdp(tree):
    """(module, name) of what a notebook imports from jaxdp, and of what it takes from modules."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "jaxdp":
                    yield alias.name, None
                    modules[alias.asname or "jaxdp"] = "jaxdp"
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "jaxdp":
            for alias in node.names:
                yield node.module, alias.name
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if importable(module := modules.get(node.value.id, "")):
                yield module, node.attr


def importable(module):
    try:
        return bool(module) and importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a class, whose parent is a module
        return False


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_jaxdp_exists(name):
    tree = ast.parse("\n".join(cell.source for cell in code_of(read(name))))
    found = set(names_of_jaxdp(tree))
    assert ("jaxdp", "PrivateTextClassifier") in found and ("jaxdp", "load") in found
    for module, attribute in found:
        loaded = importlib.import_module(module)
        assert (
            attribute is None or hasattr(loaded, attribute) or importable(f"{module}.{attribute}")
        )


SEEN = """
import json
from pathlib import Path
from jaxdp.run.release_check import check_release
seen = {
    "sound": [f.text for f in check_release(folder / "release") if not f.passed] == [],
    "privacy": json.loads((folder / "release" / "privacy.json").read_text()),
    "asked": model.epsilon,
    "labels": list(map(str, model.classes_)),
}
"""
"""What each notebook's end is asked for, in a cell of the test's own."""
ENDS = {
    "train_and_share": """
held = b"".join(path.read_bytes() for path in folder.rglob("*.*"))
seen["reports"] = [text[:60].encode() in held for text in texts].count(True)
seen["chances"] = released.predict_proba(new).tolist()
seen["read"] = [sentence in text for text, row in zip(new, evidence) for sentence in row]
""",
    "your_own_table": """
seen["trial"] = trial.privacy_["seed_policy"]
seen["history"] = [len(model.history_), hasattr(again, "history_")]
seen["pickled"] = b"unnoised" in pickle.dumps(model)
seen["same"] = (released.predict_proba(new) == again.predict_proba(new)).all().item()
""",
    "choose_epsilon": """
seen["recomputed"] = recomputed
seen["total"] = total
seen["now"] = ledger.epsilon(data, DELTA)
seen["fits"] = fits
seen["runs"] = len(ledger.runs()[data])
""",
}


@pytest.fixture(scope="module")
def ends():
    """name -> what a run of the notebook ends with."""
    module, known = executor(), {}

    def end_of(name):
        if name not in known:
            notebook = read(name)
            for cell in code_of(notebook):
                cell.outputs = []
            last = nbformat.v4.new_code_cell(SEEN + ENDS[name] + "print(json.dumps(seen))")
            notebook.cells.append(last)
            known[name] = json.loads(module.execute(notebook).cells[-1].outputs[-1].text)
        return known[name]

    return end_of


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_ends_with_a_sound_release_within_the_epsilon_asked_for(ends, name):
    seen = ends(name)
    assert seen["sound"]
    assert 0.9 * seen["asked"] < seen["privacy"]["epsilon"] <= seen["asked"]
    assert seen["privacy"]["seed_policy"] == "os-entropy" and not seen["privacy"]["warnings"]


@pytest.mark.slow
def test_train_and_share_releases_no_report_and_reads_its_evidence(ends):
    seen = ends("train_and_share")
    assert seen["reports"] == 0 and len(seen["labels"]) == 14
    assert all(0 < chance < 1 for row in seen["chances"] for chance in row)
    assert all(seen["read"]) and len(seen["read"]) == 3 * 14


@pytest.mark.slow
def test_your_own_table_protects_patients_and_keeps_the_history_back(ends):
    seen = ends("your_own_table")
    assert seen["privacy"]["privacy_unit"] == "patient" and seen["privacy"]["units"] == 150
    assert seen["trial"] == "fixed-for-research" and seen["labels"] == [
        "edema",
        "effusion",
        "fracture",
    ]
    assert seen["history"] == [20, False] and not seen["pickled"] and seen["same"]


@pytest.mark.slow
def test_choose_epsilon_recomputes_and_adds_up(ends):
    seen = ends("choose_epsilon")
    one = seen["privacy"]["epsilon"]
    assert seen["recomputed"] == pytest.approx(one, rel=1e-3)
    assert one < seen["total"] < 2 * one
    assert seen["runs"] == 3 and seen["total"] < seen["now"] <= 2
    costs = list(seen["fits"].values())
    assert costs == sorted(costs) and costs[0] <= 1 < costs[1]
