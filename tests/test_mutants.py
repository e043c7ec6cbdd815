# SPDX-License-Identifier: Apache-2.0
"""The mutation table keeps up with the code. The mutants themselves: tests/mutants/run.py."""

from pathlib import Path

import pytest
from mutants.table import MUTANTS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_applies_exactly_once_and_its_killer_exists(mutant):
    source = (ROOT / "jaxdp" / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
    file, test = mutant.killer.split("::")
    assert f"def {test.split('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_there_are_enough_and_no_two_are_the_same():
    assert len(MUTANTS) >= 30
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len({m.name for m in MUTANTS})
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
