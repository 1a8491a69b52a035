"""What would run and had better not: refused on Azure, or warned of in the log at each start."""

from urllib.parse import urlsplit

from llamaxing.catalog import Catalog
from llamaxing.endpoints import ENDPOINTS
from llamaxing.errors import ConfigurationError
from llamaxing.identity import SAMPLE, Identities
from llamaxing.logs import LEVELS, log
from llamaxing.settings import Settings

_DEFAULTS = {"default_image_model": "images", "default_moderation_model": "moderations"}


def check_settings(chosen: Settings, on_azure: bool) -> None:
    """Raises `ConfigurationError` for a gateway that would be open to everybody on Azure."""
    if chosen.debug_level == len(LEVELS) - 1:
        log.warning("debug_level is 3: the log holds the credentials of callers")
    if chosen.auth_method == "none":
        if on_azure and not chosen.auth_none_on_azure:
            what = "'none' would let everybody in; choose another, or set auth_none_on_azure=true"
            raise ConfigurationError([f"auth_method: {what}"], ["auth_method"])
        log.warning("auth_method is none: everybody who reaches this gateway may use it")


def check_models(catalog: Catalog, chosen: Settings) -> None:
    """Warns of each instance whose key would cross a network in the clear, and of a default that
    no call can be answered by."""
    for setting, serves in _DEFAULTS.items():
        name = getattr(chosen, setting)
        if name and not any(
            name in model.names and any(it.startswith(serves) for it in model.capabilities)
            for model in catalog.models
        ):
            log.warning("%s: no model %s serves %s", setting, ascii(name), serves)
    for model in catalog.models:
        for instance in model.instances:
            url = urlsplit(instance.url(ENDPOINTS[0]))
            if url.scheme == "http" and not _is_loopback(url.hostname or ""):
                log.warning("instance %s is reached by http: its key can be read", instance.id)


def check_ids(catalog: Catalog, chosen: Settings) -> None:
    """Raises `ConfigurationError` for stored responses that nobody could tell whose, or where."""
    if chosen.id_secret is not None:
        return
    known = chosen.auth_method != "none"
    serving = [it for it in catalog.models if "responses" in it.capabilities]
    found = [it.id for it in serving if known or len(it.instances) > 1]
    if found:
        why = "callers are known" if known else "it has several instances"
        what = f"is needed, since the model {found[0]!a} serves responses and {why}"
        mend = "set it to a long random text, the same in every process"
        raise ConfigurationError([f"id_secret: {what}; {mend}"], ["id_secret"])


def check_identities(identities: Identities, setting: str, on_azure: bool) -> None:
    """Raises `ConfigurationError` for the examples' keys on Azure; elsewhere warns of them."""
    sample = [who.id for who in identities if any(key.is_sample for key in who.keys.values())]
    if not sample:
        return
    what = f"a key that begins with '{SAMPLE}' is known to everybody; make one of your own"
    if on_azure:
        raise ConfigurationError([f"{setting}: {who!a}: {what}" for who in sample], [setting])
    for who in sample:
        log.warning("identity %s: %s", ascii(who), what)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
