"""Prefix fingerprints: where two prompts stop being the same, as a chain of small hashes. Pure.

A conversation's next turn repeats every message of the one before. Hashing all of them, each hash
over everything up to its point, lets selection find the node that has the longest part warm.
Hashing only the first message would send every chat under one system prompt to one node.

The hashes are Python's own, seeded per process: four times as fast as blake2b, and nobody outside
can aim at a collision. They mean nothing to another process and are not stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

BLOCK_BYTES: Final = 2048  # some 512 tokens: finer than any cache entry that is worth a detour
MAX_BLOCKS: Final = 256  # 64 to 128k tokens of prompt; what lies behind adds no information

Fingerprint = tuple[int, ...]


def fingerprint(parts: Iterable[bytes]) -> Fingerprint:
    """The chained 64-bit hashes of `parts` (messages, as the caller wrote them), in order.

    One hash ends at the end of each part, and one at every `BLOCK_BYTES` inside a long part. Two
    prompts that share their first k blocks share their first k hashes, and with near certainty no
    more than these.
    """
    marks: list[int] = []
    for part in parts:
        if len(part) <= BLOCK_BYTES:  # as most messages are
            if part:
                marks.append(hash(part))
        else:
            blocks = range(0, len(part), BLOCK_BYTES)
            marks += [hash(part[start : start + BLOCK_BYTES]) for start in blocks[:MAX_BLOCKS]]
        if len(marks) >= MAX_BLOCKS:
            break
    return chained(marks)


def chained(marks: Iterable[int]) -> Fingerprint:
    """The fingerprint of a prompt whose blocks have the hashes `marks`, in order."""
    chain: list[int] = []
    last = 0
    for mark in marks:
        last = hash((last, mark))
        chain.append(last)
        if len(chain) == MAX_BLOCKS:
            break
    return tuple(chain)


def shared_blocks(one: Fingerprint, other: Fingerprint) -> int:
    """How many leading blocks two prompts have in common."""
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared
