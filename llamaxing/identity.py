"""identities.json: who may call, and with which key."""

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, Field, SecretStr, field_validator

from llamaxing.document import Document, Strict
from llamaxing.errors import ConfigurationError

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def _key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text or text != text.strip():
        raise ValueError("a key is neither empty nor has white space around it")
    if text.startswith("sha256:") and not _DIGEST.fullmatch(text):
        raise ValueError("after 'sha256:' come the 64 hex digits of the key's SHA-256")
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


class Observability(Strict):
    """The Langfuse project that an identity's traces go to."""

    langfuse_public_key: str = Field(min_length=1)
    langfuse_secret_key: SecretStr = Field(min_length=1)


class Identity(Strict):
    """Somebody, or something, that calls.

    `models` are the ids it may use, as globs; without the list it may use every model. `record`
    says how much of its calls is kept.
    """

    id: str = Field(min_length=1)
    auth_key: SecretStr = SecretStr("")
    api_keys: tuple[ApiKeyEntry, ...] = ()
    claims: Mapping[str, str | tuple[str, ...]] = {}
    name: str | None = None
    info: Any = None
    observability: Observability | None = None
    models: tuple[str, ...] | None = None
    record: Literal["full", "metadata", "none"] = "full"

    _check = field_validator("auth_key")(_key)

    def may_use(self, model: str) -> bool:
        return self.models is None or any(fnmatch.fnmatchcase(model, it) for it in self.models)

    @property
    def keys(self) -> Sequence[ApiKeyEntry]:
        if "auth_key" in self.model_fields_set:
            return (ApiKeyEntry(key=self.auth_key), *self.api_keys)
        return self.api_keys


ANONYMOUS = Identity(id="anonymous")


class Identities:
    """Everybody who may call, found by the hash of a key: keys are never compared as text."""

    def __init__(self, identities: Iterable[Identity] = ()) -> None:
        self._all = tuple(identities)
        self._by_digest = {key.digest: (who, key) for who in self._all for key in who.keys}

    def __len__(self) -> int:
        return len(self._all)

    def by_key(self, key: str, now: datetime) -> Identity | None:
        """Whose key it is; None for a key that is unknown or has expired."""
        identity, entry = self._by_digest.get(sha256(key), (None, None))
        if entry is not None and entry.expires is not None and entry.expires <= now:
            return None
        return identity


def read_identities(raw: bytes, name: str, setting: str) -> Identities:
    """Raises `ConfigurationError` with every fault of the file."""
    document = Document(name)
    checked = [(at, document.check(Identity, item, at)) for at, item in document.items(raw)]
    found = [(at, identity) for at, identity in checked if identity]
    document.unique("id", [(f"{at}.id", identity.id) for at, identity in found])
    document.unique("key", [(at, key.digest) for at, identity in found for key in identity.keys])
    if document.faults:
        raise ConfigurationError(document.faults, [setting])
    return Identities(identity for _, identity in found)


def sha256(key: str) -> str:
    """In hex: what keys are looked up by."""
    return hashlib.sha256(key.encode()).hexdigest()
