"""What a wheel and an sdist must hold: `python -m tests.packaging.contents FOLDER` looks into both.

The wheel was made from the sdist (that is how `build` works), so a file that the sdist lacks is
missed here too.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

PACKAGES: Final = ("wai_api", "wai_protocol", "wai_transport", "wai_relay", "wai_node", "wai_cli")
IN_THE_WHEEL: Final = (
    r"wai_relay/static/index\.html",
    r"wai_relay/static/assets/.+\.js",
    r"wai_relay/static/assets/.+\.css",
    r"wai_relay/storage/migrations/0001_foundation\.sql",
    r"wai_relay/installer/install\.sh",
    r"wai_relay/installer/requirements\.lock",
    r"wai_relay/installer/services/wai-relay\.service",
    r"wai_relay/installer/services/wai-node\.service",
    r"wai_relay/installer/services/wai-node\.plist",
    r"wai-[^/]+\.dist-info/licenses/LICENSE",
    *(rf"{package}/py\.typed" for package in PACKAGES),
)
IN_A_RELEASE: Final = (r"wai-[^/]+\.data/data/share/man/man1/wai-node\.1",)
"""What the wheel has that `make dist` builds, and one that is built in the sources may lack."""
IN_THE_SDIST: Final = (
    *(r"pyproject\.toml", r"README\.md", r"LICENSE", r"CHANGELOG\.md", r"install\.sh"),
    *(r"protocol/SPEC\.md", r"relay/Dockerfile", r"client/Dockerfile", r"relay/web/src/main\.tsx"),
    r"relay/web/generate_api\.py",
    *(r"relay/build\.lock", r"relay/build-node\.lock"),
)
NOT_SHIPPED: Final = re.compile(r"(^|/)(node_modules|__pycache__|\.venv|\.git|tests)/|\.pyc$")


def missing(names: list[str], wanted: tuple[str, ...]) -> list[str]:
    """The patterns that no name fits."""
    return [pattern for pattern in wanted if not any(re.fullmatch(pattern, n) for n in names)]


def check_wheel(file: Path, also: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with a wheel, a line each; `also`: what it must have beside the usual."""
    with zipfile.ZipFile(file) as wheel:
        names = wheel.namelist()
    wrong = [f"{file.name} lacks {pattern}" for pattern in missing(names, IN_THE_WHEEL + also)]
    return wrong + [f"{file.name} has {name}" for name in names if NOT_SHIPPED.search(name)]


def check_sdist(file: Path) -> list[str]:
    """What is wrong with an sdist, a line each."""
    with tarfile.open(file) as sdist:
        names = [name.partition("/")[2] for name in sdist.getnames()]
    return [f"{file.name} lacks {pattern}" for pattern in missing(names, IN_THE_SDIST)]


def main(folder: Path) -> int:
    """Check all that is in `folder`; 0 if nothing is wrong."""
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    wrong = [line for file in wheels for line in check_wheel(file, IN_A_RELEASE)]
    wrong += [line for file in sdists for line in check_sdist(file)]
    if len(wheels) != 1 or len(sdists) != 1:
        wrong.append(f"{folder} has {len(wheels)} wheels and {len(sdists)} sdists")
    print("\n".join(wrong) or f"{wheels[0].name} and {sdists[0].name} are whole")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
