"""The API reference: an OpenAPI document, and a page that shows it and has a chat to try."""

import base64
import hashlib
import json
import re
from functools import cached_property
from pathlib import Path


class Reference:
    """Made when it is first asked for, which a start does not wait for."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name

    @cached_property
    def document(self) -> bytes:
        found = json.loads(_read("openapi.json"))
        found["info"]["title"] = self._app_name
        return json.dumps(found).encode()

    @cached_property
    def page(self) -> bytes:
        """It runs only what it carries itself."""
        import html

        filled = {
            "__APP_NAME__": html.escape(self._app_name),
            # `</script>` and `<!--` would end or change the element around it.
            "__OPENAPI__": self.document.decode().replace("<", "\\u003c"),
        }
        page = re.sub("|".join(filled), lambda found: filled[found[0]], _read("page.html"))
        return page.encode()

    @cached_property
    def csp(self) -> str:
        """The policy to serve the page with."""
        page = _read("page.html")
        return "; ".join(
            [
                "default-src 'none'",
                "connect-src 'self'",
                f"style-src '{_hash(page, 'style')}'",
                f"script-src '{_hash(page, 'script')}'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            ]
        )


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


def _hash(page: str, element: str) -> str:
    """What a policy calls the text of the one element of this name without attributes."""
    [text] = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
