"""install.sh: a cut download does nothing, a mistake is one sentence, a dry run touches nothing."""

from __future__ import annotations

import hashlib
import os
import plistlib
import secrets
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.hostile import HostileFolder
from tests.harness.processes import free_port
from tests.harness.real import require_real, script
from tests.harness.terminal import Terminal
from tests.harness.tiny_wheel import tiny_wheel
from wai_relay.fleet.invites import InviteAddress
from wai_relay.installer import one_line
from wai_relay.installer.pages import SCRIPT_FILE, render
from wai_relay.installer.wheel import Wheel
from wai_transport.folder import DataFolder, FolderLock

pytestmark = pytest.mark.long

SERVICES = SCRIPT_FILE.parent / "services"


def _sh(
    home: Path,
    *arguments: str,
    text: str | None = None,
    path: str = "/usr/bin:/bin",
    data_home: str = "",
    cwd: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run the script as `curl … | sh -s -- ARGUMENTS` does; `more` is added to its environment."""
    done = subprocess.run(
        ["sh", "-s", "--", *arguments],
        input=SCRIPT_FILE.read_text() if text is None else text,
        capture_output=True,
        text=True,
        check=False,
        env={
            "HOME": str(home),
            "PATH": path,
            "PYTHON": script("python"),
            "XDG_DATA_HOME": data_home,
            **(more or {}),
        },
        cwd=cwd,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(
        [script("shellcheck"), "-s", "sh", str(SCRIPT_FILE)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode()


def test_a_download_that_was_cut_does_nothing(tmp_path: Path) -> None:
    whole = SCRIPT_FILE.read_text()
    ends = {len(whole) * step // 40 for step in range(1, 40)}
    ends |= set(range(len(whole) - 12, len(whole) - 1))  # within the last line
    for end in sorted(ends):
        _, said = _sh(tmp_path, "relay", "--user", "--wheel", "none.whl", text=whole[:end])
        assert "Checking" not in said, end
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("wai_inv_x", "--nome", "box"), "unknown argument --nome"),
        (("hello",), "an invite begins with wai_inv_"),
        (("node", "--user"), "a node needs an invite: run `wai invite create`"),
        (("--dry-run",), "say `relay`, `node`, or give an invite"),
        (("relay", "--domain"), "--domain needs a value"),
        (("relay", "--domain", 'x"y'), "--domain can't be"),
        (("relay", "--domain", "--email"), "--domain can't be --email"),
        (("relay", "--purge"), "--purge goes with --uninstall"),
        (("relay", "--listen", "127.0.0.1:0", "--wheel", "none.whl"), "there is no file none.whl"),
        (("wai_inv_x", "--user"), "which wai?"),
        (("relay", "--user", "--listen", "127.0.0.1:99999"), "choose another address"),
        (("relay", "--user", "--listen", "8443"), "--listen is HOST:PORT"),
        (("relay", "--domain", "https://llm.example.com"), "--domain is a name in lower case"),
        (("relay", "--domain", "llm.example.com:8443"), "--domain is a name in lower case"),
        (("relay", "--public-url", "llm.example.com"), "--public-url is https://HOST:PORT"),
        (("wai_inv_x", "--upstream", "127.0.0.1:8080"), "--upstream is http://HOST:PORT"),
        (("wai_inv_x", "--upstream", "http://127.0.0.1:80 80"), "a URL has no spaces"),
        (("wai_inv_x", "--name", "my box"), "--name is letters, digits"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_done(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    status, output = _sh(tmp_path, *arguments)
    assert status == 1
    assert said in output
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_port_that_is_taken_on_ipv6_alone_is_taken(tmp_path: Path) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::", 0), family=socket.AF_INET6) as taken:
        listen = f":{taken.getsockname()[1]}"
        status, output = _sh(tmp_path, "relay", "--user", "--listen", listen)
    assert (status, f"the relay can't listen on {listen}: it is taken" in output) == (1, True)


def test_without_listen_both_families_are_listened_on(installed: Home) -> None:
    # 8443 may be taken where this runs; what is said then names the same address.
    _, output = installed.sh("relay")
    settings = installed.path / ".config/wai/relay.toml"
    if settings.exists():
        assert 'listen = ":8443"\n' in settings.read_text()
    else:
        assert "can't listen on :8443: it is taken" in output


def test_without_arguments_it_says_how_it_is_used(tmp_path: Path) -> None:
    status, output = _sh(tmp_path)
    assert (status, output[:6]) == (2, "usage:")


@pytest.mark.parametrize("who", [("--user",), ()], ids=["user", "service"])
def test_dry_run_prints_the_steps_and_does_none(tmp_path: Path, who: tuple[str, ...]) -> None:
    wheel = tmp_path / "wai-1.0-py3-none-any.whl"
    wheel.touch()
    arguments = (f"wai_inv_{'s' * 40}", *who, "--wheel", str(wheel), "--dry-run")
    done = subprocess.run(
        ["sh", str(SCRIPT_FILE), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/bin"},
    )
    if "Python 3.11 or newer is needed" in done.stderr:
        pytest.skip("this machine's own Python is too old, or in somebody's home")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would run:" in done.stdout
    assert "Nothing was done" in done.stdout
    assert "s" * 40 not in done.stdout  # the invite
    assert list(tmp_path.iterdir()) == [wheel]


@pytest.mark.parametrize("role", ["relay", "wai_inv_x"])
@pytest.mark.parametrize("who", [("--user",), ()], ids=["user", "service"])
@pytest.mark.parametrize("hostile", ["folder", "PYTHONPATH", "PYTHONHOME", "PYTHONINSPECT"])
def test_no_module_of_the_current_folder_or_of_the_environment_is_imported(
    tmp_path: Path, role: str, who: tuple[str, ...], hostile: str
) -> None:
    folder = HostileFolder.plant(tmp_path / "hostile", tmp_path / "imported")
    (folder.path / "wai-1.0-py3-none-any.whl").touch()
    asked = [role, *who, "--wheel", "wai-1.0-py3-none-any.whl", "--dry-run"]
    asked += ["--listen", f"127.0.0.1:{free_port()}"]
    environment = {"PYTHON": os.path.realpath(script("python")), "PATH": "/usr/sbin:/usr/bin:/bin"}
    if hostile != "folder":
        environment[hostile] = str(folder.path)
    status, output = _sh(tmp_path, *asked, cwd=folder.path, more=environment)
    if "Python 3.11 or newer is needed" in output and not who:
        pytest.skip("this machine's own Python is too old, or in somebody's home")
    assert (status, folder.imported) == (0, ""), output
    done = subprocess.run(
        ["sh", os.path.relpath(SCRIPT_FILE, folder.path), *asked],
        capture_output=True,
        check=False,
        cwd=folder.path,
        env={"HOME": str(tmp_path), **environment},
    )
    assert (done.returncode, folder.imported) == (0, "")


# A Python whose pip, instead of installing anything, notes the command line of every process.
_NOTING_PYTHON = """#!/bin/sh
case "$*" in
  *"-m venv"*)
    for folder; do :; done
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python"
    printf '#!/bin/sh\necho joined\n' >"$folder/bin/wai"
    chmod +x "$folder/bin/wai"
    ;;
  *"-m pip"*) cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' >>NOTES ;;
  *) exec REAL "$@" ;;
esac
"""


@pytest.fixture
def invite() -> str:
    """One of this test's own: tests that run beside it have theirs in arguments for a moment."""
    return f"wai_inv_{secrets.token_hex(20)}"


@dataclass(frozen=True, slots=True)
class Site:
    """What a relay serves, as files, and a machine whose processes are noted during pip."""

    folder: Path
    address: InviteAddress

    @classmethod
    def make(cls, folder: Path) -> Site:
        (folder / "dist").mkdir()
        lock = {"wai_relay/installer/requirements.lock": ""}
        data = tiny_wheel(folder / "dist", "wai", "1.0", lock).read_bytes()
        wheel = Wheel("wai-1.0-py3-none-any.whl", data, hashlib.sha256(data).hexdigest())
        address = InviteAddress(f"file://{folder}", b"r" * 32, None)
        (folder / "install.sh").write_text(render(SCRIPT_FILE.read_text(), address, wheel))
        python = _NOTING_PYTHON.replace("NOTES", str(folder / "notes"))
        (folder / "python").write_text(python.replace("REAL", script("python")))
        # As sudo does it: what is run gets no variable of ours.
        (folder / "sudo").write_text(
            f'#!/bin/sh\nexec env -i HOME={folder} PATH=/usr/bin:/bin PYTHON="$PYTHON" "$@"\n'
        )
        for name in ("python", "sudo"):
            (folder / name).chmod(0o755)
        return cls(folder, address)

    def type(self, line: str, **more: str) -> str:
        """Type a line into a shell; what was said. The shell has the line in no argument."""
        done = subprocess.run(
            ["sh"],
            input=f"{line}\n",
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={
                "HOME": str(self.folder),
                "PATH": f"{self.folder}:/usr/bin:/bin",
                "PYTHON": str(self.folder / "python"),
                **more,
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "joined" in done.stdout, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def notes(self) -> str:
        return (self.folder / "notes").read_text()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc")
@pytest.mark.parametrize(
    ("line", "warned"),
    [
        ("{printed} --user --no-service", False),
        ("{printed_for_sudo} --user --no-service", False),
        ("curl -fsSL {url}/install.sh | WAI_INVITE={invite} sh -s -- --user --no-service", False),
        ("curl -fsSL {url}/install.sh | sh -s -- {invite} --user --no-service", True),
        ("sh install.sh {invite} --user --no-service", True),
        ("echo {invite} | sh install.sh - --user --no-service", False),
        ("WAI_INVITE={invite} sh ./install.sh node --user --no-service", False),
    ],
)
def test_no_process_has_the_invite_as_an_argument_while_pip_installs(
    tmp_path: Path, invite: str, line: str, warned: bool
) -> None:
    require_real("curl")
    site = Site.make(tmp_path)
    printed = one_line(site.address, invite)
    for_sudo = printed.replace("| sh", "| sudo sh")
    names = {"printed": printed, "printed_for_sudo": for_sudo, "url": site.address.url}
    said = site.type(line.format(invite=invite, **names))
    assert "-m pip" in site.notes
    assert invite not in site.notes
    assert ("better use the line" in said) == warned


def test_at_a_terminal_the_invite_is_asked_for_before_anything_is_installed(
    tmp_path: Path, invite: str
) -> None:
    site = Site.make(tmp_path)
    command = ["/bin/sh", str(tmp_path / "install.sh"), "node", "--user", "--no-service"]
    environment = {
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
        "PYTHON": str(tmp_path / "python"),
    }
    with Terminal(command, size=(100, 24), env=environment) as terminal:
        terminal.wait_for(lambda: b"not shown" in terminal.drawn, "it does not ask")
        assert not (tmp_path / "notes").exists()
        terminal.press(f"{invite}\n".encode())
        assert terminal.end() == 0
        assert terminal.settings() == terminal.found
    assert b"joined" in terminal.drawn
    assert invite not in terminal.drawn.decode() + site.notes


def test_a_node_without_an_invite_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    status, output = _sh(tmp_path, "node", "--user", more={"WAI_INVITE": "hello"})
    assert (status, "that is not an invite" in output) == (1, True)
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True, slots=True)
class Home:
    """A home with the software installed: a `wai` that prints what it is called with."""

    path: Path
    wheel: Path

    def sh(self, *arguments: str) -> tuple[int, str]:
        """Run the script, which finds the software up to date and starts nothing."""
        return _sh(self.path, *arguments, "--user", "--wheel", str(self.wheel), "--no-service")

    def type(self, line: str) -> str:
        """What a line that was printed to be typed prints in its turn."""
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


_WAI = """#!/bin/sh
if [ "$1 $2" = "node join" ]; then echo joined; else echo "$WAI_NODE_UPSTREAMS $*"; fi
"""


@pytest.fixture
def installed(tmp_path: Path) -> Home:
    home = Home(tmp_path / "a home", tmp_path / "wai-1.0-py3-none-any.whl")
    home.wheel.write_bytes(b"wheel")
    environment = home.path / ".local/share/wai/venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").symlink_to(script("python"))
    (environment / "bin/wai").write_text(_WAI)
    (environment / "bin/wai").chmod(0o755)
    (environment / ".wheel").write_text(hashlib.sha256(b"wheel").hexdigest())
    return home


def test_a_node_that_nothing_starts_is_started_with_the_upstream_that_was_given(
    installed: Home,
) -> None:
    status, output = installed.sh("wai_inv_x", "--upstream", "http://127.0.0.1:1")
    assert status == 0, output
    [line] = [line for line in output.splitlines() if "node run" in line]
    data = installed.path / ".local/share/wai/node"
    assert installed.type(line) == f'[{{url = "http://127.0.0.1:1"}}] node run --data {data}\n'


def test_a_relay_that_nothing_starts_is_started_by_the_line_that_is_printed(
    installed: Home,
) -> None:
    status, output = installed.sh("relay", "--listen", f"127.0.0.1:{free_port()}")
    assert status == 0, output
    lines = [line for line in output.splitlines() if line.startswith("  ")]
    data, settings = installed.path / ".local/share/wai/relay", ".config/wai/relay.toml"
    assert [installed.type(line).strip() for line in lines] == [
        f"relay --data {data} --config {installed.path / settings}",
        f"invite create --data {data}",
        f"key create NAME --data {data}",
    ]


def test_settings_that_stay_although_others_were_asked_for_are_said(installed: Home) -> None:
    listen = f"127.0.0.1:{free_port()}"
    asked = ("relay", "--listen", listen, "--domain", "llm.example.com")
    assert "to change that" not in installed.sh(*asked)[1]
    assert "to change that" not in installed.sh(*asked)[1]
    status, output = installed.sh("relay", "--domain", "ai.example.com")
    assert status == 0, output
    assert 'to change that, write there: domain = "ai.example.com"\n' in output
    assert output.count("to change that") == 1


def test_a_relay_that_was_started_by_hand_does_not_lose_its_folder(installed: Home) -> None:
    assert installed.sh("relay", "--listen", f"127.0.0.1:{free_port()}")[0] == 0
    folder = DataFolder.open(installed.path / ".local/share/wai/relay")
    lock = FolderLock.acquire(folder, "relay")
    remove = ("relay", "--uninstall", "--purge", "--yes")
    status, output = installed.sh(*remove)
    assert (status, f"runs here (process {os.getpid()}): stop it first" in output) == (1, True)
    assert folder.path.exists()
    again = installed.sh("relay", "--listen", f"127.0.0.1:{free_port()}")[1]
    assert f"A relay runs here already (process {os.getpid()}): stop it" in again
    lock.release()
    assert installed.sh(*remove)[0] == 0
    assert not folder.path.exists()


def test_xdg_data_home_is_where_a_user_has_software_and_data(tmp_path: Path) -> None:
    wheel = tmp_path / "wai-1.0-py3-none-any.whl"
    wheel.touch()
    arguments = ("wai_inv_x", "--user", "--wheel", str(wheel), "--dry-run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    status, output = _sh(tmp_path, *arguments, data_home=str(elsewhere))
    assert status == 0, output
    assert f"{elsewhere}/wai/venv" in output
    assert f"--data {elsewhere}/wai/node" in output
    status, output = _sh(tmp_path, *arguments, data_home="relative")
    assert status == 0, output
    assert f"--data {tmp_path}/.local/share/wai/node" in output
    status, output = _sh(tmp_path, *arguments, data_home="/a b|c")
    assert (status, "XDG_DATA_HOME=/a b|c can't be written" in output) == (1, True)


@pytest.mark.parametrize(("lingers", "asked"), [("yes", False), ("no", True)])
def test_who_lingers_already_is_not_told_to_ask_an_admin(
    tmp_path: Path, lingers: str, asked: bool
) -> None:
    """Where the user may not ask for it, the admin was told to; then it is done."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, says in (("systemctl", "running"), ("loginctl", lingers)):
        (commands / name).write_text(f"#!/bin/sh\necho {says}\n")
        (commands / name).chmod(0o755)
    wheel = tmp_path / "wai-1.0-py3-none-any.whl"
    wheel.touch()
    arguments = ("wai_inv_x", "--user", "--wheel", str(wheel), "--dry-run")
    status, output = _sh(tmp_path, *arguments, path=f"{commands}:/usr/bin:/bin")
    assert status == 0, output
    assert ("would run: loginctl enable-linger" in output) == asked


def test_on_a_mac_launchd_gets_the_node(tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (commands / "uname").chmod(0o755)
    wheel = tmp_path / "wai-1.0-py3-none-any.whl"
    wheel.touch()
    status, output = _sh(
        tmp_path,
        *("wai_inv_x", "--user", "--wheel", str(wheel), "--dry-run"),
        path=f"{commands}:/usr/bin:/bin",
    )
    assert status == 0, output
    assert f"would write: {tmp_path}/Library/LaunchAgents/wai.node.plist" in output
    assert "would run: launchctl bootstrap gui/" in output


def test_the_plist_runs_the_node_with_what_node_env_says(tmp_path: Path) -> None:
    text = (SERVICES / "wai-node.plist").read_text().replace("@HOME@", str(tmp_path))
    service = plistlib.loads(text.encode())
    assert (service["Label"], service["KeepAlive"]) == ("wai.node", True)
    environment = tmp_path / ".config/wai/node.env"
    environment.parent.mkdir(parents=True)
    environment.write_text("HTTPS_PROXY='http://proxy:1'\n")
    program = tmp_path / ".local/share/wai/venv/bin/wai"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$HTTPS_PROXY $*"\n')
    program.chmod(0o755)
    done = subprocess.run(service["ProgramArguments"], capture_output=True, text=True, check=True)
    data = f"{tmp_path}/Library/Application Support/wai/node"
    assert done.stdout == f"http://proxy:1 node run --data {data}\n"
