"""What the scripts of clients share: where the relay is, and how a result is told.

Each script is run as `SCRIPT MODEL...` and prints a line of JSON for each model.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Final

URL: Final = os.environ["WAI_URL"]
KEY: Final = os.environ["WAI_KEY"]
BASE_URL: Final = URL + "/v1"
HELLO: Final = "Say hello."
MAX_TOKENS: Final = 24


def tell(ask: Callable[[str], str]) -> None:
    """Call `ask` for each model; it returns what the model said, or raises."""
    for model in sys.argv[1:]:
        try:
            said, error = ask(model), ""
        except Exception as failure:  # whatever the client raises is the result
            said, error = "", f"{type(failure).__name__}: {failure}"
        if not said and not error:
            error = "it said nothing"
        print(json.dumps({"model": model, "said": said, "error": error}), flush=True)
