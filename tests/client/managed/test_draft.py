"""Draft models: served with a larger one, or refused before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real
from tests.harness.supervised import ALIAS, REPO, Node, node, servers
from tests.harness.tiny_families import Shape, write_family
from tests.harness.tiny_gguf import TinyModel, tiny_gguf
from wai_node.managed.deployment import State
from wai_node.managed.options import ServeOptions
from wai_node.managed.policy import ManagedSettings
from wai_node.managed.server.process import HINTS
from wai_node.models.catalogue import RemoteFile, find_drafts, group_files
from wai_protocol.errors import AuthError, RequestError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

DRAFT: Final = "tiny/draft-GGUF"
OTHER: Final = "tiny/other-GGUF"
MODEL: Final = TinyModel()
SMALL: Final = TinyModel(name="small", layers=1, seed=1)


@pytest.fixture
def hub(tmp_path: Path, model_folder: Path) -> Iterator[FakeHub]:
    require_real("llama-server")
    model = tiny_gguf(model_folder, MODEL).read_bytes()
    small = tiny_gguf(model_folder, SMALL).read_bytes()
    other = write_family(tmp_path / "other.gguf", "llama", Shape(blocks=1)).read_bytes()
    repos = {
        REPO: FakeRepo({"tiny-F16.gguf": model}),
        DRAFT: FakeRepo({"small-F16.gguf": small}),
        OTHER: FakeRepo({"other-F16.gguf": other}),
    }
    with FakeHub(repos) as fake:
        yield fake


def argument(flag: str) -> str | None:
    [server] = servers()
    argv = server.cmdline()
    return argv[argv.index(flag) + 1] if flag in argv else None


async def drafted(n: Node) -> int:
    """How many tokens of an answer were drafted; llama-server counts them."""
    answer = await n.complete(tokens=24)
    assert len(answer["choices"][0]["text"]) > 0
    return int(answer["timings"].get("draft_n", 0))


async def test_a_draft_model_is_downloaded_used_counted_and_deleted(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1, draft="none")
        plain = await n.until_state(State.READY)
        await n.until(lambda: n.status().estimated_bytes is not None)
        before = n.status().estimated_bytes or 0
        await n.supervisor.remove(ALIAS)
        await n.until(lambda: not n.supervisor.deployed())
        options = ServeOptions(draft_max=5)
        await n.supervisor.deploy(REPO, 1024, 1, draft=DRAFT, options=options)
        status = await n.until_state(State.READY)
        assert (plain.draft, status.draft) == ("", f"{DRAFT}/small-F16.gguf")
        assert (argument("--model-draft") or "").endswith("/draft/small-F16.gguf")
        assert argument("--spec-draft-n-max") == "5"
        assert await drafted(n) > 0
        await n.until(lambda: n.status().estimated_bytes is not None)
        assert (n.status().estimated_bytes or 0) > before
        with pytest.raises(RequestError, match="deploy it again with the draft model"):
            await n.supervisor.deploy(REPO, draft=DRAFT)
        await n.supervisor.edit(ALIAS, options=replace(options, draft_max=2))
        await n.until(lambda: not n.status().changing and len(servers()) == 1)
        assert argument("--spec-draft-n-max") == "2"
    async with node(hub, settings) as n:  # it is remembered
        assert (await n.until_state(State.READY)).draft
        assert await drafted(n) > 0
        await n.supervisor.remove(ALIAS)
        await n.until(lambda: not n.supervisor.deployed())
        assert not list(settings.models_folder.rglob("*.gguf"))


async def test_the_draft_model_that_a_repository_offers_is_used(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    files = dict(hub.repos[REPO].files)
    files["tiny-draft-F16.gguf"] = hub.repos[DRAFT].files["small-F16.gguf"]
    hub.repos[REPO] = FakeRepo(files)
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        assert (await n.until_state(State.READY)).draft == f"{REPO}/tiny-draft-F16.gguf"
        assert await drafted(n) > 0


async def test_a_draft_model_of_another_family_is_refused_before_the_download(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, replace(settings, allowed_publishers=frozenset({"tiny"}))) as n:
        with pytest.raises(RequestError, match=r"has 2048 tokens, and this model \d+; take"):
            await n.supervisor.deploy(REPO, 1024, 1, draft=OTHER)
        with pytest.raises(AuthError, match="takes no models by else"):
            await n.supervisor.deploy(REPO, 1024, 1, draft="else/draft-GGUF")
        assert not n.supervisor.deployed()
        files = dict(hub.repos[REPO].files)
        files["draft/other-F16.gguf"] = hub.repos[OTHER].files["other-F16.gguf"]
        hub.repos[REPO] = FakeRepo(files)
        await n.supervisor.deploy(REPO, 1024, 1)  # its own does not fit it, and nobody asked for it
        assert (await n.until_state(State.READY)).draft == ""


def test_a_draft_is_one_only_beside_a_model() -> None:
    def files(*paths: str) -> list[RemoteFile]:
        return [RemoteFile(path, 10, "a" * 64) for path in paths]

    both = files("m-Q4_0.gguf", "m-draft-Q8_0.gguf", "draft/n-Q4_0.gguf", "mtp-m-Q4_0.gguf")
    assert [file.path for file in find_drafts(both)] == ["m-draft-Q8_0.gguf", "draft/n-Q4_0.gguf"]
    assert [quant.name for quant in group_files(both)] == ["Q4_0"]
    alone = files("m-draft-Q8_0.gguf", "m-draft-Q4_0.gguf")
    assert find_drafts(alone) == ()
    assert len(group_files(alone)) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("draft model bos tokens must match target model to use speculation", "vocabulary"),
        ("the target and draft vocabs are not compatible", "--draft none"),
        (
            'error while handling argument "--device": invalid device: CUDA1',
            "GPU CUDA1, on which it was placed, is not there any more",
        ),
        (
            "ggml_cuda_init: failed: CUDA driver version is insufficient for CUDA runtime version",
            "driver on this node is older than its engine needs",
        ),
    ],
)
def test_what_the_engine_says_of_it_is_explained(line: str, said: str) -> None:
    explained = [
        hint.format(*found.groups()) for pattern, hint in HINTS if (found := pattern.search(line))
    ]
    assert said in explained[0]
