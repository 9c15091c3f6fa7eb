"""The HTTP client of the library `huggingface_hub`, with a limit for the size of an answer.

The library reads whole answers into memory, so an endless one would exhaust it. Our own requests
use the same client, and so the library's settings for proxies and certificates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER_BYTES: Final = 32 << 20  # repositories of thousands of files have listings of some 5 MB

_sessions: list[httpx2.Client] = []


def hub_session() -> httpx2.Client:
    """Return the client of this process, which blocks.

    Reading an answer that is too long raises `httpx2.DecodingError`.
    """
    if not _sessions:
        # read when the library is imported; otherwise it reports each query to its makers
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        from huggingface_hub import get_session, set_client_factory
        from huggingface_hub.utils._http import default_client_factory

        def bounded_client() -> httpx2.Client:
            client = default_client_factory()
            client.headers["accept-encoding"] = (
                "identity"  # compressed data may expand a thousandfold
            )
            client.event_hooks = {**client.event_hooks, "response": [_bound]}
            return client

        set_client_factory(bounded_client)
        _sessions.append(get_session())
    return _sessions[0]


def _bound(response: httpx2.Response) -> None:
    """Make reading an answer's body fail if it is compressed or becomes too long."""
    import httpx2

    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx2.DecodingError("the answer is compressed, although that was not asked for")
    whole = response.stream

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            count = 0
            for data in whole:  # type: ignore[union-attr]
                count += len(data)
                if count > MAX_ANSWER_BYTES:
                    raise httpx2.DecodingError(f"the answer has over {MAX_ANSWER_BYTES} bytes")
                yield data

        def close(self) -> None:
            whole.close()  # type: ignore[union-attr]

    response.stream = Bounded()
