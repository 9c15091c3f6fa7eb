"""A provider that refuses our key or is away is known, also while nobody asks it anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.harness.openai_service import KEY, MODEL, OpenAiService, openai_service
from tests.relay.conftest import Clock
from wai_protocol.errors import TransportError
from wai_relay.fleet.provider_config import ProviderConfig, ProviderModel
from wai_relay.fleet.provider_trouble import ASK_AGAIN_S, ASK_EVERY_S
from wai_relay.fleet.providers import Provider
from wai_relay.health.providers import provider_problems

pytestmark = pytest.mark.anyio


@pytest.fixture
def service(tmp_path: Path) -> Iterator[OpenAiService]:
    with openai_service(tmp_path) as running:
        yield running


@pytest.fixture
async def provider(service: OpenAiService, clock: Clock) -> AsyncIterator[Provider]:
    models = (ProviderModel("qwen", MODEL),)
    config = ProviderConfig("cloud", service.base_url, models, ca_file=service.ca_file)
    made = Provider(config, KEY, clock=clock)
    yield made
    await made.aclose()


async def _asked(provider: Provider) -> None:
    """Have it asked, and wait for the answer."""
    provider.watched.look()
    if (asking := provider.watched._asking) is not None:
        await asyncio.wait_for(asking, 10)


def _texts(provider: Provider) -> list[str]:
    return [one.text for one in provider_problems([provider])]


async def test_a_key_that_is_no_longer_good_is_found_without_a_request_and_mended(
    service: OpenAiService, provider: Provider, clock: Clock
) -> None:
    await _asked(provider)
    assert _texts(provider) == []
    service.key = "another"
    clock.now += ASK_EVERY_S
    await _asked(provider)
    assert _texts(provider) == ["it refuses this relay's key (status 401)"]
    service.key = KEY
    clock.now += ASK_AGAIN_S
    await _asked(provider)
    assert _texts(provider) == []


async def test_a_provider_is_not_asked_more_often_than_needed(
    service: OpenAiService, provider: Provider, clock: Clock
) -> None:
    for _ in range(5):
        await _asked(provider)
    clock.now += ASK_EVERY_S - 1
    await _asked(provider)
    provider.watched.answered(200)  # a request shows as much as a question
    clock.now += ASK_EVERY_S - 1
    await _asked(provider)
    assert service.listed == 1


async def test_one_that_can_not_be_reached_is_told_until_it_can(
    tmp_path: Path, service: OpenAiService, clock: Clock
) -> None:
    config = ProviderConfig("cloud", "https://localhost:1/v1", (), ca_file=service.ca_file)
    provider = Provider(config, KEY, clock=clock)
    await _asked(provider)
    [text] = _texts(provider)
    assert "localhost:1" in text
    assert KEY not in text
    provider.watched.answered(200)
    assert _texts(provider) == []
    await provider.aclose()


@pytest.mark.parametrize("status", [404, 405, 403, 501])
async def test_one_without_a_list_or_whose_key_is_not_for_it_is_not_in_trouble(
    service: OpenAiService, provider: Provider, status: int
) -> None:
    service.list_status = status
    await _asked(provider)
    assert _texts(provider) == []


async def test_a_list_that_is_refused_while_requests_are_answered_is_believed_no_more(
    service: OpenAiService, provider: Provider, clock: Clock
) -> None:
    service.list_status = 401
    await _asked(provider)
    assert _texts(provider)
    provider.watched.answered(200)
    clock.now += ASK_EVERY_S
    await _asked(provider)
    assert _texts(provider) == []


async def test_what_a_request_met_is_not_taken_back_by_a_list_that_says_nothing_of_the_key(
    service: OpenAiService, provider: Provider, clock: Clock
) -> None:
    provider.watched.answered(402)  # the account is not paid; the list is still given
    service.list_status = 404
    clock.now += ASK_AGAIN_S
    await _asked(provider)
    assert _texts(provider) == ["it refuses this relay's key (status 402)"]


async def test_its_outage_is_told_with_its_status(
    service: OpenAiService, provider: Provider
) -> None:
    service.list_status = 503
    await _asked(provider)
    assert _texts(provider) == ["it is not well: it answers with status 503"]


async def test_its_clock_is_compared_with_ours(service: OpenAiService, provider: Provider) -> None:
    await _asked(provider)
    assert provider.ahead_s == pytest.approx(0.0, abs=1.0)
    service.ahead_s = 7200.0
    provider.watched._asked_at = None
    await _asked(provider)
    assert provider.ahead_s == pytest.approx(7200.0, abs=2.0)


async def test_a_failure_before_the_answer_is_told_at_once(provider: Provider) -> None:
    provider.watched.failed(TransportError("connection refused " + "x" * 1000))
    [text] = _texts(provider)
    assert text.startswith("it can't be used: connection refused")
    assert len(text) < 250
