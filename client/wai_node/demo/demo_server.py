"""The child process that serves the demo's model: `python -P -m wai_node.demo.demo_server`.

llama.cpp's own HTTP server, from the package xllamacpp. Its parent (`demo.py`) says what to serve,
and at which unix socket, by environment, where no other user can read it, reads one line once the
model is loaded, and holds stdin: when that ends this process
does too, so that it does not outlive a parent that was killed. No part of `wai` imports it.
"""

from __future__ import annotations

import os
import sys
from typing import Final

CONTEXT_TOKENS_PER_SLOT: Final = 4096  # 92 MiB of KV cache; the model was trained on 8192
SLOTS: Final = 2  # a chat, and one more so that a second caller does not look like a hang
PROMPT_CACHE_MIB: Final = 128  # llama.cpp's own default is 8 GiB of RAM, too much for a demo


def main() -> None:
    """Load the model, print `ready URL`, serve until stdin ends."""
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
    os.dup(1)  # our parent goes by the pipe's end
    nowhere = os.open(os.devnull, os.O_WRONLY)  # from now on it would print parts of requests
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdin.read()
    # Freeing the model waits for answers in progress; whoever read them is gone.
    os._exit(0)


if __name__ == "__main__":
    main()
