"""xllamacpp's HTTP server as a program: `python -P -m wai_node.managed.server.inprocess_server …`.

Used if no llama-server is installed. It accepts the flags that `process` gives to llama-server, and
reads the key from LLAMA_API_KEY, as llama-server does.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

_RANK = 4  # enum llama_pooling_type
_CACHE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # enum ggml_type
_FLASH = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type


def main() -> None:
    """Load the model and serve until SIGTERM."""
    options = _options()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import xllamacpp
    except ImportError as error:
        sys.exit(f"xllamacpp can't be loaded: {error}")
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.api_keys = [os.environ.pop("LLAMA_API_KEY")]
    params.hostnames = [options.host]
    params.port = 0
    params.ui = False
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.verbosity = options.verbosity
    params.n_ctx, params.n_parallel = options.ctx_size, options.parallel
    params.kv_unified = False
    params.fit_params = False
    params.cache_ram_mib = options.cache_ram
    params.n_gpu_layers = options.gpu_layers
    if options.batch_size:
        params.n_batch, params.n_ubatch = options.batch_size, options.ubatch_size
    if options.mmproj:
        params.mmproj.path = options.mmproj
        params.mmproj_use_gpu = not options.no_mmproj_offload
    if options.embeddings or options.reranking:
        params.embedding = True
    if options.reranking:
        params.pooling_type = _RANK
    params.cache_type_k = _CACHE_TYPES[options.cache_type_k]
    params.cache_type_v = _CACHE_TYPES[options.cache_type_v]
    params.flash_attn_type = _FLASH[options.flash_attn]
    if options.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    try:
        _server = xllamacpp.Server(params)  # serves for as long as it is referenced
    except RuntimeError as error:
        sys.exit(f"llama.cpp: {error}")
    stop.wait()
    os._exit(0)  # freeing the model would wait for answers whose readers are gone


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wai inference server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", required=True, help="the path of a unix socket")
    parser.add_argument("--ctx-size", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--gpu-layers", type=int, default=-1)
    parser.add_argument("--cache-type-k", choices=_CACHE_TYPES, default="f16")
    parser.add_argument("--cache-type-v", choices=_CACHE_TYPES, default="f16")
    parser.add_argument("--flash-attn", choices=_FLASH, default="auto")
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--ubatch-size", type=int, default=0)
    parser.add_argument("--mmproj", default="")
    parser.add_argument("--no-mmproj-offload", action="store_true")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--reranking", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache-ram", type=int, default=0)
    parser.add_argument("--verbosity", type=int, default=4)
    options, _ = parser.parse_known_args()
    return options


if __name__ == "__main__":
    main()
