"""LiteLLM's SDK, for OpenAI's and Anthropic's API."""

from __future__ import annotations

import litellm
from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, URL, tell

litellm.telemetry = False


def ask(model: str) -> str:
    messages = [{"role": "user", "content": HELLO}]
    asked = {"messages": messages, "max_tokens": MAX_TOKENS, "api_key": KEY, "num_retries": 0}
    whole = litellm.completion(model=f"openai/{model}", api_base=BASE_URL, **asked)
    assert whole.choices[0].message.content
    stream = litellm.completion(model=f"anthropic/{model}", api_base=URL, stream=True, **asked)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


tell(ask)
