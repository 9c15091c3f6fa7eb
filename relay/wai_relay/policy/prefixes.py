"""Which prompts' beginnings a node has warm: the relay's own memory of what it sent there.

Prompts are compared by their `fingerprints`: hash k covers all blocks up to the k-th, so equal
hashes mean equal prompts up to there. Of every model on every node the relay remembers the blocks
it sent, as many tokens as the node can keep, the longest unused forgotten first.

It is a guess: the node may have evicted sooner. What upstreams report as cached corrects it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .fingerprints import Fingerprint

# Used until a node has said how much it keeps: one llama-server with four slots of 8k.
DEFAULT_CAPACITY_TOKENS: Final = 32_768
# No node is remembered with more blocks than this (about 150 bytes each), whatever it says it
# keeps.
MAX_NODE_BLOCKS: Final = 16_384
# Our token counts are estimates of about a fifth either way; only below that was a guess wrong.
CLEARLY_LESS: Final = 0.75
TRUST_LOST: Final = 0.9
TRUST_REGAINED: Final = 1.01
TRUST_LEAST: Final = 0.05


class WarmPrefixes:
    """The blocks that one model on one node is believed to have warm."""

    __slots__ = ("_capacity_tokens", "_tokens", "_trust", "blocks")

    def __init__(self, capacity_tokens: int = DEFAULT_CAPACITY_TOKENS) -> None:
        self.blocks: OrderedDict[int, float] = OrderedDict()  # least recently used first; tokens
        self._tokens = 0.0
        self._capacity_tokens = capacity_tokens
        self._trust = 1.0

    def __len__(self) -> int:
        return len(self.blocks)

    def resize(self, capacity_tokens: int) -> None:
        """What the node keeps, in tokens: its slots times the context of each."""
        if capacity_tokens != self._capacity_tokens:
            self._capacity_tokens = capacity_tokens
            self._evict()

    def warm_tokens(self, prefix: Fingerprint, prompt_tokens: int) -> int:
        """How many of the prompt's first tokens are believed to be warm. Changes nothing.

        Blocks count alike: that is off by a block at most where messages are short.
        """
        blocks = self.blocks
        count = 0
        for key in prefix:
            if key not in blocks:
                break
            count += 1
        return prompt_tokens * count // len(prefix) if count else 0

    def remember(self, prefix: Fingerprint, prompt_tokens: int) -> None:
        """The prompt was sent there: all of it is warm from now on."""
        if not prefix:
            return
        blocks = self.blocks
        tokens = prompt_tokens / len(prefix)
        for key in reversed(prefix):  # the deepest is the first to go: no block is of use alone
            if key in blocks:
                blocks.move_to_end(key)
            else:
                blocks[key] = tokens
                self._tokens += tokens
        self._evict()

    def correct(self, believed_tokens: int, cached_tokens: int) -> None:
        """The upstream reported `cached_tokens` of a prompt warm where we believed
        `believed_tokens`.

        When it had clearly less, it keeps less than it says: we remember a tenth less of it, and
        try a little more again with every guess that was right.
        """
        if cached_tokens < believed_tokens * CLEARLY_LESS:
            self._trust = max(self._trust * TRUST_LOST, TRUST_LEAST)
            self._evict()
        elif believed_tokens:
            self._trust = min(self._trust * TRUST_REGAINED, 1.0)

    def clear(self) -> None:
        """The upstream was restarted: nothing is warm."""
        self.blocks.clear()
        self._tokens = 0.0

    def _evict(self) -> None:
        blocks = self.blocks
        bound = self._capacity_tokens * self._trust
        while blocks and (self._tokens > bound or len(blocks) > MAX_NODE_BLOCKS):
            self._tokens -= blocks.popitem(last=False)[1]
