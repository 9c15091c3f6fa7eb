"""`wai manual`: write the manual pages of all commands and settings, for `man`."""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path

_EXAMPLES = """\
examples:
  wai manual ~/.local/share/man    then: man wai, man wai-node, man 5 wai-relay.toml
  sudo wai manual /usr/local/share/man

install.sh does it. Repeat it after an upgrade: the pages are those of this version."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai manual`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="where man looks; it gets man1 and man5"
    )
    parser.set_defaults(run=_write)


def _write(parsed: argparse.Namespace) -> int:
    from wai_cli.commands.settings import PROGRAMS, settings_of
    from wai_cli.options.paths import home
    from wai_cli.options.reference import tables_of
    from wai_cli.output.manual import manual_pages
    from wai_cli.output.tables import say
    from wai_protocol.errors import StoreError
    from wai_transport.version import VERSION

    settings = {
        f"wai-{name}.toml": (command, tables_of(settings_of(name)))
        for name, (command, _) in PROGRAMS.items()
    }
    os.environ["COLUMNS"] = "80"  # where argparse folds a usage, else by the terminal
    pages = manual_pages(parsed.whole(), settings, VERSION, _today(), str(home()))
    try:
        for name, text in pages.items():
            file = parsed.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{error.filename} can't be written: {error.strerror}") from error
    say(f"{len(pages)} manual pages are in {parsed.folder}")
    return 0


def _today() -> datetime.date:
    """The day of the build where one is given, so that the same source makes the same pages."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isdigit():
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).date()
    return datetime.datetime.now(datetime.UTC).date()
