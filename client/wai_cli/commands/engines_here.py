"""What `wai node engine list|install|use|remove` do on the machine of a node."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final

from wai_cli.options.proxy import proxy_settings
from wai_cli.output.progress import ProgressLine, bar, seconds_text, size_text
from wai_cli.output.tables import print_json, print_table, say
from wai_node.engines.find import Engine, engines, find_engine
from wai_node.engines.fitting import backends_for, detect_machine, gpu_advice
from wai_node.engines.install import fetch_manifest, install_archive, install_build
from wai_node.engines.manifest import Choice, choose, shipped
from wai_node.engines.probe import devices_of, version_of
from wai_node.engines.store import EngineStore
from wai_node.models.download import WATCHED_TRIES, Progress
from wai_node.models.hardware import detect_hardware
from wai_node.upstreams.consent import user_name
from wai_protocol.errors import RequestError, WaiError
from wai_transport.http_proxy import ProxySettings

MIRROR_VARIABLE: Final = "WAI_ENGINE_MIRROR"
MANIFEST_VARIABLE: Final = "WAI_ENGINE_MANIFEST"
AUTO: Final = "auto"


def list_engines(parsed: argparse.Namespace) -> int:
    """`wai node engine list`."""
    rows = _rows(_opened(parsed.data))
    if parsed.json:
        print_json(rows)
        return 0
    print_table(
        ("", "NAME", "VERSION", "GPUS", ""),
        [
            (
                "*" if row["used"] else "",
                *(row["name"], row["version"] or None),
                None if row["devices"] is None else ", ".join(row["devices"]) or "none",
                row["problem"],
            )
            for row in rows
        ],
        empty="no llama.cpp is on this machine; `wai node engine install` gets one",
    )
    return 0


def _rows(store: EngineStore) -> list[dict[str, Any]]:
    used, refused = _used(store), store.choice().refused
    return [_row(engine, used, refused) for engine in engines(store)]


def _used(store: EngineStore) -> str:
    """The name of the engine that is used, "" without one."""
    try:
        return find_engine(store).name
    except WaiError:
        return ""


def _row(engine: Engine, used: str, refused: dict[str, str]) -> dict[str, Any]:
    version, devices, problem = "", None, refused.get(engine.name, "")
    if engine.probed:
        try:
            version = version_of(engine.argv)
            devices = devices_of(engine.argv)
        except WaiError as error:
            problem = str(error)
    return {
        "name": engine.name,
        "used": engine.name == used,
        "installed": engine.installed,
        "version": version,
        "devices": None if devices is None else [d.description for d in devices],
        "program": " ".join(engine.argv),
        "problem": problem,
    }


def install_engine(parsed: argparse.Namespace) -> int:
    """`wai node engine install`."""
    if (parsed.archive is None) != (parsed.sha256 is None):
        raise RequestError("--archive and --sha256 go together: what is installed is verified")
    if parsed.archive is not None and (parsed.version or parsed.backend or parsed.manifest):
        raise RequestError("--archive says which build it is; leave out version and build")
    if parsed.archive is None and parsed.name:
        raise RequestError("--name goes with --archive; other engines have names already")
    store = _opened(parsed.data)
    engine = _from_archive(parsed, store) or asyncio.run(_from_release(parsed, store))
    if not parsed.no_use:
        store.use(engine.name)
    row = _row(engine, _used(store), store.choice().refused)
    if parsed.json:
        print_json(row)
    else:
        used = "installed" if parsed.no_use else "installed and used from now on"
        say(f"{engine.name} is {used}: llama.cpp {row['version']}")
    _warn_about_gpu(row)
    return 0


def _from_archive(parsed: argparse.Namespace, store: EngineStore) -> Engine | None:
    if parsed.archive is None:
        return None
    return install_archive(store, parsed.archive, parsed.sha256, parsed.name)


async def _from_release(parsed: argparse.Namespace, store: EngineStore) -> Engine:
    proxies = ProxySettings(**proxy_settings("WAI_NODE_"))
    manifest, other = shipped(), parsed.manifest or os.environ.get(MANIFEST_VARIABLE)
    if other is not None:
        manifest = await fetch_manifest(other, proxies=proxies)
    machine = detect_machine(detect_hardware())
    choice = choose(
        manifest,
        machine.system,
        machine.machine,
        (parsed.backend,) if parsed.backend else backends_for(machine),
        parsed.version,
        os.environ.get(MIRROR_VARIABLE),
    )
    line = ProgressLine()
    line.show(f"getting llama.cpp {choice.name} from {choice.url}", "getting")
    try:
        return await install_build(
            *(store, choice, lambda progress: _show(line, choice, progress)),
            proxies=proxies,
            on_wait=lambda reason, wait_s: line.show(
                f"{reason}; trying again in {seconds_text(wait_s)}", reason
            ),
            first_tries=WATCHED_TRIES,
        )
    finally:
        line.end()


def _show(line: ProgressLine, choice: Choice, progress: Progress) -> None:
    text = f"{choice.name} {bar(progress.done_bytes, progress.total_bytes)}"
    text += f" of {size_text(progress.total_bytes)}, {size_text(progress.rate_bps)}/s"
    if progress.eta_s is not None:
        text += f", {seconds_text(progress.eta_s)} left"
    if progress.done_bytes == progress.total_bytes:
        text = f"{choice.name}: unpacking"
    line.show(text, "downloading" if progress.done_bytes < progress.total_bytes else "unpacking")


def _warn_about_gpu(row: dict[str, Any]) -> None:
    hardware = detect_hardware()
    if hardware.gpus and row["devices"] == []:
        cards = ", ".join(dict.fromkeys(gpu.name for gpu in hardware.gpus))
        advice = gpu_advice(detect_machine(hardware)) or "see whether the graphics driver works"
        say(f"wai: it can't use this machine's GPU ({cards}): {advice}", sys.stderr)


def use_engine(parsed: argparse.Namespace) -> int:
    """`wai node engine use`."""
    store = _opened(parsed.data)
    there = {engine.name: engine for engine in engines(store)}
    if parsed.name != AUTO and parsed.name not in there:
        known = ", ".join((*there, AUTO))
        raise RequestError(f"no engine {parsed.name[:64]!r} is here; there is: {known}")
    if parsed.name in there and there[parsed.name].probed:
        version_of(there[parsed.name].argv)  # raises for one that does not run
    store.use(None if parsed.name == AUTO else parsed.name)
    if parsed.json:
        print_json({"name": None if parsed.name == AUTO else parsed.name})
    else:
        which = "the first engine that is found" if parsed.name == AUTO else parsed.name
        say(f"{which} is used from now on")
    return 0


def remove_engine(parsed: argparse.Namespace) -> int:
    """`wai node engine remove`."""
    store = _opened(parsed.data)
    store.remove(parsed.name)
    left = store.names()
    if parsed.json:
        print_json(left)
    else:
        say(f"{parsed.name} is deleted")
    return 0


def _opened(data: Path) -> EngineStore:
    """The engines of the node with this data folder. Raises `RequestError` for another user's.

    Root is sent to that user as well: what lies in the folder is run.
    """
    try:
        owner_uid = data.stat().st_uid
    except OSError:
        owner_uid = os.geteuid()  # it is made by the first install
    if owner_uid != os.geteuid():
        user = user_name(owner_uid)
        raise RequestError(f"the folder {data} is {user}'s: run this by `sudo -u {user}`")
    return EngineStore(data)
