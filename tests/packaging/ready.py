"""Says what a release still lacks: `python -m tests.packaging.ready`.

`make release-check` calls it. The tag is made of a commit: what is not committed is not released.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from typing import Final

from tests.packaging.build import ROOT
from wai_transport.version import VERSION

_SECTION: Final = re.compile(r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)


def lacking(changelog: str, changed: str, tags: list[str], day: datetime.date) -> list[str]:
    """What is missing, a sentence each. `changed`: the files that differ from the commit, as git
    prints them; `day`: that of the commit."""
    told = []
    sections = dict(_SECTION.findall(changelog))
    if not re.fullmatch(r"\d+\.\d+\.\d+", VERSION):
        told.append(f"the version is {VERSION}: set it in protocol/wai_transport/version.py")
    dated = sections.get(VERSION)
    if dated is None:
        told.append(f"CHANGELOG.md has no section [{VERSION}]")
    elif dated != day.isoformat():
        told.append(f"the section [{VERSION}] of CHANGELOG.md is of {dated}, the commit of {day}")
    between = changelog.partition("## [Unreleased]")[2].partition("\n## ")[0]
    if between.strip():
        told.append(f"CHANGELOG.md has changes under [Unreleased]: are they not in {VERSION}?")
    if not (ROOT / f"protocol/vectors/peers/wai-{VERSION}.json").is_file():
        told.append(f"what both ends of {VERSION} say is not recorded (CONTRIBUTING.md)")
    if changed.strip():
        told.append(f"these files are not committed:\n{changed.rstrip()}")
    if f"v{VERSION}" in tags:
        told.append(f"there is a tag v{VERSION} already")
    return told


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Print what is missing; 1 if anything is."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    seconds = int(_git("log", "-1", "--format=%ct"))
    day = datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()
    told = lacking(changelog, _git("status", "--porcelain"), _git("tag").split(), day)
    for one in told:
        print(one)
    if not told:
        print(f"this commit can be tagged v{VERSION}")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
