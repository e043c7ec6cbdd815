# SPDX-License-Identifier: Apache-2.0
"""Sections of a MIMIC-CXR report, by the rules of the dataset's authors.

The published labels were computed on the section that these rules select, so text choice
"labelled-section" must select the same one. Rules, spellings, study numbers and offsets are facts
taken from the authors' public repository (MIT-LCP/mimic-cxr, txt/section_parser.py and
txt/create_section_files.py); the implementation is our own.
"""

import re
from collections.abc import Sequence

# A header starts a line after a space (stripping the text would lose it), in capitals.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")

# Section -> how its header is spelled (lower case) in the collection, where the general rules below
# would miss it or call it something else. "pfi" and "ndication" are as odd as in the source.
_SPELLINGS = {
    "impression": """conclusion|ndication|impresson|imprression|imoression|impressoin|imprssion
        |impresion|imperssion|mpression|impession""",
    "findings": "finding|findins|findindgs|findgings|findngs|findnings|finidngs",
    "comparison": "reference exam|comparision|comparsion|comparrison|comparisions",
    "indication": "reason for examination|reason for exam|clinical indication|idication",
    "history": "clinical information|pfi",
    "examination": "exam|type of examination",
    "recommendations": "recommendation(s)|recommendation",
    "wet read": "wetread",
}
_SECTION_OF = {
    spelling.strip(): section
    for section, spellings in _SPELLINGS.items()
    for spelling in spellings.split("|")
}
# Then: a header that contains one of these words, in this order of precedence ...
_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
# ... then: a header that describes the views stands for the findings below it.
_VIEWS = re.compile(
    "chest|portable|pa and lateral|lateral and pa|ap and lateral|lateral and ap|frontal and"
    "|two views|frontal view|pa view|ap view|one view|lateral view|bone window|frontal upright"
    "|frontal semi-upright|ribs|pa and lat"
)

LABELLED = ("impression", "findings", "last_paragraph", "comparison")
"""The labelled section is the first of these that a report has."""

# Studies whose labelled section has another name ...
_NAMED = {
    "recommendations": (50913680, 59768032, 59067458, 59087630, 58157373, 56482935, 58375018),
    "examination": (59363654, 53356173, 50743547, 59215320, 55157853),
    "technique": (59279892, 53202765, 50808053),
    "indication": (57936451, 50058765, 51966317, 55124749, 54365831, 54654948),
    "note": (56451190,),
    "history": (51491012,),
}
_NAME_OF = {study: name for name, studies in _NAMED.items() for study in studies}

# ... or no header at all: (start, end) in characters; (0, 0) is a report without any findings.
_OFFSETS = {
    50525523: (201, 349),
    57564132: (233, 554),
    59982525: (313, 717),
    53488209: (149, 475),
    54875119: (234, 988),
    50196495: (59, 399),
    56579911: (59, 218),
    52648681: (292, 631),
    59889364: (172, 453),
    53514462: (73, 377),
    59505494: (59, 450),
    53182247: (59, 412),
    51410602: (47, 320),
    56412866: (522, 822),
    54986978: (59, 306),
    59003148: (262, 505),
    57150433: (61, 394),
    56760320: (219, 457),
    59562049: (158, 348),
    52674888: (145, 296),
    55258338: (192, 568),
    59330497: (140, 655),
    52119491: (179, 454),
} | dict.fromkeys(
    (58235663, 50798377, 54168089, 53071062, 56724958, 54231141, 53607029, 52035334), (0, 0)
)


def section_name(header: str) -> str:
    """A header as it stands in a report -> the section it stands for, or itself in lower case."""
    name = header.lower().strip()
    if name in _SECTION_OF:
        return _SECTION_OF[name]
    for section in _CONTAINED:
        if section in name:
            return section
    return "findings" if _VIEWS.search(name) else name


def split_sections(text: str) -> list[tuple[str, str]]:
    """[(section name, its text)] in order of appearance; names can repeat.

    Args:
        text: of the file, newlines as \\n. Leading spaces matter: they mark headers.
    """
    header = _HEADER.search(text)
    if header is None:
        sections = [("full report", text)]
    else:
        sections = [("preamble", text[: header.start(1)])]
        while header is not None:
            name, start = section_name(header.group(1)), header.end()
            # A newline that ends this header is not there to begin another: as in the source, the
            # line below such a header is never one itself.
            header = _HEADER.search(text, start)
            sections.append((name, text[start : header.start() if header else len(text)]))
    sections = [
        (name, body)
        for name, body in sections
        if body.strip() or name not in ("impression", "findings")
    ]
    if not any(name in ("impression", "findings") for name, _ in sections):
        name, body = sections[-1]
        first, blank, rest = body.partition("\n \n")
        if blank:
            sections[-1:] = [(name, first), ("last_paragraph", rest)]
    return sections


def _last(sections: Sequence[tuple[str, str]], name: str) -> str | None:
    return next((body.strip() for n, body in reversed(sections) if n == name), None)


def labelled_section(text: str, study: int) -> str:
    """The text that the published labels were computed on; "" if the report has none."""
    if study in _OFFSETS:
        start, end = _OFFSETS[study]
        return text[start:end].strip()
    sections = split_sections(text)
    names = (_NAME_OF[study],) if study in _NAME_OF else LABELLED
    return next((body for n in names if (body := _last(sections, n)) is not None), "")


def named_sections(text: str, names: Sequence[str]) -> str:
    """The last section of each given name, joined by newlines; "" if there is none."""
    sections = split_sections(text)
    return "\n".join(filter(None, (_last(sections, name) for name in names)))
