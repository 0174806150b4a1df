"""What an error suggests: the similar names, the models of a run, the command that installs an extra."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from sparsegen.common.extras import install_command
from sparsegen.common.names import MAX_LISTED, known_names
from sparsegen.zoo.checkpoint import find_checkpoint


class Installed:
    """A distribution with this direct_url.json (PEP 610)."""

    def __init__(self, origin: dict[str, object] | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'sparsegen[serve]'"),
        (
            {"url": "file:///a/my%20code", "dir_info": {"editable": True}},
            "pip install -e '/a/my code[serve]'",
        ),
        ({"url": "file:///a/b.whl", "archive_info": {}}, "pip install 'sparsegen[serve] @ file:///a/b.whl'"),
        (
            {"url": "https://example.org/s.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'sparsegen[serve] @ git+https://example.org/s.git'",
        ),
    ],
)
def test_an_extra_is_installed_from_where_sparsegen_came_from(
    origin: dict[str, object] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsegen.common.extras.distribution", lambda name: Installed(origin))
    assert install_command("serve") == command


def test_an_extra_is_named_where_sparsegen_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("sparsegen.common.extras.distribution", missing)
    assert install_command("serve") == "pip install 'sparsegen[serve]'"


def test_similar_names_replace_a_long_list_and_follow_a_short_one() -> None:
    many = [f"model-{index:03d}" for index in range(MAX_LISTED + 1)]
    assert (
        known_names("modle-003", many)
        == f"{len(many)} names, did you mean {' or '.join(map(repr, near(many)))}?"
    )
    assert known_names("xyz", many) == ", ".join(many)
    assert known_names("abd", ["abc", "xyz"]) == "abc, xyz; did you mean 'abc'?"
    assert known_names("abd", []) == "none"


def near(names: list[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches("modle-003", names, 3, 0.4)


def test_a_missing_model_of_a_run_or_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Path("run") / "checkpoints" / "00000003"
    for folder in (checkpoint, Path("models") / "mine"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (Path("run") / "run.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match="no folder run/best: that training run has run/checkpoints/00000003"
    ):
        find_checkpoint("run/best")
    with pytest.raises(
        FileNotFoundError, match="no folder models/mini: models has models: mine; did you mean 'mine'"
    ):
        find_checkpoint("models/mini")
