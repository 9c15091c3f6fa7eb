"""Ollama's client: list, show, chat, generate, embed, and what runs."""

from __future__ import annotations

import ollama
from shared import HELLO, KEY, MAX_TOKENS, URL, tell

client = ollama.Client(host=URL, headers={"Authorization": f"Bearer {KEY}"})
OPTIONS = {"num_predict": MAX_TOKENS}


def ask(model: str) -> str:
    assert model in {entry.model for entry in client.list().models}
    client.ps()
    client.show(model)
    messages = [{"role": "user", "content": HELLO}]
    assert client.generate(model=model, prompt=HELLO, options=OPTIONS).response
    assert client.chat(model=model, messages=messages, options=OPTIONS).message.content
    stream = client.chat(model=model, messages=messages, options=OPTIONS, stream=True)
    return "".join(part.message.content for part in stream)


tell(ask)
