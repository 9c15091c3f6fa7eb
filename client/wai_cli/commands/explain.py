"""`wai explain REQUEST_ID`: show why the relay chose a node for a request."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from wai_api.requests import ExplainedAttempt, Explanation
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.output.progress import seconds_text
from wai_cli.output.tables import print_json, print_table, say, time_text

# What a candidate's figures are called, in the order in which they are shown; times in seconds.
_COLUMNS = {
    "node": "NODE",
    "free": "FREE SLOTS",
    "load_s": "LOAD",
    "warm_tokens": "CACHED TOKENS",
    "wait_s": "WAIT FOR A SLOT",
    "prefill_s": "READ THE PROMPT",
    "rtt_s": "NETWORK",
    "generation_s": "GENERATE",
    "failure_s": "RISK OF FAILURE",
    "cost_s": "COST",
    "excluded": "EXCLUDED",
}
_LEGEND = """\
Times in seconds. COST decides: the time to the first token, the time to generate by its weight
(first_token_weight in the relay's settings), the risk of failure, and what others lose by it."""
_EPILOG = """\
The id is in every answer's X-Request-Id header, and in `wai requests list`. Why a node was chosen
is known of the last 4096 requests, until the relay restarts."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai explain`."""
    parser.epilog = _EPILOG
    parser.add_argument("id", metavar="REQUEST_ID", help="from an answer's X-Request-Id: req_…")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    add_target_options(parser)
    parser.set_defaults(run=_explain)


def _explain(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get(f"/requests/{quote(parsed.id, safe='')}/explain")
    if parsed.json:
        print_json(answer)
        return 0
    print_explanation(read_as(Explanation, answer))
    return 0


def print_explanation(found: Explanation) -> None:
    """Print the way of one request: its outcome, its times, and each attempt."""
    say(f"{found.id}: {found.method} {found.path}, {time_text(found.started_at)}")
    say(f"model {found.model or '-'}, {_outcome(found)}")
    if found.translated == "relay":
        say("answered by the relay, since the model's server has no such route")
    elif found.translated:
        say(f"translated to {found.translated}, since the model's server has no such route")
    say(_times(found))
    for number, attempt in enumerate(found.attempts, start=1):
        print()
        _print_attempt(number, attempt)
    if not found.attempts and found.node:
        say(f"it went to {found.node} ({found.reason or 'no reason is kept'}); the attempts are")
        say("known of the last 4096 requests only, until the relay restarts")


def _outcome(found: Explanation) -> str:
    if found.running:
        return f"runs now on {found.node or 'no node yet'}"
    status = f"status {found.status}"
    if found.fault:
        status += f" ({found.fault})"
    if found.cancelled:
        status += ", cancelled"
    return status


def _times(found: Explanation) -> str:
    parts = [f"queue {found.queue_ms:.0f} ms"]
    if found.ttft_ms is not None:
        parts.append(f"first token {found.ttft_ms:.0f} ms")
    if not found.running:
        parts.append(f"in all {found.duration_ms:.0f} ms")
        about = "" if found.tokens_exact else "about "
        parts.append(
            f"{about}{found.prompt_tokens} tokens of prompt ({found.cached_tokens} cached),"
            f" {found.completion_tokens} of answer"
        )
    return ", ".join(parts)


def _print_attempt(number: int, attempt: ExplainedAttempt) -> None:
    failed = f", and failed: {attempt.fault}" if attempt.fault else ""
    say(
        f"attempt {number}: {attempt.node}, because {attempt.reason or '-'}"
        f" (waited {attempt.queue_ms:.0f} ms){failed}"
    )
    if (story := load_text(attempt)) is not None:
        say(story)
    candidates = attempt.candidates
    known = list(candidates[0]) if candidates else []
    columns = [name for name in _COLUMNS if name in known]
    columns += [name for name in known if name not in _COLUMNS]  # a newer relay's
    print_table(
        [_COLUMNS.get(name, name.upper()) for name in columns],
        [[_figure(candidate.get(name)) for name in columns] for candidate in candidates],
        empty="no other node was considered",
    )
    if "cost_s" in columns:
        print(_LEGEND)


def load_text(attempt: ExplainedAttempt) -> str | None:
    """Return the sentence about a load that a request waited for, or is expected to."""
    load = attempt.load
    if load is None:
        chosen = (one for one in attempt.candidates if one.get("node") == attempt.node)
        expected_s = next((one.get("load_s") for one in chosen), None)
        if not isinstance(expected_s, int | float) or expected_s <= 0:
            return None
        return f"{attempt.node} loads the model first, about {seconds_text(expected_s)}"
    text = f"{attempt.node} loaded the model first, in {load.load_ms / 1000:.1f} s"
    if load.made_room:
        text += f", after {' and '.join(load.made_room)} had made room"
    return f"{text}, for which it waited {load.room_ms / 1000:.1f} s" if load.room_ms else text


def _figure(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
