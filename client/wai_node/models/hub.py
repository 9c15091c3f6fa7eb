"""Query the Hugging Face hub: search, a repository's files, a file's header.

Metadata is read with the library `huggingface_hub` in a worker thread; its errors become sentences
that say what to do. Models are downloaded by `download`. The token is sent to the hub's own origin
only (`transfer`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
import msgspec

from wai_protocol.errors import AuthError, Fault, RequestError, TransportError, WaiError
from wai_transport.http_proxy import DIRECT, ProxySettings
from wai_transport.origin import Origin

from .catalogue import (
    MAX_FILES,
    RemoteFile,
    Repository,
    check_repo,
    find_drafts,
    find_incomplete,
    find_projectors,
    group_files,
    is_repo,
)
from .gguf_header import GgufHeader, HeaderReader, Value
from .hub_session import hub_session
from .snapshot import ListedFile, Listing
from .transfer import Transfer

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
MAX_RESULTS: Final = 100
MAX_COUNT: Final = 1 << 53  # the largest integer that JSON carries exactly
ASKED_AT_ONCE: Final = 4  # a hub that hangs must not occupy the threads that write downloads
_NO_LISTING: Final = (
    *(KeyError, TypeError, ValueError, AttributeError),
    *(OverflowError, RecursionError),  # from numbers like 1e999, and from a million nested brackets
)
METADATA_TIMEOUT_S: Final = 30.0
HEADER_STEP_BYTES: Final = 256 * 1024  # the architecture's keys sit in the first KBs of real files
HEADER_LIMIT_BYTES: Final = 8 << 20  # a header with a giant array at its start is given up


class FoundModel(msgspec.Struct, frozen=True):
    """One search result."""

    repo: str
    downloads: int
    likes: int
    gated: bool


class HubSettings(msgspec.Struct, frozen=True):
    """The hub's URL (`HF_ENDPOINT`), our token (`HF_TOKEN`; None: anonymous), and the way there."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = None
    proxies: ProxySettings = DIRECT

    def __repr__(self) -> str:
        return f"HubSettings(endpoint={self.endpoint!r}, token={'set' if self.token else None})"


class Hub:
    """A client of one hub, which several tasks may use."""

    def __init__(self, settings: HubSettings | None = None) -> None:
        self.settings = settings or HubSettings()
        self.transfer = Transfer(
            self.settings.endpoint, self.settings.token, proxies=self.settings.proxies
        )
        self._proxy_url = self.settings.proxies.url_to(Origin.parse(self.settings.endpoint)[0])
        self._api: HfApi | None = None
        self._asking = anyio.CapacityLimiter(ASKED_AT_ONCE)

    async def search(self, query: str, limit: int = 20) -> list[FoundModel]:
        """Return GGUF models that match `query`, most downloaded first. Raises `WaiError`."""
        limit = max(1, min(limit, MAX_RESULTS))
        what = f"the search for {query[:60]!r}"

        def ask() -> list[FoundModel]:
            token = self.settings.token
            # not `list_models`, which tries for half a minute if the hub can't be reached
            answer = hub_session(self._proxy_url).get(
                f"{self.settings.endpoint.rstrip('/')}/api/models",
                params={
                    "filter": "gguf",
                    "search": query[:200],
                    "sort": "downloads",
                    "limit": limit,
                },
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=METADATA_TIMEOUT_S,
            )
            if answer.status_code != 200:
                raise refused(what, answer.status_code)
            return [
                FoundModel(
                    row["id"],
                    _count(row.get("downloads")),
                    _count(row.get("likes")),
                    bool(row.get("gated")),
                )
                for row in answer.json()[:limit]
                if is_repo(row["id"])  # names that can't be deployed are not shown
            ]

        return await self._ask(ask, what=what)

    async def repository(self, name: str) -> Repository:
        """Return a repository's quantisations. Raises `WaiError`: unknown, gated, unreachable."""
        check_repo(name)

        def ask() -> Repository:
            info = self._library().model_info(name, files_metadata=True, timeout=METADATA_TIMEOUT_S)
            files = [
                RemoteFile(sibling.rfilename, sibling.size or 0, sibling.lfs.sha256)
                for sibling in info.siblings or []
                if sibling.lfs is not None
            ]
            commit = info.sha or "main"
            return Repository(
                name,
                commit,
                bool(info.gated),
                group_files(files),
                find_projectors(files),
                find_incomplete(files),
                find_drafts(files),
            )

        return await self._ask(ask, what=name)

    async def listing(self, name: str) -> Listing:
        """Return all files of a repository. Raises `WaiError`: unknown, gated, unreachable."""
        check_repo(name)

        def ask() -> Listing:
            info = self._library().model_info(name, files_metadata=True, timeout=METADATA_TIMEOUT_S)
            files = [
                ListedFile(
                    sibling.rfilename,
                    _count(sibling.size),
                    None if sibling.lfs is None else str(sibling.lfs.sha256),
                    str(sibling.blob_id or ""),
                )
                for sibling in (info.siblings or [])[:MAX_FILES]
            ]
            return Listing(name, info.sha or "main", bool(info.gated), tuple(files))

        return await self._ask(ask, what=name)

    async def read_small(self, repository: Repository, file: RemoteFile) -> bytes:
        """Return the content of a small file. Raises `WaiError`."""
        return await self.transfer.read_range(self.file_url(repository, file), 0, file.size_bytes)

    def file_url(self, repository: Repository, file: RemoteFile) -> str:
        """Return the URL of `file` at the repository's commit."""
        path = quote(file.path, safe="/")
        commit = quote(repository.commit, safe="")
        return f"{self.settings.endpoint.rstrip('/')}/{repository.name}/resolve/{commit}/{path}"

    async def metadata(self, repository: Repository, file: RemoteFile) -> dict[str, Value]:
        """Return a GGUF's metadata up to its vocabulary, by Range requests for its first bytes.

        Raises `WaiError`: not a GGUF, gated, unreachable.
        """
        reader = await self._read_header(repository, file, whole=False)
        return dict(reader.metadata)

    async def header(self, repository: Repository, file: RemoteFile) -> GgufHeader:
        """Return the whole header of a GGUF without a vocabulary. Raises `WaiError`."""
        reader = await self._read_header(repository, file, whole=True)
        assert reader.header is not None
        return reader.header

    async def _read_header(
        self, repository: Repository, file: RemoteFile, *, whole: bool
    ) -> HeaderReader:
        url, reader, offset = self.file_url(repository, file), HeaderReader(), 0
        while reader.header is None and (whole or not reader.reached_tokenizer):
            if offset >= min(file.size_bytes, HEADER_LIMIT_BYTES):
                raise RequestError(
                    f"the first {offset} bytes of {file.path} do not contain its architecture; "
                    "choose another quantisation or repository"
                )
            wanted = max(HEADER_STEP_BYTES, reader.needed_bytes)
            wanted = min(wanted, HEADER_LIMIT_BYTES - offset, file.size_bytes - offset)
            data = await self.transfer.read_range(url, offset, wanted)
            reader.receive_data(data)
            offset += len(data)
        return reader

    async def _ask(self, ask: Callable[[], T], *, what: str) -> T:
        return await anyio.to_thread.run_sync(
            lambda: _translated(ask, what, self.settings),
            abandon_on_cancel=True,
            limiter=self._asking,
        )

    def _library(self) -> HfApi:
        if self._api is None:
            hub_session(self._proxy_url)
            from huggingface_hub import HfApi

            # False: without it the library would use the token of a user who logged in here
            self._api = HfApi(endpoint=self.settings.endpoint, token=self.settings.token or False)
        return self._api


def _count(value: Any) -> int:
    return max(0, min(int(value or 0), MAX_COUNT))


def _translated(ask: Callable[[], T], what: str, settings: HubSettings) -> T:
    """Run `ask`, and turn the library's errors into ours."""
    import httpx2
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError as error:
        raise gated(what, settings.token) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise unknown(what, settings.token) from error
    except errors.HFValidationError as error:
        raise RequestError(f"the hub has no such name: {what}") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        raise refused(what, status) from error
    except httpx2.DecodingError as error:
        raise _no_listing(what, settings) from error
    except (httpx2.HTTPError, OSError) as error:
        raise TransportError(
            f"the hub at {settings.endpoint} can't be reached ({type(error).__name__}); "
            "check this node's network, or HF_ENDPOINT"
        ) from error
    except _NO_LISTING as error:
        raise _no_listing(what, settings) from error


def _no_listing(what: str, settings: HubSettings) -> WaiError:
    return TransportError(
        f"the hub at {settings.endpoint} answered for {what}, but not with a model listing",
        Fault.UPSTREAM_BROKE,
    )


def gated(what: str, token: str | None) -> WaiError:
    """Return the error for a repository whose licence must be accepted first."""
    todo = "with the account of this node's HF_TOKEN" if token else "and give this node an HF_TOKEN"
    return AuthError(f"{what} is gated: accept its licence on the hub {todo}", Fault.FORBIDDEN)


def unknown(what: str, token: str | None) -> WaiError:
    """Return the error for what the hub does not have, or does not show to this node."""
    hint = "" if token else "; if it is private, give this node an HF_TOKEN"
    return RequestError(
        f"the hub has no {what}: check the spelling with `wai model search`{hint}", Fault.NOT_FOUND
    )


def refused(what: str, status: int) -> WaiError:
    """Return the error for any other status of the hub."""
    if status == 401:
        return AuthError(
            f"the hub refuses this node's HF_TOKEN for {what}: make a new one", Fault.FORBIDDEN
        )
    if status == 429:
        return TransportError(
            f"the hub limits how often this node may ask ({what}); try again in a few minutes",
            Fault.RATE_LIMITED,
        )
    return TransportError(
        f"the hub answered {status} for {what}; try again later", Fault.UPSTREAM_BROKE
    )
