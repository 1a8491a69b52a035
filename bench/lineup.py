"""The gateways that are measured, by name."""

from collections.abc import Callable, Mapping

from bench import ours, peers, worker
from bench.gateways import Gateway
from bench.rig import Rig

LINEUP: Mapping[str, Callable[[Rig], Gateway]] = {
    "direct": peers.direct,
    "nginx": peers.nginx,
    "none": ours.none,
    "apikey": ours.apikey,
    "jwt": ours.jwt,
    "recording": ours.recording,
    "worker-empty": worker.empty,
    "worker": worker.default,
    "portkey": peers.portkey,
    "litellm": peers.litellm,
}
