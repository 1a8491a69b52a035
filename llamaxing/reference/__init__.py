"""The API reference: an OpenAPI document, and a page that shows it and has a chat to try."""

import base64
import hashlib
import html
import json
import re
from pathlib import Path


class Reference:
    """`page` runs only what it carries itself: `csp` is the policy to serve it with."""

    def __init__(self, app_name: str) -> None:
        document = json.loads(_read("openapi.json"))
        document["info"]["title"] = app_name
        page = _read("page.html")
        filled = {
            "__APP_NAME__": html.escape(app_name),
            # `</script>` and `<!--` would end or change the element around it.
            "__OPENAPI__": json.dumps(document).replace("<", "\\u003c"),
        }
        self.document = json.dumps(document).encode()
        self.page = re.sub("|".join(filled), lambda found: filled[found[0]], page).encode()
        self.csp = "; ".join(
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
