# SPDX-License-Identifier: Apache-2.0
"""A sweep file's contents, and the members and groups that it means."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import config_dict

from jaxdp.config import Config, ConfigError, DataConfig, TeacherConfig

_MAY_DIFFER = {
    "centering.l2_clip_norm",
    "centering.epsilon_share",
    "data.cache",
    "head_stage.epsilon_share",
    "head_stage.l2_clip_norm",
    "head_stage.learning_rate",
    "head_stage.noise_multiplier",
    "privacy.epsilon",
    "privacy.l2_clip_norm",
    "privacy.noise_multiplier",
    "run.name",
    "run.research_seed",
    "train.learning_rate",
}
"""Settings in which members of one group may differ: numbers that go into a step, and change
neither its sample nor a shape."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """All combinations of the axes' values, over one base.

    Attributes:
        name: begins the names of these members.
        base: as a config file's get_config() returns it.
        axes: "section.field" -> values. "a.b, c.d" -> tuples of values that go together.
        seeds: instead of the sweep's, as where nothing is left to chance.
    """

    name: str
    base: config_dict.ConfigDict
    axes: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seeds: int | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `get_sweep()` of a sweep file returns.

    Attributes:
        name: of the folder with all results, below `dir`.
        grids: the members are those of all grids.
        seeds: how often each member is trained: with other initial adapters and other noise.
        share_sampling: members of a group draw the same reports in each step, and can be trained
            together; their joint cost is a little higher than with samples of their own.
        research_seed: None draws all secrets from the operating system. A number makes the sweep
            repeatable, and all its releases unprotected. Every member gets a seed of its own from
            it: two with the same noise would reveal their difference.
        ledger, total_budget: as in config.privacy, for the sweep as a whole.
    """

    name: str
    grids: Sequence[Grid]
    seeds: int = 1
    share_sampling: bool = True
    dir: str = "runs"
    research_seed: int | None = None
    ledger: str | None = None
    total_budget: float | None = None

    @property
    def path(self) -> Path:
        return Path(self.dir) / self.name


class Place(NamedTuple):
    """Where a run stands in a table."""

    source: str
    model: str
    """The backbone as configured; of a directory, its last name."""
    mode: str
    """What the main stage trained."""
    unit: str
    """What is sampled and, with privacy, protected."""
    epsilon: float | None
    """The target; None without privacy."""

    @classmethod
    def of(cls, config: Config) -> "Place":
        model = config.model.backbone.rstrip("/").split("/")[-1]
        privacy = config.privacy
        return cls(config.data.source, model, config.train.mode, privacy.unit, privacy.epsilon)


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep: `seed` counts repetitions of the same settings."""

    config: Config
    seed: int

    @classmethod
    def read(cls, described: Mapping[str, Any], folder: Path) -> "Member":
        """As sweep.json of that folder, which may have been moved, describes it."""
        return cls(Config.of_run(described["config"]).below(folder), described["seed"])

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def path(self) -> Path:
        return self.config.path

    @property
    def place(self) -> Place:
        return Place.of(self.config)

    @property
    def task(self) -> str:
        """See `models.tasks`."""
        return self.config.data.task

    @property
    def reads(self) -> tuple[DataConfig, TeacherConfig]:
        """What decides which reports and labels it is trained on."""
        return self.config.data, self.config.teacher

    @property
    def collection(self) -> tuple[str, str | None, str]:
        """(source, root, privacy unit), as configured: what joint costs are told apart by."""
        return self.config.data.source, self.config.data.root, self.config.privacy.unit

    @property
    def steps(self) -> tuple[int, int]:
        """(of the stage before the main one, 0 where there is none; of the main stage)."""
        train = self.config.train
        before = train.steps if train.query_share else self.config.head_stage.steps
        return before, train.steps

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by "section.field"."""
        return {
            f"{section}.{field}": value
            for section, fields in self.config.to_dict().items()
            for field, value in fields.items()
        }


def load_sweep(file: str) -> Sweep:
    """The sweep that a python file's get_sweep() returns; ConfigError if it has none."""
    if not Path(file).is_file():
        raise ConfigError(f"{file}: no such file")
    function = runpy.run_path(file).get("get_sweep")
    sweep = function() if callable(function) else None
    if not isinstance(sweep, Sweep):
        raise ConfigError(f"{file} has no get_sweep() that returns a jaxdp.sweep.members.Sweep")
    return sweep


def override(sweep: Sweep, settings: Sequence[str]) -> Sweep:
    """The sweep with "section.field=value" set in every grid's base, or with
    "grid:section.field=value" in those of one name.

    Raises:
        ConfigError: not of that form, no such grid or setting, or a setting that is an axis.
    """
    grids = [dataclasses.replace(g, base=g.base.copy_and_resolve_references()) for g in sweep.grids]
    names = {grid.name for grid in grids}
    for setting in settings:
        place, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} must be section.field=value")
        only, colon, name = place.rpartition(":")
        if colon and only not in names:
            raise ConfigError(f"{setting!r}: grids are {', '.join(sorted(names))}")
        for grid in grids:
            if colon and only != grid.name:
                continue
            if name in _fields_of(grid.axes):
                raise ConfigError(f"config.{name} is an axis of {grid.name}: change the sweep file")
            _set(grid.base, name, _parsed(text))
    return dataclasses.replace(sweep, grids=grids)


def expand(sweep: Sweep) -> dict[str, Member]:
    """Name -> member, validated, in the order of grids, axes and seeds.

    Raises:
        ConfigError: a setting cannot be used, names or research seeds are not unique, or a base has
            what belongs to the sweep.
    """
    if sweep.name in ("", ".", "..") or "/" in sweep.name:
        raise ConfigError(f"Sweep.name must be a folder name without /, not {sweep.name!r}")
    members: dict[str, Member] = {}
    for grid in sweep.grids:
        if grid.base.privacy.ledger is not None or grid.base.privacy.total_budget is not None:
            raise ConfigError(
                f"{grid.name}: the ledger and the budget of a sweep are Sweep.ledger and "
                "Sweep.total_budget; config.privacy.ledger and .total_budget must be None"
            )
        seeds = sweep.seeds if grid.seeds is None else grid.seeds
        if seeds < 1:
            raise ConfigError(f"{grid.name}: seeds must be at least 1, not {seeds}")
        for values in itertools.product(*grid.axes.values()):
            for seed in range(seeds):
                ending = [f"seed{seed}"] if seeds > 1 else []
                member = Member(_config(sweep, grid, values, ending), seed)
                if member.name in members:
                    raise ConfigError(f"two members are named {member.name}: rename a Grid")
                members[member.name] = member
    if not members:
        raise ConfigError(f"sweep {sweep.name} has no members")
    given: dict[int, str] = {}
    for name, member in members.items():
        seed = member.config.run.research_seed
        if seed is not None and (other := given.setdefault(seed, name)) != name:
            raise ConfigError(
                f"{other} and {name} have the same run.research_seed, hence the same noise, and "
                "together would reveal reports; set Sweep.research_seed instead"
            )
    return members


def _config(sweep: Sweep, grid: Grid, values: Sequence[Any], ending: Sequence[str]) -> Config:
    """At these values of the axes; its name ends so."""
    base = grid.base.copy_and_resolve_references()
    parts = [grid.name]
    for axis, value in zip(grid.axes, values, strict=True):
        names = _fields_of([axis])
        for name, each in zip(names, value if len(names) > 1 else [value], strict=True):
            _set(base, name, each)
            parts.append(_in_name(name, each))
    base.run.name = "_".join([*parts, *ending])
    base.run.dir = str(sweep.path)
    if sweep.research_seed is not None:
        text = f"jaxdp sweep {sweep.research_seed}/{base.run.name}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        base.run.research_seed = int.from_bytes(digest, "little") >> 1
    return Config.from_dict(base.to_dict())


def groups(members: Mapping[str, Member]) -> list[list[str]]:
    """Names of the members that can share samples and be trained in one program: those that differ
    only in epsilon, noise, clip norms, learning rates and seeds; in order of first appearance."""
    found: dict[str, list[str]] = {}
    for name, member in members.items():
        fields = {f: value for f, value in member.settings.items() if f not in _MAY_DIFFER}
        fields["centred"] = member.settings["centering.l2_clip_norm"] is not None
        found.setdefault(json.dumps(fields), []).append(name)
    return list(found.values())


def programs(group: Sequence[Member], share_sampling: bool = True) -> list[list[Member]]:
    """The members of a group that one program can train: private ones, and the others, which draw
    with other probabilities and clip nothing. Those that do not share their samples are trained one
    by one, and so are those for which secure noise is drawn, or whose queries turn, each to its own
    head."""
    apart = (m.config.privacy.secure_noise or m.config.train.query_share for m in group)
    if not share_sampling or any(apart):
        return [[member] for member in group]
    parts = [[m for m in group if m.config.privacy.private == p] for p in (True, False)]
    return [part for part in parts if part]


def _fields_of(axes) -> list[str]:
    return [name.strip() for axis in axes for name in axis.split(",")]


def _set(base: config_dict.ConfigDict, name: str, value: Any) -> None:
    section, _, field = name.partition(".")
    if section not in base or not field or field not in base[section]:
        raise ConfigError(f"config.{name} is not a setting")
    with base.ignore_type():  # `Config` checks types, and says which field
        base[section][field] = value


def _parsed(text: str) -> Any:
    """As JSON where it is, else the text: 3, 0.1, null, true, ["a"]; None and inf as flags have."""
    if text in ("None", "inf"):
        return None if text == "None" else math.inf
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _in_name(field: str, value: Any) -> str:
    """An axis' value as part of a folder's name."""
    if field == "privacy.epsilon":
        return "nonprivate" if value in (None, math.inf) else f"eps{value:g}"
    if isinstance(value, str):
        return value.rstrip("/").split("/")[-1].replace(":", "")
    short = field.partition(".")[2]
    if isinstance(value, list | tuple):
        return "-".join(map(str, value)).replace("/", "-")
    return f"{short}{value:g}" if isinstance(value, int | float) else f"{short}{value}"
