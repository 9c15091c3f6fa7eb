"""Settings: what wins over what, and that a mistake names its file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wai_cli.options.settings import load
from wai_node.config import NodeConfig
from wai_protocol.errors import RequestError
from wai_relay.config import RelayConfig
from wai_relay.policy.scoring import FIRST_TOKEN_WEIGHT


def _relay(tmp_path: Path, text: str, env: dict[str, str] | None = None, **flags: Any) -> Any:
    file = tmp_path / "wai.toml"
    file.write_text(text)
    return load(
        RelayConfig,
        file=file,
        environment=env or {},
        prefix="WAI_RELAY_",
        flags={"data": tmp_path, **flags},
    )


def _error(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        _relay(tmp_path, text, env)
    return str(caught.value).replace(str(tmp_path / "wai.toml"), "FILE")


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    text = 'listen = "a:1"\nlog_level = "debug"\ndrain_timeout_s = 5\n'
    env = {"WAI_RELAY_LISTEN": "b:2", "WAI_RELAY_DRAIN_TIMEOUT_S": "6.5"}
    config = _relay(tmp_path, text, env, listen="c:3", tls=None)
    assert config.address == ("c", 3)
    assert config.drain_timeout_s == 6.5
    assert config.log_level == "debug"
    assert config.tls == "self-signed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nlisen = 1\n", "FILE, line 2: unknown key 'lisen'"),
        ("# x\ndata = '/srv'\n", "FILE, line 2: no file sets 'data'; use --data"),
        ("[gateway]\nattempts = 1\n\nattempt = 1\n", "FILE, line 4: unknown key 'attempt' in"),
        ("[gatway]\n", "FILE, line 1: unknown key 'gatway'"),
        ("# x\ngateway = {attempt = 1}\n", "FILE, line 2: unknown key 'attempt' in [gateway]"),
        ("gateway.attempt = 1\n", "FILE, line 1: unknown key 'attempt' in [gateway]"),
        ("# x\nlisten = 8443\n", "FILE, line 2: listen must be text, not a whole number"),
        (
            "[gateway]\nattempts = '1'\n",
            "FILE, line 2: gateway.attempts must be a whole number",
        ),
        ("log_level = 'loud'\n", "FILE, line 1: log_level can't be 'loud'; it is one of debug"),
        ("listen = \n", "FILE: Invalid value (at line 1"),
        ("listen = 'nowhere'\n", "'nowhere' is not HOST:PORT"),
        ("tls = 'on'\n", "tls is self-signed, off, acme, or CERT,KEY"),
        ("dead_s = inf\n", "FILE, line 1: dead_s is inf; the most is 1000000000000000"),
        ("[gateway]\nfirst_byte_s = nan\n", "FILE, line 2: gateway.first_byte_s is nan"),
        ("[notify]\nafter_s = 1e300\n", "FILE, line 2: notify.after_s is 1e+300"),
        ("session_ttl_s = 1" + "0" * 30 + "\n", "FILE, line 1: session_ttl_s is 1"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert _error(tmp_path, text).startswith(expected)


def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    assert _error(tmp_path, "", {"WAI_RELAY_DRAIN_TIMEOUT_S": "soon"}).startswith(
        "WAI_RELAY_DRAIN_TIMEOUT_S in the environment"
    )
    assert _error(tmp_path, "", {"WAI_RELAY_GATEWAY": "{"}).startswith("WAI_RELAY_GATEWAY")
    assert _error(tmp_path, "", {"WAI_RELAY_DEAD_S": "inf"}) == (
        "WAI_RELAY_DEAD_S in the environment is inf; the most is 1000000000000000"
    )


def test_what_kubernetes_sets_for_a_service_is_not_a_setting(tmp_path: Path) -> None:
    assert _relay(tmp_path, "", {"WAI_RELAY_PORT": "tcp://10.0.0.1:8443"}).address[1] == 8443


def test_upstreams_come_as_tables_or_by_environment(tmp_path: Path) -> None:
    file = tmp_path / "wai.toml"
    file.write_text(
        '[[upstreams]]\nurl = "http://a:1"\n[[upstreams]]\nurl = "http://b:2"\nkey="k"\n'
    )
    config = load(
        NodeConfig, file=file, environment={}, prefix="WAI_NODE_", flags={"data": tmp_path}
    )
    assert [(u.url, u.key) for u in config.upstreams] == [("http://a:1", None), ("http://b:2", "k")]
    assert "'k'" not in repr(config)
    config = load(
        NodeConfig,
        file=None,
        environment={"WAI_NODE_UPSTREAMS": '[{url = "http://c:3"}]', "WAI_NODE_DATA": "~/x"},
        prefix="WAI_NODE_",
        flags={},
    )
    assert config.upstreams[0].url == "http://c:3"
    assert config.data == Path.home() / "x"


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "wai.toml"
    with pytest.raises(RequestError, match=r"wai\.toml cannot be read"):
        load(RelayConfig, file=file, environment={}, prefix="W_", flags={"data": tmp_path})
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match=r"wai\.toml is not text"):
        load(RelayConfig, file=file, environment={}, prefix="W_", flags={"data": tmp_path})


def test_aliases_fall_backs_and_providers_are_tables(tmp_path: Path) -> None:
    text = """
provider_after_s = 2.5
[aliases]
"gpt-4o" = "qwen3"
[fallbacks]
qwen3 = ["llama3"]
[[providers]]
name = "cloud"
base_url = "https://api.example/v1"
key_env = "CLOUD_KEY"
[[providers.models]]
id = "qwen3"
name = "big"
input_price = 1
"""
    config = _relay(tmp_path, text)
    assert (config.aliases, config.fallbacks) == ({"gpt-4o": "qwen3"}, {"qwen3": ("llama3",)})
    assert (config.provider_after_s, config.providers[0].models[0].input_price) == (2.5, 1.0)
    env = {"WAI_RELAY_ALIASES": '{ a = "b" }'}
    assert _relay(tmp_path, "", env).aliases == {"a": "b"}
    assert "unknown key 'output_prise' in [providers.models]" in _error(
        tmp_path, text + "output_prise = 2\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[providers]]\nname = 'A b'\nbase_url = 'https://x'\nmodels = []\n", "provider's name"),
        ("[[providers]]\nname = 'a'\nbase_url = 'x'\nmodels = []\n", "is not a URL"),
        ("[[providers]]\nname = 'a'\nbase_url = 'https://x'\n", "models"),
        ("[aliases]\na = 1\n", "FILE, line 1: aliases must be text, not a whole number"),
    ],
)
def test_a_mistake_in_a_provider_or_an_alias_is_named(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in _error(tmp_path, text)


def test_the_weight_of_the_first_token_is_a_setting_of_routing(tmp_path: Path) -> None:
    text = "[routing]\nfirst_token_weight = 5\n"
    assert _relay(tmp_path, text).routing.first_token_weight == 5.0
    assert _relay(tmp_path, "").routing.first_token_weight == FIRST_TOKEN_WEIGHT
    assert "first_token_weight" in _error(tmp_path, "[routing]\nfirst_token_weight = 0\n")
    assert "unknown key 'weight' in [routing]" in _error(tmp_path, "[routing]\nweight = 1\n")


def test_translation_can_be_turned_off(tmp_path: Path) -> None:
    assert _relay(tmp_path, "").gateway.translate
    assert not _relay(tmp_path, "[gateway]\ntranslate = false\n").gateway.translate


def test_a_mistake_in_a_table_of_a_list_names_its_place_and_its_choices(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    mail = 'host = "a"\nsender = "a@b.c"\nto = ["a@b.c"]\n'
    file.write_text(f'[notify]\n[[notify.email]]\n{mail}tls = "ssl"\n')
    with pytest.raises(RequestError) as refused:
        load(RelayConfig, file=file, environment={}, prefix="WAI_RELAY_", flags={"data": tmp_path})
    assert str(refused.value) == (
        f"{file}, line 6: notify.email.tls can't be 'ssl'; it is one of starttls, tls, off"
    )


@pytest.mark.parametrize("name", ["public_url", "node_url"])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("relay.example", "begins with https://"),
        ("https://relay.example:99999", "is not a URL: Port out of range"),
        ("https://", "is not a URL like"),
        ("https://relay.example/?a=b", "no user name, query or fragment"),
    ],
)
def test_an_address_that_nobody_can_use_is_refused(
    name: str, url: str, said: str, tmp_path: Path
) -> None:
    refused = _error(tmp_path, f'{name} = "{url}"\n')
    assert name in refused
    assert said in refused
    _relay(tmp_path, f'{name} = "https://relay.example:8443"\n')
