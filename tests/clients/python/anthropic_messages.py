"""Anthropic's SDK: messages, whole and streamed, and a count of tokens."""

from __future__ import annotations

import anthropic
from shared import HELLO, KEY, MAX_TOKENS, URL, tell

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)


def ask(model: str) -> str:
    messages = [{"role": "user", "content": HELLO}]
    asked = {"model": model, "messages": messages, "max_tokens": MAX_TOKENS}
    whole = client.messages.create(**asked)
    assert whole.usage.output_tokens > 0
    assert client.messages.count_tokens(model=model, messages=messages).input_tokens > 0
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.stop_reason in ("end_turn", "max_tokens")
    assert final.usage.input_tokens > 0
    return text


tell(ask)
