"""What a release must not forget (CONTRIBUTING.md, "Making a release")."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from wai_transport.version import VERSION

ROOT: Final = Path(__file__).parents[2]


def test_the_version_is_not_one_of_semantic_versioning() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+|\.dev\d+)?", VERSION)


def test_later_versions_could_not_be_tested_against_this_one() -> None:
    assert (ROOT / f"protocol/vectors/peers/wai-{VERSION}.json").is_file()


def test_the_changelog_has_no_place_for_the_next_change() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", h) for h in headings[1:])
