# SPDX-License-Identifier: Apache-2.0
"""The commands: `jaxdp NAME`, and scripts/*.py, which are doors to the same.

Nothing is imported here but for the command that was asked for.
"""

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.table import Table

COMMANDS = {
    "train": "fine-tune on private reports, and release the adapter with its statement",
    "predict": "label new reports with a release",
    "export": "take a released adapter elsewhere: PEFT, transformers, StableHLO",
    "account": "epsilon and noise before a run; check a statement after it",
    "check-release": "prove what can be proven of a release",
    "sweep": "train many runs, and say what they cost together",
    "report": "make a sweep's page and figures",
    "audit": "attack our own training: lower bounds on epsilon",
    "inspect": "counts, lengths and labels of a configuration's data",
    "compare": "the same training in PyTorch, side by side",
    "benchmark": "speed beside peers on this machine",
    "programs": "what a run's compiled programs cost on a chip that need not be here",
    "paper": "the study's table from finished runs",
}
"""Name -> what it does, in one line."""

_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
_CONFIGS = ("config", "plain")
"""Flags that take a configuration: a file, or the name of one that is shipped."""


def main() -> None:
    """`jaxdp` on the command line."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in _HELP:
        print("usage: jaxdp COMMAND [FLAGS]\n")
        for command, what in COMMANDS.items():
            print(f"    {command:15}{what}")
        print("\njaxdp COMMAND --help shows a command's flags and an example.")
    elif name in COMMANDS:
        run(name, arguments)
    else:
        fail(f"there is no command {name!r}{_nearest(name, COMMANDS)}")


def run(name: str, arguments: list[str] | None = None) -> None:
    """Runs one command and ends the process.

    Args:
        name: of COMMANDS.
        arguments: its flags; None is all that follows the script's name. Overrides of a
            configuration are read from the command line itself.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    if _HELP & set(arguments):
        print(module.DEFINE.help(module.__doc__))
        return

    # After the command's own imports, which --help waits for in any case.
    from absl import app, flags

    from jaxdp.cli import USER_ERRORS
    from jaxdp.runtime import prepare

    def parse(argv: list[str]) -> list[str]:
        flags.FLAGS(argv[:1])  # absl's own; nobody gives them
        try:
            return module.DEFINE.parse(argv)
        except flags.Error as error:
            fail(" ".join(str(error).split()))
        except (AttributeError, KeyError) as error:  # how a ConfigDict says it has no such field
            fail(_no_such_setting(error))

    def main(argv: list[str]) -> None:
        given, wanted = argv[1:], signature(module.main).parameters
        if len(given) > len(wanted):
            fail(f"unexpected argument {given[-1]!r}; settings are given as --name=value")
        if len(given) < len(wanted):
            fail(f"give one {', one '.join(wanted)}; see --help")
        prepare()
        try:
            module.main(*given)
        except USER_ERRORS as error:
            fail(error)

    app.run(main, [f"jaxdp {name}", *_with_paths(arguments)], flags_parser=parse)


def shipped_configs() -> Path:
    """The folder of configs/: inside an installed package, beside one that is a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_file(given: str) -> str:
    """The path of a configuration: a name without / and .py is that of a shipped one.

    Ends the process with one line if there is no such configuration.
    """
    if "/" in given or "\\" in given or ".py" in given:
        if not Path(given.partition(":")[0]).is_file():
            fail(f"{given}: no such file")
        return given
    path = shipped_configs() / f"{given}.py"
    if not path.is_file():
        known = sorted(file.stem for file in shipped_configs().glob("*.py"))
        hint = _nearest(given, known) or f"; give a file's path, or one of {', '.join(known)}"
        fail(f"no configuration named {given!r} is shipped{hint}")
    return str(path)


def _with_paths(arguments: list[str]) -> list[str]:
    """The arguments with files in place of names of configurations."""
    found = list(arguments)
    for i, argument in enumerate(found):
        flag, equals, value = argument.partition("=")
        if flag.lstrip("-") not in _CONFIGS or not flag.startswith("-"):
            continue
        if equals:
            found[i] = f"{flag}={config_file(value)}"
        elif i + 1 < len(found):
            found[i + 1] = config_file(found[i + 1])
    return found


def _no_such_setting(error: AttributeError | KeyError) -> str:
    """Where a setting is named that there is not, and which are like it; raises an error that says
    something else."""
    place, frames = "a flag", traceback.extract_tb(error.__traceback__)
    if "ml_collections" not in Path(frames[-1].filename).parts:
        raise error
    for file, line, *_ in frames:
        if "config_flags" in Path(file).parts:  # what runs the file, after all that is ours
            place = "a flag"
        elif "ml_collections" not in Path(file).parts:
            place = f"{Path(file).name}, line {line}"
    inner = error.args[0]
    what = str(getattr(inner, "args", [inner])[0])
    what = re.sub(r"Other fields present: .*?(?=\nDid you mean|\Z)", "", what, flags=re.DOTALL)
    return f"{place} names no setting: {' '.join(what.split())}"


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def numbers(name: str, values: list[str] | None) -> list[float]:
    """Comma-separated flag values as floats."""
    try:
        return [float(value) for value in values or []]
    except ValueError:
        fail(f"--{name} must be numbers separated by commas, not {','.join(values)!r}")


def require(extras: str, *packages: str) -> None:
    """Ends the process with one line if a package that these extras bring is missing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        fail(f"{', '.join(missing)} not installed; pip install 'jaxdp-text[{extras}]'")


def table(
    title: str, header: Iterable[str], rows: Iterable[Sequence[str]], left: int | None = None
) -> "Table":
    """For rich to print. The first `left` columns stand to the left and others, numbers, to the
    right; None is all to the left."""
    from rich import box
    from rich.table import Column, Table

    columns = (
        Column(name, overflow="fold", justify="left" if left is None or i < left else "right")
        for i, name in enumerate(header)
    )
    look = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    shown = Table(*columns, title=title, title_justify="left", **look)
    for row in rows:
        shown.add_row(*row)
    return shown


def fail(error: object) -> NoReturn:
    """Prints one line to stderr and ends with status 1."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
