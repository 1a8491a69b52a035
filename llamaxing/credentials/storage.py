"""Azure Storage: a connection as Functions name it, and what a call by it has to carry."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from llamaxing.credentials.entra import STORAGE, Entra, credential
from llamaxing.document import UNRESOLVED, is_unresolved

# From this version on, tokens are accepted.
_VERSION = "2021-12-02"
_SIGNED_FOR = timedelta(minutes=15)

# Azurite's account, as its documentation has it; it is nobody's secret.
_DEVELOPMENT = (
    "AccountName=devstoreaccount1;AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVEr"
    "CW2z5+hV2qFdmg5CzaZYXWzfwhA==;BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1"
)


class Connection:
    """The app setting NAME holds a connection string; or NAME__accountName, NAME__blobServiceUri,
    NAME__credential, NAME__clientId and so on an account and an identity.

    Without a name it is whatever identity there is.
    """

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        """Raises ValueError for a connection string that cannot be read."""
        self._text = _parts(environ.get(name, "") if name else "")
        self._account = environ.get(f"{name}__accountName", "") if name else ""
        self._blobs = environ.get(f"{name}__blobServiceUri", "") if name else ""
        self._key = SecretStr(self._text.get("accountkey", ""))
        self._entra = Entra(STORAGE, credential(environ, f"{name}__" if name else "AZURE_"))

    @property
    def blobs(self) -> str:
        """The URL of the account's blobs; empty where the connection names no account."""
        text = self._text
        account = text.get("accountname") or self._account
        scheme = text.get("defaultendpointsprotocol", "https")
        suffix = text.get("endpointsuffix", "core.windows.net")
        made = f"{scheme}://{account}.blob.{suffix}" if account else ""
        return (text.get("blobendpoint") or self._blobs or made).rstrip("/")

    async def signed(self, url: str) -> tuple[str, dict[str, str]]:
        """The URL of a blob to read, and the headers to read it with.

        Raises `ConnectionError` when no token is to be had.
        """
        headers = {"x-ms-version": _VERSION}
        if "sig=" in urlsplit(url).query:
            return url, headers
        if signature := self._text.get("sharedaccesssignature"):
            return f"{url}?{signature.lstrip('?')}", headers
        if self._key.get_secret_value():
            return f"{url}?{await asyncio.to_thread(self._signature, url)}", headers
        token = await self._entra.token()
        return url, {**headers, "authorization": f"Bearer {token.get_secret_value()}"}

    def _signature(self, url: str) -> str:
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        account = self._text["accountname"]
        parts = urlsplit(url)
        within = unquote(parts.path).lstrip("/")
        if not (parts.hostname or "").startswith(f"{account}."):
            # The path of an emulator begins with the account.
            within = within.removeprefix(f"{account}/")
        container, _, blob = within.partition("/")
        signature: str = generate_blob_sas(
            account,
            container,
            blob,
            account_key=self._key.get_secret_value(),
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + _SIGNED_FOR,
        )
        return signature


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
    return found
