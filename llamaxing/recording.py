"""What the settings name to record with: sinks, and the outbox before them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from llamaxing import plugins, settings
from llamaxing.delivery import Delivery, Pace
from llamaxing.errors import ConfigurationError
from llamaxing.outbox import Outbox
from llamaxing.plugins import Surroundings
from llamaxing.recorder import Recorder
from llamaxing.settings import Settings

# What Functions call the storage of the app itself.
_STORAGE = "AzureWebJobsStorage"


class Recording(msgspec.Struct, frozen=True):
    """`outboxes`: each is tried when the one before it fails; none without a sink."""

    deliveries: Mapping[str, Delivery]
    outboxes: tuple[Outbox, ...]

    def recorder(self, chosen: Settings) -> Recorder:
        return Recorder(
            self.outboxes,
            copy_up_to=chosen.logging_copy_limit,
            audit_age=chosen.audit_max_age if chosen.audit_required else None,
        )


def recording(chosen: Settings, surroundings: Surroundings, on_azure: bool) -> Recording:
    """Opens nothing. Raises `ConfigurationError` with every fault there is."""
    errors: list[ConfigurationError] = []
    deliveries: dict[str, Delivery] = {}
    pace = Pace(longest=chosen.delivery_pause_limit)
    for setting in ("logging_client", "observability_client"):
        name = getattr(chosen, setting)
        if name == "none" or name in deliveries:
            continue
        try:
            sink = _made(setting, "sinks", name, surroundings)
            deliveries[name] = Delivery(name, sink, chosen.delivery_timeout, pace)
        except ConfigurationError as error:
            errors.append(error)
    outboxes: tuple[Outbox, ...] = ()
    try:
        if deliveries:
            outboxes = _outboxes(chosen, surroundings, on_azure, deliveries)
        _check_audit(chosen, outboxes)
    except ConfigurationError as error:
        errors.append(error)
    if errors:
        raise ConfigurationError.all(errors)
    return Recording(deliveries, outboxes)


def _outboxes(
    chosen: Settings,
    surroundings: Surroundings,
    on_azure: bool,
    deliveries: Mapping[str, Delivery],
) -> tuple[Outbox, ...]:
    name = chosen.outbox or _default(surroundings.environ, on_azure)
    direct = _made("outbox", "outbox", "none", surroundings, deliveries)
    if name == "none":
        return (direct,)
    return (_made("outbox", "outbox", name, surroundings, deliveries), direct)


def _default(environ: Mapping[str, str], on_azure: bool) -> str:
    """Queues where a function can deliver what is in them."""
    storage = environ.get("OUTBOX_CONNECTION") or _STORAGE
    there = any(environ[it] for it in environ if it == storage or it.startswith(f"{storage}__"))
    return "azure_queue" if on_azure and there else "sqlite"


def _check_audit(chosen: Settings, outboxes: tuple[Outbox, ...]) -> None:
    if not chosen.audit_required:
        return
    if len(outboxes) < 2:
        what = "needs a sink and an outbox; set logging_client, and outbox to 'sqlite' or "
        raise _fault("audit_required", what + "'azure_queue'")
    longest = max(chosen.stream_max_age, chosen.app_requests_timeout)
    if chosen.stream_max_age == 0 or chosen.audit_max_age <= longest:
        raise _fault("audit_max_age", "has to be more than stream_max_age and app_requests_timeout")


def _made(setting: str, kind: str, name: str, surroundings: Surroundings, *more: Any) -> Any:
    plugin = plugins.load(kind, name)
    options, faults = settings.read(plugin.Options, surroundings.environ)
    if options is None:
        raise ConfigurationError(faults, [fault.partition(":")[0] for fault in faults])
    try:
        return plugin(options, surroundings, *more)
    except ValueError as error:
        raise _fault(setting, str(error)) from error


def _fault(setting: str, what: str) -> ConfigurationError:
    return ConfigurationError([f"{setting}: {what}"], [setting])
