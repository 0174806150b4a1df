"""Files are complete or unchanged if writing fails."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsegen.common import files
from sparsegen.common.files import atomic_write, cache_folder, write_json


def listing(folder):
    return sorted(child.name for child in folder.iterdir())


def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_written_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    for content in "one", "two":
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent, "only a rename inside a folder is atomic"
            temporary.write_text(content)
        assert path.read_text() == content
        assert listing(path.parent) == ["file.txt"]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_interrupted_block_keeps_only_the_old_file(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_names_the_path(tmp_path, monkeypatch, call):
    path = tmp_path / "file.json"
    write_json(path, {"step": 1})
    monkeypatch.setattr(files.os, call, disk_full)
    with pytest.raises(OSError, match="file.json") as caught:
        write_json(path, {"step": 2})
    assert caught.value.errno == errno.ENOSPC
    assert json.loads(path.read_text()) == {"step": 1}
    assert listing(tmp_path) == ["file.json"]


def test_a_file_size_limit_keeps_the_old_weights_and_names_the_path(tmp_path):
    """The system refuses to write more than 64 KiB, in safetensors and in Python."""
    program = """
        import resource, sys, torch
        from safetensors.torch import save_file
        from sparsegen.common.files import atomic_write

        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        def tensors(file): save_file({"x": torch.ones(100_000)}, file)
        def plain(file): file.write_bytes(bytes(400_000))
        for write in tensors, plain:
            try:
                with atomic_write(sys.argv[1]) as file:
                    write(file)
            except OSError as error:
                print(type(error).__name__, error.errno, error)
    """
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    for line in lines:
        assert str(errno.EFBIG) in line and str(path) in line
    assert torch.equal(load_file(path)["x"], torch.zeros(3))
    assert listing(tmp_path) == ["weights.safetensors"]


def test_safetensors_files_get_the_permissions_of_any_other_file(tmp_path):
    (tmp_path / "plain").touch()
    path = tmp_path / "weights.safetensors"
    with atomic_write(path) as temporary:
        save_file({"x": torch.zeros(3)}, temporary)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    with atomic_write(path) as temporary:
        save_file({"x": torch.zeros(3)}, temporary)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
    target = tmp_path / "elsewhere" / "target.txt"
    target.parent.mkdir()
    target.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(target)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"), atomic_write(tmp_path / "taken") as temporary:
        temporary.write_text("new")
    assert listing(tmp_path) == ["taken"]


def test_a_full_disk_is_named_if_numpy_does_not_set_the_error_number(tmp_path):
    target = tmp_path / "new.npy"
    code = f"""
import numpy as np, resource, signal
from sparsegen.common.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with atomic_write({str(target)!r}) as file, file.open("wb") as stream:
        np.save(stream, np.zeros(100_000))
except OSError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert str(target) in said and "nothing was written" in said
    assert listing(tmp_path) == []


def test_a_file_in_place_of_a_folder_is_reported_with_the_requested_path(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match="taken/a.png") as error, atomic_write(tmp_path / "taken" / "a.png"):
        pass
    assert ".tmp" not in str(error.value)


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 127)  # 254 bytes of the 255
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_json_round_trips_and_is_readable(tmp_path):
    content = {"fid": 12.5, "name": "Γ1", "steps": [1, 2], "best": None}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert json.loads(text) == content
    assert "Γ1" in text and text.endswith("}\n") and '\n  "fid"' in text


@pytest.mark.parametrize(("content", "error"), [(float("nan"), ValueError), (Path("x"), TypeError)])
def test_values_that_json_lacks_are_refused_before_writing(tmp_path, content, error):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(error, match="a.json"):
        write_json(tmp_path / "a.json", {"fid": content})
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_the_cache_folder_follows_the_environment_and_is_not_created(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SPARSEGEN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("SPARSEGEN_CACHE", "~/mine")
    assert cache_folder() == home / "mine"
    monkeypatch.setenv("SPARSEGEN_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "sparsegen"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    assert cache_folder() == home / ".cache" / "sparsegen"
    assert listing(tmp_path) == []


@pytest.mark.parametrize("path", ["/proc/x/run.json", "/proc/file", "/dev/null/x"])
def test_an_unwritable_path_is_found_before_the_work(path: str) -> None:
    with pytest.raises(OSError, match=path):
        files.check_writable(path)


def test_a_check_of_a_writable_path_changes_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new.png", tmp_path / "new" / "folder" / "x.png"):
        files.check_writable(path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_restored_after_a_kill_between_two_renames(tmp_path: Path) -> None:
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "weights").write_text("the only ones")
    (tmp_path / ".best.partial").mkdir()
    with pytest.raises(RuntimeError), files.atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "weights").read_text() == "the only ones"
    with files.atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "weights").read_text() == "new"
