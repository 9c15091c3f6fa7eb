"""Pydantic AI: an agent over OpenAI's API, whole and streamed."""

from __future__ import annotations

import asyncio

import openai
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, tell


async def both(model: str) -> str:
    client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
    server = OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client))
    agent = Agent(server, model_settings={"max_tokens": MAX_TOKENS})
    whole = await agent.run(HELLO)
    async with agent.run_stream(HELLO) as stream:
        streamed = await stream.get_output()
    return f"{whole.output} | {streamed}"


def ask(model: str) -> str:
    return asyncio.run(both(model))


tell(ask)
