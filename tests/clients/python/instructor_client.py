"""Instructor: an answer as an object, by a tool that must be called."""

from __future__ import annotations

import instructor
import openai
from pydantic import BaseModel
from shared import BASE_URL, HELLO, KEY, tell


class Greeting(BaseModel):
    word: str


client = instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0))


def ask(model: str) -> str:
    messages = [{"role": "user", "content": HELLO}]
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        response_model=Greeting,
        max_retries=1,
        max_tokens=200,
    )
    return repr(answer)


tell(ask)
