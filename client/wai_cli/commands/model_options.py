"""The options of a deployment on the command line, by the words that the API has for them."""

from __future__ import annotations

import argparse
from typing import Any, Final

from wai_api.bounds import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    LOAD_WORDS,
    MAX_DEPLOY_PRIORITY,
    MAX_DRAFT_TOKENS,
    MAX_GPU_LAYERS,
    MAX_IDLE_S,
    MIN_IDLE_S,
    REASONING_FORMATS,
)
from wai_cli.options.values import (
    AUTO,
    NONE,
    auto_or_whole,
    between,
    duration,
    gpu_numbers,
    named,
    none_or,
)

_OPTIONS: Final = (
    *("cache_type", "gpu_layers", "cpu_moe", "gpus", "flash_attention", "reasoning_format"),
    *("draft_max", "alias", "engine_flags", "environment"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a deployment, by the words that the API has for them."""
    parser.add_argument(
        "--cache-type",
        choices=CACHE_TYPES,
        help="the numbers of the K/V cache: q8_0 takes half of f16's memory, q4_0 a quarter",
    )
    parser.add_argument(
        "--gpu-layers",
        metavar="N",
        type=auto_or_whole(0, MAX_GPU_LAYERS),
        help="so many layers on GPUs; auto: as many as fit",
    )
    parser.add_argument(
        "--cpu-moe",
        metavar="N",
        type=auto_or_whole(0, MAX_GPU_LAYERS),
        help="of so many layers the experts stay in RAM; auto: of as few as fit",
    )
    parser.add_argument(
        "--gpus",
        metavar="0,1",
        type=gpu_numbers,
        help="the GPUs to use, by their numbers on the node; auto: as few as hold it, else all",
    )
    parser.add_argument(
        "--reasoning-format",
        choices=REASONING_FORMATS,
        help="what becomes of a model's thoughts (default: auto)",
    )
    parser.add_argument(
        "--draft-max",
        metavar="N",
        type=auto_or_whole(1, MAX_DRAFT_TOKENS),
        help="how many tokens its draft model proposes at once; auto: as many as the engine does",
    )
    parser.add_argument(
        "--alias",
        metavar="NAME",
        type=named,
        help="a second name by which callers may ask for it, or none",
    )
    parser.add_argument(
        "--env",
        dest="environment",
        metavar="NAME=VALUE",
        action="append",
        help="an environment variable of its server (repeat for more), or none; only those that the"
        " node's owner allows",
    )
    parser.add_argument("--flash-attention", choices=FLASH_ATTENTION, help="(default: auto)")
    parser.add_argument(
        "--engine-flag",
        dest="engine_flags",
        metavar="FLAG",
        action="append",
        help="add it to llama-server's (repeat for more; write --engine-flag=--flag), or none; only"
        " if the node's owner allows that",
    )


def options_given(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as the API takes them."""
    given: dict[str, Any] = {
        name: value for name in _OPTIONS if (value := getattr(parsed, name)) is not None
    }
    for name in ("gpu_layers", "cpu_moe", "gpus", "draft_max"):
        if given.get(name) == AUTO:
            given[name] = None
    for name in ("engine_flags", "environment"):
        if given.get(name) == [NONE]:
            given[name] = []
    if given.get("alias") == NONE:
        given["alias"] = ""
    return given


def add_policy(parser: argparse.ArgumentParser) -> None:
    """When a model is in memory."""
    parser.add_argument(
        "--load",
        choices=[word.replace("_", "-") for word in LOAD_WORDS],
        help="keep-loaded: always in memory; on-demand: loaded by a request, unloaded if another"
        " model needs the room (default: keep-loaded, with --ttl on-demand)",
    )
    parser.add_argument(
        "--ttl",
        "--idle-unload",
        dest="idle_unload",
        metavar="TIME",
        type=none_or(duration(MIN_IDLE_S, MAX_IDLE_S)),
        help="unload it after so long without a request (90s, 10m, 2h), or none",
    )
    parser.add_argument(
        "--priority",
        metavar="N",
        type=between(-MAX_DEPLOY_PRIORITY, MAX_DEPLOY_PRIORITY),
        help=f"a higher one gets memory first (-{MAX_DEPLOY_PRIORITY} to {MAX_DEPLOY_PRIORITY},"
        " default 0)",
    )


def policy_given(parsed: argparse.Namespace) -> dict[str, Any]:
    """When it is to be in memory, as far as that was given, as the API takes it."""
    given: dict[str, Any] = {}
    if parsed.load is not None:
        given["load"] = parsed.load.replace("-", "_")
    if parsed.idle_unload is not None:
        given["idle_unload_s"] = None if parsed.idle_unload == NONE else parsed.idle_unload
    if parsed.priority is not None:
        given["priority"] = parsed.priority
    return given
