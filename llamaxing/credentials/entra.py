"""Tokens of Entra ID by azure-identity: fetched once for all who wait, and anew before they end."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import SecretStr

from llamaxing.logs import SENSITIVE, log

AZURE_OPENAI = "https://cognitiveservices.azure.com/.default"
STORAGE = "https://storage.azure.com/.default"

# A token is fetched anew when it has less than this many seconds left, and not shown with less
# than that.
_SPARE = 300.0
_LEAST = 30.0
# Seconds between two tries while the token before still serves.
_PAUSE = 10.0
_CODES = re.compile(
    r"AADSTS\d+|invalid_(?:client|grant|scope|request|resource|tenant)|unauthorized_client"
)
# azure-identity's own patience with the endpoint of managed identities is minutes.
_LIMITS: dict[str, Any] = {"retry_total": 1, "connection_timeout": 3, "read_timeout": 5}


class Entra:
    """The token of one credential for one scope.

    `make` gives the credential of azure-identity: it is called in a thread, where the import that
    it needs holds nobody up.
    """

    def __init__(
        self,
        scope: str,
        make: Callable[[], Any],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._scope = scope
        self._make = make
        self._clock = clock
        self._token = SecretStr("")
        self._until = 0.0
        self._failed = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def token(self) -> SecretStr:
        """Raises `ConnectionError` when there is none to be had; its text holds no token."""
        left = self._until - self._clock()
        if left < _SPARE:
            self._start()
        if left < _LEAST and self._fetching is not None:
            # A caller who gives up takes the token from nobody else.
            await asyncio.shield(self._fetching)
        return self._token

    def _start(self) -> None:
        now = self._clock()
        if self._fetching is not None or (self._failed > now - _PAUSE and self._serves):
            return
        self._fetching = asyncio.create_task(self._fetch())
        self._fetching.add_done_callback(self._fetched)

    @property
    def _serves(self) -> bool:
        return self._clock() < self._until - _LEAST

    async def _fetch(self) -> None:
        found = await asyncio.to_thread(self._get)
        self._token, self._until = SecretStr(found.token), found.expires_on

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed = self._clock()
            # Where nobody waits for it, nobody else would tell.
            if self._serves:
                log.warning("%s; the one before serves until it ends", error)

    def _get(self) -> Any:
        from azure.core.exceptions import AzureError

        # They tell what was answered, whatever that is.
        for name in ("azure.identity", "msal"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with self._make() as credential:
                return credential.get_token(self._scope)
        except (AzureError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.log(SENSITIVE, "no token from Entra ID: %s", ascii(str(error)))
            # The words of whoever answered may be a token; these are codes.
            codes = dict.fromkeys(_CODES.findall(str(error)))
            why = " ".join([type(error).__name__, *codes])
            raise ConnectionError(f"no token from Entra ID: {why}, for {self._scope}") from None


class Tokens:
    """The tokens of one environment: each is fetched when it is first asked for."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._by_scope: dict[tuple[str, str | None], Entra] = {}

    async def of(self, scope: str, client_id: str | None = None) -> SecretStr:
        """`client_id`: of a user-assigned identity, where the app has several.

        Raises `ConnectionError` when there is none to be had; its text holds no token.
        """
        entra = self._by_scope.get((scope, client_id))
        if entra is None:
            own = {"AZURE_CLIENT_ID": client_id} if client_id else {}
            entra = Entra(scope, credential({**self._environ, **own}))
            self._by_scope[scope, client_id] = entra
        return await entra.token()


def credential(environ: Mapping[str, str], prefix: str = "AZURE_") -> Callable[[], Any]:
    """The credential that the variables `PREFIXclientId` and so on describe, as Functions'
    identity-based connections and azure-identity name them; without any, whatever there is:
    a managed identity on Azure, the developer's own login elsewhere."""
    given = {name.upper(): value for name, value in environ.items() if value}

    def variable(name: str) -> str | None:
        upper = prefix.upper()
        return given.get(f"{upper}{name.replace('_', '')}") or given.get(f"{upper}{name}")

    tenant, client = variable("TENANT_ID"), variable("CLIENT_ID")
    secret, kind = variable("CLIENT_SECRET"), (variable("CREDENTIAL") or "").lower()

    # An authority of one's own is not one that Microsoft's list of authorities has.
    limits = _LIMITS | {"disable_instance_discovery": "AZURE_AUTHORITY_HOST" in given}

    def make() -> Any:
        from azure import identity

        if tenant and client and secret:
            return identity.ClientSecretCredential(tenant, client, secret, **limits)
        if kind == "managedidentity":
            return identity.ManagedIdentityCredential(client_id=client, **_LIMITS)
        return identity.DefaultAzureCredential(
            managed_identity_client_id=client,
            exclude_interactive_browser_credential=True,
            **limits,
        )

    return make
