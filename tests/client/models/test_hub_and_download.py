"""The real huggingface_hub library and our own download, against a fake hub on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.tiny_families import Shape, write_family
from wai_node.models.catalogue import Quantisation, Repository
from wai_node.models.download import Clock, Download, Progress
from wai_node.models.hub import Hub, HubSettings
from wai_node.models.transfer import Transfer
from wai_protocol.errors import Fault, StoreError, WaiError

pytestmark = pytest.mark.anyio

REPO = "tiny/llama-GGUF"
SMALL = Shape(embedding=64, blocks=2, feed_forward=96, vocabulary=600)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_family(path, "llama", SMALL).read_bytes()


@pytest.fixture
def hub(model: bytes) -> Iterator[FakeHub]:
    half = len(model) // 2
    repos = {
        REPO: FakeRepo(
            {
                "llama-F16.gguf": model,
                "split/llama-F32-00001-of-00002.gguf": model[:half],
                "split/llama-F32-00002-of-00002.gguf": model[half:],
                "half/llama-Q8_0-00001-of-00002.gguf": model,
                "mmproj-F16.gguf": b"GGUF not a language model",
                "README.md": b"hello",
                "../escape-Q4_0.gguf": model,
            }
        ),
        "tiny/gated-GGUF": FakeRepo({"g-F16.gguf": model}, gated=True),
        "tiny/private-GGUF": FakeRepo({"p-F16.gguf": model}, private=True),
    }
    with FakeHub(repos) as fake:
        yield fake


def open_hub(fake: FakeHub, token: str | None = None) -> Hub:
    return Hub(HubSettings(fake.endpoint, token))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kept_part(folder: Path) -> bytes:
    [partial] = folder.glob("*.partial")
    return partial.read_bytes()


class Naps:
    """Sleeps that take no time, and are counted."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.taken.append(seconds)

    def clock(self) -> Clock:
        return Clock(sleep=self.sleep, random=lambda: 0.5)


async def listed(fake: FakeHub, quant: str = "F16") -> tuple[Hub, Repository, Quantisation]:
    hub = open_hub(fake)
    repository = await hub.repository(REPO)
    return hub, repository, repository.choose(quant)


def download(
    hub: Hub, repository: Repository, quant: Quantisation, folder: Path, naps: Naps | None = None
) -> Download:
    return Download(
        hub.transfer,
        lambda file: hub.file_url(repository, file),
        quant.files,
        folder,
        clock=(naps or Naps()).clock(),
        kept_free_bytes=0,
    )


async def test_a_hub_that_hangs_up_is_said_by_the_search_and_not_asked_again() -> None:
    calls = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(WaiError, match="can't be reached"):
            await Hub(HubSettings(f"http://127.0.0.1:{port}")).search("tiny")
    assert calls == 1


async def test_search_finds_public_models_by_name(hub: FakeHub) -> None:
    found = await open_hub(hub).search("tiny")
    assert [(model.repo, model.gated) for model in found] == [
        (REPO, False),
        ("tiny/gated-GGUF", True),
    ]


async def test_split_files_are_one_quantisation_and_half_a_split_is_none(
    hub: FakeHub, model: bytes
) -> None:
    repository = await open_hub(hub).repository(REPO)
    assert {q.name: (len(q.files), q.size_bytes) for q in repository.quantisations} == {
        "F16": (1, len(model)),
        "F32": (2, len(model)),
    }


async def test_the_header_is_read_from_the_first_bytes_alone(hub: FakeHub) -> None:
    opened, repository, quant = await listed(hub)
    metadata = await opened.metadata(repository, quant.files[0])
    assert metadata["llama.block_count"] == SMALL.blocks
    [request] = hub.requests("storage")
    assert request.headers["range"].startswith("bytes=0-")


@pytest.mark.parametrize(
    ("repo", "token", "fault", "words"),
    [
        ("tiny/absent", None, Fault.NOT_FOUND, "check the spelling"),
        ("tiny/private-GGUF", None, Fault.NOT_FOUND, "HF_TOKEN"),
        ("no-slash", None, Fault.BAD_REQUEST, "publisher/name"),
        ("../../etc/passwd", None, Fault.BAD_REQUEST, "publisher/name"),
        ("a/..", None, Fault.BAD_REQUEST, "publisher/name"),
    ],
)
async def test_an_unknown_repository_says_what_to_do(
    hub: FakeHub, repo: str, token: str | None, fault: Fault, words: str
) -> None:
    with pytest.raises(WaiError, match=words) as caught:
        await open_hub(hub, token).repository(repo)
    assert caught.value.fault is fault


async def test_an_unknown_quantisation_lists_what_there_is(hub: FakeHub) -> None:
    repository = await open_hub(hub).repository(REPO)
    with pytest.raises(WaiError, match="it has: F16, F32"):
        repository.choose("Q9")


async def test_a_gated_file_asks_for_the_licence_and_a_token_opens_it(
    hub: FakeHub, tmp_path: Path
) -> None:
    anonymous = open_hub(hub)
    repository = await anonymous.repository("tiny/gated-GGUF")
    quant = repository.choose(None)
    with pytest.raises(WaiError, match="accept its licence"):
        await download(anonymous, repository, quant, tmp_path).run()
    allowed = open_hub(hub, hub.token)
    assert len(await download(allowed, repository, quant, tmp_path).run()) == 1


async def test_a_hub_that_is_not_there_is_said_so() -> None:
    with pytest.raises(WaiError, match="can't be reached"):
        await Hub(HubSettings("http://127.0.0.1:9")).repository(REPO)


async def test_the_token_never_reaches_the_storage(hub: FakeHub, tmp_path: Path) -> None:
    opened = open_hub(hub, hub.token)
    repository = await opened.repository(REPO)
    await download(opened, repository, repository.choose("F16"), tmp_path).run()
    assert all("authorization" in seen.headers for seen in hub.requests("hub"))
    assert hub.requests("storage")
    assert not any("authorization" in seen.headers for seen in hub.requests("storage"))


async def test_a_download_cut_at_any_byte_goes_on_where_it_was(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    opened, repository, quant = await listed(hub)
    chance = random.Random(7)
    hub.faults.cut_after = [0, 1, 2, 5000, *(chance.randrange(20_000) for _ in range(6))]
    naps = Naps()
    [path] = await download(opened, repository, quant, tmp_path, naps).run()
    assert path.read_bytes() == model
    assert naps.taken
    offsets = [seen.headers.get("range", "bytes=0-") for seen in hub.requests("storage")]
    assert offsets == sorted(offsets, key=lambda text: int(text[6:-1]))
    assert names(tmp_path) == [
        "llama-F16.gguf",
        "llama-F16.gguf.sha256",
    ]


async def test_what_a_killed_process_left_is_taken_up_again(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    opened, repository, quant = await listed(hub)
    sha256 = hashlib.sha256(model).hexdigest()
    (tmp_path / f"{sha256}.partial").write_bytes(model[:12_345])
    [path] = await download(opened, repository, quant, tmp_path).run()
    assert path.read_bytes() == model
    [request] = hub.requests("storage")
    assert request.headers["range"] == "bytes=12345-"


_DOWNLOADER: Final = """
import anyio, sys
from pathlib import Path
from wai_node.models.download import Download
from wai_node.models.hub import Hub, HubSettings

async def main():
    hub = Hub(HubSettings(sys.argv[1]))
    repository = await hub.repository(sys.argv[2])
    quant = repository.choose("F16")
    url_of = lambda file: hub.file_url(repository, file)
    await Download(hub.transfer, url_of, quant.files, Path(sys.argv[3]), kept_free_bytes=0).run()

anyio.run(main)
"""


def test_a_process_killed_while_downloading_is_gone_on_with_by_the_next(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", _DOWNLOADER, hub.endpoint, REPO, str(tmp_path)]
    hub.faults.pause_s = 0.02
    for _ in range(3):
        before = sum(path.stat().st_size for path in tmp_path.glob("*.partial"))
        with subprocess.Popen(argv) as process:
            try:
                while sum(p.stat().st_size for p in tmp_path.glob("*.partial")) <= before:
                    assert process.poll() is None
                    time.sleep(0.005)
            finally:
                process.kill()
    hub.faults.pause_s = 0
    subprocess.run(argv, check=True, timeout=60)
    assert (tmp_path / "llama-F16.gguf").read_bytes() == model
    starts = [seen.headers.get("range", "bytes=0-") for seen in hub.requests("storage")]
    offsets = [int(start[6:-1]) for start in starts]
    assert len(offsets) == 4
    assert offsets == sorted(set(offsets)), "a part was asked for twice"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
def test_a_file_that_may_not_grow_ends_the_download_and_keeps_its_part(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", _DOWNLOADER, hub.endpoint, REPO, str(tmp_path)]
    limit = "import os, resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, -1))\n"
    limited = [sys.executable, "-c", limit + "os.execv(sys.argv[1], sys.argv[1:])", *argv]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert "can't be written (File too large)" in done.stderr
    assert kept_part(tmp_path) == model[:50_000]
    subprocess.run(argv, check=True, timeout=60)
    assert (tmp_path / "llama-F16.gguf").read_bytes() == model


async def test_a_part_that_rotted_on_the_disk_is_found_out_and_deleted(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    opened, repository, quant = await listed(hub)
    sha256 = hashlib.sha256(model).hexdigest()
    (tmp_path / f"{sha256}.partial").write_bytes(b"\xff" * 9000)
    with pytest.raises(StoreError, match="deploy it again"):
        await download(opened, repository, quant, tmp_path).run()
    assert names(tmp_path) == []
    [path] = await download(opened, repository, quant, tmp_path).run()
    assert path.read_bytes() == model


async def test_a_hash_that_does_not_match_leaves_nothing_behind(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.faults.wrong_hash = True
    opened, repository, quant = await listed(hub)
    with pytest.raises(StoreError, match="SHA-256"):
        await download(opened, repository, quant, tmp_path).run()
    assert names(tmp_path) == []


async def test_a_server_that_ignores_ranges_is_read_from_the_start(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    opened, repository, quant = await listed(hub)
    hub.faults.cut_after = [10_000]
    hub.faults.ignore_range = True
    [path] = await download(opened, repository, quant, tmp_path).run()
    assert path.read_bytes() == model


async def test_a_server_that_sends_too_much_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    opened, repository, quant = await listed(hub)
    hub.faults.longer_by = 10
    with pytest.raises(WaiError, match="as its listing says"):
        await download(opened, repository, quant, tmp_path).run()
    assert names(tmp_path) == []


async def test_a_hub_that_stays_broken_ends_the_download_but_keeps_its_part(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    opened, repository, quant = await listed(hub)
    hub.faults.cut_after = [10_000]
    hub.faults.statuses = [0, *[503] * 40]
    naps = Naps()
    with pytest.raises(WaiError, match="answered 503"):
        await download(opened, repository, quant, tmp_path, naps).run()
    assert max(naps.taken) <= 60
    assert kept_part(tmp_path) == model[:10_000]


async def test_a_split_model_arrives_whole_and_a_second_run_asks_for_nothing(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    opened, repository, quant = await listed(hub, "F32")
    paths = await download(opened, repository, quant, tmp_path).run()
    assert b"".join(path.read_bytes() for path in paths) == model
    before = len(hub.requests("storage"))
    await download(opened, repository, quant, tmp_path).run()
    assert len(hub.requests("storage")) == before


async def test_a_full_disk_is_said_before_the_first_byte(hub: FakeHub, tmp_path: Path) -> None:
    opened, repository, quant = await listed(hub)
    blocked = Download(
        opened.transfer,
        lambda file: opened.file_url(repository, file),
        quant.files,
        tmp_path,
        kept_free_bytes=1 << 60,
    )
    with pytest.raises(StoreError, match="GiB free"):
        await blocked.run()
    assert not hub.requests("storage")


async def test_progress_ends_at_the_total_and_never_goes_back(
    hub: FakeHub, model: bytes, tmp_path: Path
) -> None:
    opened, repository, quant = await listed(hub)
    hub.faults.cut_after = [20_000]
    seen: list[Progress] = []
    run = Download(
        opened.transfer,
        lambda file: opened.file_url(repository, file),
        quant.files,
        tmp_path,
        seen.append,
        clock=Naps().clock(),
        kept_free_bytes=0,
    )
    await run.run()
    assert seen[-1].done_bytes == seen[-1].total_bytes == len(model)
    assert [p.done_bytes for p in seen] == sorted(p.done_bytes for p in seen)


def test_a_token_is_not_printed() -> None:
    assert "hf_secret" not in repr(HubSettings(token="hf_secret"))
    assert "hf_secret" not in repr(Transfer("http://127.0.0.1:1", "hf_secret"))
