"""A page of another origin in Chromium: it streams tokens, and reads why it is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.harness.cluster import cluster
from tests.harness.odd_upstream import MODELS, odd_upstream
from tests.harness.real import require_real
from tests.harness.realtime_server import WORDS, realtime_server

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e]

# Returns the text of the stream's first piece, while the upstream holds the second one back, then
# calls `go` and returns the rest.
CHAT = """async ([url, key]) => {
  const response = await fetch(url + "/v1/chat/completions", {
    method: "POST",
    headers: {"Content-Type": "application/json", Authorization: "Bearer " + key},
    body: JSON.stringify({model: "waits", stream: true, messages: []}),
  });
  const reader = response.body.getReader(), decoder = new TextDecoder();
  const node = response.headers.get("x-wai-node");
  let text = "";
  while (!text.includes("first")) text += decoder.decode((await reader.read()).value);
  const early = !text.includes("second");
  await window.go();
  for (let piece; !(piece = await reader.read()).done; ) text += decoder.decode(piece.value);
  return {status: response.status, node, early, text};
}"""
REFUSED = """async (url) => {
  const response = await fetch(url + "/v1/models", {headers: {Authorization: "Bearer no"}});
  return [response.status, (await response.json()).error.code];
}"""
ADMIN = """async (url) => {
  try { await fetch(url + "/admin/v1/nodes", {headers: {Authorization: "Bearer no"}}); }
  catch (error) { return error.name; }
}"""

# Says that it has spoken, and returns what it hears until the answer is over.
SPEAK = """([url, key]) => new Promise((resolve, reject) => {
  const socket = new WebSocket(
    url.replace("https", "wss") + "/v1/realtime?model=voice",
    ["realtime", "openai-insecure-api-key." + key],
  );
  let text = "";
  socket.onopen = () => socket.send(JSON.stringify({type: "response.create"}));
  socket.onmessage = ({data}) => {
    const event = JSON.parse(data);
    text += event.delta ?? "";
    if (event.type === "response.done") { resolve([socket.protocol, text]); socket.close(); }
  };
  socket.onclose = ({code}) => resolve(["closed", code]);
})"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>app</title>")

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Be silent."""


@contextmanager
def app() -> Iterator[str]:
    """Serve an empty page; yields its origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_page_of_another_origin_streams_tokens(tmp_path: Path) -> None:
    require_real("chromium")
    from .browser import TIMEOUT_MS, browser

    with odd_upstream() as odd, cluster(tmp_path) as running, app() as origin:
        running.add_node("odd", odd.url, models=len(MODELS))
        key = running.create_key()
        odd.seen.release.clear()
        async with browser() as chromium:
            context = await chromium.new_context(ignore_https_errors=True)
            page = await context.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            await page.expose_function("go", odd.seen.release.set)
            await page.goto(origin)
            said = await page.evaluate(CHAT, [running.url, key.secret])
            assert (said["status"], said["node"], said["early"]) == (200, "odd", True)
            assert "second" in said["text"]
            assert await page.evaluate(REFUSED, running.url) == [401, "invalid_api_key"]
            assert await page.evaluate(ADMIN, running.url) == "TypeError"
            await context.close()


async def test_a_page_of_another_origin_opens_a_websocket(tmp_path: Path) -> None:
    require_real("chromium")
    from .browser import TIMEOUT_MS, browser

    with realtime_server() as server, cluster(tmp_path) as running, app() as origin:
        running.add_node("voice", server.url)
        key = running.create_key()
        async with browser() as chromium:
            context = await chromium.new_context(ignore_https_errors=True)
            page = await context.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            await page.goto(origin)
            said = await page.evaluate(SPEAK, [running.url, key.secret])
            assert said == ["realtime", "".join(WORDS)]
            assert await page.evaluate(SPEAK, [running.url, "wai_sk_wrong"]) == ["closed", 1006]
            await context.close()
