"""LiteLLM's proxy: a gateway without a tunnel and without TLS, so about half of our path."""

from __future__ import annotations

from typing import Final

from bench.clients import Target
from bench.peers.package import program_path, why_not_installed
from bench.place import Place, free_port
from bench.wire import MODEL

_KEY: Final = "sk-bench-0123456789abcdef"  # it refuses to start without one
NAME: Final = "LiteLLM (no tunnel, no TLS)"


def missing() -> str | None:
    """Why it can't run here; installs it where it can."""
    return why_not_installed("litellm", "litellm[proxy]", "litellm")


def config(origin: int) -> str:
    """One model at the origin, no key, no database."""
    return f"""model_list:
  - model_name: {MODEL}
    litellm_params:
      model: openai/{MODEL}
      api_base: http://127.0.0.1:{origin}/v1
      api_key: none
litellm_settings:
  telemetry: false
  num_retries: 0
"""


def start(place: Place) -> Target:
    """One worker."""
    port = free_port()
    path = place.write("config.yaml", config(place.origin_port))
    command = [program_path("litellm", "litellm"), "--config", str(path)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    pid = place.spawn(
        "litellm", command, {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": _KEY}
    )
    place.wait_for_port("litellm", port)
    return Target(url=f"http://127.0.0.1:{port}", key=_KEY, watch={"gateway": [pid]})
