# SPDX-License-Identifier: Apache-2.0
"""SYNTHETIC collections with a planted string in every text and id, and the scripts run on them."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from helpers_data import (
    MimicFiles,
    mimic_report,
    openi_xml,
    write_ctrate,
    write_openi,
    write_padchest,
    write_table,
)
from helpers_training import REPOSITORY, run_script, write_backbone

TEXT, REPORT, PATIENT = "ZEBRAPHRASE", "QUAGGAREPORT", "OKAPIPATIENT"
STUDY, SUBJECT = 58881200, 17775600
"""The first of MIMIC-CXR's ids, which are numbers; fewer than a hundred follow."""
VOLUME = "train_76"
"""What CT-RATE's patients begin with."""
PLANTED = [s.encode() for s in (TEXT, REPORT, PATIENT, "588812", "177756", VOLUME)]

CONFIG = f"--config={REPOSITORY}/configs/smoke.py"
PRIVATE = ["train.py", CONFIG, "--config.run.research_seed=7"]
TRAIN = [*PRIVATE, "--config.privacy.epsilon=inf"]


@dataclasses.dataclass
class Outcome:
    """What a script did."""

    status: int
    stdout: str
    stderr: str
    folder: Path
    """Holds what it printed, and in runs/ what it wrote."""

    def assert_clean(self) -> None:
        """Nothing planted is in what was printed or written, nor in the name of a file."""
        for path in [*self.folder.glob("std*"), *(self.folder / "runs").rglob("*")]:
            content = path.read_bytes() if path.is_file() else b""
            content += str(path.relative_to(self.folder)).encode()
            assert not [s for s in PLANTED if s in content], path


def run_scripts(root: Path, cases: dict[str, list[str]]) -> dict[str, Outcome]:
    """Runs scripts as users do; each writes below root/<name>/runs.

    Args:
        root: holds a folder for each case.
        cases: name -> script and flags.
    """
    write_backbone(root / "backbone")
    outcomes = {}
    for name, (script, *given) in cases.items():
        if script != "predict.py":
            given += [
                f"--config.model.backbone={root}/backbone",
                f"--config.run.dir={root / name}/runs",
            ]
        done = run_script(script, *given, JAXDP_CACHE=str(root))
        (root / name / "stdout").write_text(done.stdout)
        (root / name / "stderr").write_text(done.stderr)
        outcomes[name] = Outcome(done.returncode, done.stdout, done.stderr, root / name)
    return outcomes


def source(kind: str, root: Path, *more: str) -> list[str]:
    return [f"--config.data.source={kind}", f"--config.data.root={root}", *more]


def openi(folder: Path, **extra: bytes) -> list[str]:
    members = {
        f"{REPORT}{i}.xml": openi_xml(None, f"heart normal {TEXT}", patient=f"{PATIENT}{i}")
        for i in range(60)
    }
    archive = write_openi(folder / "r.tgz", members | {f"{k}.xml": v for k, v in extra.items()})
    return source("openi", archive, "--config.data.labels=('normal',)")


def mimic(folder: Path) -> list[str]:
    files = MimicFiles(folder / "mimic")
    # the first two patients have three studies, as many have
    rows = [(STUDY + i, SUBJECT + max(i - 4, i // 3)) for i in range(40)]
    for study, subject in rows:
        files.report(study, subject, mimic_report(f"{TEXT} no acute effusion."))
    files.labels([(subject, study, {"Edema": study % 2}) for study, subject in rows])
    split = [
        "validate" if i in (20, 21) else "test" if i in (22, 23) else "train" for i in range(40)
    ]
    files.splits(
        [(study, subject, part) for (study, subject), part in zip(rows, split, strict=True)]
    )
    return source("mimic", folder / "mimic", "--config.data.labels=('Edema',)")


def ctrate(folder: Path) -> list[str]:
    volumes = [f"{VOLUME}{i}_a_1" for i in range(60)]
    volumes += [v.replace("train", "valid") for v in volumes[:5]]
    write_ctrate(
        folder / "ct",
        dict.fromkeys(volumes, (f"{TEXT} lungs clear", "normal")),
        {v: ("Emphysema",) if v[-5] in "02468" else () for v in volumes},
    )
    return source(
        "ctrate", folder / "ct", "--config.data.labels=('Emphysema',)",
        "--config.data.validation_fraction=0.2",
    )  # fmt: skip


PADCHEST = [
    (f"{REPORT}{i}", f"{PATIENT}{i // 2}", f"{TEXT} normal", f"['{'normal' if i % 2 else 'x'}']", m)
    for i, m in enumerate(["Physician", "RNN_model"] * 40)
]


def padchest(folder: Path, *extra) -> list[str]:
    path = write_padchest(folder / "padchest.csv.gz", [*PADCHEST, *extra])
    return source("padchest", path, "--config.data.labels=('normal',)")


COLUMNS = ["study", "who", "text", "edema", "part", "tags"]
SPLITS = ["train"] * 8 + ["validation", "test"]
ROWS = [
    [f"{REPORT}{i}", f"{PATIENT}{i}", f"{TEXT} enlarged heart", i % 2, SPLITS[i % 10], "edema"]
    for i in range(60)
]


def table(path: Path, *extra, more: tuple[str, ...] = ()) -> list[str]:
    """A table in the format of the path's suffix; a string in `extra` is a line as it stands."""
    rows = [*ROWS, *(row for row in extra if not isinstance(row, str))]
    records = [dict(zip(COLUMNS, row, strict=False)) for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif path.suffix == ".parquet":
        columns = [[row[i] for row in rows] for i in range(len(COLUMNS))]
        columns[3] = list(map(str, columns[3]))  # Parquet has one type in a column
        pq.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True))), path)
    else:
        write_table(path, COLUMNS, rows)
    with path.open("a") as file:
        file.writelines(row for row in extra if isinstance(row, str))
    return source(
        "table", path, "--config.data.labels=('edema',)", "--config.data.id_column=study",
        "--config.data.patient_column=who", "--config.data.split_column=part", *more,
    )  # fmt: skip


def teacher(folder: Path, rows, header=("study_id", "edema")) -> list[str]:
    path = write_table(folder / "teacher.csv", header, rows)
    flags = [f"--config.teacher.path={path}", "--config.teacher.origin=a model"]
    return [*table(folder / "t.csv"), *flags]


TAUGHT = [[row[0], row[3]] for row in ROWS]

SOUND = {
    "openi": openi,
    "mimic": mimic,
    "ctrate": ctrate,
    "padchest": padchest,
    "csv": lambda folder: table(folder / "t.csv"),
    "jsonl": lambda folder: table(folder / "t.jsonl"),
    "parquet": lambda folder: table(folder / "t.parquet"),
    "teacher": lambda folder: teacher(folder, TAUGHT),
}
"""Name -> writes the collection and returns the flags that choose it."""
