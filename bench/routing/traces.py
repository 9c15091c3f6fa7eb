"""Requests to replay: two public traces, and three made here that are unlike both.

A request's `blocks` name its prompt's blocks; equal names mean equal prompts up to there. Azure's
trace has none, so no prompt there shares anything. Mooncake's arrivals are recorded in steps of
three seconds; they are spread evenly over the step, or every policy would be measured on bursts
that never were.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

AZURE_FILE: Final = "azure_conv_2023.csv"
MOONCAKE_FILE: Final = "mooncake_conversation.jsonl"
MOONCAKE_STEP_S: Final = 3.0
BOUND_SHARE: Final = 0.4  # of the sessions in the trace of bound ones


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: when, how long, what its prompt begins with, and whose it is. One without an
    answer (`output_tokens` 0) is an embedding. One of a `conversation` comes after the turn before
    it is over, and must go to the node that served that, if it fits there."""

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    key: str = "key"
    conversation: int | None = None


def load(folder: Path, count: int, offset: float) -> dict[str, list[TraceRequest]]:
    """The traces that are there, `count` requests in a row of each from `offset` (a share of it)
    on, and the synthetic ones."""
    traces: dict[str, list[TraceRequest]] = {}
    if (path := folder / AZURE_FILE).exists():
        traces["azure-conversation"] = window(azure(path), count, offset)
    if (path := folder / MOONCAKE_FILE).exists():
        traces["mooncake-conversation"] = window(mooncake(path), count, offset)
    traces["synthetic-agents"] = window(agents(count * 2), count, offset)
    bound = agents(count * 2, bound=BOUND_SHARE)
    traces["synthetic-agents, bound"] = window(bound, count, offset)
    traces["synthetic-mixed"] = window(mixed(count * 2), count, offset)
    return traces


def azure(path: Path) -> list[TraceRequest]:
    """AzureLLMInferenceTrace_conv (2023)."""
    requests: list[TraceRequest] = []
    with path.open() as file:
        for row in csv.DictReader(file):
            at = datetime.datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            requests.append(TraceRequest(at, max(prompt, 1), max(output, 1), ()))
    return requests


def mooncake(path: Path) -> list[TraceRequest]:
    """Mooncake's conversation trace (FAST 2025), with its 512-token prefix blocks."""
    spread = random.Random(1)
    requests: list[TraceRequest] = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        at = row["timestamp"] / 1000 + spread.random() * MOONCAKE_STEP_S
        blocks = tuple(row["hash_ids"])
        output = max(row["output_length"], 1)
        requests.append(TraceRequest(at, row["input_length"], output, blocks))
    return sorted(requests, key=lambda r: r.at)


def agents(count: int, seed: int = 7, *, bound: float = 0.0) -> list[TraceRequest]:
    """Agents at work: sessions of many quick turns over a growing prompt, that start in waves.

    Eight kinds of agent with a long system prompt each; a turn adds some hundred tokens and mostly
    answers shortly, sometimes at length. Nothing like a chat: bursts, long prompts, much to reuse.
    Of the sessions a share is `bound` to the node that served their first turn.
    """
    rng, drawn = random.Random(seed), random.Random(seed + 1)
    requests: list[TraceRequest] = []
    next_block = 1000
    start = 0.0
    session = 0
    while len(requests) < count:
        session += 1
        conversation = session if drawn.random() < bound else None
        wave = (
            4.0 if int(start / 120) % 3 == 0 else 0.7
        )  # sessions come thick for a third of the time
        start += rng.expovariate(0.25 * wave)
        kind = rng.randrange(8)
        system = 4 + kind  # blocks of 256 tokens
        blocks = [kind * 100 + i for i in range(system)]
        at = start
        for _ in range(rng.randint(3, 25)):
            for _ in range(max(1, round(rng.lognormvariate(0.6, 0.9)))):
                blocks.append(next_block)
                next_block += 1
            blocks = blocks[:30]
            output = min(int(rng.lognormvariate(4.3, 1.1)) + 4, 3000)
            tokens = len(blocks) * 256 - rng.randrange(200)
            request = TraceRequest(at, tokens, output, tuple(blocks), conversation=conversation)
            requests.append(request)
            at += rng.expovariate(1 / 6.0) + output / 60
    return sorted(requests, key=lambda r: r.at)[:count]


def mixed(count: int, seed: int = 11) -> list[TraceRequest]:
    """People, a reasoning batch and an indexer at one model: three keys.

    Half are short chats, a quarter is reasoning with answers of some thousand tokens, in bursts,
    and a quarter are embeddings of documents, in longer bursts.
    """
    rng = random.Random(seed)
    requests: list[TraceRequest] = []
    at = 0.0
    while len(requests) < count:
        at += rng.expovariate(1.0)
        kind = rng.random()
        if kind < 0.9:
            prompt, output = (
                int(rng.lognormvariate(5.5, 0.9)) + 8,
                int(rng.lognormvariate(4.6, 0.8)),
            )
            requests.append(TraceRequest(at, prompt, output + 1, (), "people"))
        elif kind < 0.95:
            for _ in range(9):
                prompt, output = rng.randrange(200, 1500), int(rng.lognormvariate(7.6, 0.5))
                requests.append(TraceRequest(at, prompt, output + 1, (), "reasoning"))
        else:
            lengths = [rng.randrange(200, 2000) for _ in range(9)]
            requests += [TraceRequest(at, length, 0, (), "indexer") for length in lengths]
    return requests[:count]


def window(requests: list[TraceRequest], count: int, offset: float) -> list[TraceRequest]:
    """`count` requests in a row, from the share `offset` of the trace on, from time 0."""
    first = max(0, min(int(len(requests) * offset), len(requests) - count))
    part = requests[first : first + count]
    return [replace(r, at=r.at - part[0].at) for r in part]


def paced(requests: list[TraceRequest], per_second: float) -> tuple[list[TraceRequest], float]:
    """The same requests at `per_second` on average, and the factor by which time was divided."""
    span = requests[-1].at - requests[0].at
    factor = per_second * span / len(requests)
    return [replace(r, at=r.at / factor) for r in requests], factor


def mean_tokens(requests: list[TraceRequest]) -> tuple[float, float]:
    """Mean prompt and answer length."""
    prompts = math.fsum(r.prompt_tokens for r in requests)
    outputs = math.fsum(r.output_tokens for r in requests)
    return prompts / len(requests), outputs / len(requests)
