"""The script and the wheel that a relay serves: the right ones, whole, at the caller's pace."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.harness.exchanges import FakeExchange, make_request
from wai_protocol.errors import Fault, RequestError, StoreError
from wai_relay.fleet.invites import InviteAddress
from wai_relay.installer import InstallerPages, one_line
from wai_relay.installer.pages import PIECE_BYTES, SCRIPT_FILE, render
from wai_relay.installer.wheel import PACKAGES, Wheel, pack

ROOT = Path(__file__).parents[3]
PINNED = InviteAddress("https://192.0.2.1:8443", b"r" * 32, b"\xfb" * 32)
PUBLIC = InviteAddress("https://llm.example.com/", b"r" * 32, None)
WHEEL = Wheel("wai-1.0-py3-none-any.whl", b"w" * 3 * PIECE_BYTES, "ab" * 32)


def _pages() -> InstallerPages:
    return InstallerPages(lambda: PINNED, lambda: WHEEL)


async def _ask(path: str, method: str = "GET") -> FakeExchange:
    exchange = FakeExchange(make_request(method, path))
    await _pages().handle(exchange)
    return exchange


@pytest.mark.anyio
async def test_the_script_names_the_relay_its_pin_and_the_wheel() -> None:
    script = (await _ask("/install.sh")).body.decode()
    pin = base64.b64encode(b"\xfb" * 32).decode()
    assert "\nRELAY=https://192.0.2.1:8443\n" in script
    assert f"\nPIN=sha256//{pin}\n" in script
    assert f"\nWHEEL={WHEEL.name}\n" in script
    assert f"\nSHA256={WHEEL.sha256}\n" in script


@pytest.mark.anyio
async def test_the_wheel_comes_whole_and_under_its_name() -> None:
    exchange = await _ask(f"/dist/{WHEEL.name}")
    assert exchange.body == WHEEL.data
    assert exchange.header(b"content-length") == b"%d" % len(WHEEL.data)


@pytest.mark.anyio
async def test_head_has_no_body() -> None:
    exchange = await _ask("/install.sh", "HEAD")
    assert (exchange.body, exchange.over) == (b"", True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("GET", "/dist/", Fault.NOT_FOUND),
        ("GET", "/dist/../relay.key", Fault.NOT_FOUND),
        ("GET", "/dist/wai-0.9-py3-none-any.whl", Fault.NOT_FOUND),
        ("POST", "/install.sh", Fault.METHOD_NOT_ALLOWED),
    ],
)
async def test_there_is_nothing_else(method: str, path: str, fault: Fault) -> None:
    with pytest.raises(RequestError) as refused:
        await _ask(path, method)
    assert refused.value.fault is fault


@pytest.mark.anyio
async def test_a_slow_caller_gets_the_next_piece_when_it_has_taken_the_last() -> None:
    exchange = FakeExchange(make_request("GET", f"/dist/{WHEEL.name}"))
    exchange.pause()
    task = asyncio.ensure_future(_pages().handle(exchange))
    done, _ = await asyncio.wait({task}, timeout=0.05)
    assert (done, exchange.body) == (set(), b"")
    exchange.resume()
    await task
    assert exchange.body == WHEEL.data


@pytest.mark.anyio
async def test_a_wheel_that_could_not_be_made_is_tried_again() -> None:
    outcomes: list[Wheel | Exception] = [StoreError("the disk hiccups"), WHEEL]

    def make() -> Wheel:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    pages = InstallerPages(lambda: PUBLIC, make)
    for error in (StoreError, None, None):
        exchange = FakeExchange(make_request("GET", f"/dist/{WHEEL.name}"))
        if error is None:
            await pages.handle(exchange)
            assert exchange.body == WHEEL.data
        else:
            with pytest.raises(error):
                await pages.handle(exchange)


def test_an_address_is_data_to_the_shell() -> None:
    hostile = InviteAddress("https://x/$(touch pwned)'\\1;", b"r" * 32, None)
    script = render(SCRIPT_FILE.read_text(), hostile, WHEEL)
    line = next(line for line in script.splitlines() if line.startswith("RELAY="))
    done = subprocess.run(["sh", "-c", f'{line}\nprintf %s "$RELAY"'], capture_output=True)
    assert done.stdout.decode() == hostile.url


def test_the_line_of_a_relay_with_an_authority_needs_no_pin() -> None:
    line = one_line(PUBLIC, "wai_inv_x")
    assert line == (
        "curl -fsSL https://llm.example.com/install.sh"
        " | (echo WAI_INVITE=wai_inv_x ; cat) | sh -s --"
    )


def test_the_line_of_a_self_signed_relay_pins_it() -> None:
    pin = base64.b64encode(b"\xfb" * 32).decode()
    assert one_line(PINNED, "wai_inv_x") == (
        f"curl -fsSk --pinnedpubkey 'sha256//{pin}' https://192.0.2.1:8443/install.sh"
        " | (echo WAI_INVITE=wai_inv_x ; cat) | sh -s --"
    )


def test_the_packed_wheel_has_every_package_and_a_true_record() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    built = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(package).name for package in built} == set(PACKAGES)
    wheel = pack()
    assert wheel.sha256 == hashlib.sha256(wheel.data).hexdigest()
    with zipfile.ZipFile(BytesIO(wheel.data)) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == set(
            PACKAGES
        )
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        lines = [line.split(",") for line in archive.read(record).decode().splitlines()]
        assert [line[0] for line in lines] == names
        for name, digest, size in lines[:-1]:
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            assert (digest, size) == (f"sha256={expected.decode()}", str(len(content)))


def test_the_same_files_make_the_same_wheel() -> None:
    assert pack().sha256 == pack().sha256
