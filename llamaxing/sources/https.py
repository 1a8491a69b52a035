"""A URL that anybody may read, or whose query holds what it takes. It is asked by ETag."""

from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pydantic import BaseModel

from llamaxing.plugins import Surroundings
from llamaxing.sources import Reading, get


class HttpsSource:
    class Options(BaseModel, frozen=True):
        pass

    def __init__(self, where: str, options: Options, surroundings: Surroundings) -> None:
        """Raises ValueError for what is no URL."""
        self._url = f"https:{where}"
        self._web = surroundings.web
        parts = urlsplit(self._url)
        if not parts.hostname:
            raise ValueError("is not a URL, as in 'https://host/models.json'")
        self.name = PurePosixPath(parts.path).name or parts.hostname
        # The query may hold a secret.
        self.copied_as = f"https://{parts.netloc.rpartition('@')[2]}{parts.path}"

    async def read(self, known: str | None) -> Reading | None:
        return await get(self._web, self._url, {}, known)


PLUGIN = HttpsSource
