"""The one log, and what each `debug_level` adds to it."""

import logging

log = logging.getLogger("llamaxing")

# 0: a line a call, without texts. 1: requests and replies, and why a credential was refused.
# 2: each chunk of a stream. 3: what is sensitive, the credentials of callers among it.
TEXTS = logging.DEBUG
CHUNKS = logging.DEBUG - 1
SENSITIVE = logging.DEBUG - 2
LEVELS = (logging.INFO, TEXTS, CHUNKS, SENSITIVE)
