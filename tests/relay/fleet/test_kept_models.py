"""A node that was restarted: what it served before is away for a while, and then unknown."""

from __future__ import annotations

from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.fleet.kept_models import KEPT_S, KeptModels


def status(*models: str, ready: bool = True) -> NodeStatus:
    return NodeStatus(models=tuple(ModelStatus(id=m, upstream="u", ready=ready) for m in models))


def shown(found: NodeStatus) -> dict[str, bool]:
    return {model.id: model.ready for model in found.models}


def test_what_the_run_before_served_is_away_until_it_is_there_again() -> None:
    kept = KeptModels()
    kept.begin(status("a", "b"), 0.0)
    assert shown(kept.merged(status(), 1.0)) == {"a": False, "b": False}
    assert shown(kept.merged(status("a"), 2.0)) == {"a": True, "b": False}
    assert kept.until == KEPT_S


def test_a_model_that_this_run_had_and_dropped_is_unknown_at_once() -> None:
    kept = KeptModels()
    kept.begin(status("a"), 0.0)
    kept.merged(status("a"), 1.0)
    assert shown(kept.merged(status(), 2.0)) == {}
    assert kept.until is None


def test_what_does_not_come_back_is_unknown_in_the_end() -> None:
    kept = KeptModels()
    kept.begin(status("a"), 0.0)
    assert shown(kept.merged(status(), KEPT_S)) == {}
    assert kept.until is None


def test_the_first_run_has_nothing_before_it() -> None:
    kept = KeptModels()
    assert kept.merged(status("a"), 0.0) == status("a")
