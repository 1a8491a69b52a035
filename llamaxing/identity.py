"""identities.json: who may call, and with which key."""

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
)

from llamaxing.document import Document, Strict
from llamaxing.errors import ConfigurationError

SAMPLE = "sample-"
"""What every key in the examples begins with."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def _key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text:
        raise ValueError("is empty; write the key, or 'sha256:' and the hex digits of its SHA-256")
    if text != text.strip():
        raise ValueError("has white space around it; take that away")
    if text.startswith("sha256:") and not _DIGEST.fullmatch(text):
        raise ValueError("has no SHA-256 after 'sha256:'; write its 64 hex digits in lower case")
    return value


class ApiKeyEntry(Strict):
    """One of an identity's keys, as it is or as `sha256:<hex>`. `id` is what records show of it."""

    key: SecretStr
    id: str | None = None
    expires: AwareDatetime | None = None

    _check = field_validator("key")(_key)

    @property
    def digest(self) -> str:
        text = self.key.get_secret_value()
        found = _DIGEST.fullmatch(text)
        return found[1] if found else sha256(text)

    @property
    def is_sample(self) -> bool:
        """Whether it is a key of the examples, which everybody knows."""
        return self.key.get_secret_value().startswith(SAMPLE)


class Observability(Strict):
    """The Langfuse project that an identity's traces go to."""

    langfuse_public_key: str = Field(min_length=1)
    langfuse_secret_key: SecretStr = Field(min_length=1)


Strings = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]
"""One string, or a list of them."""


class Identity(Strict):
    """Somebody, or something, that calls.

    `models` are the ids it may use, as globs; without the list it may use every model. `record`
    says how much of its calls is kept.
    """

    id: str = Field(min_length=1)
    auth_key: SecretStr = SecretStr("")
    api_keys: tuple[ApiKeyEntry, ...] = ()
    claims: Mapping[str, Strings] = {}
    name: str | None = None
    info: Any = None
    observability: Observability | None = None
    models: tuple[str, ...] | None = None
    record: Literal["full", "metadata", "none"] = "full"

    _check = field_validator("auth_key")(_key)

    def may_use(self, model: str) -> bool:
        return self.models is None or any(fnmatch.fnmatchcase(model, it) for it in self.models)

    @property
    def keys(self) -> Mapping[str, ApiKeyEntry]:
        """Each by where it stands."""
        several = {f"api_keys[{index}]": key for index, key in enumerate(self.api_keys)}
        if "auth_key" in self.model_fields_set:
            return {"auth_key": ApiKeyEntry(key=self.auth_key), **several}
        return several


ANONYMOUS = Identity(id="anonymous")


class Identities:
    """Everybody who may call, found by the hash of a key: keys are never compared as text."""

    def __init__(self, identities: Iterable[Identity] = ()) -> None:
        self._all = tuple(identities)
        self._by_id = {who.id: who for who in self._all}
        self._by_digest = {key.digest: (who, key) for who in self._all for key in who.keys.values()}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._all)

    def by_id(self, id: str) -> Identity | None:
        return self._by_id.get(id)

    def by_key(self, key: str, now: datetime) -> Identity | None:
        """Whose key it is; None for a key that is unknown or has expired."""
        identity, entry = self._by_digest.get(sha256(key), (None, None))
        if entry is not None and entry.expires is not None and entry.expires <= now:
            return None
        return identity


def read_identities(
    raw: bytes, name: str, setting: str, variables: Mapping[str, str]
) -> Identities:
    """`${VAR}` is taken from `variables` everywhere but in `info`.

    Raises `ConfigurationError` with every fault of the file.
    """
    document = Document(name)
    found = []
    for at, item in document.items(raw):
        for key in item.keys() - {"info"}:
            item[key] = document.expanded(item[key], f"{at}.{key}", variables)
        if identity := document.check(Identity, item, at):
            found.append((at, identity))
    document.unique("id", [(f"{at}.id", identity.id) for at, identity in found])
    document.unique(
        "key",
        [
            (f"{at}.{place}", key.digest)
            for at, identity in found
            for place, key in identity.keys.items()
        ],
    )
    if document.faults:
        raise ConfigurationError(document.faults, [setting])
    return Identities(identity for _, identity in found)


def sha256(key: str) -> str:
    """In hex: what keys are looked up by."""
    return hashlib.sha256(key.encode()).hexdigest()
