"""From nothing to a first token with the commands that a person types, in homes that are empty.

One of them is in a Debian root with little else, where the tests may make one. The wheel is built
as for a release; all installations are real, with what they need from the package index that this
machine is set up for (or pip's cache). Services are run by a small `systemctl` of the tests', since
a test has no systemd of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

import pytest

from tests.harness.bare_root import BareRoot, folders_of, why_not
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.fake_releases import VERSION, FakeReleases, real_archive
from tests.harness.llama_server import LlamaServer, llama_server
from tests.harness.processes import free_port, wait_until
from tests.harness.real import require_real
from tests.harness.service_manager import ServiceManager, service_manager
from tests.harness.tiny_gguf import tiny_gguf

pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("install"),
]

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "relay/wai_relay/installer/requirements.lock"
# What a box needs beside Debian's base system, as docs/running-a-node.md says.
ASKED_FOR = "curl", "ca-certificates", "python3-venv", "libgomp1"
GOAL_S = 60.0
GOAL_COMMANDS = 3
_YOUNG_LOOKS = 30
_NOT_COPIED = (".venv", ".git", ".cache", "node_modules", "results", "images", ".*_cache", "*.pyc")


@dataclass(frozen=True, slots=True)
class Machine:
    """A home with nothing in it, a shell there, and what runs its services."""

    home: Path
    services: ServiceManager
    environment: dict[str, str] = field(default_factory=dict)
    shell: tuple[str, ...] = ("sh",)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Type a command; the shell has it in no argument of its own."""
        with TemporaryFile() as typed:
            typed.write(f"{command}\n".encode())
            typed.seek(0)
            return subprocess.Popen(
                self.shell,
                stdin=typed,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.home,
                env=pip_settings()
                | {"HOME": str(self.home), "PATH": f"{self.home}/commands:/usr/bin:/bin"}
                | {"PYTHON": os.path.realpath(sys.executable), **self.environment},
            )

    def type(self, command: str) -> str:
        """Type a command and read all that it says; it must end well."""
        process = self.start(command)
        said = process.communicate(timeout=400)[0]
        assert process.returncode == 0, f"{command}\n{said}"
        return said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, by pip."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "wai"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(copy)], check=True, stdin=subprocess.DEVNULL)
    [built] = folder.glob("wai-*.whl")
    return built


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    """The VPS and the GPU box."""
    with ExitStack() as running:
        made = []
        for name in ("vps", "box"):
            home = tmp_path_factory.mktemp(name)
            manager = running.enter_context(service_manager(home, home / "commands"))
            made.append(Machine(home, manager))
        yield made[0], made[1]


@pytest.fixture(scope="module")
def llama(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    with llama_server(tiny_model, tmp_path_factory.mktemp("llama")) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Installed:
    """What was typed, what it said, and how long it took to the first token."""

    relay_command: str
    node_command: str
    curl_command: str
    first_token: str
    seconds: float
    arguments: str


@pytest.fixture(scope="module")
def installed(machines: tuple[Machine, Machine], wheel: Path, llama: LlamaServer) -> Installed:
    """The whole way, once for all tests here."""
    require_real("llama-server", "curl")
    vps, box = machines
    shutil.copy(ROOT / "install.sh", vps.home)
    shutil.copy(wheel, vps.home)
    model = json.loads(llama.get("/v1/models"))["data"][0]["id"]
    address = f"127.0.0.1:{free_port()}"
    options = f"--user --listen {address} --public-url https://{address} --wheel {wheel.name}"
    start = time.monotonic()
    relay_command = f"sh install.sh relay {options}"
    with _CommandLines() as seen:
        said = vps.type(relay_command)
        node_command = f"{_line(said, '/install.sh')} --user --name box --upstream {llama.url}"
        box.type(node_command)
        wait_until(lambda: "connected" in box.services.log("wai-node"), "the node is not connected")
    wait_until(lambda: f"serving: {model}" in box.services.log("wai-node"), "it serves nothing")
    curl_command = _line(said, "/v1/chat/completions").replace("MODEL", model)
    with vps.start(curl_command) as curl:
        assert curl.stdout is not None
        first = next((line for line in curl.stdout if '"content":"' in line), "")
        seconds = time.monotonic() - start
        curl.stdout.read()
    arguments = seen.text()
    return Installed(relay_command, node_command, curl_command, first, seconds, arguments)


def test_three_commands_lead_to_a_first_token(
    installed: Installed, record_property: Callable[[str, object], None]
) -> None:
    commands = (installed.relay_command, installed.node_command, installed.curl_command)
    record_property(
        "figure",
        f"From nothing to a first token: {installed.seconds:.1f} s (goal {GOAL_S:g}),"
        f" {len(commands)} commands typed (goal {GOAL_COMMANDS}).",
    )
    assert installed.first_token.startswith("data: {")
    assert len(commands) <= GOAL_COMMANDS


def test_a_bare_debian_gets_an_engine_with_the_line_and_deploys_a_model(
    installed: Installed,
    machines: tuple[Machine, Machine],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Its root has Debian's base system and what the documentation asks for, if the tests may make
    one; else only its home is empty."""
    vps, _ = machines
    repo, home = "tiny/llama-GGUF", tmp_path / "bare"
    files = {"tiny-F16.gguf": tiny_gguf(tmp_path).read_bytes()}
    (tmp_path / "releases").mkdir()
    archive = real_archive(tmp_path / "releases", backend="cpu")
    environment = home / ".config/wai/node.env"
    environment.parent.mkdir(parents=True)
    shell: tuple[str, ...] = ("sh",)
    python = os.path.realpath(sys.executable)
    if (reason := why_not(*ASKED_FOR)) is None:
        root, python = BareRoot(tmp_path / "root", ASKED_FOR), "/usr/bin/python3"
        shell = root.enter(home, *folders_of(pip_settings()))
    where = "a bare Debian" if reason is None else f"an empty home ({reason})"
    with (
        service_manager(home, home / "commands", python) as services,
        FakeReleases(tmp_path / "releases") as releases,
        FakeHub({repo: FakeRepo(files)}) as hub,
    ):
        here = os.uname().sysname.lower(), os.uname().machine.lower()
        manifest = home / ".config/wai/manifest.json"
        manifest.write_text(json.dumps(releases.manifest((VERSION, *here, "cpu", archive))))
        environment.write_text(f"HF_ENDPOINT='{hub.endpoint}'\n")
        given = {"WAI_ENGINE_MANIFEST": str(manifest), "PYTHON": python}
        bare = Machine(home, services, given, shell)
        invite = vps.type(".local/bin/wai invite create --name bare")
        node_command = f"{_line(invite, '/install.sh')} --user"
        deploy = f".local/bin/wai model deploy {repo} --node bare --context 512"
        start = time.monotonic()
        said = bare.type(node_command)
        assert f"{VERSION}-cpu is installed and used from now on" in said, said
        assert "is ready on bare" in vps.type(deploy)
        curl_command = re.sub('"model": *"[^"]*"', f'"model": "{repo}:F16"', installed.curl_command)
        with vps.start(curl_command) as curl:
            assert curl.stdout is not None
            first = next((line for line in curl.stdout if '"content":"' in line), "")
            seconds = time.monotonic() - start
            curl.stdout.read()
        assert first.startswith("data: {")
        typed = "\n  ".join((re.sub("wai_inv_[^;]*", "wai_inv_…", node_command), deploy))
        print(f"typed on {where}, without an engine:\n  {typed}")
        print(f"from nothing to a token of the deployed model: {seconds:.1f} s")
        record_property("figure", f"From {where} without an engine to a token: {seconds:.1f} s.")
        again = bare.type(f"sh -c '{_again(node_command)}'")
        assert f"Models that are deployed run on {VERSION}-cpu." in again
        bare.type(".local/bin/wai node uninstall --yes")


def _again(command: str) -> str:
    """The same line without its invite, which was used."""
    return re.sub(r"\(echo WAI_INVITE=\S+ ; cat\)", "cat", command).replace(
        "sh -s --", "sh -s -- node"
    )


def test_what_the_relay_serves_is_what_was_built(
    installed: Installed, machines: tuple[Machine, Machine], wheel: Path, tmp_path: Path
) -> None:
    vps, box = machines
    served = tmp_path / wheel.name
    curl = installed.node_command.partition("/install.sh")[0]
    script = vps.type(f"{curl}/install.sh")
    vps.type(f"{curl}/dist/{wheel.name} -o {served}")
    assert f"SHA256={hashlib.sha256(served.read_bytes()).hexdigest()}\n" in script
    built, packed = _contents(wheel), _contents(served)
    assert {n: c for n, c in packed.items() if ".dist-info/" not in n} == {
        n: c for n, c in built.items() if ".dist-info/" not in n
    }
    assert (box.home / ".local/bin/wai").resolve().parent.parent.name == "venv"


def test_relay_and_node_have_the_same_versions_which_are_those_of_the_list(
    installed: Installed, machines: tuple[Machine, Machine]
) -> None:
    listed = set(re.findall(r"^(\S+)==(\S+)", LOCK.read_text(), re.MULTILINE))
    for machine in machines:
        site = next((machine.home / ".local/share/wai/venv/lib").glob("*/site-packages"))
        found = {
            (distribution.name.lower().replace("_", "-"), distribution.version)
            for distribution in distributions(path=[str(site)])
        }
        own = {(name, version) for name, version in found if name in ("wai", "pip", "setuptools")}
        assert found - own <= listed
        assert ("cryptography", dict(listed)["cryptography"]) in found


def test_the_same_commands_again_change_nothing(
    installed: Installed, machines: tuple[Machine, Machine]
) -> None:
    vps, box = machines
    before = vps.services.pid("wai-relay"), box.services.pid("wai-node")
    for machine, command in ((vps, installed.relay_command), (box, installed.node_command)):
        said = machine.type(command)
        assert "up to date: wai" in said
        assert "nothing to do: it runs already" in said
    assert (vps.services.pid("wai-relay"), box.services.pid("wai-node")) == before


def test_the_invite_is_in_no_command_line_that_stays_and_in_no_log(
    installed: Installed, machines: tuple[Machine, Machine]
) -> None:
    vps, box = machines
    [invite] = re.findall(r"wai_inv_[\w-]+", installed.node_command)
    for machine, name in ((vps, "wai-relay"), (box, "wai-node")):
        pid = machine.services.pid(name)
        shown = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
        assert invite not in shown + machine.services.log(name)
        assert not [file for file in _files(machine.home) if invite.encode() in file.read_bytes()]


def test_no_command_line_has_a_secret_while_relay_and_node_are_installed(
    installed: Installed, machines: tuple[Machine, Machine]
) -> None:
    vps, _ = machines
    token = (vps.home / ".local/share/wai/relay/admin.token").read_text().strip()
    assert "-m pip" in installed.arguments
    assert "node join -" in installed.arguments
    secrets = re.findall(r"wai_(?:inv|sk)_[\w-]+", installed.node_command + installed.curl_command)
    assert len(secrets) == 2
    assert not [secret for secret in (token, *secrets) if secret in installed.arguments]


def test_a_wrong_pin_installs_nothing(installed: Installed, tmp_path: Path) -> None:
    pin = re.search(r"sha256//[^']+", installed.node_command)
    assert pin is not None
    wrong = installed.node_command.replace(pin[0], f"sha256//{'A' * 43}=")
    done = subprocess.run(
        ["sh", "-c", wrong],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert "does not match pinned public key" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_node_is_taken_off_and_leaves_nothing(
    installed: Installed, machines: tuple[Machine, Machine]
) -> None:
    _, box = machines
    wai = ".local/bin/wai node uninstall"
    assert (box.home / ".local/share/man/man1/wai-node.1").is_file()
    refused = box.start(f"setsid {wai}").communicate(timeout=60)[0]
    assert "nobody to ask: add --yes" in refused
    would = box.type(f"{wai} --dry-run")
    assert "would run: systemctl --user stop wai-node" in would
    said = box.type(f"{wai} --yes")
    assert "wai node remove box" in said
    assert (box.home / ".local/share/wai/node/node.key").exists()
    assert not (box.home / ".local/share/wai/venv").exists()
    assert not list(box.home.glob(".local/share/man/man?/*"))
    assert not (box.home / ".config/systemd/user/wai-node.service").exists()
    assert not Path(f"/proc/{box.services.pid('wai-node')}/exe").exists()


class _CommandLines(threading.Thread):
    """Every command line that a process of this machine has, while the `with` block runs.

    A process is looked at often while it is young, since it changes its command line by `exec`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[bytes] = set()
        self._looks: Counter[str] = Counter()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Read /proc until it is over."""
        while not self._over.wait(0.01):
            for name in os.listdir("/proc"):
                self._looks[name] += 1
                looks = self._looks[name]
                if name.isdigit() and (looks < _YOUNG_LOOKS or looks % _YOUNG_LOOKS == 0):
                    with suppress(OSError):  # the process has ended
                        self._seen.add(Path("/proc", name, "cmdline").read_bytes())

    def text(self) -> str:
        """All of them, a line each, arguments apart by spaces."""
        return "\n".join(line.replace(b"\0", b" ").decode(errors="replace") for line in self._seen)


def _line(said: str, part: str) -> str:
    """The command with `part` among what was printed to be copied."""
    return next(
        line.strip() for line in said.splitlines() if line.startswith("  curl ") and part in line
    )


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _files(home: Path) -> Iterator[Path]:
    """What was written into a home, without the software itself."""
    for path in home.rglob("*"):
        if path.is_file() and "venv" not in path.parts:
            yield path


def pip_settings() -> dict[str, str]:
    """How pip reaches the index on this machine; a new home would lose what is in ours."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    asked = [sys.executable, "-m", "pip", "cache", "dir"]
    cache = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    settings.setdefault("PIP_CACHE_DIR", cache)
    for own in (".config/pip/pip.conf", ".pip/pip.conf"):
        if (Path.home() / own).exists():
            settings.setdefault("PIP_CONFIG_FILE", str(Path.home() / own))
    return settings
