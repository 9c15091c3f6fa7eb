"""A caller in plain HTTP/1.1 over TLS: sees each byte of a response as it comes, and can stop
reading or go away at any moment."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from .cluster import Cluster

TIMEOUT_S: Final = 60.0


def chat(model: str, *, stream: bool = False, max_tokens: int = 16, **fields: Any) -> bytes:
    """The body of a chat completion."""
    messages = [{"role": "user", "content": "Say something."}]
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": stream}
    return json.dumps({**body, **fields}).encode()


@contextmanager
def request(
    cluster: Cluster,
    path: str,
    body: bytes | Iterator[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    method: str | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """Send one request and yield the response; the block's end closes the connection.

    An iterator as `body` is sent in chunks, each as soon as it is there.
    """
    connection = http.client.HTTPSConnection(
        "127.0.0.1", cluster.port, context=cluster.tls(), timeout=timeout_s
    )
    try:
        connection.request(
            method or ("GET" if body is None else "POST"),
            path,
            body=body,
            headers={"Content-Type": "application/json", **(headers or {})},
            encode_chunked=isinstance(body, Iterator),
        )
        response = connection.getresponse()
        try:
            yield response
        finally:
            response.close()
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the `data:` of each SSE event. Raises as `http.client` does if the response is cut."""
    while line := response.readline():
        if line.startswith(b"data: "):
            yield line[6:].strip().decode()
