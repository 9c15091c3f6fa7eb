"""How many tokens a request may take, for the limits of its key. Pure.

The estimate of a prompt is good enough to place it, and too low where somebody wants it to be. So
a request's most counts a token for each byte of text, which no tokenizer exceeds, up to the
context.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from wai_protocol.surface import Route, Task
from wai_relay.contracts.upstream import ServingNode
from wai_relay.policy.admission import UNBOUNDED, TokenClaim

from .bodies import BodyFacts
from .tokens import BYTES_PER_TOKEN

# The context of a model whose upstream does not tell it: what the largest common models have.
ASSUMED_CONTEXT_TOKENS: Final = 131_072
# What a chat template puts around a prompt, and around tools besides: the longest of the common
# models' are half of it.
TEMPLATE_TOKENS: Final = 64
TOOLS_TEMPLATE_TOKENS: Final = 512
# A recording: the tokens of the best compressed speech (16 kbit/s at 50 tokens a second), with what
# is said in it.
RECORDING_BYTES_PER_TOKEN: Final = 40
FREE_TASKS: Final = frozenset({Task.COUNT, Task.DESCRIBE})
"""No model reads their requests."""


def token_claim(
    route: Route, facts: BodyFacts, prompt_tokens: int, context_tokens: int | None
) -> TokenClaim:
    """What a request may take. `prompt_tokens` is the estimate of its prompt, `context_tokens` the
    largest context that serves it."""
    if route.task in FREE_TASKS or route.is_websocket:  # which is charged as it goes
        return TokenClaim(0, 0, 0)
    context = max(context_tokens or ASSUMED_CONTEXT_TOKENS, facts.context_tokens or 0)
    if route.generates and not facts.whole:  # nobody knows what it asks for, but for its size
        return TokenClaim(min(int(facts.size_bytes / BYTES_PER_TOKEN), context), None, UNBOUNDED)
    prompt, most_prompt = _prompt(route, facts, prompt_tokens, context)
    if not route.generates:
        return TokenClaim(prompt, 0, most_prompt)
    if facts.max_output_tokens:
        answer = facts.answers * facts.max_output_tokens
        return TokenClaim(prompt, answer, most_prompt + answer)
    # None given, or 0, which some servers take for none.
    return TokenClaim(prompt, None, most_prompt + facts.answers * max(context - prompt, 1))


def prompt_to_read(route: Route, facts: BodyFacts, prompt_tokens: int) -> int:
    """How long what a model must read is likely to be, in tokens, for the choice of a node."""
    if route.generates:
        return prompt_tokens
    if route.task in FREE_TASKS:
        return 0
    return _prompt(route, facts, prompt_tokens, ASSUMED_CONTEXT_TOKENS)[0]


def largest_context(nodes: Iterable[ServingNode], models: Collection[str]) -> int | None:
    """The largest context that any of `nodes` has for one of `models`; None if one does not tell,
    or none serves them."""
    contexts = [
        model.context_tokens for node in nodes for model in node.status.models if model.id in models
    ]
    told = [context for context in contexts if context is not None]
    return max(told) if told and len(told) == len(contexts) else None


def _prompt(route: Route, facts: BodyFacts, prompt_tokens: int, context: int) -> tuple[int, int]:
    """The prompt's tokens as they are estimated, and at most."""
    size = facts.size_bytes
    if route.task is Task.TRANSCRIBE and not facts.whole:
        return 0, size // RECORDING_BYTES_PER_TOKEN
    if not route.generates:  # each of a batch of texts has a context of its own
        return int(size / BYTES_PER_TOKEN), size
    if facts.prompt.images:
        return prompt_tokens, max(context, prompt_tokens)
    template = TOOLS_TEMPLATE_TOKENS if facts.has_tools else TEMPLATE_TOKENS
    most = min(facts.prompt.text_bytes + template, context)
    return prompt_tokens, max(most, prompt_tokens)
