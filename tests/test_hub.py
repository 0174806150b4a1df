"""Uploads to the Hub and downloads from it, with the fake server of hub.py.

In processes of their own, since the Hub's client reads its environment when it is imported; a test starts as
few of them as it can.
"""

import io
import json
import os
import shutil
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
from PIL import Image

from sparsegen.export.onnx_file import bundle
from sparsegen.export.runtime import open_sampler
from sparsegen.zoo.bundled import AUXILIARY, CONFIG, ENCODING, GRAPH, SYNTHESIS, WEIGHTS
from sparsegen.zoo.card import BEGIN, END
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.hub import CARD, PICTURES, may_be_id, with_revision
from sparsegen.zoo.spec import ModelSpec, create_model
from sparsegen.zoo.weights import save_weights

ALL = {CONFIG, WEIGHTS, GRAPH, SYNTHESIS, ENCODING, CARD, *PICTURES}
PUSH = """
import sys
from sparsegen import from_pretrained

generator = from_pretrained(sys.argv[1])
print(generator.push_to_hub("me/mine", private=True))
generator.set_k([1, 3])
generator.push_to_hub("me/mine", revision="v1", onnx=False)
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


def test_a_push_is_one_commit_with_all_files(hub: Hub, pushed: str) -> None:
    repo = hub.repos["me/mine"]
    assert len(repo.commits) == 3  # that of its creation, one a push
    main, v1 = (repo.commits[repo.branches[branch]] for branch in ("main", "v1"))
    assert set(main) == {".gitattributes", *ALL}
    assert set(v1) == {".gitattributes", *ALL} - {GRAPH, SYNTHESIS, ENCODING}  # of main, and not pushed again
    assert main[CONFIG] != v1[CONFIG]
    card = ModelCard(main[CARD].decode())
    assert card.data.license == "mit" and card.data.library_name == "sparsegen"
    assert {"dcgan", "ml", "onnx"} <= set(card.data.tags) and "onnx" not in ModelCard(
        v1[CARD].decode()
    ).data.tags
    assert 'from_pretrained("me/mine")' in card.text and "open_sampler" not in v1[CARD].decode()
    for name in PICTURES:
        assert name in card.text
        assert Image.open(io.BytesIO(main[name])).size[0] == 3 * (8 * 34 + 2)


def test_the_command_pushes_the_files_of_a_folder_and_no_others(hub: Hub, checkpoint: Path) -> None:
    folder = from_pretrained(checkpoint).save_pretrained(checkpoint.parent / "bundle", torch.float16)
    bundle(folder)
    for stray in ("notes.txt", "state.safetensors", "run.json", "weights.bin"):
        (folder / stray).write_text("private")
    # Without the owner: the namespace of the token.
    python(
        hub.url,
        checkpoint.parent / "pusher",
        "-m",
        "sparsegen",
        "push",
        folder,
        "bundle",
        "--license",
        "gpl-3.0",
    )
    repo = hub.repos["me/bundle"]
    assert not repo.private and len(repo.commits) == 2
    files = repo.commits[repo.branches["main"]]
    assert set(files) == {".gitattributes", *ALL}
    assert files[WEIGHTS] == (folder / WEIGHTS).read_bytes()
    assert json.loads(files[CONFIG]) == json.loads((folder / CONFIG).read_text()) | {"license": "gpl-3.0"}
    show = "import sys; from sparsegen.zoo.checkpoint import find_checkpoint; print(find_checkpoint('me/bundle'))"
    downloaded = Path(python(hub.url, checkpoint.parent / "served", "-c", show).strip())
    sampler = open_sampler(downloaded)
    assert np.array_equal(sampler.sample(3, seed=5), open_sampler(folder).sample(3, seed=5))
    assert sampler.dictionary().shape == (8, 3, 4, 4)


PUSH_AGAIN = """
import sys, torch, sparsegen
generator = sparsegen.from_pretrained("me/again")
with torch.no_grad():
    for parameter in generator.parameters():
        parameter.mul_(1.01)
generator.push_to_hub("me/again", commit_message="Sharper")
images = sparsegen.open_sampler("me/again", force_download=True).sample(4, seed=3).astype(int)
print(abs(images - generator.sample(4, seed=3)).max())
"""


def test_a_push_of_changed_weights_replaces_the_graphs_and_keeps_the_text_of_the_author(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    evaluation = {"metric": "fid", "distance": 12.0, "distances": {"fid": 12.0}}
    measured = {**json.loads((checkpoint / CONFIG).read_text()), "evaluation": evaluation}
    measured["training"] = {"steps": 3, "data": "cifar10"}
    (folder := tmp_path / "measured").mkdir()
    (folder / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes())
    (folder / CONFIG).write_text(json.dumps(measured))
    python(hub.url, tmp_path / "home", "-m", "sparsegen", "push", folder, "me/again")
    repo = hub.repos["me/again"]
    first = repo.commits[repo.branches["main"]]
    card = ModelCard(first[CARD].decode())
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results] == [("fid", 12.0)]
    assert card.data.datasets == ["uoft-cs/cifar10"]
    edited = (
        first[CARD].decode().replace(BEGIN, f"My own words.\n\n{BEGIN}").replace(END, f"{END}\n\nThanks!")
    )
    edited = edited.replace("library_name:", "language: en\nlibrary_name:").replace(
        "- gan\n", "- gan\n- mine\n"
    )
    repo.commit("main", {CARD: edited.encode(), "notes.txt": b"of the author"})
    difference = python(hub.url, tmp_path / "home", "-c", PUSH_AGAIN)
    assert int(difference) <= 1 and hub.messages[-1] == "Sharper"
    second = repo.commits[repo.branches["main"]]
    card, config = ModelCard(second[CARD].decode()), json.loads(second[CONFIG])
    assert second[WEIGHTS] != first[WEIGHTS] and second["notes.txt"] == b"of the author"
    assert "evaluation" not in config and config["training"] == {**measured["training"], "edited": True}
    assert card.data.eval_results is None and "12.00" not in card.text
    assert card.data.language == "en" and "mine" in card.data.tags and card.data.license == "mit"
    assert card.text.strip().startswith("My own words.") and card.text.strip().endswith("Thanks!")
    assert card.text.count(BEGIN) == card.text.count("## Use") == 1


def test_a_push_that_cannot_be_meant_is_refused_before_the_upload(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.add("me/public", {CARD: b"---\nlicense: mit\n---\n"})
    hub.add("me/broken", {CARD: b"---\ntags: [a\n---\nMy text."})
    hub.add("me/half", {CARD: BEGIN.encode()})
    before = {name: len(hub.repos[name].commits) for name in ("me/public", "me/broken", "me/half")}
    refused = {
        (
            "me/public",
            "--private",
        ): "'me/public' exists and is public, and the push asks for private: change the",
        (
            "me/public",
            "--revision",
            "dev",
            "--create-pr",
        ): "a pull request is opened on main: omit the revision",
        ("me/new", "--create-pr"): "a pull request needs an existing repository",
        ("me/public", "--license", ""): "a license must be an identifier of the Hub",
        ("me/public", "--license", "MIT License"): "a license must be an identifier of the Hub in lower case",
        ("me/public", "--revision", "../x"): "a revision must be a branch, tag or commit",
        ("me/broken", "--no-onnx"): "the metadata at the head of the README.md of 'me/broken' cannot be read",
        ("me/half", "--no-onnx"): "has the first marker of sparsegen and not the second",
        ("me/too/long",): "'me/too/long' cannot be uploaded to the Hub: not a model name",
    }
    commands = [["push", checkpoint, *options] for options in refused]
    for done, says in zip(sparsegen(hub.url, tmp_path, *commands), refused.values(), strict=True):
        assert_refused(done, says)
    assert {name: len(hub.repos[name].commits) for name in before} == before and "me/new" not in hub.repos


def test_a_link_to_a_private_file_is_not_pushed(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """A folder that was downloaded may have one in the place of a network that is not needed to draw."""
    (tmp_path / "secret").write_text("private")
    commands = []
    for name in ("discriminator", "encoder", "projected"):
        folder = shutil.copytree(checkpoint, tmp_path / name)
        (folder / f"{name}.safetensors").symlink_to(tmp_path / "secret")
        commands.append(["push", folder, "me/leak", "--no-onnx"])
    for name, done in zip(AUXILIARY, sparsegen(hub.url, tmp_path, *commands), strict=True):
        assert_refused(done, f"{name}.safetensors")
    assert "me/leak" not in hub.repos and b"private" not in hub.objects.values()


def test_a_byte_order_mark_does_not_hide_the_metadata(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.add("me/marked", {CARD: "\ufeff---\nlicense: mit\nlanguage: en\n---\nMy text.".encode()})
    (done,) = sparsegen(hub.url, tmp_path, ["push", checkpoint, "me/marked", "--no-onnx"])
    assert done.returncode == 0, done.stderr
    repo = hub.repos["me/marked"]
    text = repo.commits[repo.branches["main"]][CARD].decode()
    assert ModelCard(text).data.language == "en" and text.count("license: mit") == 1 and "\ufeff" not in text


def test_a_model_over_another_has_none_of_its_metadata(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    original = json.loads((checkpoint / CONFIG).read_text())
    first, second = (shutil.copytree(checkpoint, tmp_path / data) for data in ("cifar10", "faces"))
    for folder in (first, second):
        training = {"data": folder.name} | ({"base_model": "me/base"} if folder == first else {})
        (folder / CONFIG).write_text(json.dumps(original | {"training": training}))
    for done in sparsegen(
        hub.url, tmp_path, *(["push", each, "me/over", "--no-onnx"] for each in (first, second))
    ):
        assert done.returncode == 0, done.stderr
    repo = hub.repos["me/over"]
    before, after = (ModelCard(files[CARD].decode()).data for files in list(repo.commits.values())[-2:])
    assert (before.datasets, before.base_model) == (["uoft-cs/cifar10"], "me/base")
    assert (after.datasets, after.base_model) == (None, None)


def test_a_failed_first_push_leaves_no_repository(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.failing = 507
    try:
        (done,) = sparsegen(hub.url, tmp_path, ["push", checkpoint, "me/never", "--no-onnx"])
    finally:
        hub.failing = 0
    assert_refused(done, "'me/never' cannot be uploaded to the Hub: the Hub answered 507")
    assert "me/never" not in hub.repos


def test_a_failed_push_that_cannot_be_undone_reports_both(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.failing, hub.kept = 507, True
    try:
        (done,) = sparsegen(hub.url, tmp_path, ["push", checkpoint, "me/left", "--no-onnx"])
    finally:
        hub.failing, hub.kept = 0, False
    assert_refused(done, "'me/left' cannot be uploaded to the Hub: the Hub answered 507")
    said = " ".join(done.stderr.split())
    assert "'me/left' was created for this push" in said and "may not delete" in said


def test_the_visibility_of_a_new_repository_is_the_default_of_its_owner(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    push = ["push", checkpoint, "--no-onnx"]
    commands = [*push, "closed/one"], [*push, "closed/two", "--public"], [*push, "closed/one", "--create-pr"]
    for done in sparsegen(hub.url, tmp_path, *commands):
        assert done.returncode == 0, done.stderr
    assert hub.repos["closed/one"].private and not hub.repos["closed/two"].private
    assert any(branch.startswith("refs/pr/") for branch in hub.repos["closed/one"].branches)


OPTIONS = """
import json, sys, torch, sparsegen
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.hub import CARD, PICTURES
cache = sys.argv[1]
within = from_pretrained("me/many", subfolder="small", cache_dir=cache, k=2, dtype=torch.float64)
again = from_pretrained("me/many@main", subfolder="small", cache_dir=cache, local_files_only=True)
print(json.dumps([[each.k for each in within.k_ranges], str(within.dtype), again.sample(2).tolist()]))
for options in ({}, {"local_files_only": True}, {"revision": "v9"}):
    try:
        from_pretrained("me/many@main" if "revision" in options else "me/many", **options)
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        print(error)
"""


def test_the_options_of_a_download(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.add("me/many", {f"small/{name}": (checkpoint / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    cache = tmp_path / "cache"
    values, missing, offline, twice = python(hub.url, tmp_path / "home", "-c", OPTIONS, cache).splitlines()
    assert json.loads(values) == [[2, 2], "torch.float64", from_pretrained(checkpoint).sample(2).tolist()]
    assert list(cache.rglob(WEIGHTS)) and not list((tmp_path / "home").rglob(WEIGHTS))
    assert "it has models in subfolders: small" in missing
    assert "cannot be downloaded from the Hub: the cache does not hold it: omit local_files_only" in offline
    assert "name two revisions: give one of them" in twice


def test_the_address_of_a_page_is_an_id_and_only_training_downloads_the_discriminator(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = from_pretrained(checkpoint).save_pretrained(tmp_path / "trained")
    save_weights(ModelSpec.parse("dcgan-8.ml").auxiliary_networks()["discriminator"],
                 folder / AUXILIARY["discriminator"], torch.float32)  # fmt: skip
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("me/trained", files)
    home, page = tmp_path / "home", "https://huggingface.co/me/trained"
    sampled, sampled_main = sparsegen(
        hub.url,
        home,
        ["sample", page, "--count", 1, "--out", tmp_path / "a.npy"],
        ["sample", f"{page}/tree/main", "--count", 1, "--out", tmp_path / "b.npy"],
    )
    assert sampled.returncode == sampled_main.returncode == 0, sampled.stderr
    assert not hub.asked(AUXILIARY["discriminator"])
    (exported,) = sparsegen(hub.url, home, ["export", page, "--discriminator", "--out", tmp_path / "own"])
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "own" / AUXILIARY["discriminator"]).is_file()


@pytest.mark.parametrize(
    ("given", "repo_id"),
    [
        ("https://huggingface.co/me/mine", "me/mine"),
        ("http://hf.co/me/mine/", "me/mine"),
        ("https://huggingface.co/me/mine/tree/v1.0", "me/mine@v1.0"),
        ("https://huggingface.co/me/mine/tree/refs/pr/1/", "me/mine@refs/pr/1"),
        ("https://huggingface.co.evil.example/me/mine", None),
        ("https://huggingface.co/datasets/me/mine", None),
        ("https://huggingface.co/me", None),
        ("https://huggingface.co/me/mine/blob/main/config.json", None),
        ("https://example.com/me/mine", None),
    ],
)
def test_only_the_address_of_a_model_on_the_hub_is_an_id(given: str, repo_id: str | None) -> None:
    assert may_be_id(given) == (repo_id is not None)
    if repo_id:
        assert with_revision(given) == with_revision(repo_id)


@pytest.mark.parametrize("name", REFUSALS)
def test_an_unavailable_model_is_refused_in_one_sentence(pulled: Pulled, name: str) -> None:
    kind, says = REFUSALS[name]
    answer = pulled.answers[name]
    assert answer["error"] == kind
    assert says in answer["says"] and "\n" not in answer["says"]
    assert answer["seconds"] < 10


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
        "'me/new' cannot be uploaded to the Hub: there is no token; log in",
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
    assert max(new.seconds, push.seconds) < 10  # no waiting for further tries
