"""Pydantic AI: an agent over OpenAI's and one over Anthropic's API."""

from __future__ import annotations

import anthropic
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, URL, tell


def ask(model: str) -> str:
    client = anthropic.AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0)
    models = [
        OpenAIChatModel(model, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY)),
        AnthropicModel(model, provider=AnthropicProvider(anthropic_client=client)),
    ]
    settings = {"max_tokens": MAX_TOKENS}
    return " | ".join(Agent(one, model_settings=settings).run_sync(HELLO).output for one in models)


tell(ask)
