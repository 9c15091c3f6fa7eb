"""A hub or a storage that says anything: an error in words, bounded memory; the node goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from wai_node.models import hub_session
from wai_node.models.catalogue import MAX_FILE_BYTES, RemoteFile
from wai_node.models.download import Clock, Download
from wai_node.models.hub import MAX_COUNT, Hub, HubSettings
from wai_protocol.errors import WaiError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

FILE = RemoteFile("m-F16.gguf", 1000, "a" * 64)
LONG = b"9" * 5000


@asynccontextmanager
async def answering(answer: bytes, *, for_ever: bytes = b"") -> AsyncIterator[str]:
    """A server that answers every request so; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            while for_ever:
                writer.write(for_ever)
                await writer.drain()
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # whoever asked has heard enough
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def body(content: bytes, *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(content), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + content


def listing(**file: Any) -> bytes:
    lfs = {"sha256": file.pop("sha256", "a" * 64), "size": 1, "pointerSize": 1}
    sibling = {"rfilename": "m-F16.gguf", "size": 1000, "blobId": "0", "lfs": lfs, **file}
    return body(json.dumps({"id": "a/b", "sha": "c", "siblings": [sibling]}).encode())


@pytest.mark.parametrize(
    "answer",
    [
        body(b'[{"id":"a/b","downloads":1e999}]'),
        body(b"[" * 1_000_000),
        body(b'{"a": 1}'),
        body(b'["a/b"]'),
        body(b"\xff\xfe not json"),
        body(b"\x1f\x8b\x08", b"Content-Encoding: gzip"),
        b"HTTP/1.1 200 OK\r\nContent-Length: " + LONG + b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
    ],
    ids=[
        "endless number",
        "deep",
        "map",
        "no maps",
        "no text",
        "packed",
        "length",
        "no http",
        "cut",
    ],
)
async def test_a_listing_that_is_none_is_said_in_words(answer: bytes) -> None:
    async with answering(answer) as url:
        for ask in (Hub(HubSettings(url)).search("a"), Hub(HubSettings(url)).repository("a/b")):
            with pytest.raises(WaiError, match=r"not with a model listing|can't be reached"):
                await ask


async def test_an_answer_without_an_end_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_session, "MAX_ANSWER_BYTES", 1 << 20)
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n", for_ever=b" " * 65536) as url:
        for ask in (Hub(HubSettings(url)).search("a"), Hub(HubSettings(url)).repository("a/b")):
            with pytest.raises(WaiError, match="not with a model listing"):
                await ask


async def test_names_that_are_none_are_not_shown_and_counts_are_bounded() -> None:
    rows = [
        {"id": name, "downloads": 1 << 70, "likes": -1} for name in ("a/b", "\x1b[2J/x", 7, "a")
    ]
    async with answering(body(json.dumps(rows).encode())) as url:
        [found] = await Hub(HubSettings(url)).search("a")
    assert (found.repo, found.downloads, found.likes) == ("a/b", MAX_COUNT, 0)


@pytest.mark.parametrize(
    "file",
    [
        {"size": MAX_FILE_BYTES + 1},
        {"size": -5},
        {"size": 0},
        {"rfilename": "../m-F16.gguf"},
        {"rfilename": "/etc/m-F16.gguf"},
        {"rfilename": "m\n-F16.gguf"},
        {"rfilename": "x" * 600 + ".gguf"},
        {"sha256": "../../etc/passwd"},
        {"sha256": "A" * 64},
    ],
)
async def test_a_file_that_can_be_none_is_left_out(file: dict[str, Any]) -> None:
    async with answering(listing(**file)) as url:
        assert (await Hub(HubSettings(url)).repository("a/b")).quantisations == ()


def head(status: int, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 %d X" % status, *headers]) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        head(206, b"Content-Range: bytes " + LONG + b"-1/1", b"Content-Length: 1"),
        head(206, b"Content-Range: bytes 0-1/" + LONG, b"Content-Length: 1"),
        head(206, b"Content-Length: 1"),
        head(206, b"Content-Range: bytes 7-8/1000", b"Content-Length: 2") + b"ab",
        head(200, b"Content-Length: " + LONG),
        head(503, b"Retry-After: " + LONG[:400], b"Content-Length: 0"),
        head(302, b"Location: http://[bad", b"Content-Length: 0"),
        head(302, b"Location: http://h:99999/", b"Content-Length: 0"),
        head(302, b"Location: http://u:p@h/", b"Content-Length: 0"),
        head(302, b"Location: javascript:alert(1)", b"Content-Length: 0"),
        head(302, b"Location: file:///etc/passwd", b"Content-Length: 0"),
        head(302, b"Location: /\xff \x80", b"Content-Length: 0"),
        head(302, b"Location: /again", b"Content-Length: 0"),
        head(302, b"Content-Length: 0"),
        head(999),
        b"nonsense\r\n\r\n",
    ],
)
async def test_a_storage_that_says_anything_ends_a_download_in_words(
    answer: bytes, tmp_path: Path
) -> None:
    async def sleep(seconds: float) -> None:
        assert 0 <= seconds <= 60

    async with answering(answer) as url:
        hub = Hub(HubSettings(url))
        run = Download(
            hub.transfer,
            lambda file: f"{url}/a/b/resolve/c/{file.path}",
            [FILE],
            tmp_path,
            clock=Clock(sleep=sleep, random=lambda: 0.5),
            kept_free_bytes=0,
        )
        with pytest.raises(WaiError) as caught:
            await run.run()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
