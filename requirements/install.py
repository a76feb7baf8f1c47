"""Makes `.venv` from the lock files: `make setup` calls it with the system's Python 3.11.

Only the standard library is used, since nothing else is there yet. The steps are: choose CPU or GPU, get the locked
uv, make the virtual environment, install the locked packages and the project itself (editable), make the gRPC stubs of
the proto, unpack the default model. A stamp in `.venv` holds what was installed, so a second run only compares it.
Every step can be interrupted and repeated: without a valid stamp `.venv` is made anew, and uv's cache makes that quick.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import glob
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
STAMP = VENV / "setup.json"
PROTO = ROOT / "deployments" / "protos" / "conserve.proto"
STUBS = [PROTO.with_name(f"conserve_{ending}") for ending in ("pb2.py", "pb2.pyi", "pb2_grpc.py")]
DEVICES = ("cpu", "gpu")
AUDITOR = "pip-audit==2.10.1"  # Of no lock: it is run on its own, and only by `make audit`.
INSTALL_TIMEOUT_S = 1_800
PROBE_TIMEOUT_S = 60
# Another active environment, and a PyTorch other than the one chosen here.
UNWANTED_VARIABLES = ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_TORCH_BACKEND")


class SetupError(Exception):
    """Set-up cannot go on. The message is one line and says what to do."""


def say(text: str) -> None:
    """Prints one line of progress."""
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def check_machine() -> None:
    """Refuses a machine for which there is no lock.

    Raises:
        SetupError: not Python 3.11, or not Linux on x86-64.
    """
    if sys.version_info[:2] != (3, 11):
        raise SetupError(f"Python 3.11 is needed, this is {platform.python_version()} ({sys.executable})")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SetupError(f"the locks are for Linux on x86_64, this is {sys.platform} on {platform.machine()}")


def choose_device(asked: str) -> tuple[str, str]:
    """Whether the CPU or the GPU lock is installed, and why.

    Raises:
        SetupError: `asked` is not a device.
    """
    if asked in DEVICES:
        return asked, "asked for"
    if asked not in ("", "auto"):
        raise SetupError(f"device must be auto, cpu or gpu (it is {asked!r})")
    try:
        probe = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return "cpu", "there is no nvidia-smi"
    except subprocess.TimeoutExpired:
        return "cpu", "nvidia-smi does not answer"
    gpus = [line for line in probe.stdout.splitlines() if line.startswith("GPU ")]
    if probe.returncode != 0 or not gpus:
        return "cpu", "nvidia-smi finds no GPU"
    return "gpu", f"nvidia-smi finds {len(gpus)} GPU{'s' if len(gpus) > 1 else ''}"


def base_python() -> str:
    """The interpreter outside any virtual environment: `.venv` may be the active one, and is replaced."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The same folder as `conserve.models.cache_folder`, which cannot be imported before it is installed."""
    if environ.get("CONSERVE_CACHE"):
        return Path(environ["CONSERVE_CACHE"]).expanduser().absolute()
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]).expanduser().absolute() / "conserve"
    return Path.home() / ".cache" / "conserve"


# --- Where packages come from ---


def read_pip_settings(environ: Mapping[str, str], python: str) -> dict[str, str]:
    """What pip is configured with: its files and its `PIP_...` variables, which win.

    uv reads neither. Keys are pip's option names, such as `find-links`.
    """
    settings: dict[str, str] = {}
    if has_pip(python):
        listed = subprocess.run(
            [python, "-m", "pip", "--disable-pip-version-check", "config", "list"],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
        settings.update(parse_pip_config(listed.stdout))
    for variable, value in environ.items():
        if variable.startswith("PIP_") and value.strip():
            settings[variable[4:].lower().replace("_", "-")] = value
    return settings


def parse_pip_config(listing: str) -> dict[str, str]:
    """Reads the output of `pip config list`: the `install` section wins over `global`, variables over both."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([\w-]+)=(.*)", line.strip())
        if not match:
            continue
        section, name, literal = match.groups()
        try:
            value = str(ast.literal_eval(literal))
        except (SyntaxError, ValueError):
            value = literal
        if name not in found or ranks[section] >= found[name][0]:
            found[name] = (ranks[section], value)
    return {name: value for name, (_, value) in found.items()}


def local_path(address: str) -> Path | None:
    """The path that an index or find-links entry names, `None` for one on the network."""
    if address.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(address).path))
    return None if "://" in address else Path(address).expanduser().absolute()


def keep_usable(addresses: str) -> list[str]:
    """Splits pip's list of addresses and leaves out local ones that do not exist, where pip warns and uv stops."""
    kept = []
    for address in addresses.split():
        path = local_path(address)
        if path is None:
            kept.append(address)
        elif path.exists():
            kept.append(path.as_uri() if address.startswith("file:") else str(path))
    return kept


def uv_options(pip: Mapping[str, str], environ: Mapping[str, str]) -> list[str]:
    """Options that make uv look for packages where pip would. A `UV_...` variable that is set wins."""
    options: list[str] = []
    if not {"UV_INDEX_URL", "UV_DEFAULT_INDEX"} & environ.keys():
        for index in keep_usable(pip.get("index-url", "")):
            options += ["--default-index", index]
    if not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & environ.keys():
        for index in keep_usable(pip.get("extra-index-url", "")):
            options += ["--index", index]
    if "UV_FIND_LINKS" not in environ:
        for links in keep_usable(pip.get("find-links", "")):
            options += ["--find-links", links]
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options += ["--no-index"]
    # As pip does: the best match of all indexes. By default uv stops at the first index that knows the name, whatever
    # versions it has. Hashes are locked, so a wrong package of that name cannot slip in.
    return [*options, "--index-strategy", "unsafe-best-match"]


def uv_environment(pip: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for uv: pip's certificate and proxy in it, any other active environment out of it."""
    result = {name: value for name, value in environ.items() if name not in UNWANTED_VARIABLES}
    result["UV_PYTHON_DOWNLOADS"] = "never"
    if pip.get("cert") and Path(pip["cert"]).is_file():
        result.setdefault("SSL_CERT_FILE", pip["cert"])
    if pip.get("proxy"):
        result.setdefault("ALL_PROXY", pip["proxy"])
    return result


def find_torch_wheel(options: list[str], environ: Mapping[str, str], version: str) -> Path | None:
    """The CPU wheel of PyTorch in a local find-links folder."""
    folders = [value for option, value in itertools.pairwise(options) if option == "--find-links"]
    folders += [folder for folder in re.split(r"[,\s]+", environ.get("UV_FIND_LINKS", "")) if folder]
    for folder in folders:
        path = local_path(folder)
        for spelled in (version, version.replace("+", "%2B")):
            if path is not None:
                for wheel in sorted(path.glob(f"torch-{glob.escape(spelled)}-cp311-*.whl")):
                    return wheel
    return None


# --- The lock files ---


def read_requirement(lock: str, name: str) -> str | None:
    """The lines of one package in the text of a lock file, hashes included."""
    match = re.search(rf"^{re.escape(name)}==.*\n(?:[ \t]+--hash=.*\n)*", lock, re.MULTILINE)
    return match.group(0) if match else None


def read_version(requirement: str) -> str:
    """The version in the first line of a locked requirement."""
    return requirement.split("==", 1)[1].split()[0].rstrip("\\;")


def describe_wanted(device: str, python: str) -> dict[str, str]:
    """What the stamp holds: digests of everything that decides what is in `.venv`."""
    import tomllib  # absent before 3.11, which check_machine has ruled out by now

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = {
        "project": pyproject["project"],
        "build-system": pyproject["build-system"],
        "backend": pyproject.get("tool", {}).get("uv", {}),
    }
    return {
        "device": device,
        "lock": hashlib.sha256((REQUIREMENTS / f"{device}.txt").read_bytes()).hexdigest(),
        "python": f"{python} {platform.python_version()}",
        "folder": str(ROOT),
        "project": hashlib.sha256(json.dumps(build, sort_keys=True).encode()).hexdigest(),
        "proto": hashlib.sha256(PROTO.read_bytes()).hexdigest(),
    }


def read_stamp() -> dict[str, str]:
    """What was installed last; empty when nothing was, or when it was interrupted."""
    if not (VENV / "bin" / "python").exists():
        return {}
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(stamp: Mapping[str, str]) -> None:
    """Writes the stamp whole or not at all."""
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    partial.replace(STAMP)


# --- uv ---


def run(command: list[str], what: str, environ: Mapping[str, str], stdin: str | None = None) -> None:
    """Runs one step. On a terminal its progress is shown, elsewhere only what went wrong.

    Raises:
        SetupError: it failed or did not end in time.
    """
    shown = sys.stderr.isatty()
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdout=subprocess.DEVNULL,
            stderr=None if shown else subprocess.PIPE,
            text=True,
            env=dict(environ),
            cwd=ROOT,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(f"{what}: not done after {INSTALL_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise SetupError(f"{what}: {'see above' if shown else summarise_failure(done.stderr)}")


def summarise_failure(stderr: str) -> str:
    """The first error of a command, the address it was about, and its deepest cause, as one line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" \t") for line in stderr.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return "it gave no reason"
    first = next((line for line in lines if line.lower().startswith("error")), lines[0])
    address = next((line for line in lines if "://" in line), first)
    return "; ".join(dict.fromkeys([first, address, lines[-1]]))


def has_pip(python: str) -> bool:
    """Whether this interpreter has pip: Debian's comes without."""
    return subprocess.run([python, "-c", "import pip"], capture_output=True, timeout=60, check=False).returncode == 0


def get_uv(environ: Mapping[str, str], python: str) -> str:
    """The path of uv: `CONSERVE_UV`, or the locked version, kept in the user's cache folder.

    Raises:
        SetupError: it cannot be had.
    """
    given = environ.get("CONSERVE_UV")
    if given:
        if not shutil.which(given):
            raise SetupError(f"CONSERVE_UV must be the path of a uv executable (it is {given!r})")
        return given
    requirement = read_requirement((REQUIREMENTS / "uv.txt").read_text(encoding="utf-8"), "uv")
    if requirement is None:
        raise SetupError("requirements/uv.txt does not lock uv: run make lock")
    version = read_version(requirement)
    folder = cache_folder(environ) / "uv" / version
    if not (folder / "bin" / "uv").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".uv-") as partial:
            say(f"getting uv {version}")
            target = Path(partial) / version
            if not has_pip(python):
                raise SetupError(
                    f"{python} has no pip to get uv with: install it (Debian: python3-pip), or set CONSERVE_UV"
                )
            pip_options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
            pip_options += ["--require-hashes", "--target", str(target), "-r", str(REQUIREMENTS / "uv.txt")]
            run(
                [python, "-m", "pip", "install", *pip_options],
                "pip could not install uv (is the package index reachable?)",
                environ,
            )
            if not folder.exists():
                target.rename(folder)
    return str(folder / "bin" / "uv")


# --- Installing ---


def install_packages(device: str, uv: str, pip: Mapping[str, str], environ: Mapping[str, str], python: str) -> None:
    """Makes `.venv` anew and installs the lock of `device` into it."""
    options = uv_options(pip, environ)
    lock = (REQUIREMENTS / f"{device}.txt").read_text(encoding="utf-8")
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    run([uv, "venv", *quiet, "--clear", "--no-project", "--python", python, str(VENV)], "uv made no .venv", environ)
    install = [uv, "pip", "install", *quiet, "--python", str(VENV / "bin" / "python")]
    # Compiled now: without .pyc files importing vLLM takes twice as long, in each of its processes, and where
    # PYTHONDONTWRITEBYTECODE is set they would never come to be.
    install += ["--no-deps", "--require-hashes", "--compile-bytecode"]
    torch = read_requirement(lock, "torch")
    if torch is None:
        raise SetupError(f"requirements/{device}.txt does not lock torch: run make lock")
    wheel = find_torch_wheel(options, environ, read_version(torch).removesuffix("+cpu") + "+cpu")
    # Where PyTorch does not come from the same places as all the rest, it is installed first and on its own.
    if device == "cpu" and wheel:
        say(f"PyTorch: the CPU build {wheel.name} of find-links folder {wheel.parent}")
    elif device == "cpu":
        say("PyTorch: the public CPU build (uv --torch-backend=cpu)")
        # Given for all packages, this option makes uv look for triton in PyTorch's index, too, which may not have it.
        command = [*install, *options, "--torch-backend=cpu", "--requirements", "-"]
        run(command, "PyTorch's CPU build could not be installed", environ, stdin=torch)
    else:
        say("PyTorch: the CUDA build of the package index")
        if wheel:
            # uv would prefer the CPU build of the same version in that folder, and then refuse its hash.
            elsewhere = {name: value for name, value in environ.items() if name != "UV_FIND_LINKS"}
            command = [*install, *uv_options({**pip, "find-links": ""}, elsewhere), "--requirements", "-"]
            run(command, "PyTorch's CUDA build could not be installed", elsewhere, stdin=torch)
    say(f"installing {len(re.findall(r'^[a-z0-9].*==', lock, re.MULTILINE))} packages")
    run([*install, *options, "--requirements", str(REQUIREMENTS / f"{device}.txt")], "packages not installed", environ)


def install_project(uv: str, environ: Mapping[str, str]) -> None:
    """Installs the project itself, editable. Its build backend is a part of uv, so nothing is fetched."""
    command = [uv, "pip", "install", "--quiet", "--offline", "--python", str(VENV / "bin" / "python")]
    run([*command, "--no-deps", "--editable", str(ROOT)], "the project could not be installed", environ)


def build_stubs(environ: Mapping[str, str]) -> None:
    """Makes the gRPC stubs, beside their proto."""
    compiler = [str(VENV / "bin" / "python"), "-m", "grpc_tools.protoc", "-I.", str(PROTO.relative_to(ROOT))]
    outputs = ["--python_out=.", "--pyi_out=.", "--grpc_python_out=."]
    run([*compiler, *outputs], "the gRPC stubs could not be made", environ)


def unpack_model(environ: Mapping[str, str]) -> None:
    """Unpacks the default model into the user's cache folder, where it is not there yet."""
    done = subprocess.run(
        [str(VENV / "bin" / "python"), "-m", "conserve.models"],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env=dict(environ),
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise SetupError("the default model could not be unpacked (the reason is above)")


def lock_requirements(upgrade: bool) -> None:
    """Writes the lock files: names, versions and hashes, no addresses of indexes and no paths.

    The GPU lock is resolved without find-links folders: a CPU build of PyTorch in one would get into it.
    """
    environ = dict(os.environ)
    python = base_python()
    pip = read_pip_settings(environ, python)
    environ = uv_environment(pip, environ)
    uv = get_uv(environ, python)
    options = ["--quiet", "--python", python, "--python-version", "3.11", "--generate-hashes", "--no-header"]
    options += ["--no-annotate", "--no-emit-index-url", "--no-emit-find-links", *(["--upgrade"] if upgrade else [])]
    everywhere = uv_options({**pip, "extra-index-url": "", "find-links": ""}, environ)
    run([uv, "pip", "compile", *options, *everywhere, "requirements/uv.in", "-o", "requirements/uv.txt"], "uv", environ)
    for device in DEVICES:
        extras = [word for extra in (device, "model", "dev") for word in ("--extra", extra)]
        command = [uv, "pip", "compile", *options, *extras, "--override", "requirements/overrides.txt"]
        found = {**environ}
        if device == "cpu":
            sources = uv_options({**pip, "extra-index-url": ""}, environ)
            command += ["--override", "requirements/overrides-cpu.txt", *sources]
        else:
            found.pop("UV_FIND_LINKS", None)
            command += everywhere
        say(f"resolving requirements/{device}.txt")
        run([*command, "pyproject.toml", "-o", f"requirements/{device}.txt"], f"{device}.txt not resolved", found)


def audit_requirements() -> None:
    """Asks the network for known faults of what the lock files name.

    Raises:
        SetupError: there are some, or nobody answers.
    """
    environ = dict(os.environ)
    python = base_python()
    pip = read_pip_settings(environ, python)
    environ = uv_environment(pip, environ)
    uv = get_uv(environ, python)
    audit = [
        uv,
        "tool",
        "run",
        *uv_options(pip, environ),
        "--python",
        python,
        AUDITOR,
        "--disable-pip",
        "--require-hashes",
    ]
    for path in (REQUIREMENTS / "uv.txt", *(REQUIREMENTS / f"{device}.txt" for device in DEVICES)):
        say(f"known faults of {path.relative_to(ROOT)}")
        run(
            [*audit, "--requirement", str(path)],
            f"{path.name} has packages with known faults, or nobody answers",
            environ,
        )


@contextlib.contextmanager
def hold_lock() -> Iterator[None]:
    """Lets one set-up of this folder run at a time: `make test` and `make demo` may be started together."""
    with open(ROOT / ".setup.lock", "w", encoding="utf-8") as file:
        deadline = time.monotonic() + INSTALL_TIMEOUT_S
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SetupError("another set-up of this folder does not end") from None
                if not waiting:
                    say("waiting for another set-up of this folder")
                    waiting = True
                time.sleep(0.2)
        yield


def set_up(asked: str) -> None:
    """Brings `.venv` and the default model to what the lock files say."""
    started = time.monotonic()
    environ = dict(os.environ)
    device, reason = choose_device(asked)
    say(f"{device.upper()} packages, because {reason}" if reason != "asked for" else f"{device.upper()} packages")
    with hold_lock():
        python = base_python()
        wanted = describe_wanted(device, python)
        installed = read_stamp()
        if installed != wanted:
            pip = read_pip_settings(environ, python)
            environ = uv_environment(pip, environ)
            uv = get_uv(environ, python)
            if any(installed.get(name) != wanted[name] for name in ("device", "lock", "python", "folder")):
                install_packages(device, uv, pip, environ, python)
            install_project(uv, environ)
            build_stubs(environ)
            write_stamp(wanted)
        elif not all(stub.exists() for stub in STUBS):
            build_stubs(environ)
        unpack_model(environ)
    say(f"ready after {time.monotonic() - started:.0f} s")


def main() -> int:
    """Parses the command line, sets up, and turns what goes wrong into one line."""
    parser = argparse.ArgumentParser(description="Makes .venv from the lock files.")
    parser.add_argument(
        "--device",
        default=os.environ.get("CONSERVE_DEVICE", "auto"),
        help="auto, cpu or gpu (auto: gpu if there is one)",
    )
    parser.add_argument("--lock", action="store_true", help="resolve the lock files anew instead")
    parser.add_argument(
        "--audit", action="store_true", help="ask the network for known faults of locked packages instead"
    )
    parser.add_argument("--upgrade", action="store_true", help="with --lock: take the newest versions")
    arguments: Any = parser.parse_args()
    try:
        check_machine()
        if arguments.lock:
            lock_requirements(arguments.upgrade)
        elif arguments.audit:
            audit_requirements()
        else:
            set_up(arguments.device)
    except (SetupError, OSError, subprocess.TimeoutExpired) as error:
        print(f"set-up: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; make setup goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
