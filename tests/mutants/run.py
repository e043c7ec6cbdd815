# SPDX-License-Identifier: Apache-2.0
"""Applies every mutant of `table.py` to a copy of the package and shows which test kills it.

    python tests/mutants/run.py                 # all; exits with 1 if any survives
    python tests/mutants/run.py padding noise   # those with one of these words in their name

Libraries are imported once; each mutant is a fork of that process, which then imports jaxdp and the
test from its own copy, so no mutant sees another's modules. First the killers must pass unmutated.
"""

import argparse
import compileall
import gc
import importlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

from table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
# Imported before forking. Nothing here may start JAX's backend, which does not survive a fork.
LIBRARIES = (
    *("jax", "optax", "chex", "flax.nnx", "scipy.stats", "dp_accounting"),
    *("huggingface_hub", "ml_collections", "orbax.checkpoint", "pyarrow", "rich.console"),
    *("safetensors.numpy", "sklearn.metrics"),
    *("hypothesis", "pytest"),
    # Of the killers that compare with PyTorch.
    *("torch", "transformers", "peft", "datasets", "matplotlib.pyplot"),
    *("transformers.modeling_outputs", "transformers.models.modernbert.modeling_modernbert"),
)
KILLED, SURVIVED = 1, 0  # pytest's exit statuses; any other means that the test could not run
# A mutant that merely crashes shows nothing about the test.
CRASH = re.compile(r"^E +(NameError|SyntaxError|AttributeError|ImportError|TypeError)", re.M)


def copy_of_the_package(target: Path) -> Path:
    """jaxdp/, configs/ and the test files; the tests' own conftest is left out for speed. Bytecode
    is compiled once, and is only used for a source that has the very same hash."""
    ignore = shutil.ignore_patterns("__pycache__", "conftest.py", "mutants", "fixtures", "faults")
    for name in ("jaxdp", "tests", "configs"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", target)
    hashed = PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(target, quiet=2, invalidation_mode=hashed)
    return target


def apply(mutant: Mutant, tree: Path) -> None:
    """Rewrites the file in `tree`; a mutant that does not apply exactly once is an error."""
    file = tree / "jaxdp" / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        sys.exit(
            f"mutant {mutant.name!r}: its text occurs {text.count(mutant.old)} times in "
            f"jaxdp/{mutant.file}, not once; adapt tests/mutants/table.py"
        )
    file.unlink()  # a link to the original's
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def start_tests(tree: Path, tests: list[str], compiled: Path) -> int:
    """Process id of a fork that runs the tests in `tree`; its output is in tree/output. No other
    fork may use the folder `compiled` meanwhile: JAX may read what is half written."""
    pid = os.fork()
    if pid:
        return pid
    output = os.open(tree / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    os.environ["JAXDP_CACHE"] = str(tree / "cache")  # a public start is the mutant's own
    sys.path[:0] = [str(tree), str(tree / "tests")]
    status = 70
    try:
        import jax
        import pytest
        from helpers_xla import LONGER, compile_quickly

        from jaxdp.runtime import one_device_per_core

        # Most of what a killer compiles is what it was without the mutant, in the tests' own run,
        # whose settings are a part of a program's name.
        os.environ["JAX_NUM_CPU_DEVICES"] = "1"
        one_device_per_core()
        compile_quickly()
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LONGER)
        # Asserts stay as they are: how one failed is shown by nobody who is killed.
        arguments = ["-o", "addopts=", "-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
        arguments += [f"tests/{test}" for test in tests]
        status = int(pytest.main(arguments))
        if Path(sys.modules["jaxdp"].__file__).parent.parent != tree:
            status = 71  # the tests ran on another copy of the package
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def check_unmutated(killers: list[str], original: Path, compiled: list[Path]) -> None:
    """Ends the program unless the killers pass on the package as it is. All that they compile is in
    every folder of `compiled` then: most of it is what it is with a mutant."""
    running = {}
    for i, folder in enumerate(compiled):
        tree = shutil.copytree(original, folder.with_suffix(".tree"), copy_function=os.link)
        folder.mkdir()
        if share := killers[i :: len(compiled)]:
            running[start_tests(tree, share, folder)] = tree
    # All are waited for, whatever one has shown.
    ended = [(tree, os.waitpid(pid, 0)[1]) for pid, tree in running.items()]
    for tree, status in ended:
        status = os.waitstatus_to_exitcode(status)
        if status != SURVIVED:
            print((tree / "output").read_text(errors="replace"))
            sys.exit(f"the killers do not pass on the unmutated package (status {status})")
    for folder, other in itertools.permutations(compiled, 2):
        shutil.copytree(folder, other, dirs_exist_ok=True)


def run_all(mutants: list[Mutant], workers: int) -> Iterator[tuple[Mutant, int, float, str]]:
    """(mutant, exit status of its killer, seconds, end of the output), as they end."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch).resolve()
        original = copy_of_the_package(scratch / "original")
        free = [scratch / f"compiled{i}" for i in range(workers)]
        check_unmutated(sorted({m.killer for m in mutants}), original, free)
        print(f"unmutated, all killers pass ({time.monotonic() - start:.0f} s)")
        waiting, running = list(enumerate(mutants)), {}
        while waiting or running:
            while waiting and free:
                i, mutant = waiting.pop(0)
                tree = shutil.copytree(original, scratch / str(i), copy_function=os.link)
                apply(mutant, tree)
                compiled = free.pop()
                pid = start_tests(tree, [mutant.killer], compiled)
                running[pid] = (mutant, tree, compiled, time.monotonic())
            pid, status = os.wait()
            mutant, tree, compiled, begun = running.pop(pid)
            free.append(compiled)
            output = (tree / "output").read_text(errors="replace")
            status = 72 if CRASH.search(output) else os.waitstatus_to_exitcode(status)
            shutil.rmtree(tree)
            yield mutant, status, time.monotonic() - begun, output[-3000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutants with one of these in their name")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(w in m.name for w in options.words)]
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = True  # a mutant must never run another's stale bytecode
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # or each fork's garbage collections would go through all that was imported

    start = time.monotonic()
    bad = 0
    for mutant, status, seconds, tail in run_all(chosen, options.workers):
        words = {KILLED: "killed by", SURVIVED: "SURVIVED"}.get(status, f"BROKEN ({status})")
        print(f"{mutant.file:25} {mutant.name:52} {words} {mutant.killer} ({seconds:.1f} s)")
        if status != KILLED:
            bad += 1
            print(tail)
    print(f"{len(chosen) - bad} of {len(chosen)} killed in {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
