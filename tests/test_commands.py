# SPDX-License-Identifier: Apache-2.0
"""`jaxdp NAME`: its pages, names of configurations, and the scripts that are doors to it."""

import importlib
import io
import re
import subprocess
import sys

import jax
import pytest
from helpers_training import AFRESH, LABELS, REPOSITORY, run_script, smoke_config
from rich.console import Console

from jaxdp.commands import COMMANDS, config_file, main, shipped_configs
from jaxdp.commands.train import show_plan
from jaxdp.dp import epsilon_pld
from jaxdp.models import lora
from jaxdp.run.preview import problems
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import load_inputs
from jaxdp.training.stages import plan_run
from jaxdp.training.warm_start import build_model


@pytest.fixture
def jaxdp(monkeypatch, capsys):
    """jaxdp(*arguments) -> (exit status, what it printed, errors), in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxdp", *arguments])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def module_of(name):
    return importlib.import_module(f"jaxdp.commands.{name.replace('-', '_')}")


def test_the_list_names_every_command_on_a_line_of_its_own(jaxdp):
    for arguments in ((), ("--help",)):
        status, text, errors = jaxdp(*arguments)
        assert status == 0 and not errors
        assert [line.split()[0] for line in text.splitlines()[2:-2]] == list(COMMANDS)
    files = (REPOSITORY / "jaxdp" / "commands").glob("*.py")
    assert {f.stem.replace("_", "-") for f in files} == {*COMMANDS, "--init--", "define"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_with_an_example_and_the_commands_own_flags(jaxdp, name):
    status, text, _ = jaxdp(name, "--help")
    lines = text.splitlines()
    assert status == 0 and len(lines) <= 40 and max(map(len, lines)) <= 100
    assert re.search(rf"^    jaxdp {name} \S", text, re.M)
    flags = re.findall(r"^  --([\w-]+)", text.partition("\nFlags:\n")[2], re.M)
    defined = {n for n, f in module_of(name).DEFINE.flags.flag_values_dict().items()}
    assert set(flags) == defined - {"dry-run"} and len(flags) >= 2
    for example in re.findall(r"--([a-z_]+)", text.partition("\nFlags:\n")[0]):
        assert example.replace("-", "_") in {*flags, "config", "help", "dry"}, example


def test_help_of_train_says_how_settings_are_given(jaxdp):
    text = " ".join(jaxdp("train", "--help")[1].split())
    assert "--config.section.field=value" in text and "the name of a configuration" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["train", "--config", "openi_esp8"], "'openi_esp8' is shipped; did you mean openi_eps8"),
        (["sweep", "--config=sweep_opnei"], "'sweep_opnei' is shipped; did you mean sweep_openi"),
        (["compare", "--config=openi_eps8", "--plain=x"], "or one of audit_openi, ctrate_eps001"),
        (["inspect", "--config=no/such.py"], "no/such.py: no such file"),
        (["train"], "flag --config=None: Flag --config must have a value"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(jaxdp, arguments, words):
    status, text, errors = jaxdp(*arguments)
    assert status == 1 and not text
    assert errors.startswith("error: ") and errors.count("\n") == 1 and words in errors


@pytest.mark.parametrize("wrong, like", [("model.backbne", "backbone"), ("modle.dtype", "model")])
def test_what_a_configuration_misspells_is_said_with_its_line(tmp_path, wrong, like):
    lines = ["from jaxdp.config import default_config", "config = default_config()"]
    lines += [f"config.{wrong} = 'x'", "def get_config(): return config"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    done = run_script("train.py", f"--config={tmp_path / 'mine.py'}")
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: mine.py, line 3 names no setting: ")
    assert f'Did you mean "{like}"' in done.stderr and len(done.stderr) < 200


def test_wrong_settings_are_one_line():
    wrong = {
        ("--resmue",): "Unknown command line flag 'resmue'",
        ("--config.run.nmae=x",): "a flag names no setting: 'nmae' Did you mean",
        ("--config.train.recipe=auto", "--config.privacy.epsilon=-1"): "epsilon must be positive",
    }
    for flags, words in wrong.items():
        done = run_script("train.py", "--config=smoke", *flags)
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert words in done.stderr


def test_a_name_is_a_shipped_configuration_and_a_path_is_a_file():
    names = {file.stem for file in (REPOSITORY / "configs").glob("*.py")}
    assert shipped_configs() == REPOSITORY / "configs" and "openi_eps8" in names
    for name in names:
        assert config_file(name) == str(REPOSITORY / "configs" / f"{name}.py")
    path = str(REPOSITORY / "configs" / "smoke.py")
    assert config_file(path) == path


def test_a_plan_says_what_a_run_would_do_and_reads_nothing(workspace):
    quick = dict(train__mode="head", head_stage__steps=0, centering__l2_clip_norm=None)
    there, absent = (
        smoke_config(workspace, **quick, **more)
        for more in ({}, {"data__root": str(workspace / "absent")})
    )
    console = Console(record=True, width=200, file=io.StringIO())
    show_plan(absent, console)
    text = " ".join(console.export_text().split())
    (mechanism,) = plan_run(there).mechanisms().values()
    assert f"noise multiplier {mechanism.noise_multiplier:.4g}" in text
    assert f"epsilon {epsilon_pld([mechanism], 1e-3):.4g} at delta 0.001, per report" in text
    assert f"{workspace}/runs/smoke/release" in text and not (workspace / "runs").exists()
    inputs, secret = load_inputs(there), RunSecret(bytes(32))
    model, _ = build_model(there, inputs.backbone, LABELS, secret)
    trained = jax.tree.leaves(lora.split(model, "head")[1])
    assert f"head of 3 x (16 + 1) = {sum(leaf.size for leaf in trained)} numbers" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__source": "opnei"}, "config.data.source must be one of openi"),
        ({"data__source": "table", "data__root": None}, "config.data.root must be a table"),
        ({"data__source": "table", "data__labels": None}, "config.data.labels must name"),
        ({"warm_start__phrasebook": "chest_en"}, "no sentences for 'Bones, broken'"),
        ({"warm_start__phrasebook": "no.json"}, "no.json is no phrasebook here"),
        ({"model__backbone": "mini-lm"}, "backbone 'mini-lm' is no directory here"),
        ({"privacy__delta": 0.02}, "config.privacy.delta is not below 1 / units"),
    ],
)
def test_a_plan_says_what_is_wrong(workspace, changes, words):
    config = smoke_config(workspace, **{"data__labels": ("normal", "Bones, broken")} | changes)
    assert [words in problem for problem in problems(config)] == [True]


def test_a_plan_needs_the_public_number_of_units_and_says_so(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("from jaxdp.config import default_config as get_config\n")
    done = run_script("train.py", f"--config={config}", "--plan")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: config.privacy.units must be set for private training")


def test_every_script_is_a_door_to_its_own_command():
    doors = {
        path.stem: re.search(r'run\("([\w-]+)"\)', path.read_text()).group(1)
        for path in (REPOSITORY / "scripts").glob("*.py")
    }
    assert sorted(doors.values()) == sorted(COMMANDS)
    assert all(command.partition("-")[0] in script for script, command in doors.items())
    door = run_script("account.py", "--help")
    assert door.returncode == 0 and "jaxdp account --epsilon" in door.stdout, door.stderr


def test_an_installed_package_brings_its_configurations(tmp_path):
    # As a wheel holds it: configs/ stands inside the package, and no checkout beside it.
    build = "from setuptools import setup; setup()"
    options = ["egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", tmp_path / "lib"]
    subprocess.run(
        [sys.executable, "-c", build, "-q", *options],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    built = {str(p.relative_to(tmp_path / "lib")) for p in (tmp_path / "lib").rglob("*.*")}
    for folder, pattern in (("jaxdp", "*.py"), ("jaxdp", "*.json")):
        for path in (REPOSITORY / folder).rglob(pattern):
            assert str(path.relative_to(REPOSITORY)) in built
    assert {f"jaxdp/configs/{p.name}" for p in (REPOSITORY / "configs").glob("*.py")} <= built
    (tmp_path / "program.py").write_text(
        f"{AFRESH}sys.path.insert(0, {str(tmp_path / 'lib')!r})\n"
        "from jaxdp import commands\n"
        f"assert commands.__file__.startswith({str(tmp_path / 'lib')!r}), commands.__file__\n"
        "commands.main()\n"
    )
    arguments = ["train", "--config", "smoke", "--config.privacy.units=0"]
    done = run_script(tmp_path / "program.py", *arguments)
    assert done.returncode == 1
    assert done.stderr == "error: config.privacy.units must be at least 1 or None, not 0\n"


def test_a_command_is_chosen_before_anything_heavy_is_imported():
    program = (
        "import sys\nfrom jaxdp.commands import main\nsys.argv = ['jaxdp', '--help']\nmain()\n"
        "print({'jax', 'absl', 'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stderr
