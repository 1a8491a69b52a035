"""A blob of Azure Storage: read with a managed identity, a connection string or a signed URL."""

from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from llamaxing.credentials.storage import Connection
from llamaxing.plugins import Surroundings
from llamaxing.sources import Reading, get

# What Functions call the connection of the app itself.
_APP = "AzureWebJobsStorage"


class BlobSource:
    """`blob:https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME`, or `blob:CONTAINER/NAME` of the
    account that the connection names."""

    class Options(BaseModel, frozen=True):
        blob_connection: str | None = Field(
            default=None,
            description="The storage connection of `blob:`, named as Functions name theirs: an app "
            "setting with a connection string, or the NAME of `NAME__accountName`, "
            "`NAME__credential` and so on. Without it a whole URL is read with the app's managed "
            "identity, and `blob:CONTAINER/NAME` by `AzureWebJobsStorage`.",
        )

    def __init__(self, where: str, options: Options, surroundings: Surroundings) -> None:
        """Raises ValueError for what is no blob, and for a connection that cannot be used."""
        whole = "://" in where
        name = options.blob_connection or ("" if whole else _APP)
        try:
            self._connection = Connection(name, surroundings.environ)
        except ValueError as error:
            raise ValueError(f"the connection {name} {error}") from None
        if not whole and not self._connection.blobs:
            raise ValueError(f"the connection {name} names no storage account; set {name}")
        self._url = where if whole else f"{self._connection.blobs}/{where}"
        self._web = surroundings.web
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or parts.path.count("/") < 2:
            raise ValueError(
                "is not a blob, as in 'blob:https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME'"
            )
        self.name = PurePosixPath(parts.path).name
        # The query may hold a signature.
        self.copied_as = self._url.partition("?")[0]

    async def read(self, known: str | None) -> Reading | None:
        url, headers = await self._connection.signed(self._url)
        return await get(self._web, url, headers, known)


PLUGIN = BlobSource
