"""Which instance is asked first, which is left alone, and when it is asked again."""

import random
from collections import Counter
from typing import Any

import httpx
import pytest

from llamaxing.answer import Answer, Failure
from llamaxing.catalog import Model
from llamaxing.errors import AllInstancesThrottled, UpstreamAuth, UpstreamUnreachable
from llamaxing.headers import retry_after
from llamaxing.providers.openai import OpenAIInstance
from llamaxing.selection import Pauses, Selector
from tests.conftest import Serve, Served, model, openai
from tests.fakes import CHAT, Clock, Upstream

PATH = "/v1/chat/completions"
ANSWER = Answer(200, [], httpx.ByteStream(b""))
PAUSES = Pauses(throttled=5, longest=300, refused=60, broken=10, failures=3)


def instance(id: str, **more: Any) -> OpenAIInstance:
    return OpenAIInstance(id=id, provider="openai", openai_api_key="k", **more)  # type: ignore[arg-type]


def of(*instances: OpenAIInstance) -> Model:
    return Model(id="m", capabilities=("chat_completions",), instances=instances)


def selector(clock: Clock | None = None) -> Selector:
    return Selector(random.Random(1), PAUSES, clock or Clock())


def ids(found: Selector, model: Model) -> list[str]:
    return [instance.id for instance in found.candidates(model)]


def throttled(wait: float | None = None) -> Failure:
    return Failure(AllInstancesThrottled("m"), wait=wait)


BROKEN = Failure(UpstreamUnreachable("m"))


def test_a_lower_priority_goes_first_and_weight_decides_within_one() -> None:
    asked = of(instance("a", weight=3), instance("b"), instance("spill", priority=1))

    orders = Counter(tuple(ids(chooser, asked)) for chooser in [selector()] for _ in range(4000))

    assert set(orders) == {("a", "b", "spill"), ("b", "a", "spill")}
    assert 0.72 < orders["a", "b", "spill"] / 4000 < 0.78


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        (throttled(7), 7),
        (throttled(), 5),
        (throttled(86400), 300),
        (Failure(UpstreamAuth("m")), 60),
        (Failure(UpstreamUnreachable("m"), wait=20), 20),
    ],
    ids=["as it asks", "it does not say", "far too long", "our credential", "a 503 that says"],
)
def test_an_instance_is_left_alone_for_so_long(failure: Failure, seconds: float) -> None:
    clock = Clock()
    found, bad, good = selector(clock), instance("bad"), instance("good", priority=1)

    found.report(found.take(bad), failure)

    clock.now += seconds - 0.1
    assert ids(found, of(bad, good)) == ["good"]
    clock.now += 0.2
    assert ids(found, of(bad, good)) == ["bad", "good"]


def test_repeated_failures_pause_longer_each_time_and_one_call_tries() -> None:
    clock = Clock()
    found, bad, good = selector(clock), instance("bad"), instance("good", priority=1)
    asked = of(bad, good)

    for _ in range(2):
        found.report(found.take(bad), BROKEN)
        assert ids(found, asked) == ["bad", "good"]
    pauses = []
    for _ in range(8):
        found.report(found.take(bad), BROKEN)
        since = clock.now
        while ids(found, asked) == ["good"]:
            clock.now += 0.5
        pauses.append(clock.now - since)
        # That call is the trial: until it has ended, nobody else tries.
        assert ids(found, asked) == ["good"]

    for number, pause in enumerate(pauses):
        most = min(10 * 2**number, 300)
        assert most / 2 - 0.5 <= pause <= most + 0.5
    # Spread by chance: many processes do not come back at one moment.
    assert len(set(pauses[-3:])) == 3
    found.report(found.take(bad), ANSWER)
    assert ids(found, asked) == ["bad", "good"]
    found.report(found.take(bad), BROKEN)
    assert ids(found, asked) == ["bad", "good"]


def test_a_trial_whose_caller_left_is_given_to_the_next_call() -> None:
    clock = Clock()
    found, bad, good = selector(clock), instance("bad"), instance("good", priority=1)
    for _ in range(3):
        found.report(found.take(bad), BROKEN)
    clock.now += 11

    assert ids(found, of(bad, good)) == ["bad", "good"]
    found.report(found.take(bad), None)

    assert ids(found, of(bad, good)) == ["bad", "good"]


def test_a_success_that_was_under_way_does_not_end_a_throttled_instances_wait() -> None:
    found, bad, good = selector(), instance("bad"), instance("good", priority=1)
    found.report(found.take(bad), throttled(7))

    found.report(found.take(bad), ANSWER)

    assert ids(found, of(bad, good)) == ["good"]


def test_when_all_are_left_alone_the_one_that_is_free_first_is_asked() -> None:
    found, a, b = selector(), instance("a"), instance("b")
    found.report(found.take(a), throttled(9))
    found.report(found.take(b), throttled(4))

    assert ids(found, of(a, b)) == ["b"]
    assert sorted(found.waits(of(a, b))) == [4, 9]


def test_a_404_of_the_callers_own_does_not_end_a_throttled_instances_wait() -> None:
    found, bad = selector(), instance("bad")
    found.report(found.take(bad), throttled(9))

    found.report(found.take(bad), Failure(UpstreamUnreachable("m"), counts=False, status=404))

    assert list(found.waits(of(bad))) == [9]
    assert found.states(of(bad))[0]["last_error"] == "all_instances_throttled"


def test_a_changed_instance_starts_afresh_and_the_same_one_after_a_reload_does_not() -> None:
    found, good = selector(), instance("good", priority=1)
    found.report(found.take(instance("a")), throttled(9))

    assert ids(found, of(instance("a"), good)) == ["good"]
    for changed in ({"openai_base_url": "https://h"}, {"openai_model": "n"}):
        assert ids(found, of(instance("a", **changed), good)) == ["a", "good"]


def test_instances_that_are_gone_are_forgotten() -> None:
    clock = Clock()
    found = selector(clock)

    for number in range(5000):
        clock.now += 1
        found.report(found.take(instance(f"i{number}")), throttled(1))

    assert len(found._book) <= 1001


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20),
        ({"retry-after": "Thursday, 01-Jan-70 00:02:00 GMT"}, 20),
        ({"retry-after": "Thu Jan  1 00:02:00 1970"}, 20),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, None),
        ({"retry-after": "Thu, 01 Jan 99999 00:02:00 GMT"}, None),
        ({"retry-after": "Thu, 41 Jan 1970 00:02:00 GMT"}, None),
        ({"retry-after": "86400"}, 86400),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "-1", "retry-after": "3"}, 3),
        ({"retry-after-ms": "0", "retry-after": "-1", "x-ratelimit-reset-tokens": "1s"}, 1),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"x-ratelimit-reset-requests": "1m30.5s"}, 90.5),
        ({"x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-rate-limit-reset-tokens": "12"}, 12),
        ({"x-ratelimit-reset-requests": "1h", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        (
            {
                "x-ratelimit-reset-requests": "1h",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "6m0s",
                "x-ratelimit-remaining-tokens": "17",
            },
            3600,
        ),
        (
            {
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "1m",
                "x-ratelimit-remaining-tokens": "-1",
            },
            60,
        ),
        ({"retry-after": "-1", "x-ratelimit-reset-requests": "2s"}, 2),
        ({"x-ratelimit-reset-requests": "0s"}, None),
        ({"x-ratelimit-reset-requests": "1x"}, None),
        ({}, None),
    ],
)
def test_how_long_an_upstream_asks_to_be_left_alone(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, 100) == seconds


# Through the whole gateway


async def test_a_404_for_the_callers_own_id_does_not_speak_against_the_instance(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.replies("i1", 404, b'{"error": {"code": "not_found"}}')

    for _ in range(10):
        await gateway.post(PATH, json=CHAT)

    assert Counter(upstream.asked) == {"i1": 10, "i2": 10}


async def test_the_least_wait_counts_those_that_were_not_asked(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve(clock=Clock())
    upstream.replies("i1", 429, retry_after="7").replies("i2", 429, retry_after="3")

    first = await gateway.post(PATH, json=CHAT)
    upstream.forget("i2")
    upstream.replies("i2", 429, retry_after="50")
    second = await gateway.post(PATH, json=CHAT)
    third = await gateway.post(PATH, json=CHAT)

    assert [reply.headers["retry-after"] for reply in (first, second, third)] == ["3", "7", "7"]
    assert upstream.asked == ["i1", "i2", "i2", "i1"]


async def test_an_instance_of_its_own_model_is_asked_whatever_it_did(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve([model(openai(upstream, "i1"))])
    upstream.replies("i1", 500)

    statuses = [(await gateway.post(PATH, json=CHAT)).status_code for _ in range(6)]

    assert statuses == [500] * 6
