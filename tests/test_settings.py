"""The settings: what there is, where from, and what is refused."""

from pathlib import Path

import pytest

from llamaxing import settings
from llamaxing.settings import Settings, read

METHODS = "'apikey', 'easyauth', 'jwt' or 'none'"
FAULTS = {
    ("AUTH_METHOD", "ldap"): f"auth_method: 'ldap' is not known; use {METHODS}",
    ("AUTH_METHOD", "jwt, ldap"): f"auth_method: 'ldap' is not known; use {METHODS}",
    ("AUTH_METHOD", ","): f"auth_method: is empty; use {METHODS}",
    ("AUTH_METHOD", "none,jwt"): (
        "auth_method: has 'none' beside others, and would let everybody in"
    ),
    ("ID_SECRET", "short"): "id_secret: is too short; use at least 16 random characters",
    ("CORS_ORIGINS", "https://a.example/x"): (
        "cors_origins: 'https://a.example/x' is not an origin; write it as 'https://host'"
    ),
    ("LOGGING_CLIENT", "x"): (
        "logging_client: 'x' is not known; use 'none', 'jsonl', 'langfuse' or 'mongodb'"
    ),
    ("IDENTITY_STORE", "x"): "identity_store: has to be 'none' or 'json'",
    ("DEBUG_LEVEL", "4"): "debug_level: has to be less than or equal to 3",
    ("DEBUG_LEVEL", "high"): "debug_level: has to be a whole number",
    ("APP_MODE", "x"): "app_mode: has to be 'gateway' or 'sidecar'",
    ("APP_PAGE", "maybe"): "app_page: has to be true or false",
    ("APP_REQUESTS_TIMEOUT", "0"): "app_requests_timeout: has to be greater than 0",
    ("APP_REQUESTS_TIMEOUT", "5m"): "app_requests_timeout: has to be a number",
    (
        "REDACT",
        "embeddings,chat",
    ): "redact: 'chat' is not known; use '*', 'chat_completions', 'completions', "
    "'embeddings', 'images_generations', 'images_edits', 'images_variations', 'audio_speech', "
    "'audio_transcriptions', 'audio_translations', 'moderations' or 'responses'",
    ("MODELS_SOURCE", "models.json"): (
        "models_source: has to name a kind and a place, as in 'file:models.json'"
    ),
    ("MODELS_SOURCE", "ftp:x"): (
        "models_source: 'ftp' is not known; use 'blob', 'env', 'file' or 'https'"
    ),
    ("IDENTITIES_SOURCE", "env:"): (
        "identities_source: has to name a kind and a place, as in 'file:models.json'"
    ),
    ("AUTH_METHOD", "@Microsoft.KeyVault(SecretUri=https://v/s)"): (
        "auth_method: is an unresolved Key Vault reference; the app's identity may not read that "
        "secret, or there is none: see the setting's status in the portal"
    ),
}


@pytest.mark.parametrize(("given", "fault"), FAULTS.items(), ids=map(str, FAULTS))
def test_an_unknown_value_is_refused_with_the_values_there_are(
    given: tuple[str, str], fault: str
) -> None:
    found, faults = read(Settings, dict([given]))

    assert found is None
    assert faults == [fault]


def test_names_are_upper_case_and_an_empty_value_is_none() -> None:
    found, _ = read(Settings, {"APP_NAME": "ours\n", "AUTH_METHOD": " ", "DEBUG_LEVEL": "2"})

    assert found is not None
    assert (found.app_name, found.auth_method, found.debug_level) == ("ours", "none", 2)


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('APP_NAME="from file"\nDEBUG_LEVEL=1\n')

    environ = settings.environment({"APP_NAME": "from here"}, tmp_path)

    assert environ == {"APP_NAME": "from here", "DEBUG_LEVEL": "1"}


def test_without_a_file_the_environment_is_all(tmp_path: Path) -> None:
    assert settings.environment({"A": "b"}, tmp_path) == {"A": "b"}
