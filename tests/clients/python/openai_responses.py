"""OpenAI's SDK: responses, whole and streamed."""

from __future__ import annotations

import openai
from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, tell

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)


def ask(model: str) -> str:
    whole = client.responses.create(model=model, input=HELLO, max_output_tokens=MAX_TOKENS)
    assert whole.output_text
    # Not `responses.stream`: the SDK's helper can't read llama-server's own `response.created`.
    events = list(
        client.responses.create(model=model, input=HELLO, max_output_tokens=MAX_TOKENS, stream=True)
    )
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.usage.output_tokens > 0
    return "".join(e.delta for e in events if e.type == "response.output_text.delta")


tell(ask)
