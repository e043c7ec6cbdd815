# SPDX-License-Identifier: Apache-2.0
"""CT-RATE on small SYNTHETIC copies of its tables."""

import gzip
import shutil

import numpy as np
import pytest
from helpers_data import CANARY, CTRATE_LABELS, CTRATE_PATHS, write_ctrate, write_table

from jaxdp.data.ctrate import LABELS, load_ctrate
from jaxdp.data.dataset import DataError

REPORTS = {
    "train_1_a_1": ("Nodule, 3 mm.\nNo effusion.", "Nodule."),
    "train_1_a_2": ("Nodule, 3 mm.\nNo effusion.", "Nodule."),
    "train_1_b_1": ("Not given.", "Unchanged."),
    "train_2_a_1": ("Normal.", "Not given."),
    "train_3_a_1": ("Not given.", "not given. "),
    "train_4_a_1": ("", "nan"),
    "train_5_a_1": ("No labels.", "None here."),
    "valid_1_a_1": ("Emphysema.", "Emphysema."),
    "valid_1_a_2": ("Emphysema.", "Emphysema."),
}
POSITIVE = {
    "train_1_a_1": ("Lung nodule",),
    "train_1_a_2": ("Lung nodule",),
    "train_1_b_1": (),
    "train_2_a_1": (),
    "train_3_a_1": ("Cardiomegaly",),
    "train_4_a_1": (),
    "valid_1_a_1": ("Emphysema", "Medical material"),
    "valid_1_a_2": ("Emphysema", "Medical material"),
    "valid_2_a_1": (),
}


@pytest.fixture
def root(tmp_path):
    return write_ctrate(tmp_path, REPORTS, POSITIVE)


def load(root, **kwargs):
    return load_ctrate(root, **({"validation_fraction": 0.0} | kwargs))


def texts(data):
    return dict(zip(data.report_ids.tolist(), data.texts, strict=True))


def test_one_row_per_scan(root):
    data = load(root)
    assert texts(data) == {
        "train_1_a": "Nodule, 3 mm. No effusion.\nNodule.",
        "train_1_b": "Unchanged.",
        "train_2_a": "Normal.",
        "valid_1_a": "Emphysema.\nEmphysema.",
    }
    assert data.patient_ids.tolist() == ["train_1", "train_1", "train_2", "valid_1"]
    assert data.counts == {
        "rows read": 9,
        "reports": 7,
        "labelled scans without a report": 1,
        "reports without labels, dropped": 1,
        "reports without text, dropped": 2,
    }


def test_labels_by_exact_name_in_order(root):
    data = load(root)
    assert data.label_names == tuple(CTRATE_LABELS) == LABELS and len(LABELS) == 18
    positive = [
        [n for n, v in zip(data.label_names, row, strict=True) if v == 1] for row in data.labels
    ]
    assert positive == [["Lung nodule"], [], [], ["Medical material", "Emphysema"]]
    assert load(root, labels=("Emphysema",)).labels.T.tolist() == [[0, 0, 0, 1]]
    assert data.label_origin.startswith("predicted from the reports by RadBERT")
    with pytest.raises(
        DataError,
        match="19 columns, none of them 'Emphysem'; column 9 is nearly",
    ):
        load(root, labels=("Emphysem",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("findings", {"train_1_a": "Nodule, 3 mm. No effusion.", "train_2_a": "Normal."}),
        ("impression", {"train_1_a": "Nodule.", "train_1_b": "Unchanged."}),
        (
            "impression+findings",
            {
                "train_1_a": "Nodule.\nNodule, 3 mm. No effusion.",
                "train_1_b": "Unchanged.",
                "train_2_a": "Normal.",
            },
        ),
    ],
)
def test_text_choice(root, text, expected):
    found = texts(load(root, text=text))
    found.pop("valid_1_a")
    assert found == expected


def test_official_validation_is_the_test_split_and_train_is_cut_by_patient(tmp_path):
    volumes = [f"train_{p}_{s}_1" for p in range(400) for s in "ab"] + ["valid_1_a_1"]
    root = write_ctrate(tmp_path, dict.fromkeys(volumes, ("x", "y")), dict.fromkeys(volumes, ()))
    data = load_ctrate(root)
    assert data.splits[data.patient_ids == "valid_1"].tolist() == ["test"]
    assert (data.splits == "test").sum() == 1
    held_out = np.unique(data.patient_ids[data.splits == "validation"])
    # binomial(400, 0.05): mean 20, standard deviation 4.4
    assert 3 < len(held_out) < 42
    assert (load(root).splits == "validation").sum() == 0
    other = load_ctrate(root, split_seed=1)
    assert set(held_out) != set(other.patient_ids[other.splits == "validation"])


def test_reconstructions_that_disagree_are_counted_and_the_first_wins(tmp_path):
    reports = {
        "train_1_a_1": ("Not given.", ""),
        "train_1_a_2": ("A.", ""),
        "valid_1_a_1": ("B", ""),
    }
    labels = {"train_1_a_1": ("Emphysema",), "train_1_a_2": (), "valid_1_a_1": ()}
    data = load(write_ctrate(tmp_path, reports, labels), labels=("Emphysema",))
    assert data.texts == ["A.", "B"] and data.labels.tolist() == [[1], [0]]
    assert data.counts["reconstructions whose text differs from the scan's first"] == 1
    assert data.counts["reconstructions whose labels differ from the scan's first"] == 1


def test_packed_tables_flat_in_the_root(root, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in CTRATE_PATHS.values():
        content = gzip.compress((root / path).read_bytes())
        (flat / f"{path.rsplit('/', 1)[1]}.gz").write_bytes(content)
    assert texts(load(flat)) == texts(load(root / "dataset"))


@pytest.mark.parametrize("first", [0, 1])
def test_names_may_hold_the_path_in_the_repository(root, tmp_path, first):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in CTRATE_PATHS.values():
        shutil.copy(root / path, flat / "_".join(path.split("/")[first:]))
    assert texts(load(flat)) == texts(load(root / "dataset"))
    # A name that merely ends like one is somebody's own table.
    reports = flat / "_".join(CTRATE_PATHS["train", "reports"].split("/")[first:])
    reports.rename(flat / "filtered_train_reports.csv")
    with pytest.raises(DataError, match=r"train_reports.csv \(MISSING\)"):
        load(flat)


def test_revisions_in_the_hubs_cache_may_link_to_the_same_files(root, tmp_path):
    cache = tmp_path / "hub" / "datasets--ibrahimhamamci--CT-RATE"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(CTRATE_PATHS.values()):
        blob = shutil.copy(root / path, cache / "blobs" / f"{number:064x}")
        for revision in ("1" * 40, "2" * 40):
            link = cache / "snapshots" / revision / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    assert texts(load(tmp_path / "hub")) == texts(load(root / "dataset"))
    changed = cache / "snapshots" / ("2" * 40) / CTRATE_PATHS["valid", "reports"]
    content = changed.read_bytes()
    changed.unlink()
    changed.write_bytes(content + b"\n")
    with pytest.raises(DataError, match="several versions of one file") as error:
        load(cache)
    assert all(f"{r * 40}/{CTRATE_PATHS['valid', 'reports']}" in str(error.value) for r in "12")
    assert "train_reports.csv" not in str(error.value)


def test_volumes_without_a_chest_are_dropped_and_counted(root):
    before = texts(load(root))
    lists = root / "dataset" / "metadata"
    lists.mkdir()
    # In both forms that are about; of the first scan another volume is left, of the second none.
    listed = ["train/train_1/train_1_a/train_1_a_1.nii.gz", "train_1_b_1.nii.gz", ""]
    (lists / "no_chest_train.txt").write_text("\n".join(listed))
    data = load(root)
    before.pop("train_1_b")
    assert texts(data) == before and "train_1_a" in before
    assert data.counts["volumes without a chest, dropped"] == 2
    assert data.counts["reports"] == 6 and data.counts["labelled scans without a report"] == 1
    (lists / "no_chest_valid.txt").write_text("valid_1_a_1.nii.gz\r\nvalid_1_a_2.nii.gz\r\n")
    data = load(root)
    assert data.counts["volumes without a chest, dropped"] == 4
    assert set(data.splits) == {"train"}
    (lists / "no_chest_valid.txt").write_text(f"valid_1_a_1.nii.gz\n{CANARY}\n")
    with pytest.raises(DataError, match="no_chest_valid.txt: row 2 has no VolumeName") as error:
        load(root)
    assert CANARY not in str(error.value)


def test_the_texts_and_labels_of_such_a_volume_do_not_count(tmp_path):
    reports = {
        "train_1_a_1": ("A head.", ""),
        "train_1_a_2": ("A chest.", ""),
        "valid_1_a_1": ("x", ""),
    }
    labels = {"train_1_a_1": ("Emphysema",), "train_1_a_2": (), "valid_1_a_1": ()}
    write_ctrate(tmp_path, reports, labels)
    (tmp_path / "no_chest_train.txt").write_text("train_1_a_1.nii.gz\n")
    data = load(tmp_path, labels=("Emphysema",))
    assert data.texts == ["A chest.", "x"] and data.labels.tolist() == [[0], [0]]
    assert not any("differs from" in count for count in data.counts)


def test_folders_of_volumes_are_not_searched(root):
    nested = root / "dataset" / "train" / "train_1"
    nested.mkdir(parents=True)
    (nested / "train_reports.csv").write_text("not this one")
    assert len(load(root)) == 4


def test_wrong_root(root):
    with pytest.raises(DataError) as error:
        load(root / "dataset" / "radiology_text_reports")
    message = str(error.value)
    assert "train_reports.csv (found)" in message
    assert "valid_predicted_labels.csv (MISSING)" in message
    assert "At its top: train_reports.csv, validation_reports.csv." in message
    assert "ibrahimhamamci/CT-RATE" in message and "\n" not in message


@pytest.mark.parametrize(
    ("part", "header", "row", "message"),
    [
        (("train", "reports"), ["VolumeName", "Findings_EN", "Impressions_EN"], ["valid_1_a_1.nii.gz", CANARY, ""], "train_reports.csv: row 2 has no VolumeName like train_53_a_1"),  # noqa: E501
        (("train", "reports"), ["VolumeName", "Findings_EN", "Impressions_EN"], [CANARY, "", ""], "row 2 has no VolumeName"),  # noqa: E501
        (("train", "reports"), ["VolumeName", "Findings_EN"], ["train_1_a_1", CANARY], "row 1 must name the columns; it has 2 columns, none of them 'Impressions_EN'$"),  # noqa: E501
        (("valid", "labels"), ["VolumeName", "Emphysema"], ["valid_1_a_1", "0.5"], "row 2: label 1 of 1 is not 1, yes"),  # noqa: E501
        (("valid", "labels"), ["VolumeName", "Emphysema"], ["valid_1_a_1", ""], "row 2 has a label that is not 0 or 1"),  # noqa: E501
        (("valid", "labels"), ["VolumeName", "Emphysema"], ["valid_1_a_1"], "row 2 has 1 fields, the header has 2"),  # noqa: E501
    ],
)  # fmt: skip
def test_refusals_name_file_and_row(root, part, header, row, message):
    write_table(root / CTRATE_PATHS[part], header, [row])
    with pytest.raises(DataError, match=message) as error:
        load(root, labels=("Emphysema",))
    assert CANARY not in str(error.value)


def test_lfs_pointer(root):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (root / CTRATE_PATHS["train", "reports"]).write_text(pointer)
    with pytest.raises(DataError, match="train_reports.csv is a Git LFS pointer"):
        load(root)


def test_unknown_choices(root):
    with pytest.raises(DataError, match="data.text must be one of findings"):
        load(root, text="labelled-section")
