# SPDX-License-Identifier: Apache-2.0
"""Runs the notebooks of this folder anew and keeps their outputs: python docs/notebooks/execute.py

Each runs in a kernel and a folder of its own. What a machine or a moment adds is taken
out: times, kernel versions, the temporary files that warnings name.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parent
NAMES = ("train_and_share", "your_own_table", "choose_epsilon")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""Of a notebook that is kept."""
_WARNS_AT = re.compile(r"^\S*ipykernel_\d+\S*:\d+: ", re.MULTILINE)
_TQDM = re.compile(r"^.*TqdmWarning: .*\n.*\n", re.MULTILINE)
"""A progress bar that misses a package, which it does not need."""


def execute(notebook: nbformat.NotebookNode, timeout: int = 600) -> nbformat.NotebookNode:
    """The notebook after a run from top to bottom; CellExecutionError where a cell fails."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            # Files instead of ports: nobody else on the machine can listen.
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}}),
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        return client.execute()


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leaves what any run on any machine could have written."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = _WARNS_AT.sub("", _TQDM.sub("", output.text)).rstrip("\n") + "\n"
            else:
                output.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("text") != "\n"]


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        path, started = FOLDER / f"{name}.ipynb", time.monotonic()
        notebook = execute(nbformat.read(path, as_version=4))
        tidy(notebook)
        nbformat.write(notebook, path)
        print(f"{name}: {time.monotonic() - started:.0f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
