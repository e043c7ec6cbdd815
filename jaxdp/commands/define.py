# SPDX-License-Identifier: Apache-2.0
"""Flags that belong to one command alone, and the page that shows them."""

import functools
import textwrap
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from jaxdp.files import write_json

_WIDTH = 96


class Define:
    """absl's DEFINE_* under their kind's name, for flags that no other command sees.

    `DEFINE.string("output", None, "File to write.")` is `flags.DEFINE_string(...)`.
    """

    def __init__(self):
        self.flags = flags.FlagValues()
        self.configs: list[str] = []

    def __getattr__(self, kind: str) -> Any:
        return functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=self.flags)

    def config(
        self,
        name: str = "config",
        what: str = "Name, or Python file with get_config().",
        *,
        required: bool = True,
    ) -> flags.FlagHolder:
        """A file with get_config(), whose settings are flags too: --name.section.field=value."""
        holder = config_flags.DEFINE_config_file(name, None, what, self.flags)
        self.configs.append(name)
        if required:
            flags.mark_flag_as_required(name, self.flags)
        return holder

    def parse(self, arguments: list[str]) -> list[str]:
        """Sets the flags; the arguments that are none. A setting that is to be None is set last: a
        parser of numbers refuses that, and one of texts takes it for a name."""
        none, given = [], []
        for argument in arguments:
            name, _, setting = argument.lstrip("-").removesuffix("=None").partition(".")
            if name in self.configs and setting and argument.endswith("=None"):
                none.append((name, setting))
            else:
                given.append(argument)
        rest = self.flags(given)
        for name, setting in none:
            config_path.set_value(setting, self.flags[name].value, None)
        return rest

    def json(self, what: str) -> None:
        """--json, for `write_json`."""
        self.string("json", None, what)

    def write_json(self, value: Any) -> None:
        """Writes to the file that --json names, if it names one."""
        if self.flags.json is not None:
            path = Path(self.flags.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, value)

    def help(self, docstring: str) -> str:
        """The docstring, then each flag with what it takes and its default."""
        lines = [docstring.strip(), "", "Flags:"]
        for name in self.flags:
            flag = self.flags[name]
            if flag.help.startswith("Alias for"):
                continue
            default = flag.default_as_str if flag.default not in (None, False, []) else ""
            default = f" [{default.strip(chr(39))}]" if default else ""
            what = flag.help.partition(";\n")[0] + default  # behind it absl says what repeats
            lines += textwrap.wrap(
                f"{'--' + name:20} {what}", _WIDTH, initial_indent="  ", subsequent_indent=" " * 23
            )
        return "\n".join(lines)
