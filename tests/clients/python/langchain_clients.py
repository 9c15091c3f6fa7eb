"""LangChain's chat models for OpenAI, Anthropic and Ollama."""

from __future__ import annotations

from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, URL, tell


def ask(model: str) -> str:
    headers = {"Authorization": f"Bearer {KEY}"}
    chats = [
        ChatOpenAI(model=model, base_url=BASE_URL, api_key=KEY, max_tokens=MAX_TOKENS),
        ChatAnthropic(model=model, base_url=URL, api_key=KEY, max_tokens=MAX_TOKENS),
        ChatOllama(
            model=model,
            base_url=URL,
            client_kwargs={"headers": headers},
            num_predict=MAX_TOKENS,
        ),
    ]
    said = []
    for chat in chats:
        assert chat.invoke(HELLO).content
        said.append("".join(str(chunk.content) for chunk in chat.stream(HELLO)))
    return " | ".join(said)


tell(ask)
