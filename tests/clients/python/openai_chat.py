"""OpenAI's SDK: chat completions, whole and streamed."""

from __future__ import annotations

import openai
from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, tell

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)


def ask(model: str) -> str:
    messages = [{"role": "user", "content": HELLO}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=MAX_TOKENS)
    assert whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=MAX_TOKENS, stream=True
    )
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


tell(ask)
