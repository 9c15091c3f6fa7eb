"""The HTTP client of the library `huggingface_hub`, with a limit for the size of an answer.

The library reads whole answers into memory, so an endless one would exhaust it. Our own requests
use the same client, and so the library's settings for certificates. Proxies are our own setting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER_BYTES: Final = 32 << 20  # repositories of thousands of files have listings of some 5 MB

_sessions: dict[str | None, httpx2.Client] = {}


def hub_session(proxy_url: str | None = None) -> httpx2.Client:
    """Return the client of this process, which blocks. `proxy_url`: None for a direct connection.

    Reading an answer that is too long raises `httpx2.DecodingError`.
    """
    if proxy_url not in _sessions:
        # read when the library is imported; otherwise it reports each query to its makers
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        import httpx2
        from huggingface_hub import get_session, set_client_factory
        from huggingface_hub.utils._http import hf_request_event_hook

        owner = os.getpid()

        class Client(httpx2.Client):
            """The library closes it in every child that is forked. There it would wait for a lock
            for ever if a thread had it at the fork, and the fork's caller for the child."""

            def close(self) -> None:
                if os.getpid() == owner:
                    super().close()

        def bounded_client() -> httpx2.Client:
            client = Client(
                # given, so that the client does not read the environment's proxies by itself
                transport=httpx2.HTTPTransport(proxy=proxy_url),
                event_hooks={"request": [hf_request_event_hook]},
                follow_redirects=True,
                timeout=None,
            )
            client.headers["accept-encoding"] = (
                "identity"  # compressed data may expand a thousandfold
            )
            client.event_hooks = {**client.event_hooks, "response": [_bound]}
            return client

        set_client_factory(bounded_client)
        _sessions[proxy_url] = get_session()
    return _sessions[proxy_url]


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
