"""An issuer of tokens on this machine, in the place of Entra ID: whoever asks is given one."""

import functools
import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

# Seconds that a token is good for.
LIFETIME = 24 * 60 * 60
_ALGORITHM = "RS256"
_KEY_ID = "simulated"
# Claims that are lists, with one value too.
_LISTS = frozenset({"roles", "groups"})
_TIMES = frozenset({"exp", "nbf", "iat"})


class Issuer:
    """Its key is its own, and gone with it. `url` is what stands in `iss`."""

    def __init__(self, url: str) -> None:
        self._url = url

    @functools.cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def configuration(self) -> dict[str, Any]:
        """What OpenID Connect Discovery wants of it, as far as a gateway reads it."""
        return {"issuer": self._url, "jwks_uri": f"{self._url}/keys"}

    def keys(self) -> dict[str, Any]:
        public = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**public, "kid": _KEY_ID, "alg": _ALGORITHM, "use": "sig"}]}

    def token(self, claims: Mapping[str, str]) -> str:
        """It says what is asked for; `roles` and `groups` by commas. Raises ValueError for a time
        that is none."""
        now = int(time.time())
        said = {name: _value(name, text) for name, text in claims.items()}
        usual = {"iss": self._url, "iat": now, "exp": now + LIFETIME}
        return jwt.encode({**usual, **said}, self._key, _ALGORITHM, {"kid": _KEY_ID})


def _value(name: str, text: str) -> str | int | list[str]:
    if name in _LISTS:
        return text.split(",")
    if name not in _TIMES:
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} has to be a whole number") from None
