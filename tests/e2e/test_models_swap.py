"""A context is swapped on a box without room for two: requests wait, hear so, and none fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.harness.caller import chat, request
from tests.harness.model_fleet import MODEL, ask
from tests.harness.processes import wait_until
from tests.harness.small_box import CONTEXT, SWAPPED, WAIT_S, Box, small_box

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with small_box(tmp_path_factory.mktemp("box")) as found:
        yield found


def swapped(box: Box) -> bool:
    view = box.view()
    return bool(view) and view["context_served"] == SWAPPED and not view["changing"]


def test_no_request_fails_under_load(box: Box) -> None:
    box.fresh()
    box.ready()
    stop, statuses = threading.Event(), []

    def keep_asking(stream: bool) -> None:
        while not stop.is_set():
            statuses.append(ask(box.running, box.secret, stream=stream))

    callers = [threading.Thread(target=keep_asking, args=(i % 2 == 0,)) for i in range(4)]
    for caller in callers:
        caller.start()
    try:
        wait_until(lambda: len(statuses) > 8, "no load", WAIT_S)
        box.swap()
        wait_until(lambda: swapped(box), "not swapped", WAIT_S)
        before = len(statuses)
        wait_until(lambda: len(statuses) > before + 8, "nobody is answered after it", WAIT_S)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert set(statuses) == {200}
    assert box.view()["swap_error"] == ""


def test_who_waits_for_the_new_context_hears_so(box: Box) -> None:
    box.fresh()
    box.ready()
    box.server().suspend()
    box.open_answer()
    box.swap()
    box.until("draining")
    assert box.view()["context_served"] == CONTEXT
    headers = {"Authorization": f"Bearer {box.secret}"}
    body = chat(MODEL, stream=True, max_tokens=8)
    with request(box.running, "/v1/chat/completions", body, headers) as answer:
        assert answer.status == 200  # after the first heartbeat: nothing else can have come
        assert answer.readline().startswith(b":")
        assert box.view()["state"] == "draining"
        box.let_go()
        lines = answer.read().splitlines()
    assert b"data: [DONE]" in lines
    wait_until(lambda: swapped(box), "not swapped", WAIT_S)
