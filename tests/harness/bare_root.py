"""A Debian root with its base system alone, made of this machine's own packages.

It has the essential packages and apt (debootstrap's `minbase`), those that a caller names, and what
these depend on; nothing else of this machine, no engine among it, but the folders that are bound
into it. Processes inside share the network and the process ids with the tests. Needs root on a
Debian.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_BASE: Final = ("apt",)
_LINKED: Final = ("bin", "sbin", "lib", "lib64")
_MADE: Final = ("dev", "proc", "run", "tmp", "root", "var/tmp", "etc/ssl/certs")
_SETTINGS: Final = (
    *("etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/hosts", "etc/resolv.conf"),
    *("etc/os-release", "etc/ssl/certs/ca-certificates.crt", "etc/pip.conf"),
)
_LEFT_OUT: Final = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/info/")
_PATH: Final = re.compile(r"(file://)?(/[^/\s,;'\"][^\s,;'\"]*)")
_ENTER: Final = """\
set -e
root=$1; shift
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
for folder; do mkdir -p "$root$folder"; mount --bind "$folder" "$root$folder"; done
exec /usr/sbin/chroot "$root" /bin/sh -c 'cd "$HOME" && exec sh'
"""


def why_not(*packages: str) -> str | None:
    """Why no such root can be made here; None: it can."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("dpkg-query") is None:
        return "it takes root on a Debian"
    missing = [name for name in packages if name not in _dependencies()]
    return f"apt-get install {' '.join(missing)}" if missing else None


class BareRoot:
    """A root in `folder` with these packages; `enter` is how a shell is started there, which reads
    its commands from its input."""

    def __init__(self, folder: Path, packages: Iterable[str]) -> None:
        self.folder = folder
        for name in _MADE:
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "tmp").chmod(0o1777)
        for name in _LINKED:
            (folder / "usr" / name).mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(f"usr/{name}")
        listed = subprocess.run(
            ["dpkg-query", "--listfiles", *_closure(packages)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for line in listed.splitlines():
            if line.startswith("/") and not line.startswith(_LEFT_OUT):
                self._copy(Path(line))
        for path in (*Path("/etc/alternatives").iterdir(), *(Path("/") / s for s in _SETTINGS)):
            self._copy(path)
        self._copy(Path("/usr/bin/awk"))
        subprocess.run(["/usr/sbin/chroot", str(folder), "/sbin/ldconfig"], check=True)

    def enter(self, *bound: Path) -> tuple[str, ...]:
        """The command of a shell inside; `bound` are folders of this machine that it sees too."""
        inside = [str(path) for path in bound]
        return ("unshare", "--mount", "sh", "-c", _ENTER, "sh", str(self.folder), *inside)

    def _copy(self, path: Path) -> None:
        there = self.folder / path.relative_to("/")
        if path.is_symlink():
            if not there.is_symlink() and not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                there.symlink_to(path.readlink())
        elif path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
        elif path.is_file():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, there)


def folders_of(pip_settings: Mapping[str, str]) -> list[Path]:
    """The folders of this machine that pip reads by its settings: wheels, and its cache."""
    files = [Path("/etc/pip.conf"), Path(pip_settings.get("PIP_CONFIG_FILE", "/nonexistent"))]
    texts = [*pip_settings.values(), *(file.read_text() for file in files if file.exists())]
    named = {file.parent for file in files[1:]}
    for scheme, found in (match for text in texts for match in _PATH.findall(text)):
        # the pages of an index in files name wheels that lie beside it
        named.add(Path(found).parent if scheme else Path(found))
    return sorted(path for path in named if path.is_dir() and path != Path("/"))


def _dependencies() -> dict[str, tuple[bool, list[str]]]:
    """Whether each installed package, or what one provides, is essential, and what it needs."""
    form = "${Package}\\t${Essential}\\t${Pre-Depends}, ${Depends}\\t${Provides}\\n"
    listed = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={form}"], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for line in listed.splitlines():
        name, essential, needs, provides = line.split("\t")
        wanted = [re.sub(r"[\s(:].*", "", part.strip()) for part in re.split(r"[,|]", needs)]
        found[name] = essential == "yes", [part for part in wanted if part]
        for provided in provides.split(","):
            found.setdefault(re.sub(r"[\s(:].*", "", provided.strip()), (False, [name]))
    return found


def _closure(packages: Iterable[str]) -> list[str]:
    known = _dependencies()
    waiting = [*_BASE, *packages, *(name for name, (essential, _) in known.items() if essential)]
    taken: dict[str, None] = {}
    while waiting:
        name = waiting.pop()
        if name in taken or name not in known:
            continue
        taken[name] = None
        waiting += known[name][1]
    real = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package}\\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return sorted(set(taken) & set(real))
