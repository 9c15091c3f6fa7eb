"""Which inference servers are on this machine, for `wai doctor`."""

from __future__ import annotations

from wai_protocol.errors import WaiError

from .finding import Finding


def own_upstreams(*, on_node: bool) -> Finding:
    """What serves models at the usual ports. That nothing does is a problem of `own_node`'s."""
    import asyncio

    from wai_node.upstreams import find_upstreams

    async def look() -> list[str]:
        seen = []
        for upstream in await find_upstreams():
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
        return Finding("upstream", ok=True, text="found here: " + ", ".join(seen))
    text = "no inference server on the usual ports of this machine"
    if not on_node:
        return Finding("upstream", ok=True, text=text + ", and no node either")
    advice = "fine if the node was given --upstream URL; else start one (llama-server, Ollama, …)"
    return Finding("upstream", ok=True, text=f"{text}; {advice}")
