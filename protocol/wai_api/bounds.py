"""Ranges of what the API takes, for the types and for whoever asks before it sends. No imports."""

from __future__ import annotations

from typing import Final

MAX_COUNT: Final = 1 << 53  # the largest whole number that JSON carries exactly
MAX_TIME: Final = 1e11  # seconds since 1970, about the year 5138: more is a time in milliseconds

# Steps of priority, up or down: enough to rank people, agents and batch jobs. With four to the
# power of the step as weight, the lowest still gets a four-thousandth of what the highest gets.
MAX_PRIORITY: Final = 3

MAX_NAMES: Final = 256  # names in one list of a limit
MAX_NAME_CHARS: Final = 256  # of a model, as `wai_protocol.status` bounds it
MAX_KEY_NAME_CHARS: Final = 64
MAX_LABELS: Final = 16  # of a key
MAX_GRACE_S: Final = 30 * 24 * 3600.0  # for which a rotated key's former secret may be good
MAX_TOKEN_BYTES: Final = 256  # what a stranger may make the relay hash

MAX_TTL_S: Final = 30 * 24 * 3600.0  # an invite that nobody uses for a month is a leak in waiting

MAX_CONTEXT_TOKENS: Final = 1 << 24  # a slot's, more than any model has
MAX_UPSTREAM_SLOTS: Final = 4096  # no server works on more requests at once
MAX_SLOTS: Final = 256
MIN_IDLE_S: Final = 1.0  # sooner, and a model is unloaded before its first request comes
MAX_IDLE_S: Final = 1e9
LOAD_WORDS: Final = ("keep_loaded", "on_demand")  # when a deployment is in memory
MAX_DEPLOY_PRIORITY: Final = 100  # a deployment's, up or down; a higher one gets memory first
MAX_REPLICAS: Final = 64
CACHE_TYPES: Final = ("f16", "q8_0", "q4_0")  # the numbers of a K/V cache
FLASH_ATTENTION: Final = ("auto", "on", "off")
MAX_GPU_LAYERS: Final = 1024  # the deepest models have some 130
MAX_GPUS: Final = 64  # of one machine, by number
REASONING_FORMATS: Final = ("auto", "none", "deepseek", "deepseek-legacy")
MAX_DRAFT_TOKENS: Final = 64  # that a draft model proposes at once
MAX_ENGINE_FLAGS: Final = 32  # and environment variables
MAX_FLAG_CHARS: Final = 256
MAX_FOUND: Final = 50  # repositories that one search of the hub may return
