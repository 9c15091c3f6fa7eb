"""What selection is told of the lanes that could serve a request: one `Candidate` for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .demands import Readiness
from .lanes import BestKnown, Lane
from .scoring import Candidate
from .tickets import Ticket

Lines = dict[str, tuple[int, float]]
"""By node: how many requests, with how many prompt tokens, wait for it before this one."""

NO_LINE: Final = (0, 0.0)
# A named tuple without the check of its arguments: half of what making one costs.
_new: Final = tuple.__new__


def candidates(
    ticket: Ticket, asked: Iterable[Lane], known: BestKnown, placed: int, now: float, lines: Lines
) -> list[Candidate]:
    """`asked` as they are now for `ticket`. `placed`: requests for the model placed so far."""
    made: list[Candidate] = []
    demand, since = ticket.demand, ticket.at
    prefix, prompt_tokens = demand.prefix, demand.prompt_tokens
    expected_tokens = demand.expected_output_tokens
    for lane in asked:
        node, ledger, readiness = lane.node, lane.ledger, lane.readiness
        if ledger.suspect:
            ledger.heal(now)
        prefill_tps = lane.prefill.tps or known.prefill_tps
        cooldown, failure_rate, failed_try_s = lane.cooldown, 0.0, 0.0
        if not cooldown.spotless:
            failure_rate, failed_try_s = cooldown.failure_rate(now), cooldown.took_s
            if readiness is Readiness.READY and cooldown.cooling(now, placed):
                readiness = Readiness.COOLING
        waiting, waiting_tokens = lines.get(node, NO_LINE) if lines else NO_LINE
        busy, reading, ahead, output_tokens = ledger.load(prefill_tps, now)
        status = ledger.status
        slots = status.slots_total
        if slots is not None:  # nothing of it is learned: what `lane` would answer, without asking
            waiting, unsure, paces_prompts = waiting + status.queued, 0, ledger.writes
        else:
            slots, unsure, paces_prompts = lane.slots, lane.unsure, lane.paces_prompts
        slot_s = (output_tokens or expected_tokens) / (lane.decode.tps or known.decode_tps)
        alone_s, each_s = lane.pace.alone_s, lane.pace.each_s
        if not alone_s:
            alone_s = known.alone_s
            each_s = lane.pace.assumed_each_s(alone_s)
        made.append(
            _new(
                Candidate,
                (
                    node,
                    status,
                    prefill_tps,
                    busy,
                    waiting,
                    waiting_tokens,
                    reading,
                    ahead,
                    slot_s or prompt_tokens / prefill_tps,
                    now - (lane.placed_at if lane.placed_at > since else since),
                    lane.warm.warm_tokens(prefix, prompt_tokens) if prefix else 0,
                    lane.rtt_s,
                    readiness,
                    lane.own,
                    slots,
                    unsure,
                    alone_s,
                    each_s,
                    failure_rate,
                    failed_try_s,
                    ledger.silence_s(now) if ledger.silent else 0.0,
                    paces_prompts,
                    lane.load_left(now) if lane.load_s else 0.0,
                ),
            )
        )
    return made
