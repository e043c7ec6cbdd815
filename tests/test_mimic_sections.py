# SPDX-License-Identifier: Apache-2.0
"""The section rules, each on a synthetic report. MIMIC-CXR's own reports are not public."""

import pytest
from helpers_data import mimic_report

from jaxdp.data import mimic_sections
from jaxdp.data.mimic_sections import labelled_section, named_sections, section_name, split_sections

STUDY = 50000001


@pytest.mark.parametrize(
    ("header", "section"),
    [
        ("IMPRESSION", "impression"),
        ("CONCLUSION", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("FINDINGS/ IMPRESSION", "impression"),
        ("NDICATION", "impression"),  # odd, but what the authors did
        ("IMPRESSOIN", "impression"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PORTABLE AP CHEST", "findings"),
        ("RIBS", "findings"),
        ("FINDNGS", "findings"),
        ("REFERENCE FINDINGS", "findings"),
        ("PFI", "history"),
        ("CLINICAL HISTORY", "history"),
        ("PATIENT HISTORY", "history"),
        ("COMPARISION", "comparison"),
        ("COMPARISONS", "comparison"),
        ("COMPARISON FILM", "comparison"),
        ("COMPARISON EXAM", "comparison"),
        ("ADDENDUM (A)", "addendum"),
        ("FINAL IMPRESSION OF CHEST", "impression"),  # a contained section beats the views
        ("WETREAD", "wet read"),
        ("TECHNIQUE", "technique"),
        ("SIGNED BY", "signed by"),
    ],
)
def test_section_name(header, section):
    assert section_name(header) == section


def test_impression_wins_and_findings_are_not_joined():
    assert labelled_section(mimic_report("Effusion.", "Heart."), STUDY) == "Effusion."
    assert labelled_section(mimic_report(None, "Heart."), STUDY) == "Heart."


def test_empty_impression_does_not_count():
    assert labelled_section(mimic_report("  ", "Heart."), STUDY) == "Heart."


def test_the_last_of_several_impressions():
    text = mimic_report("First.") + " \n IMPRESSION:\n \n Second.\n"
    assert labelled_section(text, STUDY) == "Second."


def test_header_needs_a_newline_a_space_and_capitals():
    for header in ("\nIMPRESSION: x", "\n\tIMPRESSION: x", " IMPRESSION: x", "\n Impression: x"):
        assert split_sections(header) == [("full report", header)]
    assert split_sections("\n IMPRESSION: x") == [("preamble", "\n "), ("impression", "x")]


def test_no_header_on_the_line_after_a_header_that_ends_its_line():
    # the newline belongs to the first header, so the next line is skipped
    text = "\n INDICATION:\n FINDINGS: a\n IMPRESSION: b"
    assert split_sections(text)[1:] == [("indication", " FINDINGS: a"), ("impression", "b")]


def test_last_paragraph_when_there_is_neither_impression_nor_findings():
    text = mimic_report(tail=" \n Lungs clear.\n \n Heart normal.\n")
    # all that follows the first blank line of the last section
    assert labelled_section(text, STUDY) == "Lungs clear.\n \n Heart normal."
    assert split_sections(text)[-2] == ("comparison", " ___")


def test_without_headers_the_last_paragraph_follows_the_first_blank_line():
    assert labelled_section("A title\n \n The lungs.\n", STUDY) == "The lungs."
    assert labelled_section("only one paragraph", STUDY) == ""


def test_comparison_is_the_last_resort():
    assert labelled_section("\n COMPARISON: none. Clear lungs.", STUDY) == "none. Clear lungs."


def test_addendum_on_top_keeps_the_report_below():
    addendum = " ADDENDUM:  Dr. ___ was told.\n \n" + "_" * 77 + "\n"
    text = "\n" + addendum + mimic_report("Effusion.")
    assert labelled_section(text, STUDY) == "Effusion."


def test_studies_whose_section_has_another_name():
    text = mimic_report("Not this.") + " \n RECOMMENDATION(S):  This.\n"
    assert labelled_section(text, STUDY) == "Not this."
    assert labelled_section(text, 50913680) == "This."


def test_studies_cut_by_offsets():
    text = "x" * 200 + " " + "y" * 148 + "z" * 50
    assert labelled_section(text, 50525523) == "y" * 148
    # and eight without findings at all
    assert labelled_section(mimic_report("Ignored."), 58235663) == ""
    offsets = list(mimic_sections._OFFSETS.values())
    assert len(offsets) == 31 and offsets.count((0, 0)) == 8 and len(mimic_sections._NAME_OF) == 23


def test_named_sections():
    text = mimic_report("I.", "F.")
    assert named_sections(text, ("impression", "findings")) == "I.\nF."
    assert named_sections(text, ("findings",)) == "F."
    assert named_sections(mimic_report(), ("findings", "impression")) == ""
