"""Two nodes with one identity, after a copy of a node's folder or of a whole machine."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from tests.chaos.findings import Findings
from tests.chaos.kind import Kind
from tests.chaos.stage import NODE, LinkStage, Size, link_stage

COPY: Final = "copy"
TOGETHER_S: Final = 15.0
# What the log must say, in whatever words: that there are two, or a copy.
_SAID: Final = re.compile(
    r"cop(y|ies|ied)|clone|same (identity|key)|identity .*(twice|already)|two (nodes|machines)",
    re.IGNORECASE,
)
_NOT_SAID: Final = re.compile(r"/copy\b|--data")  # our own folder's name is no such word


class CopiedIdentity(Kind[LinkStage]):
    name = "copied"
    promise = "a copy of a node's folder that runs elsewhere costs it no stream; both logs say so"

    def stage(self, folder: Path, callers: int) -> AbstractContextManager[LinkStage]:
        return link_stage(folder, Size(callers))

    def apply(self, stage: LinkStage, found: Findings) -> None:
        original = stage.running.nodes[NODE].data
        copy = original.with_name(COPY)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy, ignore_dangling_symlinks=True, copy_function=_copy)
        stage.running.start_node(COPY, *stage.node_options)
        self.run_together(stage)

    def run_together(self, stage: LinkStage) -> None:
        """Let both nodes run for a while."""
        time.sleep(TOGETHER_S)

    def undo(self, stage: LinkStage) -> None:
        if (node := stage.running.nodes.pop(COPY, None)) is not None and (
            node.daemon.exit_code is None
        ):
            node.daemon.stop()

    def check(self, stage: LinkStage, found: Findings) -> None:
        folder = stage.running.folder
        logs = {
            "the relay": "relay.log",
            "the node": f"node-{NODE}.log",
            "its copy": f"node-{COPY}.log",
        }
        silent: set[str] = set()
        for who, name in logs.items():
            said = [line for line in (folder / name).read_text().splitlines() if _tells(line)]
            found.notes.append(f"{who} says: {said[0] if said else 'nothing of it'}")
            silent |= {who} if not said else set()
        if "the relay" in silent or {"the node", "its copy"} <= silent:
            found.broken.append(f"no word of a copy in the log of {', '.join(sorted(silent))}")


class CopiedIdentityOnABadLink(CopiedIdentity):
    """As `CopiedIdentity`, with cut connections: at each the copy may be accepted instead."""

    name = "copied-cuts"
    promise = (
        "a copy of a node's folder costs it no stream, also while the connections of both are cut"
        " every 2 to 4 s"
    )
    may_refuse = True

    def run_together(self, stage: LinkStage) -> None:
        until = time.monotonic() + TOGETHER_S
        while time.monotonic() < until:
            time.sleep(self.dice.uniform(2.0, 4.0))
            stage.tunnel.reset()


def _copy(source: str, target: str) -> None:
    """One file; sockets and pipes, which a copied machine would not have open either, are left."""
    if Path(source).is_file():
        shutil.copy2(source, target)


def _tells(line: str) -> bool:
    return _SAID.search(_NOT_SAID.sub("", line)) is not None
