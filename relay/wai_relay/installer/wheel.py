"""Pack the running software into a wheel, so that nodes install the relay's own version.

The wheel is made from the files of the installed packages and the distribution's metadata. So it is
available however the relay was installed (from a wheel, in an image, editable), and always of the
relay's version. The same files result in the same bytes. The dashboard is included as it was built.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wai_protocol.errors import Fault, RequestError

DISTRIBUTION: Final = "wai"
PACKAGES: Final = ("wai_api", "wai_protocol", "wai_transport", "wai_relay", "wai_node", "wai_cli")
_KEPT_METADATA: Final = ("METADATA", "entry_points.txt", "licenses/LICENSE")
_WHEEL: Final = (  # PyPA, "Binary distribution format"
    "Wheel-Version: 1.0\nGenerator: wai relay\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
)
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)  # zip's earliest time, so that the bytes do not vary
_FILE_MODE: Final = 0o100644 << 16


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in memory, about 1 MB. `sha256` is in hex."""

    name: str
    data: bytes = field(repr=False)
    sha256: str


def pack() -> Wheel:
    """Pack the running software. Raises `RequestError` if it was not installed by pip."""
    from importlib.metadata import PackageNotFoundError, distribution  # for who installs a node

    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise RequestError(
            "this relay was not installed by pip, so that it cannot provide a wheel; install wai "
            "on the node by hand",
            Fault.NOT_FOUND,
        ) from None
    stem = f"{DISTRIBUTION}-{installed.version}"
    files = dict(_package_files())
    for name in _KEPT_METADATA:
        if (text := installed.read_text(name)) is not None:
            files[f"{stem}.dist-info/{name}"] = text.encode()
    files[f"{stem}.dist-info/WHEEL"] = _WHEEL.encode()
    record = f"{stem}.dist-info/RECORD"
    files[record] = _record(files, record)
    data = _zip(files)
    return Wheel(f"{stem}-py3-none-any.whl", data, hashlib.sha256(data).hexdigest())


def _package_files() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RequestError(f"the package {package} is missing here", Fault.NOT_FOUND)
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*")):
            if "__pycache__" not in path.parts and path.is_file():
                yield f"{package}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _record(files: dict[str, bytes], record: str) -> bytes:
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{record},,\n"]).encode()


def _zip(files: dict[str, bytes]) -> bytes:
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = _FILE_MODE
            archive.writestr(entry, content)
    return packed.getvalue()
