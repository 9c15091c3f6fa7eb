"""The documentation's site: it is built without a complaint, is whole, and loads nothing from
elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wai_cli.commands.settings import PROGRAMS, settings_of
from wai_cli.main import GROUPS
from wai_cli.options.reference import tables_of

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
LOADED = re.compile(r'<(?:script|img|iframe|link rel="stylesheet")[^>]*?(?:src|href)="([^"]*)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    command += ["--config-file", str(ROOT / ".ci/mkdocs.yml"), "--site-dir", str(folder)]
    built = subprocess.run(
        command,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    # Links and anchors that lead nowhere, and pages that are in no menu, are warnings.
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return folder


def test_every_page_is_there_and_in_the_menu(site: Path) -> None:
    home = (site / "index.html").read_text()
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    for page in pages:
        address = page.with_suffix(".html").as_posix().replace("README", "index")
        assert (site / address).is_file()
        assert f'href="{address}"' in home, f"{address} is in no menu of .ci/mkdocs.yml"


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    loaded = {url for page in site.rglob("*.html") for url in LOADED.findall(page.read_text())}
    assert loaded
    assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))]


def test_an_image_is_shown_that_is_not_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        for source in re.findall(r'<img [^>]*?src="([^":]*)"', page.read_text()):
            assert (page.parent / source).is_file(), f"{page.name}: {source}"
    assert "<img " in (site / "index.html").read_text()


def test_each_command_has_its_help(site: Path) -> None:
    text = (site / "commands.html").read_text()
    assert all(f"usage: wai {command}" in text for command in GROUPS)
    assert "usage: wai node engine install" in text


def test_each_setting_has_its_row(site: Path) -> None:
    text = (site / "configuration.html").read_text()
    for name in PROGRAMS:
        for table in tables_of(settings_of(name)):
            assert all(f"<code>{one.name}</code>" in text for one in table.settings)
    assert "<code>[[providers.models]]</code>" in text
