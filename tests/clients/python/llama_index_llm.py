"""LlamaIndex's OpenAILike."""

from __future__ import annotations

from llama_index.llms.openai_like import OpenAILike
from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, tell


def ask(model: str) -> str:
    llm = OpenAILike(
        model=model,
        api_base=BASE_URL,
        api_key=KEY,
        is_chat_model=True,
        max_tokens=MAX_TOKENS,
        max_retries=0,
    )
    assert llm.complete(HELLO).text
    return "".join(chunk.delta or "" for chunk in llm.stream_complete(HELLO))


tell(ask)
