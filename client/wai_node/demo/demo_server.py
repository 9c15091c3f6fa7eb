"""The child process that serves the demo's model: `python -P -m wai_node.demo.demo_server`.

It runs llama.cpp's HTTP server, from the package xllamacpp. Its parent (`demo.py`) names the model,
the key and the unix socket in the environment, which other users can't read, and waits for one line
on stdout, which says that the model is loaded. The process ends when its stdin does, so that it
does not outlive a parent that was killed. No part of `wai` imports this module.
"""

from __future__ import annotations

import os
import sys
from typing import Final

CONTEXT_TOKENS_PER_SLOT: Final = 4096  # 92 MiB of KV cache; the model was trained on 8192
SLOTS: Final = 2  # a second slot, so that a second caller need not wait for the first
PROMPT_CACHE_MIB: Final = 128  # llama.cpp's own default is 8 GiB of RAM, too much for a demo


def main() -> None:
    """Load the model, print `ready`, and serve until stdin ends."""
    try:
        import xllamacpp  # an optional extra, linked against libraries that may be missing
    except ImportError as error:
        sys.exit(f"xllamacpp can't be loaded: {error}")
    params = xllamacpp.CommonParams()
    params.model.path = os.environ.pop("WAI_DEMO_MODEL")
    params.model_alias = {os.environ.pop("WAI_DEMO_ALIAS")}
    params.api_keys = [os.environ.pop("LLAMA_API_KEY")]
    params.hostnames = [os.environ.pop("WAI_DEMO_SOCKET")]
    params.port = 0
    params.ui = False
    params.endpoint_metrics = True
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_TOKENS_PER_SLOT
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.cpuparams.n_threads = int(os.environ.pop("WAI_DEMO_THREADS"))
    try:
        _server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"llama.cpp: {error}")
    print("ready", flush=True)
    os.dup(1)  # keep the pipe open: the parent takes its end for the end of this process
    nowhere = os.open(os.devnull, os.O_WRONLY)  # llama.cpp would print parts of requests
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdin.read()
    # os._exit, because freeing the model would wait for open answers, whose readers are gone.
    os._exit(0)


if __name__ == "__main__":
    main()
