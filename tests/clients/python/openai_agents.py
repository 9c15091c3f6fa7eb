"""OpenAI's Agents SDK, over responses and over chat completions."""

from __future__ import annotations

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, tell

set_tracing_disabled(disabled=True)


def ask(model: str) -> str:
    said = []
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
        agent = Agent(
            name="greeter",
            model=kind(model=model, openai_client=client),
            model_settings=ModelSettings(max_tokens=MAX_TOKENS),
        )
        said.append(Runner.run_sync(agent, HELLO).final_output)
    return " | ".join(said)


tell(ask)
