"""The options of a deployment on the command line, by the words that the API has for them."""

from __future__ import annotations

import argparse
from typing import Any

from wai_api.bounds import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    LOAD_WORDS,
    MAX_DEPLOY_PRIORITY,
    MAX_GPU_LAYERS,
    MAX_IDLE_S,
    MIN_IDLE_S,
)
from wai_cli.options.values import AUTO, NONE, auto_or_whole, between, duration, none_or


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
        help="so many layers on the GPU; auto: as many as fit",
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
        name: value
        for name in ("cache_type", "gpu_layers", "flash_attention", "engine_flags")
        if (value := getattr(parsed, name)) is not None
    }
    if given.get("gpu_layers") == AUTO:
        given["gpu_layers"] = None
    if given.get("engine_flags") == [NONE]:
        given["engine_flags"] = []
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
