"""Writes a tiny LoRA adapter in GGUF, as convert_lora_to_gguf.py does, for a model of a width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

RANK = 4


def write_lora(
    path: Path,
    *,
    width: int,
    layers: int = 1,
    architecture: str = "llama",
    kind: str = "adapter",
) -> Path:
    """Adapt the queries and the output of the attention of the first `layers` layers."""
    writer: Any = gguf.GGUFWriter(str(path), architecture)
    random = np.random.default_rng(7)
    try:
        writer.add_string("general.type", kind)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 8.0)
        for layer in range(layers):
            for part in ("attn_q", "attn_output"):
                name = f"blk.{layer}.{part}.weight"
                a = 0.1 * random.standard_normal((RANK, width), dtype=np.float32)
                b = 0.1 * random.standard_normal((width, RANK), dtype=np.float32)
                writer.add_tensor(f"{name}.lora_a", a)
                writer.add_tensor(f"{name}.lora_b", b)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return path
