"""The tests' own servers do what is expected of them, as Azure's SDKs see it."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.identity import ManagedIdentityCredential
from azure.identity.aio import ManagedIdentityCredential as AsyncManagedIdentityCredential
from azure.storage.blob import (
    AccountSasPermissions,
    BlobSasPermissions,
    ResourceTypes,
    Services,
    generate_account_sas,
    generate_blob_sas,
)
from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient

from tests.managed_identity import ManagedIdentity, TokenRequest
from tests.services import Azurite

STORAGE = "https://storage.azure.com"


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=10)


async def test_azurite_gives_a_blob_back_and_304_while_it_is_the_same(azurite: Azurite) -> None:
    async with BlobServiceClient.from_connection_string(azurite.connection_string) as storage:
        await storage.create_container("gives-back")
        put = await storage.get_blob_client("gives-back", "b").upload_blob(b"hello")
    read = BlobSasPermissions(read=True)
    sas = generate_blob_sas(
        azurite.account, "gives-back", "b", account_key=azurite.key, permission=read, expiry=soon()
    )

    async with BlobClient(azurite.blob_url, "gives-back", "b", credential=sas) as blob:
        got = await blob.download_blob()
        content = await got.readall()
        with pytest.raises(HttpResponseError) as unchanged:
            await blob.download_blob(
                etag=put["etag"], match_condition=MatchConditions.IfModified, retry_total=0
            )

    assert content == b"hello"
    assert got.properties.etag == put["etag"]
    assert unchanged.value.status_code == 304


async def test_azurite_refuses_another_key(azurite: Azurite) -> None:
    stranger = {"account_name": azurite.account, "account_key": "c3RyYW5nZXI="}

    async with BlobServiceClient(azurite.blob_url, credential=stranger) as storage:
        with pytest.raises(HttpResponseError) as refused:
            await storage.create_container("refused")

    assert refused.value.status_code == 403


async def test_azurite_gives_a_message_of_a_queue_back(azurite: Azurite) -> None:
    sas = generate_account_sas(
        azurite.account,
        azurite.key,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, add=True, create=True, process=True),
        soon(),
        services=Services(queue=True),
    )
    message = "<QueueMessage><MessageText>hello</MessageText></QueueMessage>"

    async with httpx.AsyncClient() as client:
        made = await client.put(f"{azurite.queue_url}/gives-back?{sas}")
        put = await client.post(f"{azurite.queue_url}/gives-back/messages?{sas}", content=message)
        got = await client.get(f"{azurite.queue_url}/gives-back/messages?{sas}")

    assert [made.status_code, put.status_code, got.status_code] == [201, 201, 200]
    assert "<MessageText>hello</MessageText>" in got.text


async def test_azurite_keeps_what_it_acknowledged_when_it_is_killed(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    enough = asyncio.Event()
    numbers = itertools.count()

    async def write(container: ContainerClient) -> None:
        while True:
            name = f"b{next(numbers)}"
            await container.upload_blob(name, name.encode())
            acknowledged.append(name)
            if len(acknowledged) == 40:
                enough.set()

    with Azurite(tmp_path, durable=True) as azurite:
        async with ContainerClient.from_connection_string(
            azurite.connection_string, "kept", retry_total=0
        ) as container:
            await container.create_container()
            writers = [asyncio.create_task(write(container)) for _ in range(4)]
            await enough.wait()

            await asyncio.to_thread(azurite.kill)
            ends = await asyncio.gather(*writers, return_exceptions=True)
            await asyncio.to_thread(azurite.start)

            for name in acknowledged:
                blob = await container.download_blob(name)
                assert await blob.readall() == name.encode()
    assert all(isinstance(end, AzureError) for end in ends), ends


async def test_azurite_takes_a_token_of_a_managed_identity_and_refuses_none(
    azurite_oauth: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = {"connection_verify": str(azurite_oauth.ca)}
    with ManagedIdentity() as identity:
        for name, value in identity.environ.items():
            monkeypatch.setenv(name, value)

        async with (
            AsyncManagedIdentityCredential() as credential,
            BlobServiceClient(azurite_oauth.blob_url, credential, **verify) as storage,
            BlobServiceClient(azurite_oauth.blob_url, **verify) as nobody,
        ):
            await storage.create_container("with-a-token")
            await storage.get_blob_client("with-a-token", "b").upload_blob(b"hello")
            with pytest.raises(HttpResponseError) as refused:
                await nobody.get_blob_client("with-a-token", "b").download_blob()

    assert identity.requests == [TokenRequest(STORAGE, None)]
    assert refused.value.status_code == 403


async def test_a_managed_identity_fails_hangs_and_answers_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ManagedIdentity() as identity:
        for name, value in identity.environ.items():
            monkeypatch.setenv(name, value)

        identity.status = 500
        with pytest.raises(ClientAuthenticationError):
            await asyncio.to_thread(fetch_token)
        identity.status = 200
        identity.hang()
        fetching = asyncio.create_task(asyncio.to_thread(fetch_token))
        await asyncio.to_thread(identity.wait_for_requests, 2)
        hung = not fetching.done()
        identity.release()
        token = await fetching

    assert hung
    assert token.count(".") == 2
    assert identity.requests == [TokenRequest(STORAGE, "app-1")] * 2


def fetch_token() -> str:
    # Its own each time: a credential that blocks remembers a failure for a minute.
    with ManagedIdentityCredential(client_id="app-1", retry_total=0) as credential:
        return credential.get_token(f"{STORAGE}/.default").token


async def test_a_managed_identity_refuses_another_secret() -> None:
    with ManagedIdentity() as identity:
        url = identity.environ["IDENTITY_ENDPOINT"]
        query = {"resource": STORAGE, "api-version": "2019-08-01"}

        async with httpx.AsyncClient() as client:
            refused = await client.get(url, params=query, headers={"x-identity-header": "guess"})

    assert refused.status_code == 401
    assert identity.requests == []
