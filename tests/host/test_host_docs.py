"""The pages about hosts name rules that exist, and say the numbers that the code computes with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perilune.host.capacity import MemoryClass, propose_limit
from perilune.host.doctor import RULES
from perilune.host.firmware import MEC_FLOOR, no_scratch_reclaim, parse_mec
from perilune.host.profiles import profile
from perilune.host.sources import SOURCES
from perilune.units import GIB

DOCS = Path(__file__).parents[2] / "docs"
STRIX, INSTINCT = ((DOCS / name).read_text() for name in ("strix-halo.md", "instinct.md"))
ROOMS = {rule.id.split(".")[0] for rule in RULES}


@pytest.mark.parametrize("text", [STRIX, INSTINCT])
def test_rules_that_are_named_exist(text: str) -> None:
    named = {word for word in re.findall(r"`([a-z]+\.[a-z_0-9]+)`", text) if word.split(".")[0] in ROOMS}
    assert named
    assert named <= {rule.id for rule in RULES}


def test_page_counts() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d{8}) \|", STRIX, re.MULTILINE)
    assert len(rows) == 6
    for gib, pages in rows:
        assert int(pages) == int(gib) * 262_144
    assert f"pages_limit={propose_limit(int(125.6 * GIB)).pages}'" in STRIX


def test_every_class_is_explained() -> None:
    assert all(f"`{found}`" in STRIX for found in MemoryClass)


def test_the_table_of_mec_versions() -> None:
    rows = [
        line.strip("|").split("|")
        for line in INSTINCT.splitlines()
        if line.startswith(("| version", "| flag", "| read"))
    ]
    header, read, *flags = ([cell.strip() for cell in row] for row in rows)
    for column in range(1, len(header)):
        for spelling in header[column].replace("empty", "``").split():
            version = parse_mec(spelling.strip("`"))
            assert read[column] == ("–" if version is None else str(version)), spelling
            for row, gfx in zip(flags, MEC_FLOOR, strict=True):
                assert row[column] == ("set" if no_scratch_reclaim(gfx, version) else "not set"), (spelling, gfx)


def test_devices() -> None:
    for name in ("mi300x", "mi355x"):
        assert f"{profile(name).memory:,} B" in INSTINCT


def test_no_source_is_listed_in_vain() -> None:
    assert set(SOURCES) == {key for rule in RULES for key in rule.sources}
