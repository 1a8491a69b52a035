"""What Azure Functions allows, where the gateway runs there."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from llamaxing.logs import log

# Azure's front end gives up after 230 s without a byte.
_LONGEST_CALL = 220.0
# A caller who gets a comment within this time still has a stream.
_COMMIT_AFTER = 100.0
# Seconds that a stream ends before the host would restart its worker, and all other streams there.
_SPARE = 30.0
_SPAN = re.compile(r"(?:(\d+)\.)?(\d+):(\d+):(\d+)")
# The platform's own. The host takes the second for Flex Consumption, where the first is not there;
# Core Tools set neither.
_MARKERS = ("WEBSITE_INSTANCE_ID", "WEBSITE_SKU")
# The app setting that counts more than host.json.
_OVERRIDE = "AzureFunctionsJobHost__functionTimeout"


def is_azure(environ: Mapping[str, str]) -> bool:
    return any(name in environ for name in _MARKERS)


class Hosting:
    """`folder`: where host.json is, if there is one."""

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self.on_azure = is_azure(environ)
        self._override = environ.get(_OVERRIDE, "")
        self._folder = folder

    def longest_call(self, wanted: float) -> float:
        """Seconds; capped below what the platform waits for, with a line in the log."""
        if self.on_azure and wanted > _LONGEST_CALL:
            log.warning(
                "app_requests_timeout is capped at %g s: Azure's front end gives up after 230 s",
                _LONGEST_CALL,
            )
            return _LONGEST_CALL
        return wanted

    def longest_stream(self, wanted: float) -> float:
        """Seconds; 0 stands for no limit. Capped below the host's functionTimeout."""
        longest = wanted or math.inf
        limit = self._function_timeout() - _SPARE if self.on_azure else math.inf
        if longest > limit:
            log.warning(
                "stream_max_age is capped at %g s: at its functionTimeout the host "
                "restarts the worker",
                limit,
            )
        return min(longest, limit)

    def commit_after(self, wanted: float | None) -> float | None:
        """Seconds; None is never, which 0 stands for, and what it is by default elsewhere."""
        if wanted is None:
            return _COMMIT_AFTER if self.on_azure else None
        return wanted or None

    def _function_timeout(self) -> float:
        """Seconds, as the app setting over host.json has it, or host.json."""
        given = self._override
        try:
            file = self._folder / "host.json"
            given = given or str(json.loads(file.read_text("utf-8"))["functionTimeout"])
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf
        found = _SPAN.fullmatch(given)
        if found is None:
            # "-1" is no limit.
            return math.inf
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
