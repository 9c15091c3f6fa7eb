"""Writes the list of what is inside, in CycloneDX: `python -m tests.packaging.sbom FOLDER`.

CycloneDX's own tool reads the Python packages, with the hashes that install.sh checks, from
`requirements.lock`. It knows nothing of npm: the packages that the dashboard's bundle is made of
are added from `package-lock.json`. Then the document is validated against CycloneDX's schema.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.packaging.build import ROOT, epoch
from wai_transport.version import VERSION

LOCK: Final = ROOT / "relay" / "wai_relay" / "installer" / "requirements.lock"
WEB: Final = ROOT / "relay" / "web"
_IMPORTED: Final = re.compile(r"""(?:from|import)\s+["']((?:@[\w-]+/)?[\w-]+)""")


def python_packages() -> dict[str, Any]:
    """What CycloneDX's tool says of the locked requirements."""
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", str(LOCK)]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"]
    done = subprocess.run(
        [*command, "--of", "JSON", "-o", "-"],
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch()},
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def bundled_packages() -> Iterator[dict[str, Any]]:
    """The npm packages that the pages import, and those that these need."""
    locked = json.loads((WEB / "package-lock.json").read_text())["packages"]
    sources = (path.read_text() for path in sorted((WEB / "src").rglob("*.ts*")))
    wanted = sorted({name for text in sources for name in _IMPORTED.findall(text)})
    seen: set[str] = set()
    while wanted:
        name = wanted.pop(0)
        package = locked.get(f"node_modules/{name}")
        if package is None or name in seen:
            continue
        seen.add(name)
        wanted += sorted(package.get("dependencies", {}))
        algorithm, _, digest = package["integrity"].partition("-")
        purl = f"pkg:npm/{name.replace('@', '%40')}@{package['version']}"
        yield {
            "bom-ref": purl,
            "type": "library",
            "name": name,
            "version": package["version"],
            "purl": purl,
            "licenses": [{"license": {"id": package["license"]}}],
            "hashes": [
                {
                    "alg": algorithm.upper().replace("SHA", "SHA-"),
                    "content": base64.b64decode(digest).hex(),
                }
            ],
        }


def document() -> dict[str, Any]:
    """The whole list."""
    made = python_packages()
    root = made["metadata"]["component"]
    root["version"], root["purl"] = VERSION, f"pkg:pypi/{root['name']}@{VERSION}"
    for one in made["components"]:
        # The tool's description is the requirement with all its hashes, which stand below anyway.
        one.pop("description", None)
    bundled = list(bundled_packages())
    made["components"] += bundled
    refs = [one["bom-ref"] for one in made["components"]]
    made["dependencies"] = [{"ref": root["bom-ref"], "dependsOn": refs}]
    return made


def problems(text: str) -> str:
    """What is wrong with a document by CycloneDX's schema, "" for nothing."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    version = SchemaVersion.from_version(json.loads(text)["specVersion"])
    error = JsonStrictValidator(version).validate_str(text)
    return str(error or "")


def main(folder: Path) -> int:
    """Write `folder`/wai-VERSION.cdx.json; 1 if it does not fit the schema."""
    made = document()
    text = json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if wrong := problems(text):
        print(f"the SBOM does not fit CycloneDX's schema: {wrong}")
        return 1
    file = folder / f"{made['metadata']['component']['name']}-{VERSION}.cdx.json"
    file.write_text(text, encoding="utf-8")
    print(f"{file}: {len(made['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
