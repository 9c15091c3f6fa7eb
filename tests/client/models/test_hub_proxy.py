"""The hub is asked, and its files are read, through the proxy that the node is told to use."""

from __future__ import annotations

import pytest

from tests.harness.connect_proxy import connect_proxy
from wai_node.models.hub import Hub, HubSettings
from wai_protocol.errors import WaiError
from wai_transport.http_proxy import ProxySettings

pytestmark = pytest.mark.anyio


async def test_metadata_and_files_go_through_the_proxy_and_the_environments_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with connect_proxy(answer=b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
        hub = Hub(HubSettings("https://hub.test", None, ProxySettings(proxy.url)))
        with pytest.raises(WaiError):
            await hub.search("tiny")
        with pytest.raises(WaiError, match=r"refuses a connection to hub\.test"):
            await hub.transfer.read_range("https://hub.test/a", 0, 1)
    assert proxy.asked == ["CONNECT hub.test:443 HTTP/1.1"] * 2
