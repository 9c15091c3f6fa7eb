"""OpenAI's SDK: embeddings and the list of models."""

from __future__ import annotations

import openai
from shared import BASE_URL, KEY, tell

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)


def ask(model: str) -> str:
    assert model in {entry.id for entry in client.models.list()}
    answer = client.embeddings.create(model=model, input=["one", "two"])
    return f"{len(answer.data)} vectors of {len(answer.data[0].embedding)}"


tell(ask)
