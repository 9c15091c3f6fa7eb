"""smolagents' model over OpenAI's API."""

from __future__ import annotations

from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, tell
from smolagents import ChatMessage, OpenAIModel


def ask(model: str) -> str:
    server = OpenAIModel(
        model_id=model, api_base=BASE_URL, api_key=KEY, client_kwargs={"max_retries": 0}
    )
    said = server([ChatMessage(role="user", content=HELLO)], max_tokens=MAX_TOKENS)
    return str(said.content)


tell(ask)
