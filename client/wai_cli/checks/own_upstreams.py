"""List for `wai doctor` the inference servers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wai_protocol.errors import WaiError

from .finding import Finding

_ANSWER: Final = "another user's server is used after `wai node upstream allow {port}`, or `deny`"


def own_upstreams(data: Path, *, on_node: bool) -> Finding:
    """Return the servers at the usual ports, as the node with this data folder judges them.

    Finding none is not reported as a problem here; `own_node` does that.
    """
    import asyncio

    from wai_node.upstreams import Consent, Verdict, installed_kinds, look_around

    unused: list[str] = []

    async def look() -> list[str]:
        seen = []
        for upstream, judged in await look_around(Consent(data), kinds=installed_kinds()):
            if judged.verdict is not Verdict.ALLOWED:
                seen.append(f"{upstream.name} (belongs to {judged.owner}: {judged.verdict.text})")
                unused.append(str(upstream.origin.port))
                await upstream.aclose()
                continue
            try:
                count = len((await upstream.probe()).models)
                seen.append(f"{upstream.name} ({count} models)")
            except WaiError as error:
                seen.append(f"{upstream.name} (no answer: {error})")
            finally:
                await upstream.aclose()
        return seen

    seen = asyncio.run(look())
    if seen:
        advice = _ANSWER.format(port=unused[0]) if unused else ""
        return Finding("upstream", ok=True, text="found here: " + ", ".join(seen), advice=advice)
    text = "no inference server on the usual ports of this machine"
    if not on_node:
        return Finding("upstream", ok=True, text=text + ", and no node either")
    advice = "fine if the node was given --upstream URL; else start one (llama-server, Ollama, …)"
    return Finding("upstream", ok=True, text=f"{text}; {advice}")
