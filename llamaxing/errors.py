"""Everything that the gateway itself refuses, in OpenAI's error shape.

GatewayError
├── InvalidRequest (400)      InvalidJSON · InvalidForm · InvalidType · MissingParameter
│                             NotForThisEndpoint · ListedTogether
├── Unauthenticated (401)     InvalidToken · NoToken
├── Forbidden (403)           IdentityNotAllowed · ModelNotAllowed
├── NotFound (404)            ModelNotFound · UnknownId · UnknownURL
├── MethodNotAllowed (405)
├── RequestTooLarge (413)
├── UnsupportedMediaType (415)
├── AllInstancesThrottled (429)
├── InternalError (500)
├── UpstreamFailed (502)      UpstreamUnreachable · UpstreamBadResponse · UpstreamAuth
├── Unavailable (503)         NotConfigured · NotRecorded · ShuttingDown · JwksUnavailable
├── UpstreamTimeout (504)
└── StreamBroken · StreamTooOld (200: behind the first byte)

ConfigurationError            what an operator has to mend; callers only see NotConfigured
CallerGone                    nobody is left to answer
"""

import json
from collections.abc import Mapping, Sequence

# Characters of a caller's own words that an error or a line of the log repeats.
SHOWN = 200


class GatewayError(Exception):
    """Ends a call with `status` and a body that OpenAI's SDKs read.

    The message is one sentence for the caller to act on: no credential, host name, claim or
    path of a file in it.
    """

    status = 500
    type = "api_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = {}

    @property
    def body(self) -> bytes:
        return error_body(str(self), self.type, self.param, self.code)


def error_body(message: str, type: str, param: str | None, code: str | None) -> bytes:
    error = {"message": message, "type": type, "param": param, "code": code}
    return json.dumps({"error": error}).encode()


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class InvalidJSON(InvalidRequest):
    code = "invalid_json"


class InvalidForm(InvalidRequest):
    code = "invalid_form"

    def __init__(self, what: str) -> None:
        super().__init__(f"The body is not valid multipart/form-data: {what}.")


class InvalidType(InvalidRequest):
    code = "invalid_type"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class MissingParameter(InvalidRequest):
    code = "missing_required_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"You must provide the parameter '{param}'.")
        self.param = param


class NotForThisEndpoint(InvalidRequest):
    param = "model"

    def __init__(self, model: str, endpoint: str, served: Sequence[str]) -> None:
        super().__init__(
            f"The model '{model[:SHOWN]}' does not serve {endpoint}; it serves {', '.join(served)}."
        )


class ListedTogether(InvalidRequest):
    def __init__(self) -> None:
        super().__init__(
            "What is stored in several places cannot be listed together: name a model of one "
            "instance in 'model'."
        )
        self.param = "model"


class Unauthenticated(GatewayError):
    """No credential, a malformed one, or one that is refused."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    headers: Mapping[str, str] = {"www-authenticate": 'Bearer realm="llamaxing"'}


class InvalidToken(Unauthenticated):
    code = "invalid_token"
    # RFC 6750 section 3.1
    headers: Mapping[str, str] = {
        "www-authenticate": 'Bearer realm="llamaxing", error="invalid_token"'
    }


class NoToken(InvalidToken):
    # RFC 6750 section 3.1: who shows nothing is told what to show, and of no error.
    headers = Unauthenticated.headers


class Forbidden(GatewayError):
    status = 403
    type = "permission_error"


class IdentityNotAllowed(Forbidden):
    code = "identity_not_allowed"


class ModelNotAllowed(Forbidden):
    code = "model_not_allowed"
    param = "model"

    def __init__(self, model: str) -> None:
        super().__init__(f"You are not allowed to use the model '{model[:SHOWN]}'.")


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"
    param = "model"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model[:SHOWN]}' does not exist here.")


class UnknownId(NotFound):
    """Also for an id of somebody else's: whether there is one is nobody's business."""

    def __init__(self, id: str, param: str | None = None) -> None:
        super().__init__(f"Nothing with the id '{id[:SHOWN]}' was found.")
        self.param = param


class UnknownURL(NotFound):
    code = "unknown_url"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Unknown request URL: {method} {path[:SHOWN]}.")


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method} is not allowed on {path[:SHOWN]}; use {' or '.join(allowed)}.")
        self.headers = {"allow": ", ".join(allowed)}


class RequestTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The request body is larger than the {limit} bytes that app_request_body_limit allows."
        )


class UnsupportedMediaType(GatewayError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class AllInstancesThrottled(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "all_instances_throttled"

    def __init__(self, model: str) -> None:
        super().__init__(f"Every instance of the model '{model}' is over its rate limit.")


class InternalError(GatewayError):
    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The gateway failed on this request; its log has the reason.")


class UpstreamFailed(GatewayError):
    status = 502


class UpstreamUnreachable(UpstreamFailed):
    code = "upstream_unreachable"

    def __init__(self, model: str) -> None:
        super().__init__(f"No instance of the model '{model}' could be reached.")


class UpstreamBadResponse(UpstreamFailed):
    code = "upstream_bad_response"

    def __init__(self, model: str, what: str) -> None:
        super().__init__(f"An instance of the model '{model}' sent {what} instead of an answer.")


class UpstreamAuth(UpstreamFailed):
    code = "upstream_auth"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The instances of the model '{model}' refused the gateway's own credential."
        )


class Unavailable(GatewayError):
    status = 503
    headers: Mapping[str, str] = {"retry-after": "5"}


class NotConfigured(Unavailable):
    code = "config_error"

    def __init__(self, settings: Sequence[str]) -> None:
        super().__init__(
            "The gateway cannot serve with its configuration: its log says what is wrong with "
            f"{', '.join(settings)}."
        )


class JwksUnavailable(Unavailable):
    """No keys of a token's issuer can be had."""

    status = 503
    code = "jwks_unavailable"
    headers: Mapping[str, str] = {"retry-after": "5"}

    def __init__(self) -> None:
        super().__init__("Tokens cannot be verified just now: their issuer's keys are not there.")


class NotRecorded(Unavailable):
    code: str = "audit_unavailable"

    def __init__(self) -> None:
        super().__init__("Calls are recorded here, and the record of this one could not be kept.")


class ShuttingDown(Unavailable):
    code: str = "shutting_down"
    headers: Mapping[str, str] = {"retry-after": "1", "connection": "close"}

    def __init__(self) -> None:
        super().__init__("The gateway is ending; send the request again.")


class UpstreamTimeout(GatewayError):
    status = 504
    code = "upstream_timeout"

    def __init__(self, model: str, seconds: float) -> None:
        super().__init__(
            f"No answer came from the model '{model}' within the limit of {seconds:g} seconds."
        )


class StreamBroken(GatewayError):
    """Behind the first byte: it ends a stream of events as one of them, and no status tells."""

    status = 200
    code = "upstream_stream_broken"

    def __init__(self) -> None:
        super().__init__("The model's answer broke off; what came so far may be incomplete.")


class StreamTooOld(GatewayError):
    """Behind the first byte, as `StreamBroken`."""

    status = 200
    code = "stream_max_age"

    def __init__(self) -> None:
        super().__init__("The stream has come to the age that stream_max_age allows.")


class ConfigurationError(Exception):
    """Every fault found in the configuration, a line each, and the settings to look at.

    `heals`: it may be gone by itself, as a source that is away.
    """

    def __init__(
        self, faults: Sequence[str], settings: Sequence[str], *, heals: bool = False
    ) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)
        self.settings = list(settings)
        self.heals = heals

    @classmethod
    def all(cls, errors: "Sequence[ConfigurationError]") -> "ConfigurationError":
        return cls(
            [fault for error in errors for fault in error.faults],
            list(dict.fromkeys(setting for error in errors for setting in error.settings)),
            heals=all(error.heals for error in errors),
        )


class CallerGone(Exception):
    """The caller hung up while the request's body was still coming in."""
