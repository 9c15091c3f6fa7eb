"""Which clients there are, what they need, and what of each server they can't have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SERVERS: Final = ("llama-server", "vllm", "ollama", "lm-studio", "strict")
"""A real llama-server, and servers that answer as the real ones do (`harness.model_servers`)."""

DOCUMENTED_WITH: Final = "vllm"
"""The server by which the blocks of docs/clients.md are run."""

PYTHON_PACKAGES: Final = (
    "openai==2.54.0",
    "anthropic==2.14.0",
    "ollama==0.6.3",
    "langchain-openai==1.7.4",
    "langchain-anthropic==1.7.10",
    "langchain-ollama==1.1.0",
    "llama-index-llms-openai-like==0.8.1",
    "litellm==1.106.12",
    "instructor==1.17.0",
    "pydantic-ai-slim[openai,anthropic]==2.31.1",
    "openai-agents==0.20.0",
    "llm==0.32.1",
    "smolagents[openai]==1.26.0",
)


@dataclass(frozen=True, slots=True)
class Client:
    """One client: the script that is run, and whether the packages of `make test` are enough.
    `limits`: why it can't work with a server, whoever is between them."""

    name: str
    script: str
    quick: bool = False
    limits: dict[str, str] = field(default_factory=dict)

    @property
    def runs_on_node(self) -> bool:
        """Whether it is from npm."""
        return self.script.endswith(".mjs")


_SENDS_STREAM_OPTIONS: Final = {"strict": "refuses stream_options, which this client sends"}

CLIENTS: Final = (
    Client("OpenAI Python, chat", "openai_chat.py", quick=True),
    Client("OpenAI Python, responses", "openai_responses.py", quick=True),
    Client("OpenAI Python, embeddings", "openai_embeddings.py", quick=True),
    Client("Anthropic Python", "anthropic_messages.py", quick=True),
    Client("Ollama Python", "ollama_client.py"),
    Client("LangChain: OpenAI, Anthropic, Ollama", "langchain_clients.py"),
    Client("LlamaIndex OpenAILike", "llama_index_llm.py"),
    Client("LiteLLM SDK", "litellm_sdk.py"),
    Client(
        *("Instructor", "instructor_client.py"),
        limits={"llama-server": "does not force the one tool that is named"},
    ),
    Client("Pydantic AI", "pydantic_ai_agent.py", limits=_SENDS_STREAM_OPTIONS),
    Client("OpenAI Agents", "openai_agents.py"),
    Client("llm", "llm_command.py", limits=_SENDS_STREAM_OPTIONS),
    Client("smolagents", "smolagents_model.py"),
    Client(
        *("Claude Code", "claude_code.py"),
        limits={"llama-server": "reads its 15,000 tokens too slowly on the test's one core"},
    ),
    Client("Codex", "codex_cli.py"),
    Client("OpenAI JS", "openai.mjs"),
    Client("Anthropic JS", "anthropic.mjs"),
    Client("Ollama JS", "ollama.mjs"),
    Client("Vercel AI SDK", "vercel.mjs"),
)
