"""The floor forwards what others forward, or its figures would say nothing."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from pathlib import Path

from bench.peers import floor
from bench.place import Place
from bench.wire import MODEL


def test_several_callers_get_their_own_answers_through_the_floor(tmp_path: Path) -> None:
    with Place(tmp_path / "origin", 0) as origin:
        here = {"PYTHONPATH": str(Path(__file__).parents[2])}
        origin.spawn("origin", [sys.executable, "-m", "bench.origin"], here)
        origin.wait_for("origin", lambda: "ready " in origin.log("origin"))
        with Place(tmp_path / "floor", int(origin.log("origin").split()[1])) as place:
            target = floor.start(place)
            tls = ssl.create_default_context(cafile=target.ca)
            port = int(target.url.rsplit(":", 1)[1])
            callers = [
                http.client.HTTPSConnection("127.0.0.1", port, context=tls) for _ in range(3)
            ]
            for caller in callers * 2:
                caller.request("GET", "/v1/models")
                assert json.load(caller.getresponse())["data"][0]["id"] == MODEL
            for caller in callers:
                caller.close()
