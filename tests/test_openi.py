# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from helpers_data import CANARY, openi_xml, write_openi

from jaxdp.data.dataset import DataError
from jaxdp.data.openi import load_openi


def ten_reports():
    members = {
        f"ecgen-radiology/{i}.xml": openi_xml(
            patient=str(i), majors=("normal",) if i % 2 else ("Opacity/lung/base", "Nodule")
        )
        for i in range(10)
    }
    return members | {"ecgen-radiology/readme.txt": b"not a report"}


def test_reads_text_labels_and_ids(tmp_path):
    data = load_openi(write_openi(tmp_path / "r.tgz", ten_reports()), labels=("normal", "opacity"))
    assert len(data) == 10 and data.label_names == ("normal", "opacity")
    assert data.texts[0] == "The heart is normal.\nNo acute disease."
    # the heading is the part before the first slash; even reports carry Opacity
    expected = [[i % 2, 1 - i % 2] for i in range(10)]
    by_id = {int(r): row.tolist() for r, row in zip(data.report_ids, data.labels, strict=True)}
    assert [by_id[i] for i in range(10)] == expected
    assert data.counts == {"reports read": 10, "reports without text, dropped": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("findings", "F"), ("impression", "I"), ("findings+impression", "F\nI")],
)
def test_text_choice(tmp_path, text, expected):
    xml = openi_xml("F", "I")
    data = load_openi(write_openi(tmp_path / "r.tgz", {"1.xml": xml}), text=text, labels=["normal"])
    assert data.texts == [expected]


def test_any_mesh_heading_is_a_label(tmp_path):
    data = load_openi(write_openi(tmp_path / "r.tgz", ten_reports()), labels=("Nodule",))
    assert data.labels.sum() == 5


def test_empty_text_is_dropped_and_counted(tmp_path):
    members = ten_reports() | {
        "no_section.xml": openi_xml(None, None),
        "blank.xml": openi_xml("  \n ", "\t"),
        "half.xml": openi_xml(None, "Only an impression."),
    }
    data = load_openi(write_openi(tmp_path / "r.tgz", members), labels=["normal"])
    assert len(data) == 11 and "Only an impression." in data.texts
    assert data.counts["reports without text, dropped"] == 2


def test_report_without_patient_is_its_own_patient(tmp_path):
    members = {"x.xml": openi_xml(patient=None)}
    data = load_openi(write_openi(tmp_path / "r.tgz", members), labels=["normal"])
    assert data.patient_ids.tolist() == ["x"]


def test_label_that_never_occurs(tmp_path):
    archive = write_openi(tmp_path / "r.tgz", ten_reports())
    with pytest.raises(DataError, match="no report carries 'cicatrix'"):
        load_openi(archive, labels=("normal", "cicatrix"))


def test_unknown_text_choice(tmp_path):
    with pytest.raises(DataError, match="data.text must be one of findings"):
        load_openi(tmp_path / "unread.tgz", text="everything")


def test_a_folder_stands_for_the_archive_in_it(tmp_path):
    for missing in (tmp_path / "absent.tgz", tmp_path):
        with pytest.raises(DataError, match="does not exist; expected .*NLMCXR_reports.tgz"):
            load_openi(missing)
    write_openi(tmp_path / "NLMCXR_reports.tgz", ten_reports())
    assert len(load_openi(tmp_path, labels=("normal",))) == 10


@pytest.mark.parametrize("keep", [0, 1, 10, 200, 0.5, 0.9])
def test_broken_archive(tmp_path, keep):
    # random bytes do not compress, so that every cut falls inside the members
    noise = np.random.default_rng(0).integers(33, 127, 40_000, np.uint8).tobytes()
    members = ten_reports() | {"noise.xml": b"<a><!--" + noise.replace(b"-", b"+") + b"--></a>"}
    whole = write_openi(tmp_path / "r.tgz", members).read_bytes()
    broken = tmp_path / "broken.tgz"
    broken.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match="broken.tgz is not a complete tar archive"):
        load_openi(broken, labels=["normal"])


def test_flipped_byte_is_noticed(tmp_path):
    archive = write_openi(tmp_path / "r.tgz", ten_reports())
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError):
        load_openi(archive, labels=["normal"])


@pytest.mark.parametrize("name", ["../1.xml", "a/../../1.xml", "/etc/1.xml"])
def test_unsafe_member(tmp_path, name):
    archive = write_openi(tmp_path / "r.tgz", {name: openi_xml()})
    with pytest.raises(DataError, match="unsafe member path"):
        load_openi(archive, labels=["normal"])
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (f"<eCitation>\n{CANARY} & <open>", "line 2: not well-formed"),
        (f"<eCitation>\n\n&{CANARY};</eCitation>", "line 3: undefined entity"),
        (f"<{CANARY}></eCitation>", "line 1: mismatched tag"),
    ],
)
def test_xml_error_tells_the_place_but_neither_text_nor_name(tmp_path, content, problem):
    members = {"fine.xml": openi_xml(), f"{CANARY}.xml": content.encode()}
    with pytest.raises(DataError, match=f"r.tgz: XML file 2, {problem}") as error:
        load_openi(write_openi(tmp_path / "r.tgz", members))
    assert CANARY not in str(error.value)


def test_nothing_usable(tmp_path):
    with pytest.raises(DataError, match="no usable report"):
        load_openi(write_openi(tmp_path / "r.tgz", {"1.xml": openi_xml(None, None)}))
    with pytest.raises(DataError, match="no usable report"):
        load_openi(write_openi(tmp_path / "r.tgz", {"a.txt": b""}))


def test_same_name_twice(tmp_path):
    members = {"a/1.xml": openi_xml(), "b/1.xml": openi_xml()}
    with pytest.raises(DataError, match="repeats a report id"):
        load_openi(write_openi(tmp_path / "r.tgz", members), labels=["normal"])
