"""Uploads to the Hub and downloads from it, with the fake server of hub.py.

In processes of their own, since the Hub's client reads its environment when it is imported; a test starts as
few of them as it can.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT, warmed
from hub import Hub
from huggingface_hub import ModelCard

from sparsegen.export.onnx_file import bundle
from sparsegen.export.runtime import open_sampler
from sparsegen.zoo.bundled import CONFIG, GRAPH, SYNTHESIS, WEIGHTS
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.spec import create_model

CARD = "README.md"
PUSH = """
import sys
from sparsegen import from_pretrained

generator = from_pretrained(sys.argv[1])
print(generator.push_to_hub("me/mine", private=True))
generator.set_k([1, 3])
generator.push_to_hub("me/mine", private=True, revision="v1")
"""
PULL = """
import json, sys, time
from sparsegen import from_pretrained

for given in json.loads(sys.argv[1]):
    begun = time.monotonic()
    try:
        generator = from_pretrained(*given)
        answer = {"config": generator.config, "pixels": generator.sample(3, seed=5).tolist()}
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        answer = {"error": type(error).__name__, "says": str(error)}
    print(json.dumps({**answer, "seconds": time.monotonic() - begun}))
"""
COMMANDS = """
import contextlib, io, json, sys, time
from sparsegen.__main__ import main

for command in json.loads(sys.argv[1]):
    begun, sys.argv = time.monotonic(), ["sparsegen", *command]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, err.getvalue(), time.monotonic() - begun]))
"""
REFUSALS = {
    "me/nothing": ("ConnectionError", "the model does not exist, or it is private"),
    "me/mine@v9": (
        "ConnectionError",
        "'me/mine' at 'v9' cannot be downloaded from the Hub: it has no such branch, tag or commit",
    ),
    "me/gated": ("ConnectionError", "it is gated: request access on its page"),
    "me/pickle": (
        "FileNotFoundError",
        "no generator.safetensors; sparsegen does not open pickles (pytorch_model.bin)",
    ),
    "me/other": (
        "FileNotFoundError",
        "'me/other' on the Hub is not a sparsegen model: it has no generator.safet",
    ),
    "me/swapped": ("ValueError", "generator.safetensors was corrupt (its SHA-256 is not the Hub's)"),
    "me/no/id": ("ValueError", "no model 'me/no/id'"),
    "me/n--o": ("ValueError", "not a model name, a folder or a Hub id"),
}


class Done(NamedTuple):
    returncode: int
    stderr: str
    seconds: float


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = warmed(create_model("dcgan", "ml", width=8))
    generator.config = {"license": "mit"}
    return generator.save_pretrained(tmp_path_factory.mktemp("hub") / "checkpoint", training={"steps": 3})


@pytest.fixture(scope="module")
def pushed(hub: Hub, checkpoint: Path) -> str:
    """The results of push_to_hub for me/mine, whose branch v1 has another k."""
    return python(hub.url, checkpoint.parent / "pusher", "-c", PUSH, checkpoint).strip()


class Pulled(NamedTuple):
    home: Path
    answers: dict[str, dict]


@pytest.fixture(scope="module")
def pulled(hub: Hub, checkpoint: Path, pushed: str) -> Pulled:
    """The results of from_pretrained for valid and invalid models, in one process with an empty cache."""
    files = {name: (checkpoint / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    hub.add("me/gated", files, gated=True)
    hub.add("me/pickle", {"pytorch_model.bin": b"\x80\x04."})
    hub.add(
        "me/other",
        {CONFIG: b"{}", "model-00001-of-99999.safetensors": b"of many gigabytes", "tokens.json": b""},
    )
    hub.add("me/swapped", files)
    hub.wrong["me/swapped", WEIGHTS] = files[WEIGHTS][:-5000] + bytes(5000)
    asked = ["me/mine", "me/mine@v1", *REFUSALS]
    home = checkpoint.parent / "puller"
    lines = python(hub.url, home, "-c", PULL, json.dumps([name.split("@") for name in asked])).splitlines()
    return Pulled(home, dict(zip(asked, map(json.loads, lines), strict=True)))


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {
        **own,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": "any",
        "HF_HUB_DISABLE_XET": "1",
        **more,
    }


def python(url: str, home: Path, *arguments: object, **more: str) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(url, home, **more), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sparsegen(url: str, home: Path, *commands: list[object], **more: str) -> list[Done]:
    """Runs several commands of the command line in one process."""
    given = json.dumps([[str(part) for part in command] for command in commands])
    return [Done(*json.loads(line)) for line in python(url, home, "-c", COMMANDS, given, **more).splitlines()]


def assert_refused(done: Done, *says: str) -> None:
    """Returns the last line, the reason; the Hub's client may print warnings of its retries before it."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sparsegen: ") and len(last) < 300
    for text in says:
        assert text in last


def test_a_pushed_generator_is_opened_with_the_same_pixels_and_config(
    hub: Hub, checkpoint: Path, pushed: str, pulled: Pulled
) -> None:
    assert pushed == f"{hub.url}/me/mine"
    assert hub.repos["me/mine"].private
    original = from_pretrained(checkpoint)
    for name, k in {"me/mine": None, "me/mine@v1": [1, 3]}.items():
        assert np.array_equal(pulled.answers[name]["pixels"], original.sample(3, seed=5, k=k))
    assert pulled.answers["me/mine@v1"]["config"]["k"] == [1, 3]
    # push_to_hub wrote the checkpoint anew, and what was known of its training went along.
    assert pulled.answers["me/mine"]["config"] == original.config


def test_a_push_is_one_commit_with_a_model_card(hub: Hub, pushed: str) -> None:
    repo = hub.repos["me/mine"]
    assert len(repo.commits) == 3  # that of its creation, one a push
    main, v1 = (repo.commits[repo.branches[branch]] for branch in ("main", "v1"))
    assert set(main) == set(v1) == {".gitattributes", CONFIG, WEIGHTS, CARD}
    assert main[CONFIG] != v1[CONFIG]
    card = ModelCard(main[CARD].decode())
    assert card.data.license == "mit" and card.data.library_name == "sparsegen"
    assert {"dcgan", "ml"} <= set(card.data.tags)
    assert card.text.strip().startswith("# dcgan-8.ml")


def test_the_command_pushes_all_files_of_a_model_and_no_others(hub: Hub, checkpoint: Path) -> None:
    folder = from_pretrained(checkpoint).save_pretrained(checkpoint.parent / "bundle", torch.float16)
    bundle(folder)
    for stray in ("notes.txt", "state.safetensors", "run.json", "weights.bin"):
        (folder / stray).write_text("private")
    python(hub.url, checkpoint.parent / "pusher", "-m", "sparsegen", "push", folder, "me/bundle")
    repo = hub.repos["me/bundle"]
    assert not repo.private and len(repo.commits) == 2
    files = repo.commits[repo.branches["main"]]
    assert set(files) == {".gitattributes", CONFIG, WEIGHTS, GRAPH, SYNTHESIS, CARD}
    for name in (CONFIG, WEIGHTS, GRAPH, SYNTHESIS):
        assert files[name] == (folder / name).read_bytes()
    show = "import sys; from sparsegen.zoo.checkpoint import find_checkpoint; print(find_checkpoint('me/bundle'))"
    downloaded = Path(python(hub.url, checkpoint.parent / "served", "-c", show).strip())
    sampler = open_sampler(downloaded)
    assert np.array_equal(sampler.sample(3, seed=5), open_sampler(folder).sample(3, seed=5))
    assert sampler.dictionary().shape == (8, 3, 4, 4)


@pytest.mark.parametrize("name", REFUSALS)
def test_an_unavailable_model_is_refused_in_one_sentence(pulled: Pulled, name: str) -> None:
    kind, says = REFUSALS[name]
    answer = pulled.answers[name]
    assert answer["error"] == kind
    assert says in answer["says"] and "\n" not in answer["says"]
    assert answer["seconds"] < 5


def test_pickles_and_unknown_files_are_not_downloaded(hub: Hub, pulled: Pulled) -> None:
    assert not hub.asked("pytorch_model.bin")
    assert not hub.asked("model-00001") and not hub.asked("tokens.json")
    assert hub.asked(f"GET /me/mine/resolve/{hub.repos['me/mine'].branches['main']}/{WEIGHTS}")


def test_an_interrupted_download_leaves_no_partial_file_and_the_next_call_succeeds(
    hub: Hub, checkpoint: Path, pulled: Pulled
) -> None:
    hub.add("me/cut", {name: (checkpoint / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    hub.cuts["me/cut", WEIGHTS] = 6  # the client tries as often, a second between
    info = ["info", "me/cut"]
    (done,) = sparsegen(hub.url, pulled.home, info)
    assert_refused(
        done,
        "no local folder 'me/cut', and it cannot be downloaded from the Hub: the connection failed",
        "try again",
    )
    assert hub.cuts["me/cut", WEIGHTS] == 0 and done.seconds < 20
    cache = pulled.home / "hub" / "models--me--cut"
    assert list(cache.rglob(CONFIG)) and not list(cache.rglob(WEIGHTS))
    assert not [file for file in (cache / "blobs").iterdir() if file.stat().st_size > 10_000]
    pixels = checkpoint.parent / "offline.npy"
    sample = ["sample", "me/mine", "--count", "3", "--seed", "5", "--out", pixels]
    offline, cached = sparsegen(hub.url, pulled.home, info, sample, HF_HUB_OFFLINE="1")
    assert_refused(offline, "HF_HUB_OFFLINE is set")
    assert cached.returncode == 0, cached.stderr
    assert np.array_equal(np.load(pixels), pulled.answers["me/mine"]["pixels"])
    swapped = ["info", "me/swapped"]  # its corrupt file is gone; now the right one is sent
    hub.wrong.clear()
    for done in sparsegen(hub.url, pulled.home, info, swapped):
        assert done.returncode == 0, done.stderr


def test_without_a_login_a_private_model_and_a_push_are_refused(
    hub: Hub, checkpoint: Path, pushed: str, tmp_path: Path
) -> None:
    private, push = sparsegen(
        hub.url, tmp_path, ["info", "me/mine"], ["push", checkpoint, "me/new"], HF_TOKEN=""
    )
    assert_refused(
        private,
        "no local folder 'me/mine', and it cannot be downloaded from the Hub: the model does not exist",
        "hf auth login",
    )
    assert_refused(
        push,
        "'me/new' cannot be uploaded to the Hub: the Hub answered 401 (Invalid username",
        "hf auth login",
    )
    assert "me/new" not in hub.repos


def test_with_the_hub_down_what_is_cached_works_and_the_rest_fails_at_once(
    checkpoint: Path, pulled: Pulled
) -> None:
    with Hub() as gone:
        pass
    cached, new, push = sparsegen(
        gone.url, pulled.home, ["info", "me/mine"], ["info", "me/never"], ["push", checkpoint, "me/new"]
    )
    assert cached.returncode == 0, cached.stderr
    assert_refused(
        new, "no local folder 'me/never', and it cannot be downloaded from the Hub: the connection failed"
    )
    assert_refused(push, "'me/new' cannot be uploaded to the Hub: the connection failed")
    assert max(cached.seconds, new.seconds, push.seconds) < 5
