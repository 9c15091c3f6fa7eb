"""An exchange around another one: everything is passed on, and a subclass changes what it must."""

from __future__ import annotations

from collections.abc import Callable

from wai_protocol.surface import Headers

from .exchange import Exchange


class WrappedExchange(Exchange):
    """See the module. `inner` is the exchange that it is around."""

    def __init__(self, inner: Exchange) -> None:
        self.request = inner.request
        self.websocket_key = inner.websocket_key
        self.added_headers = inner.added_headers
        self.inner = inner

    async def read(self) -> bytes:
        """See `Exchange`."""
        return await self.inner.read()

    def start(self, status: int, headers: Headers) -> None:
        """See `Exchange`."""
        self.inner.start(status, headers)

    def switch(self, headers: Headers) -> None:
        """See `Exchange`."""
        self.inner.switch(headers)

    def write(self, data: bytes) -> None:
        """See `Exchange`."""
        self.inner.write(data)

    def end(self) -> None:
        """See `Exchange`."""
        self.inner.end()

    def abort(self) -> None:
        """See `Exchange`."""
        self.inner.abort()

    @property
    def started(self) -> bool:
        """See `Exchange`."""
        return self.inner.started

    @property
    def paused(self) -> bool:
        """See `Exchange`."""
        return self.inner.paused

    @property
    def on_resume(self) -> Callable[[], None] | None:
        """See `Exchange`."""
        return self.inner.on_resume

    @on_resume.setter
    def on_resume(self, call: Callable[[], None] | None) -> None:
        self.inner.on_resume = call

    @property
    def bytes_in(self) -> int:
        """See `Exchange`."""
        return self.inner.bytes_in

    @property
    def bytes_out(self) -> int:
        """See `Exchange`."""
        return self.inner.bytes_out
