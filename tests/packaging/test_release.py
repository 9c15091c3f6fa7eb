"""What a release must not forget (CONTRIBUTING.md, "Making a release")."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from tests.packaging import sbom
from tests.packaging.ready import lacking
from wai_relay.installer.wheel import DISTRIBUTION
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


def test_relay_and_installer_look_for_a_wheel_of_another_name() -> None:
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    script = (ROOT / "install.sh").read_text()
    assert name == DISTRIBUTION
    assert f"grep -qs '^name = \"{name}\"'" in script
    assert f'"$work"/{name.replace("-", "_")}-*.whl' in script


DAY: Final = datetime.date(2026, 11, 29)
WHOLE: Final = f"# Changelog\n\n## [Unreleased]\n\n## [{VERSION}] - 2026-11-29\n\n- A thing.\n"


def test_a_commit_that_has_all_is_refused() -> None:
    assert lacking(WHOLE, "", ["v0.0.1"], DAY) == []


def test_a_commit_is_tagged_that_lacks_something() -> None:
    for changelog, changed, tags, day, said in (
        (WHOLE.replace(VERSION, "9.9.9"), "", [], DAY, "no section"),
        (WHOLE, "", [], DAY + datetime.timedelta(1), "the commit of 2026-11-30"),
        (WHOLE.replace("sed]\n", "sed]\n\n- Late.\n"), "", [], DAY, "under [Unreleased]"),
        (WHOLE, " M README.md\n", [], DAY, "not committed"),
        (WHOLE, "", [f"v{VERSION}"], DAY, "a tag"),
    ):
        [told] = lacking(changelog, changed, tags, day)
        assert said in told


@pytest.mark.long
def test_the_sbom_does_not_fit_its_schema_or_leaves_something_out() -> None:
    made = sbom.document()
    assert sbom.problems(json.dumps(made)) == ""
    assert made["metadata"]["component"]["version"] == VERSION
    names = {one["name"] for one in made["components"]}
    locked = re.findall(r"^([a-z0-9-]+)==", sbom.LOCK.read_text(), re.MULTILINE)
    assert len(locked) > 20
    assert set(locked) <= names
    assert {"preact", "@preact/signals"} <= names
    assert sbom.problems('{"specVersion": "1.6", "bomFormat": "CycloneDX", "components": 3}')
