"""Writes the README's table of clients."""

import re

from tests.clients import PROJECT, table

README = PROJECT / "README.md"
PLACE = re.compile(r"(?<=<!-- python -m tests.clients -->\n).*?(?=<!-- -->)", re.DOTALL)

text = README.read_text(encoding="utf-8")
README.write_text(PLACE.sub(lambda _: f"\n{table()}\n", text), encoding="utf-8")
