#!/usr/bin/env python3
"""Everything after a clone, with Python alone; .venv and what goes into it are made on the way.

  run.py [FOLDER] [--host HOST] [--port PORT]   serve the gateway on this machine, until Ctrl-C
  run.py test [pytest's arguments]              ruff, mypy and the tests: all, or those named
  run.py bench [--help]                         the gateway beside others, and what each costs
  run.py check|keys|outbox|schema|simulate ...  what `python -m llamaxing` does; -h tells more

FOLDER has .env and models.json: an example's, or by default run.py's own. The upstream is the
first of these that is there, in the environment or in .env:

  MODELS_SOURCE, or models.json                             your own configuration
  AZURE_OPENAI_ENDPOINT, AZURE_OPENAI_API_KEY,
  AZURE_OPENAI_DEPLOYMENT (and AZURE_OPENAI_API_VERSION)    examples/01-simple-noauth
  OPENAI_API_KEY                                            examples/models-openai.json
  none of them                                              a small model on this machine
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = str(VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
GATEWAY = ("requirements.txt", "requirements-shim.txt")
LOCAL = "requirements-local.txt"
DEVELOPMENT = "requirements-dev.txt"
NPM = "requirements-npm.txt"
BENCH, BENCH_LITELLM = "requirements-bench.txt", "requirements-bench-litellm.txt"
BENCH_NPM = "requirements-bench-npm.txt"
CLIENTS = ("requirements-clients.txt", "requirements-clients-openai2.txt")
QUIET = ("-qq", "--disable-pip-version-check")
STAMP = VENV / "run.py.json"  # what is installed: a digest of each of these files
AZURE = ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_DEPLOYMENT")
EXAMPLE = "examples/00-local-model"
COMMANDS = ("check", "keys", "outbox", "schema", "simulate")
START = 60  # seconds that the gateway may take until it answers
GRACE = 35  # seconds at the end: the gateway gives open streams 30


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["test"]:
        return test(arguments[1:])
    if arguments[:1] == ["bench"]:
        return bench(arguments[1:])
    if arguments and arguments[0] in COMMANDS:
        return command(arguments)
    options = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("folder", nargs="?", default=str(HERE), type=existing)
    options.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    options.add_argument("--port", default=8000, type=int, help="default: 8000")
    args = options.parse_args(arguments)
    return serve(args.folder, args.host, args.port)


def existing(path: str) -> Path:
    """A folder. `argparse.ArgumentTypeError` for what is none."""
    if not Path(path).is_dir():
        what = f"is no folder, and no command: those are {', '.join(COMMANDS)}, bench and test"
        raise argparse.ArgumentTypeError(f"{path} {what}")
    return Path(path).resolve()


def command(arguments: Sequence[str]) -> int:
    install(*GATEWAY)
    told = told_to_check(arguments[1:]) if arguments[0] == "check" else {}
    children: dict[str, subprocess.Popen[str]] = {}
    try:
        if "LOCAL_MODEL_URL" in told and "--probe" in arguments:
            install(*GATEWAY, LOCAL)
            told["LOCAL_MODEL_URL"] = start_model(children)
        children[arguments[0]] = child = start("-m", "llamaxing", *arguments, told=told)
        return child.wait()
    finally:
        end(children)


def test(arguments: Sequence[str]) -> int:
    install(*GATEWAY, LOCAL, DEVELOPMENT)
    install_npm()
    for name in CLIENTS:
        install_apart(folder_of(name), name)
    pytest = ["pytest", *(arguments or ["--cov"])]
    failed = []
    for step in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], pytest):
        say(" ".join(step))
        if subprocess.run([PYTHON, "-m", *step], cwd=HERE).returncode != 0:
            failed.append(" ".join(step))
    say(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def bench(arguments: Sequence[str]) -> int:
    if sys.platform != "linux":
        sys.exit("run.py: bench reads what Linux tells of processes, and runs there alone")
    install(*GATEWAY, LOCAL, DEVELOPMENT, BENCH)
    install_npm()
    python = quickest()
    # What a deployment has, and nothing else that a start would look at.
    install_apart("bench-gateway", *GATEWAY, python=python)
    if "--full" in arguments:
        install_apart(folder_of(BENCH_LITELLM), BENCH_LITELLM, python=python)
        install_npm(BENCH_NPM, "bench-npm")
    return subprocess.call([PYTHON, "-m", "bench", *arguments], cwd=HERE)


def serve(folder: Path, host: str, port: int) -> int:
    check_port(host, port)
    upstream, told, local = chosen(folder)
    install(*GATEWAY, *([LOCAL] if local else []))
    children: dict[str, subprocess.Popen[str]] = {}
    try:
        if local:
            say("starting the model")
            told["LOCAL_MODEL_URL"] = start_model(children)
        where = ["--folder", str(folder), "--host", host, "--port", str(port)]
        children["gateway"] = start("-m", "llamaxing", "serve", *where, told=told)
        introduce(host, port, upstream, children, page=has_page(read_settings(folder)))
        while True:
            check(children)
            time.sleep(0.2)
    except KeyboardInterrupt:
        return 0
    finally:
        end(children)


def say(text: str) -> None:
    print(f"run.py: {text}", flush=True)


# What is installed


def install(*files: str) -> None:
    """Brings .venv to what these requirements files say; at once where it is already."""
    make_venv()
    if is_installed(*files):
        return

    say(f"installing {', '.join(files)} (first time, about a minute)")
    pip(*(part for name in files if name != LOCAL for part in ("-r", name)))
    if LOCAL in files:
        pip("--no-deps", "-r", LOCAL)
    if DEVELOPMENT in files and sys.version_info < (3, 13):
        pip("--no-deps", "--ignore-requires-python", pinned("azure-functions-runtime"))
    stamp(*files)


def install_npm(name: str = NPM, folder: str = "npm") -> None:
    """Packages of npm, which pip has installed. What needs them goes on without."""
    if is_installed(name):
        return

    say(f"installing {name} (first time, about half a minute)")
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    quiet = ("--loglevel=error", "--no-audit", "--no-fund", "--fetch-retry-mintimeout=1000")
    patience = ("--fetch-timeout=60000", "--fetch-retries=1")
    bare = ("--no-save", "--no-package-lock", "--ignore-scripts", f"--prefix={VENV / folder}")
    npm = str(Path(PYTHON).with_name("npm"))
    command = [npm, "install", *quiet, *patience, *bare, *packages]
    if subprocess.call(command, stdout=subprocess.DEVNULL) == 0:
        stamp(name)
    else:
        say(f"npm could not install {name}; what needs it is skipped")


def quickest() -> str:
    """Of the Pythons of this version that are here. One that was built without profile-guided
    optimization, as pyenv builds them, is a tenth slower than those of Azure's images."""
    name = "python{}.{}".format(*sys.version_info)
    here = [shutil.which(name, path=folder) for folder in os.get_exec_path()]
    found = {os.path.realpath(it) for it in (sys.executable, *here) if it}
    tried = [subprocess.run([it, "-c", LITTLE], capture_output=True, text=True) for it in found]
    took = [it.stdout.split(maxsplit=1) for it in tried if it.returncode == 0]
    return min(took, key=lambda it: float(it[0]))[1].strip()


# How long it takes for a little of everything, and where it is: what was called may be a script.
LITTLE = """
import os, sys, timeit
class It:
    def __init__(self, n): self.n, self.text = n, f"{n:06}"
    def all(self): yield from (part.encode() for part in self.text.partition("0") if part)
def some(): return {it.text: list(it.all()) for it in map(It, range(300))}
print(min(timeit.repeat(some, number=20, repeat=15)), os.path.realpath(sys.executable))
"""


def install_apart(folder: str, *files: str, python: str | None = None) -> None:
    """In an environment of its own, below .venv, of this `python`. All goes on without it."""
    there = VENV / folder
    if is_installed(*files, where=folder) and (python is None or is_of(there, python)):
        return

    say(f"installing {', '.join(files)} into {folder} (first time, about a minute)")
    maker, python = python or PYTHON, str(there / Path(PYTHON).relative_to(VENV))
    # Compiling all of it takes longer than what little of it the tests load.
    into = ("--python", python, "install", "--no-compile", "--retries=1", *QUIET)
    wanted = [part for name in files for part in ("-r", name)]
    made = quietly(maker, "-m", "venv", "--clear", "--without-pip", str(there)) == 0
    if made and subprocess.call([PYTHON, "-m", "pip", *into, *wanted], cwd=HERE) == 0:
        stamp(*files, where=folder)
    else:
        shutil.rmtree(there, ignore_errors=True)
        say(f"pip could not install {', '.join(files)} into {folder}; what needs it is skipped")


def is_of(environment: Path, python: str) -> bool:
    told = environment / "pyvenv.cfg"
    return told.exists() and f"executable = {python}\n" in told.read_text(encoding="utf-8")


def folder_of(name: str) -> str:
    return name.removeprefix("requirements-").removesuffix(".txt")


def is_installed(*files: str, where: str = "") -> bool:
    return digests(*files, where=where).items() <= stamped().items()


def stamp(*files: str, where: str = "") -> None:
    STAMP.write_text(json.dumps(stamped() | digests(*files, where=where), indent=2))


def stamped() -> dict[str, str]:
    return dict(json.loads(STAMP.read_text())) if STAMP.exists() else {}


def digests(*files: str, where: str = "") -> dict[str, str]:
    """By the folder below .venv, where it is not .venv itself, and the file."""
    return {
        str(Path(where, name)): hashlib.sha256((HERE / name).read_bytes()).hexdigest()
        for name in files
    }


def make_venv() -> None:
    version = "{}.{}".format(*sys.version_info)
    check = f"import pip, sys; sys.exit('{{}}.{{}}'.format(*sys.version_info) != '{version}')"
    if Path(PYTHON).exists() and quietly(PYTHON, "-c", check) == 0:
        return

    say(f"making .venv with Python {version}")
    if quietly(sys.executable, "-m", "venv", "--clear", str(VENV)) != 0:
        sys.exit("run.py: this Python cannot make it; on Debian: apt install python3-venv")


def quietly(*command: str) -> int:
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def pip(*arguments: str) -> None:
    command = [PYTHON, "-m", "pip", "install", *QUIET]
    if subprocess.call([*command, *arguments], cwd=HERE) != 0:
        sys.exit(f"run.py: pip could not install {' '.join(arguments)}; its own words are above")


def pinned(package: str) -> str:
    """The version in the development requirements, without the marker for other Pythons."""
    lines = (HERE / DEVELOPMENT).read_text(encoding="utf-8").splitlines()
    return next(line.partition(";")[0].strip() for line in lines if line.startswith(f"{package}=="))


# Which upstream


def chosen(folder: Path) -> tuple[str, dict[str, str], bool]:
    """`choose`, with what is said already left out, and whether it is the model on this machine."""
    settings = read_settings(folder)
    upstream, told = choose(folder, settings)
    told = {name: value for name, value in told.items() if not settings.get(name)}
    return upstream, told, told.get("MODELS_SOURCE", "").endswith(f"{EXAMPLE}/models.json")


def told_to_check(arguments: Sequence[str]) -> dict[str, str]:
    """What `serve` would be told of the same folder; the model on this machine is not started."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--folder", default=HERE, type=Path)
    folder = options.parse_known_args(arguments)[0].folder
    _, told, local = chosen(HERE / folder)
    return {**told, **({"LOCAL_MODEL_URL": "http://localhost"} if local else {})}


def choose(folder: Path, settings: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The upstream's name for people, and what the gateway must be told to serve it."""
    if settings.get("APP_MODE") == "sidecar":
        return "the gateway that SIDECAR_UPSTREAM_URL says", {}
    if settings.get("MODELS_SOURCE"):
        return "what MODELS_SOURCE says", {}
    if (folder / "models.json").exists() and folder != HERE / EXAMPLE:
        return f"what {os.path.relpath(folder / 'models.json', HERE)} says", {}
    missing = [name for name in AZURE if not settings.get(name)]
    if not missing:
        version = settings.get("OPENAI_API_VERSION") or "2024-10-21"
        source = f"file:{HERE / 'examples/01-simple-noauth/models.json'}"
        return "Azure OpenAI", {"MODELS_SOURCE": source, "AZURE_OPENAI_API_VERSION": version}
    if len(missing) < len(AZURE):
        say(f"not using Azure OpenAI: without {' and '.join(missing)}")
    if settings.get("OPENAI_API_KEY"):
        return "OpenAI", {"MODELS_SOURCE": f"file:{HERE / 'examples/models-openai.json'}"}
    source = f"file:{HERE}/{EXAMPLE}/models.json"
    return "SmolLM2 on this machine (no key found)", {
        "MODELS_SOURCE": source,
        "AUTH_METHOD": "none",
    }


def has_page(settings: Mapping[str, str]) -> bool:
    """Whether there is a page at `/`: a sidecar has none, and it can be left out."""
    shown = settings.get("APP_PAGE", "true").lower() not in ("false", "0", "no", "off", "f", "n")
    return shown and settings.get("APP_MODE") != "sidecar"


def read_settings(folder: Path) -> dict[str, str]:
    """The environment over .env. The gateway reads both itself; this is to choose by."""
    file = folder / ".env"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    pairs = (line.strip().removeprefix("export ").partition("=") for line in lines)
    settings = {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}
    return {name.upper(): value for name, value in {**settings, **os.environ}.items()}


# The programs that are started


def start(*command: str, told: Mapping[str, str], pipe: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, *command],
        cwd=HERE,
        env={**os.environ, **told},
        stdin=pipe,
        stdout=pipe,
        text=True,
        preexec_fn=end_with_parent if sys.platform == "linux" else None,
    )


def end_with_parent() -> None:
    """Linux ends the child when this program is killed before it can."""
    with contextlib.suppress(ImportError, OSError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def start_model(children: dict[str, subprocess.Popen[str]]) -> str:
    command = [f"{EXAMPLE}/serve_model.py", "--port", "0", "--parent-pipe"]
    model = children["model"] = start(*command, told={}, pipe=subprocess.PIPE)
    # Its one line, LOCAL_MODEL_URL=http://…, comes when it answers; none comes when it failed.
    line = model.stdout.readline() if model.stdout else ""
    if not line:
        model.wait(GRACE)
        check(children)
    return line.partition("=")[2].strip()


def check(children: Mapping[str, subprocess.Popen[str]]) -> None:
    for name, child in children.items():
        if child.poll() is not None:
            sys.exit(f"run.py: the {name} ended, with exit code {child.returncode}")


def end(children: Mapping[str, subprocess.Popen[str]]) -> None:
    """The gateway first, with its streams. A second Ctrl-C does not wait for them."""
    for child in reversed(list(children.values())):
        try:
            if child.stdin:
                child.stdin.close()
            else:
                child.terminate()
            child.wait(GRACE)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            child.kill()
            child.wait()


# What is said of them


def check_port(host: str, port: int) -> None:
    if not 0 <= port < 2**16:
        sys.exit("run.py: cannot listen: a port is a number from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        sys.exit(f"run.py: cannot listen: {error.strerror}; try another --port or --host")


def introduce(
    host: str,
    port: int,
    upstream: str,
    children: Mapping[str, subprocess.Popen[str]],
    *,
    page: bool,
) -> None:
    local = host in {"127.0.0.1", "0.0.0.0"}
    url = f"http://{'localhost' if local else f'[{host}]' if ':' in host else host}:{port}"
    deadline = time.monotonic() + START
    while get(f"{url}/health/live")[0] != 200:
        check(children)
        if time.monotonic() > deadline:
            sys.exit(f"run.py: the gateway did not answer at {url} within {START} s")
        time.sleep(0.05)

    status, listing = get(f"{url}/v1/models")
    chat = [it["id"] for it in listing.get("data", ()) if "chat_completions" in it["capabilities"]]
    key = " -H 'authorization: Bearer YOUR-KEY'" if status == 401 else ""
    messages = [{"role": "user", "content": "Say hello."}]
    body = json.dumps({"model": [*chat, "MODEL"][0], "stream": True, "messages": messages})
    where = [f"base URL   {url}/v1", *([f"page       {url}/"] if page else [])]
    shown = "\n  ".join([*where, f"upstream   {upstream}"])
    say(f"""the gateway is up

  {shown}

  curl -N {url}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'
""")


def get(url: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON; 0 while nobody answers. No proxy is asked for what is on this machine."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as reply:
            return reply.status, json.loads(reply.read() or b"{}")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}
    except (OSError, ValueError):
        return 0, {}


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - the one file that an older Python reads, too
        sys.exit(f"llamaxing needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
