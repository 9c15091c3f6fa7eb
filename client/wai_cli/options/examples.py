"""Examples for the help of commands and actions that do not define their own."""

from __future__ import annotations

import argparse
from typing import Final

EXAMPLES: Final = {
    "node join": ("wai node join --name box",),
    "node run": (
        "wai node run",
        "wai node run --upstream http://127.0.0.1:8080",
        "wai settings node > node.toml && wai node run --config node.toml",
    ),
    "node upstream": ("wai node upstream list", "wai node upstream allow 8080"),
    "node upstream list": ("wai node upstream list",),
    "node upstream allow": ("wai node upstream allow 8080",),
    "node upstream deny": ("wai node upstream deny 8080",),
    "node engine list": ("wai node engine list",),
    "node engine install": (
        "wai node engine install",
        "wai node engine install b11429 --backend vulkan --no-use",
    ),
    "node engine use": ("wai node engine use b11429-vulkan", "wai node engine use auto"),
    "node engine remove": ("wai node engine remove b11429-cpu",),
    "node uninstall": ("wai node uninstall",),
    "node list": ("wai node list", "wai node list --json"),
    "node status": ("wai node status box",),
    "node drain": ("wai node drain box",),
    "node slots": ("wai node slots box vllm@127.0.0.1:8000 16",),
    "node rename": ("wai node rename box desk",),
    "node undrain": ("wai node undrain box",),
    "node remove": ("wai node remove box",),
    "node logs": ("wai node logs box --lines 20",),
    "invite create": ("wai invite create --name box --hours 1",),
    "invite list": ("wai invite list",),
    "invite revoke": ("wai invite revoke inv_0123456789abcdef",),
    "key create": (
        "wai key create my-app",
        "wai key create my-app --rpm 60 --expires 2027-01-31 --model llama",
    ),
    "key list": ("wai key list --revoked",),
    "key update": ("wai key update my-app --rpm none --tpm 100000",),
    "key rotate": ("wai key rotate my-app", "wai key rotate my-app --grace 7d"),
    "key capture": (
        "wai key capture my-app --for 10m",
        "wai key capture my-app --off",
    ),
    "key rename": ("wai key rename my-app chat-on-phones",),
    "key revoke": ("wai key revoke my-app", "wai key revoke key_0123456789abcdef"),
    "sign-in link": ("wai sign-in link",),
    "sign-in list": ("wai sign-in list",),
    "sign-in end": ("wai sign-in end si_0123456789abcdef", "wai sign-in end --all"),
    "requests list": ("wai requests list --failed --since 1d",),
    "requests show": (
        "wai requests show req_0123456789abcdef",
        "wai requests show req_0123456789abcdef --captured",
    ),
    "requests replay": (
        "wai requests replay req_0123456789abcdef --node attic",
        "wai requests replay req_0123456789abcdef --model qwen3-8b",
    ),
    "status": ("wai status", "wai status || notify-me"),
    "notify test": ("wai notify test",),
    "explain": ("wai explain req_0123456789abcdef",),
    "backup": ("wai backup relay-backup.tar",),
    "restore": ("wai restore relay-backup.tar --data /var/lib/wai/relay",),
    "model search": ("wai model search qwen3 4b",),
    "model fit": ("wai model fit unsloth/Qwen3-4B-GGUF --node box",),
    "model deploy": (
        "wai model deploy unsloth/Qwen3-4B-GGUF:Q4_K_M --node box",
        "wai model deploy unsloth/Qwen3-4B-GGUF --node box --install-engine",
        "wai model deploy ./my-model-Q8_0.gguf --node box",
        "wai model deploy unsloth/Qwen3-4B-GGUF --lora me/my-adapter-GGUF --node box",
        "wai model deploy ollama:qwen3:8b --node box",
        "wai model deploy Qwen/Qwen3-8B --engine vllm --node box",
    ),
    "model list": ("wai model list",),
    "model context": ("wai model context unsloth/Qwen3-4B-GGUF:Q4_K_M --node box --context 32768",),
    "model edit": (
        "wai model edit unsloth/Qwen3-4B-GGUF:Q4_K_M --node box --cache-type q8_0",
        "wai model edit unsloth/Qwen3-4B-GGUF:Q4_K_M --node box --gpu-layers auto --slots 4",
    ),
    "model retry": ("wai model retry unsloth/Qwen3-4B-GGUF:Q4_K_M --node box",),
    "model remove": ("wai model remove unsloth/Qwen3-4B-GGUF:Q4_K_M --node box",),
    "model load": ("wai model load ollama:qwen3:8b --node box",),
    "model unload": ("wai model unload ollama:qwen3:8b --node box",),
    "model logs": ("wai model logs unsloth/Qwen3-4B-GGUF:Q4_K_M --node box",),
    "version": ("wai version",),
}


def add_examples(parser: argparse.ArgumentParser, name: str) -> None:
    """Add examples to the help of a command (such as "key") and of its actions."""
    lines = EXAMPLES.get(name, ())
    if lines and "example" not in (parser.epilog or ""):
        text = "\n".join(("examples:", *(f"  {line}" for line in lines)))
        parser.epilog = f"{parser.epilog}\n\n{text}" if parser.epilog else text
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner, sub in action.choices.items():
                add_examples(sub, f"{name} {inner}")
