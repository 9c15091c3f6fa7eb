"""`wai relay`: run a relay; `wai relay list|drain|undrain`: those that share its database;
`wai relay import`: move one into such a database."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from wai_cli.client.target import add_target_options
from wai_cli.options.paths import add_data_option, relay_data
from wai_cli.options.values import named
from wai_transport.heap import hold_heap

from .relay_import import configure as configure_import

_EXAMPLES = """\
examples:
  wai relay                                     on 127.0.0.1:8443, with a certificate of its own
  wai relay --listen :443 --tls acme --domain llm.example.com
  wai relay --listen :443 --tls fullchain.pem,privkey.pem
  wai relay --listen 127.0.0.1:8080 --tls off   behind a proxy that ends TLS
  wai relay --database postgresql://wai@db.example.com/wai --database-password-file FILE
  wai relay list                                the relays that share a database

Every flag is also a key of the --config file and a variable WAI_RELAY_…; a flag wins.
`wai settings relay` prints a file with all keys and what they mean."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai relay`."""
    parser.epilog = _EXAMPLES
    add_data_option(parser, relay_data(), "relay")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings, in TOML")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help=":PORT is every address, IPv4 and IPv6 (default: 127.0.0.1:8443)",
    )
    parser.add_argument(
        "--tls", metavar="MODE", help="self-signed (default), acme, off, or CERT,KEY: two PEM files"
    )
    parser.add_argument(
        "--domain", metavar="NAME", help="the name that --tls acme gets a certificate for"
    )
    parser.add_argument(
        "--acme-directory", metavar="URL", help="the ACME authority (default: Let's Encrypt)"
    )
    parser.add_argument(
        "--acme-email", metavar="ADDRESS", help="address for messages of the ACME authority"
    )
    parser.add_argument(
        "--public-url", metavar="URL", help="the URL for nodes and callers, if not --listen's"
    )
    parser.add_argument(
        "--proxy-pin",
        metavar="HEX[,HEX]",
        dest="proxy_key_sha256",
        help="with --tls off: SHA-256 of the proxy's public key, by which nodes authenticate it",
    )
    parser.add_argument(
        "--node-url",
        metavar="URL",
        help="the URL by which nodes reach this very relay, if --public-url leads to several",
    )
    parser.add_argument(
        "--shared-listen",
        metavar="HOST:PORT",
        help="a port that several relays of this machine have, each beside its own --listen",
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="PostgreSQL, for several relays: postgresql://USER@HOST/DATABASE (default: a file)",
    )
    parser.add_argument(
        "--database-password-file",
        metavar="FILE",
        type=Path,
        help="file with the password for --database",
    )
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    parser.add_argument("--log-format", metavar="FORMAT", help="text (default) or json")
    parser.set_defaults(run=_run)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", help="without one: run it")
    _configure_actions(actions)


def _configure_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = actions.add_parser("list", help="list the relays that share a database")
    listing.set_defaults(run=partial(_on_relays, "list_relays"))
    drain = actions.add_parser("drain", help="send a relay no more callers, until it is stopped")
    drain.set_defaults(run=partial(_on_relays, "drain"))
    undrain = actions.add_parser("undrain", help="send a drained relay callers again")
    undrain.set_defaults(run=partial(_on_relays, "undrain"))
    summary = "move a relay from its data folder into PostgreSQL"
    configure_import(
        actions.add_parser(
            "import",
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    for action in (drain, undrain):
        action.add_argument("name", metavar="NAME", type=named, help="the relay's name or id")
    for action in (listing, drain, undrain):
        add_target_options(action, data_above=True)  # `wai relay --data DIR list` means that one
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _on_relays(action: str, parsed: argparse.Namespace) -> int:
    """Run a command on the fleet's relays; `wai relay` itself need not load its module."""
    status: int = getattr(import_module("wai_cli.commands.relays"), action)(parsed)
    return status


def _run(parsed: argparse.Namespace) -> int:
    hold_heap()  # until the relay is ready
    from wai_cli.options.proxy import proxy_settings
    from wai_cli.options.settings import load
    from wai_cli.output.logs import log_to_stderr
    from wai_relay.config import RelayConfig
    from wai_relay.main import run
    from wai_transport.private_process import keep_memory_private

    names = (
        *("data", "listen", "shared_listen", "tls", "public_url", "node_url", "domain"),
        *("acme_directory", "acme_email", "proxy_key_sha256", "log_level", "log_format"),
        *("database", "database_password_file"),
    )
    flags = {name: getattr(parsed, name) for name in names} | proxy_settings("WAI_RELAY_")

    def read() -> RelayConfig:
        return load(
            RelayConfig,
            file=parsed.config,
            environment=os.environ,
            prefix="WAI_RELAY_",
            flags=flags,
        )

    def show_log(config: RelayConfig) -> None:
        log_to_stderr(config.log_level, config.log_format)

    config = read()
    show_log(config)
    if parsed.database is not None and config.postgres is not None and config.postgres.has_password:
        logging.getLogger("wai.relay").warning(
            "every user of this machine can read the password in --database: use"
            " --database-password-file, or WAI_RELAY_DATABASE"
        )
    keep_memory_private()
    run(config, read, show_log, _show_link if sys.stderr.isatty() else None)
    return 0


def _show_link(link: str) -> None:
    print(f"dashboard: {link}", file=sys.stderr)
    print("(that link signs one browser in, within ten minutes)", file=sys.stderr, flush=True)
