"""What HAProxy is told, and where it keeps its sockets."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

from ray.serve._private import constants

from conserve.launch.haproxy_command import VARIABLE
from conserve.launch.paths import proxy_dir
from conserve.launch.serve_proxy import PACING, make_proxy_environment, remove_proxy_dir

NODE_ID_CHARACTERS = 56
LONGEST_SOCKET_PATH = 97


def test_serve_knows_every_variable(tmp_path: Path) -> None:
    source = inspect.getsource(constants)
    try:
        names = make_proxy_environment(tmp_path).keys()
        assert [name for name in names if f'"{name}"' not in source] == []
        assert names > PACING.keys()
    finally:
        remove_proxy_dir(tmp_path)


def test_it_is_started_by_our_command(tmp_path: Path) -> None:
    try:
        command = Path(make_proxy_environment(tmp_path)[VARIABLE])
    finally:
        remove_proxy_dir(tmp_path)
    # Serve takes nothing else.
    assert command.is_absolute()
    assert command.is_file()
    assert os.access(command, os.X_OK)


def test_two_stacks_share_nothing(tmp_path: Path) -> None:
    stacks = [tmp_path / "a", tmp_path / "b"]
    try:
        first, second = (make_proxy_environment(stack) for stack in stacks)
        own = {name for name in first if name.endswith(("_PORT", "_LOC", "_PATH", "_BASE", "_FILE"))}
        own -= {VARIABLE, *PACING}
        assert len(own) == 13
        assert [name for name in own if first[name] == second[name]] == []
    finally:
        for stack in stacks:
            remove_proxy_dir(stack)


def test_its_folder_is_only_the_user_s_and_goes(tmp_path: Path) -> None:
    folder = proxy_dir(tmp_path)
    make_proxy_environment(tmp_path)
    (folder / "left").mkdir()
    make_proxy_environment(tmp_path)
    assert list(folder.iterdir()) == []
    assert (folder.stat().st_mode & 0o777, folder.stat().st_uid) == (0o700, os.getuid())
    remove_proxy_dir(tmp_path)
    assert not folder.exists()


def test_sockets_have_short_paths(tmp_path: Path) -> None:
    # A process id may be part of a socket's name while HAProxy is reloaded.
    longest = Path("/tmp") / proxy_dir(tmp_path).name / ("n" * NODE_ID_CHARACTERS) / "metrics.sock.1234567"
    assert len(str(longest)) < LONGEST_SOCKET_PATH + len("100000") - len(str(os.getuid()))
