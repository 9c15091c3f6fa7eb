"""Patterns of the texts that the API accepts, and what an error says instead of a pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Meta

# Python's `$` matches before a line's end too; the rest of a pattern says that there is none.
# A node's name travels in the header X-WAI-Node, in URLs and in metrics' labels.
NODE_NAME: Final = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$(?!\\n)"
ADMIN_NAME: Final = "^[A-Za-z0-9_.@-]{1,64}$(?!\\n)"
LABEL: Final = "^[A-Za-z0-9][A-Za-z0-9._:/=@-]{0,62}$(?!\\n)"
GPUS: Final = "^[0-9]{1,2}(,[0-9]{1,2}){0,63}$(?!\\n)"
URL: Final = "^https?://[!-~]+$(?!\\n)"

# Shown in an error instead of the pattern, which only we should have to read.
IN_WORDS: Final[Mapping[str, str]] = {
    ADMIN_NAME: "1 to 64 letters, digits, dots, dashes, underscores or `@`",
    NODE_NAME: "1 to 63 letters, digits, dots, dashes or underscores, a letter or digit first",
    LABEL: "1 to 63 letters, digits or . _ : / = @ -, a letter or digit first",
    GPUS: "the numbers of GPUs, as 0,1",
    URL: "an address that begins with https:// (or http://) and has no spaces",
}


def one_of(*values: str) -> Meta:
    """Metadata of a text that is one of these in the OpenAPI document.

    A reader accepts others too: a newer relay may have values that an older CLI does not know.
    """
    return Meta(extra_json_schema={"enum": list(values)})
