"""Azure Storage: a connection as Functions name it, and what a call by it has to carry."""

import base64
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode, urlsplit

from pydantic import SecretStr

from llamaxing.credentials.entra import STORAGE, Entra, credential
from llamaxing.document import UNRESOLVED, is_unresolved

# From this version on, tokens are accepted.
_VERSION = "2021-12-02"
# How long a signature of ours is good, and how long before its end another is made.
_SIGNED_FOR = timedelta(hours=1)
_SPARE = timedelta(minutes=15)

# Azurite's account, as its documentation has it; it is nobody's secret.
_DEVELOPMENT = (
    "AccountName=devstoreaccount1;AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVEr"
    "CW2z5+hV2qFdmg5CzaZYXWzfwhA==;BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1;"
    "QueueEndpoint=http://127.0.0.1:10001/devstoreaccount1"
)


class Connection:
    """The app setting NAME holds a connection string; or NAME__accountName, NAME__blobServiceUri,
    NAME__queueServiceUri, NAME__credential, NAME__clientId and so on an account and an identity.

    Without a name it is whatever identity there is.
    """

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        """Raises ValueError for a connection string that cannot be read."""
        given = {key: value for key, value in environ.items() if name and value}
        self._text = _parts(given.get(name, ""))
        self._account = given.get(f"{name}__accountName", "")
        self._uris = {it: given.get(f"{name}__{it}ServiceUri", "") for it in ("blob", "queue")}
        self._key = SecretStr(self._text.get("accountkey", ""))
        self._signature = SecretStr(self._text.get("sharedaccesssignature", "").lstrip("?"))
        self._signed_until: datetime | None = None
        self._entra = Entra(STORAGE, credential(environ, f"{name}__" if name else "AZURE_"))

    @property
    def blobs(self) -> str:
        """The URL of the account's blobs; empty where the connection names no account."""
        return self._url("blob")

    @property
    def queues(self) -> str:
        """The same of its queues."""
        return self._url("queue")

    async def signed(self, url: str) -> tuple[str, dict[str, str]]:
        """The URL of a call, and the headers to make it with.

        Raises `ConnectionError` when no token is to be had.
        """
        headers = {"x-ms-version": _VERSION}
        query = urlsplit(url).query
        if "sig=" in query:
            return url, headers
        self._sign()
        if signature := self._signature.get_secret_value():
            return f"{url}{'&' if query else '?'}{signature}", headers
        token = await self._entra.token()
        return url, {**headers, "authorization": f"Bearer {token.get_secret_value()}"}

    def _url(self, service: str) -> str:
        text = self._text
        account = text.get("accountname") or self._account
        scheme = text.get("defaultendpointsprotocol", "https")
        suffix = text.get("endpointsuffix", "core.windows.net")
        made = f"{scheme}://{account}.{service}.{suffix}" if account else ""
        return (text.get(f"{service}endpoint") or self._uris[service] or made).rstrip("/")

    def _sign(self) -> None:
        """By the account's key, where that is what we have."""
        key, now = self._key.get_secret_value(), datetime.now(UTC)
        if not key or (self._signed_until is not None and now < self._signed_until - _SPARE):
            return
        self._signed_until = now + _SIGNED_FOR
        self._signature = SecretStr(_signature(self._text["accountname"], key, self._signed_until))


def _signature(account: str, key: str, until: datetime) -> str:
    """A query with which containers, blobs and messages of the account may be read and changed.

    https://learn.microsoft.com/rest/api/storageservices/create-account-sas
    """
    said = {"ss": "bq", "srt": "co", "sp": "rwdlacup", "se": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
    # Nothing is said of a start, of addresses and of an encryption scope; http is for Azurite.
    parts = (account, said["sp"], said["ss"], said["srt"], "", said["se"], "", "", _VERSION, "", "")
    signed = hmac.digest(base64.b64decode(key), "\n".join(parts).encode(), "sha256")
    return urlencode({"sv": _VERSION, **said, "sig": base64.b64encode(signed).decode()})


def _parts(text: str) -> dict[str, str]:
    if not text:
        return {}
    if is_unresolved(text):
        raise ValueError(f"is {UNRESOLVED}")
    if text.strip().lower().rstrip(";") == "usedevelopmentstorage=true":
        text = _DEVELOPMENT
    pairs = [part.partition("=") for part in text.split(";") if part.strip()]
    found = {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}
    if not {"accountname", "blobendpoint"} & found.keys() or (
        "accountkey" not in found and "sharedaccesssignature" not in found
    ):
        raise ValueError(
            "is not a connection string: it needs AccountName and AccountKey, or BlobEndpoint and "
            "SharedAccessSignature"
        )
    try:
        base64.b64decode(found.get("accountkey", ""), validate=True)
    except ValueError:
        raise ValueError("has an AccountKey that is not base64") from None
    return found
