from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from conserve.models import cache_folder

LOCK = """\
six==1.17.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
torch==2.13.0+cpu \\
    --hash=sha256:cc
torch-c-dlpack-ext==0.1.5 \\
    --hash=sha256:dd
"""


def use_nvidia_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str | None) -> None:
    if script is not None:
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("script", "device", "reason"),
    [
        (None, "cpu", "there is no nvidia-smi"),
        ("exit 9", "cpu", "nvidia-smi finds no GPU"),
        ("echo No devices were found", "cpu", "nvidia-smi finds no GPU"),
        ("echo 'GPU 0: H100 (UUID: x)'", "gpu", "nvidia-smi finds 1 GPU"),
        ("echo 'GPU 0: H100'; echo 'GPU 1: H100'", "gpu", "nvidia-smi finds 2 GPUs"),
    ],
)
def test_device_is_what_nvidia_smi_finds(
    install: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    script: str | None,
    device: str,
    reason: str,
) -> None:
    use_nvidia_smi(monkeypatch, tmp_path, script)
    assert install.choose_device("auto") == (device, reason)


def test_device_asked_for_wins(install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_nvidia_smi(monkeypatch, tmp_path, "echo 'GPU 0: H100'")
    assert install.choose_device("cpu") == ("cpu", "asked for")


def test_unknown_device_is_refused(install: ModuleType) -> None:
    with pytest.raises(install.SetupError, match=r"must be auto, cpu or gpu \(it is 'tpu'\)"):
        install.choose_device("tpu")


def test_pip_configuration_sections_have_their_precedence(install: ModuleType) -> None:
    listing = "\n".join(
        [
            ":env:.find-links='/from/environment'",
            "global.find-links='/from/file'",
            "install.index-url='https://install.example/simple'",
            "global.index-url='https://global.example/simple'",
            "global.extra-index-url='\\nhttps://one.example\\nhttps://two.example'",
            "freeze.exclude='six'",
        ]
    )
    assert install.parse_pip_config(listing) == {
        "find-links": "/from/environment",
        "index-url": "https://install.example/simple",
        "extra-index-url": "\nhttps://one.example\nhttps://two.example",
    }


def test_pip_settings_reach_uv(install: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    pip = {
        "index-url": "https://mirror.example/simple",
        "extra-index-url": f"https://more.example/simple file://{tmp_path}/absent",
        "find-links": f"{tmp_path}/wheels {tmp_path}/absent https://links.example/all.html",
    }
    assert install.uv_options(pip, {}) == [
        *("--default-index", "https://mirror.example/simple"),
        *("--index", "https://more.example/simple"),
        *("--find-links", str(tmp_path / "wheels")),
        *("--find-links", "https://links.example/all.html"),
        *("--index-strategy", "unsafe-best-match"),
    ]


def test_variables_of_uv_win_over_pip(install: ModuleType, tmp_path: Path) -> None:
    pip = {"index-url": "https://mirror.example/simple", "find-links": str(tmp_path), "no-index": "true"}
    environ = {"UV_DEFAULT_INDEX": "https://own.example/simple", "UV_FIND_LINKS": "/own"}
    assert install.uv_options(pip, environ) == ["--no-index", "--index-strategy", "unsafe-best-match"]


def test_uv_gets_pips_certificate_and_no_other_environment(install: ModuleType, tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    environ = {"HOME": "/home/someone", "VIRTUAL_ENV": "/elsewhere", "UV_TORCH_BACKEND": "cu130"}
    assert install.uv_environment({"cert": str(certificate)}, environ) == {
        "HOME": "/home/someone",
        "UV_PYTHON_DOWNLOADS": "never",
        "SSL_CERT_FILE": str(certificate),
    }
    assert "SSL_CERT_FILE" not in install.uv_environment({"cert": "/nowhere.pem"}, environ)


@pytest.mark.parametrize("name", ["torch-2.13.0+cpu-cp311-cp311-linux.whl", "torch-2.13.0%2Bcpu-cp311-cp311-linux.whl"])
def test_cpu_pytorch_is_found_in_find_links_folders(install: ModuleType, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    options = ["--find-links", "https://links.example", "--find-links", str(tmp_path)]
    assert install.find_torch_wheel(options, {}, "2.13.0+cpu") == tmp_path / name
    assert install.find_torch_wheel([], {"UV_FIND_LINKS": f"/nowhere,{tmp_path}"}, "2.13.0+cpu") == tmp_path / name
    assert install.find_torch_wheel(options, {}, "2.12.0+cpu") is None
    assert install.find_torch_wheel([], {}, "2.13.0+cpu") is None


def test_one_package_is_read_out_of_a_lock(install: ModuleType) -> None:
    assert install.read_requirement(LOCK, "torch") == "torch==2.13.0+cpu \\\n    --hash=sha256:cc\n"
    assert install.read_requirement(LOCK, "six").count("--hash") == 2
    assert install.read_requirement(LOCK, "numpy") is None
    assert install.read_version(install.read_requirement(LOCK, "torch")) == "2.13.0+cpu"


def test_stamp_is_compared_whole(install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "STAMP", tmp_path / "setup.json")
    wanted = install.describe_wanted("cpu", "/usr/bin/python3.11")
    install.write_stamp(wanted)
    assert install.read_stamp() == {}  # no interpreter: somebody emptied the folder
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert install.read_stamp() == wanted
    assert install.describe_wanted("gpu", "/usr/bin/python3.11") != wanted
    install.STAMP.write_text("{", encoding="utf-8")
    assert install.read_stamp() == {}


def test_stubs_are_made_beside_the_proto(
    install: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "deployments" / "protos"
    folder.mkdir(parents=True)
    shutil.copy(root / install.PROTO.relative_to(root), folder)
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "PROTO", folder / install.PROTO.name)
    monkeypatch.setattr(install, "VENV", Path(sys.prefix))
    install.build_stubs(os.environ)
    assert {path.name for path in folder.iterdir()} == {install.PROTO.name, *(stub.name for stub in install.STUBS)}


def test_set_up_does_what_has_changed(
    install: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    def note(name: str) -> None:
        monkeypatch.setattr(install, name, lambda *_: done.append(name))

    def make_stubs(environ: object) -> None:
        done.append("build_stubs")
        for stub in install.STUBS:
            stub.touch()

    for name in ("install_packages", "install_project", "unpack_model"):
        note(name)
    monkeypatch.setattr(install, "build_stubs", make_stubs)
    monkeypatch.setattr(install, "read_pip_settings", lambda *_: {})
    monkeypatch.setattr(install, "get_uv", lambda *_: "uv")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "STAMP", tmp_path / ".venv" / "setup.json")
    monkeypatch.setattr(install, "PROTO", tmp_path / "one.proto")
    monkeypatch.setattr(install, "STUBS", [tmp_path / "one_pb2.py", tmp_path / "one_pb2_grpc.py"])
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    (tmp_path / "one.proto").write_text("1")
    shutil.copy(root / "pyproject.toml", tmp_path)

    def set_up() -> list[str]:
        done.clear()
        install.set_up("cpu")
        return done

    assert set_up() == ["install_packages", "install_project", "build_stubs", "unpack_model"]
    assert set_up() == ["unpack_model"]
    install.STUBS[0].unlink()
    assert set_up() == ["build_stubs", "unpack_model"]
    (tmp_path / "one.proto").write_text("2")
    assert set_up() == ["install_project", "build_stubs", "unpack_model"]


def test_failure_is_one_line_with_address_and_cause(install: ModuleType) -> None:
    stderr = "\n".join(
        [
            "warning: something else",
            "error: Request failed after 3 retries",
            "  cause: Failed to fetch: https://index.example/torch/",
            "  cause: client error (Connect)",
            "  cause: failed to lookup address",
        ]
    )
    assert install.summarise_failure(stderr) == (
        "error: Request failed after 3 retries; cause: Failed to fetch: https://index.example/torch/; "
        "cause: failed to lookup address"
    )
    assert install.summarise_failure("") == "it gave no reason"


def test_failed_step_is_an_error(install: ModuleType) -> None:
    with pytest.raises(install.SetupError, match="step failed: error: no room"):
        install.run(["sh", "-c", "echo 'error: no room' >&2; exit 2"], "step failed", {"PATH": "/usr/bin:/bin"})


def test_cache_folder_is_that_of_the_library(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for environ in ({"CONSERVE_CACHE": "/a"}, {"XDG_CACHE_HOME": "/b"}, {"CONSERVE_CACHE": "", "XDG_CACHE_HOME": ""}):
        assert install.cache_folder(environ) == cache_folder(environ)


def test_make_says_when_there_is_no_python(root: Path) -> None:
    command = ["make", "--no-print-directory", "setup", "PYTHON="]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Python 3.11 is needed" in done.stderr
