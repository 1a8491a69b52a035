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


class Hosting:
    """`folder`: where host.json is, if there is one."""

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        # Present on the platform only: Core Tools do not set it.
        self.on_azure = "WEBSITE_INSTANCE_ID" in environ
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
        """Seconds; 0 stands for no limit. Capped below host.json's functionTimeout."""
        longest = wanted or math.inf
        limit = self._function_timeout() - _SPARE if self.on_azure else math.inf
        if longest > limit:
            log.warning(
                "stream_max_age is capped at %g s: at host.json's functionTimeout the host "
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
        """Seconds, as host.json has it."""
        try:
            given = json.loads((self._folder / "host.json").read_text("utf-8"))["functionTimeout"]
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf
        found = _SPAN.fullmatch(str(given))
        if found is None:
            # "-1" is no limit.
            return math.inf
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
