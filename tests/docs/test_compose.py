"""The files for Docker Compose: its own parser takes them, and they hold to their page."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.harness.real import require_real
from wai_cli.main import parser_for
from wai_cli.options.settings import load
from wai_relay.config import RelayConfig

ROOT: Final = Path(__file__).parents[2]
FILES: Final = ("relay/compose.yaml", "client/compose.yaml", "client/compose.ollama.yaml")
GIVEN: Final = {"WAI_DOMAIN": "llm.example.com", "LLAMA_IMAGE": "llama", "MODEL_FILE": "a.gguf"}
NOBODY: Final = "10001:10001"


def parsed(name: str, given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What Docker Compose makes of a file, with its variables set."""
    require_real("docker-compose")
    return subprocess.run(
        ["docker-compose", "--file", str(ROOT / name), "config"],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@cache
def services(name: str) -> dict[str, dict[str, Any]]:
    done = parsed(name, GIVEN)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = yaml.safe_load(done.stdout)["services"]
    return found


def entrypoint(dockerfile: str) -> list[str]:
    found = re.search(r"^ENTRYPOINT (\[.*\])$", (ROOT / dockerfile).read_text(), re.MULTILINE)
    assert found is not None
    words: list[str] = json.loads(found[1])
    return words


@pytest.mark.parametrize("name", FILES)
def test_a_container_has_more_rights_than_it_needs(name: str) -> None:
    for service in services(name).values():
        assert service["user"] == NOBODY
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
        assert not service.get("network_mode")
        ulimits = service["ulimits"]
        assert ulimits["core"] == 0


@pytest.mark.parametrize("name", FILES)
def test_anything_but_the_relay_has_a_port(name: str) -> None:
    with_ports = {service for service, told in services(name).items() if told.get("ports")}
    assert with_ports <= {"relay"}


@pytest.mark.parametrize("name", FILES)
def test_a_secret_is_in_the_environment_or_in_arguments(name: str) -> None:
    for service in services(name).values():
        written = json.dumps([service.get("environment"), service.get("command")])
        assert not re.search(r"wai_(sk|inv|at)_|(TOKEN|KEY|SECRET|PASSWORD)\"", written)


@pytest.mark.parametrize("name", ["relay/compose.yaml", "client/compose.yaml"])
def test_a_variable_that_is_missing_is_not_named(name: str) -> None:
    done = parsed(name, {})
    assert done.returncode != 0
    assert "set it in .env" in done.stderr


def test_the_relay_would_not_start_with_these_settings() -> None:
    relay = services("relay/compose.yaml")["relay"]
    arguments = [*entrypoint("relay/Dockerfile"), *relay["command"]]
    asked = parser_for(("relay",)).parse_args(arguments[1:])
    config = load(
        RelayConfig,
        file=None,
        environment=relay["environment"],
        prefix="WAI_RELAY_",
        flags={"data": Path("/data"), "listen": asked.listen},
    )
    assert (config.tls, config.domain) == ("acme", "llm.example.com")
    assert config.invite_url() == "https://llm.example.com"
    assert str(asked.config) == "/run/secrets/relay.toml"
    assert [one["source"] for one in relay["secrets"]] == ["relay.toml"]
    assert [port["target"] for port in ports_of(relay)] == [config.address[1]]


def test_a_node_would_not_start_with_these_arguments(tmp_path: Path) -> None:
    key = tmp_path / "llama.key"
    key.write_text("a-key\n")
    for name, server in (
        ("client/compose.yaml", "llama"),
        ("client/compose.ollama.yaml", "ollama"),
    ):
        found = services(name)
        command = [word.replace("/run/secrets", str(tmp_path)) for word in found["node"]["command"]]
        arguments = [*entrypoint("client/Dockerfile"), *command]
        asked = parser_for(("node",)).parse_args(arguments[1:])
        assert [url.split("/")[2].split(":")[0] for url in asked.upstream] == [server]
        assert server in found


def test_a_secret_or_a_model_gets_into_an_image_or_into_git() -> None:
    given = {"relay/.env", "client/.env"}
    for name in FILES:
        written = yaml.safe_load((ROOT / name).read_text())
        folder = name.split("/")[0]
        given |= {f"{folder}/{one['file'][2:]}" for one in written.get("secrets", {}).values()}
        for service in written["services"].values():
            given |= {
                f"{folder}/{volume.split(':')[0][2:]}"
                for volume in service.get("volumes", ())
                if volume.startswith("./")
            }
    assert given >= {"relay/relay.toml", "client/llama.key", "client/models"}
    kept_out = (ROOT / ".dockerignore").read_text().splitlines()
    for path in sorted(given):
        assert path in kept_out or f"**/{path.split('/')[1]}" in kept_out, path
        ignored = subprocess.run(
            [
                "git",
                "-C",
                str(ROOT),
                "check-ignore",
                "-q",
                f"{path}/x" if "models" in path else path,
            ]
        )
        assert ignored.returncode == 0, path


def ports_of(service: dict[str, Any]) -> list[dict[str, int]]:
    """The ports, which the versions of Compose write differently."""
    told = []
    for port in service["ports"]:
        if isinstance(port, str):
            published, target = port.removesuffix("/tcp").split(":")
            told.append({"published": int(published), "target": int(target)})
        else:
            told.append({"published": int(port["published"]), "target": int(port["target"])})
    return told
