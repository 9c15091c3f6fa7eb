"""The Grafana dashboard and the alerts ask for nothing that /metrics does not have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from wai_api.hardware import GpuNow, MachineNow
from wai_api.health import KINDS
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.contracts.records import (
    DiscardingRecorder,
    RequestRecord,
    TokenCounts,
    UsageState,
)
from wai_relay.http.edge import EdgeCounters
from wai_relay.observe.live import LiveRequests
from wai_relay.observe.metrics import Metrics

FILE: Final = Path(__file__).parents[3] / "relay" / "grafana-dashboard.json"
ALERTS: Final = yaml.safe_load(FILE.with_name("prometheus-alerts.yml").read_text(encoding="utf-8"))
RULES: Final = [rule for group in ALERTS["groups"] for rule in group["rules"]]
OF_SCRAPING: Final = {"job", "instance"}  # labels that Prometheus adds
DASHBOARD: Final = json.loads(FILE.read_text(encoding="utf-8"))
SAMPLE: Final = re.compile(r"^([a-z_]+)(?:\{(.*)\})? ", re.MULTILINE)
ASKED: Final = re.compile(r"\b(?:wai|gen_ai_server)_[a-z_]+\b(?!\s*=)")
LABELS: Final = re.compile(r"\bby \(([^)]*)\)|\{([^}]*)\}")
NO_LABEL: Final = {"le", ""}


class OneNode:
    name, ready, reconnects = "box", True, 1
    status = NodeStatus((ModelStatus("m", "u", ready=True, slots_total=4),))


def exposed() -> dict[str, set[str]]:
    """Each name in the page, with the labels that it has there."""
    metrics = Metrics(DiscardingRecorder())
    record = RequestRecord("req_1", 0.0, "POST", "/v1/chat/completions", "key_1", "m")
    record.status, record.attempts, record.ttft_ms, record.duration_ms = 200, 1, 30.0, 530.0
    record.stream = True
    record.tokens = TokenCounts(prompt=7, cached=2, completion=11, exact=True)
    metrics.finish(record)
    record.status, record.fault = 502, "node_lost"
    metrics.finish(record)
    node: Any = OneNode()
    gpu = GpuNow(name="g", use=1.0, used=1, total=2, temperature=3.0, power=4.0)
    machine = MachineNow(cpu=1.0, ram_used=1, ram_total=2, gpus=(gpu,))
    text = metrics.text(
        *([node], LiveRequests(), EdgeCounters()),
        certificate_ends=2e9,
        usage=UsageState(0, 0, behind=False),
        problems=dict.fromkeys(KINDS, 0),
        machines=[("box", machine)],
    )
    found: dict[str, set[str]] = {}
    for name, labels in SAMPLE.findall(text):
        found.setdefault(name, set()).update(re.findall(r'([a-z_]+)="', labels))
    return found


async def _unused(_: object) -> None:
    raise AssertionError("nobody asks")


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["definition"] for one in DASHBOARD["templating"]["list"] if "definition" in one)


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_panel_has_its_metrics_and_labels(expression: str) -> None:
    _check(expression)


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: rule["alert"])
def test_every_alert_has_its_metrics_and_labels_and_says_what_to_do(rule: dict[str, Any]) -> None:
    _check(rule["expr"])
    assert set(rule["annotations"]) == {"summary", "description"}
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_each_kind_of_problem_has_one_alert() -> None:
    kinds = [
        kind
        for rule in RULES
        for matched in re.findall(r'wai_problems\{kind=~"([^"]*)"', rule["expr"])
        for kind in matched.split("|")
    ]
    assert sorted(kinds) == sorted(set(KINDS) - {"setup"})  # a new relay is no emergency


def _check(expression: str) -> None:
    there = exposed()
    names = {name for name in ASKED.findall(expression) if not name.startswith("gen_ai_request")}
    assert names
    assert names <= set(there), names - set(there)
    labels = set[str]()
    for grouped, matched in LABELS.findall(expression):
        labels.update(part.strip() for part in grouped.split(","))
        labels.update(re.findall(r"([a-z_]+)=", matched))
    assert labels - NO_LABEL - OF_SCRAPING <= set().union(*(there[name] for name in names))


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
