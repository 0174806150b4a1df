import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from conftest import CLASSES
from PIL import Image
from server import running_server, small_models  # noqa: F401 (fixtures)

from sparsegen.service.models import open_model, open_models
from sparsegen.service.page import catalog, choice, handlers, inspector, link, markup, sample, sample_layout
from sparsegen.zoo import bundled, noise
from sparsegen.zoo.checkpoint import from_pretrained

ML, L0, BASELINE = "dcgan-8.ml", "dcgan-8.l0", "dcgan-8.baseline"
CONDITIONAL, CAT = "sagan-8.ml", 3
NO_COMPARISON = (False, ML, 1)


@pytest.fixture(scope="module")
def client(server):
    from gradio_client import Client

    client = Client(f"{server.url}/ui/", verbose=False)
    yield client
    client.close()


def pictures(markup: str) -> list[np.ndarray]:
    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', markup)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in encoded]


def ask(
    client,
    api_name: str,
    model=ML,
    label=sample_layout.ANY,
    seed=7,
    count=5,
    k=2,
    apart=False,
    k_2=1,
    index=0,
    more=(),
):
    if model in (ML, L0, BASELINE, CONDITIONAL):
        choose(client, model)  # as on the page, k gets the range of the model
    if api_name != "/look":
        more = more or NO_COMPARISON
    return client.predict(model, label, seed, count, k, apart, k_2, index, *more, api_name=api_name)


def choose(client, model: str, label: int = sample_layout.ANY) -> tuple:
    return client.predict(model, label, api_name="/choose")


@pytest.mark.parametrize(
    ("model", "setting", "k"),
    [
        (ML, {}, 2),
        (ML, {"apart": True}, [2, 1]),
        (L0, {"k": 300}, 300),
        (BASELINE, {}, None),
        (CONDITIONAL, {}, 2),
        (CONDITIONAL, {"label": CAT}, 2),
    ],
    ids=str,
)
def test_a_seed_has_the_same_pixels_on_the_page_and_over_http(server, client, model, setting, k):
    tiles, *_ = ask(client, "/draw", model, **setting)
    label = setting.get("label")
    over_http = server.sample(model=model, count=5, seed=7, k=k, labels=label, format="npy")
    np.testing.assert_array_equal(pictures(tiles), np.load(io.BytesIO(over_http)))


def test_the_class_of_each_image_is_named(client):
    tiles = ask(client, "/draw", CONDITIONAL)[0]
    drawn = noise.labels(5, 10, seed=7)
    called = [CLASSES[label] for label in drawn]
    assert re.findall(r'title="(.*?)"', tiles) == called and len(set(called)) > 1
    assert [f'alt="Image {index} {name}"' in tiles for index, name in enumerate(called)] == [True] * 5
    assert f"<b>The image</b>, {called[2]}, 32" in ask(client, "/look", CONDITIONAL, index=2)[0]
    assert "<b>The image</b>, cat, 32" in ask(client, "/look", CONDITIONAL, label=CAT, index=2)[0]
    assert "<b>The image</b>, 32" in ask(client, "/look")[0]


def test_names_of_classes_are_escaped_on_the_page():
    tiles = markup.tiles(np.zeros((1, 4, 4, 3), np.uint8), 0, ['<b>"cat"'])
    assert "<b>" not in tiles and '"cat"' not in tiles


def test_the_classes_of_a_model_are_offered_and_the_chosen_one_is_kept(client):
    choose(client, CONDITIONAL)
    _, _, choice, *_ = choose(client, CONDITIONAL, CAT)
    assert choice["choices"] == [
        ["any", sample_layout.ANY],
        *([name, label] for label, name in enumerate(CLASSES)),
    ]
    assert (choice["value"], choice["visible"]) == (CAT, True)
    _, _, choice, *_ = choose(client, ML, CAT)
    assert (choice["value"], choice["visible"]) == (sample_layout.ANY, False)


def test_the_regularizers_of_one_network_are_offered_together(models):
    opened, _ = open_models(models)
    shown = sample_layout.columns(opened[ML], opened)
    assert shown["choices"] == [("baseline", BASELINE), ("l0", L0), ("ml", ML)]
    assert (shown["value"], shown["visible"]) == (ML, True)
    assert sample_layout.columns(opened[CONDITIONAL], opened)["visible"] is False
    assert (catalog.title(opened[ML]), catalog.title(opened[CONDITIONAL])) == (ML, "sagan-8.ml · 10 classes")
    named_by_hand = {name: replace(opened[ML], name=name) for name in ("mine", "yours")}
    assert sample_layout.columns(named_by_hand["mine"], named_by_hand)["visible"] is False


@pytest.mark.parametrize(
    "setting", [{}, {"model": CONDITIONAL, "label": CAT}, {"model": CONDITIONAL}], ids=str
)
def test_the_page_shows_calls_that_give_its_pixels(server, client, tmp_path, setting, monkeypatch):
    tiles, _ = ask(client, "/draw", count=3, k=3, apart=True, **setting)
    python, curl, _ = ask(client, "/calls", count=3, k=3, apart=True, **setting)
    assert str(server.models) not in python  # the folder of the models is not shown
    monkeypatch.chdir(server.models)
    names: dict = {}
    exec(python, names)
    np.testing.assert_array_equal(names["pixels"], pictures(tiles))
    if shutil.which("curl") and shutil.which("bash"):
        subprocess.run(["bash", "-c", curl], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), pictures(tiles))


def test_the_shown_call_sends_the_token_if_one_is_required(models):
    opened, _ = open_models(models)
    page_handlers = sample.Handlers(opened, asks_token=True)
    chosen = page_handlers._choice(ML, None, 0, 1, 3, False, 3, 0)
    assert "-H 'Authorization: Bearer TOKEN'" in choice.curl_call(
        chosen, "http://host", page_handlers.asks_token
    )
    assert "Authorization" not in choice.curl_call(chosen, "http://host", False)


def test_the_page_calls_a_bundled_model_by_its_name():
    if not (names := bundled.list_models()):
        pytest.skip("no model is bundled")
    for name in names:
        shown = choice.Choice(open_model(bundled.MODELS / name), seed=0, count=2, k=[], index=0)
        assert f"open_sampler({name!r}).sample(2, seed=0)" in choice.python_call(shown)


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FloatingPointError])
def test_errors_of_values_and_files_are_shown_on_the_page(kind):
    @handlers.show_errors
    def handler():
        raise kind("synthesis.onnx is missing")

    with pytest.raises(gr.Error, match="synthesis.onnx is missing"):
        handler()


def test_the_page_shows_the_density_of_the_codes(server, client):
    facts = ask(client, "/draw", k=3)[1]
    with torch.no_grad(), (generator := from_pretrained(server.models / ML)).use_k(3):
        _, codes = generator(torch.from_numpy(noise.z(5, 128, 7)))
    for level, code in enumerate(codes, 1):
        assert f"Γ{level}: density {(code != 0).double().mean():.3f}" in facts
    assert "k allows 3 of 8 per needle" in facts
    assert "not limited in this model" in ask(client, "/draw", BASELINE)[1]


def test_the_inspector_maps_the_non_zeros_per_needle(server, client):
    inside, atoms, _ = ask(client, "/look", BASELINE, index=2)
    image, density_1, density_2, _ = pictures(inside)
    np.testing.assert_array_equal(image, pictures(ask(client, "/draw", BASELINE)[0])[2])
    with torch.no_grad():
        _, codes = from_pretrained(server.models / BASELINE)(torch.from_numpy(noise.z(3, 128, 7)))
    for shown, code in zip((density_1, density_2), codes, strict=True):
        count = (code[2] != 0).sum(0).numpy()
        brightness = shown.astype(int).sum(-1)  # rises with the count
        order = np.argsort(count, axis=None, kind="stable")
        assert shown.shape == (16, 16, 3) and len(np.unique(count)) > 1
        assert (np.diff(brightness.flat[order]) >= 0).all()
    assert all(picture.shape == (4, 4, 3) for picture in pictures(atoms))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"model": "dcgan.mx"}, "dcgan-8.ml"),
        ({"seed": -1}, "minimum|from 0"),
        ({"count": 65}, "64"),
        ({"k": 9}, "8"),
        ({"k": 1.5}, "integer"),
        ({"index": 64}, "63"),
        ({"label": 3}, "choices|omit them"),
        ({"model": CONDITIONAL, "label": 10}, "choices|from 0 to 9"),
    ],
    ids=str,
)
def test_a_bad_value_is_explained_on_the_page(client, setting, words):
    with pytest.raises(Exception, match=words) as told:
        ask(client, "/draw", **setting)
    assert "Traceback" not in str(told.value)


def test_the_inspector_supports_the_small_atoms_and_large_codes_of_a_residual_network(server, client):
    inside, atoms, _ = ask(client, "/look", CONDITIONAL, label=CAT, index=1)
    image, density_1, density_2, _ = pictures(inside)
    np.testing.assert_array_equal(image, pictures(ask(client, "/draw", CONDITIONAL, label=CAT)[0])[1])
    assert density_1.shape == density_2.shape == (32, 32, 3)
    assert all(picture.shape == (3, 3, 3) for picture in pictures(atoms))
    assert inside.count("1024 needles") == 2 and "of 8 atoms" in atoms


def test_switching_off_the_atoms_of_a_conditional_image_leaves_the_bias_of_d1(models):
    opened, _ = open_models(models)
    handlers, event = sample.Handlers(opened), gr.EventData(None, {"off": list(range(8))})
    shown = handlers.switch(CONDITIONAL, CAT, 7, 5, 2, False, 2, 1, event)
    before, after, _ = pictures(shown)
    generator = from_pretrained(models / CONDITIONAL)
    empty = torch.tanh(generator.stages[0].conv.bias.detach()).numpy()
    np.testing.assert_allclose(after.reshape(-1, 3), [np.rint((empty + 1) * 127.5)] * 1024, atol=1)
    assert before.std() > 5


def test_an_index_beyond_the_count_selects_the_last_image(client):
    assert ask(client, "/look", count=3, index=10) == ask(client, "/look", count=3, index=2)


@pytest.mark.parametrize(
    ("count", "index", "words"), [(None, 0, "count is the number of images"), (3, None, "index is")]
)
def test_an_empty_count_or_index_is_explained(count, index, words):
    with pytest.raises(gr.Error, match=words):
        sample.Handlers({}).fit(count, index)


def test_counts_and_strengths_are_computed_per_needle():
    code = np.zeros((3, 2, 2), np.float32)
    code[:, 0, 1] = 3, 0, -4
    np.testing.assert_array_equal(inspector.counts(code), [[0, 2], [0, 0]])
    np.testing.assert_array_equal(inspector.strengths(code), [[0, 5], [0, 0]])


def test_the_color_scale_is_monotonic_from_black_to_pale_yellow():
    colors = inspector.heat(np.arange(101).reshape(1, -1), 100)[0].astype(int)
    assert tuple(colors[0]) == (0, 0, 4) and tuple(colors[-1]) == (252, 255, 164)
    assert (np.diff(colors.sum(-1)) >= 0).all()


def test_shares_are_the_energies_of_atoms_that_do_not_overlap():
    """With a single entry per atom, the energy of an atom is that of the pixels it adds."""
    generator = np.random.default_rng(0)
    atoms, code = generator.normal(size=(4, 3, 2, 2)), np.zeros((4, 2, 2))
    code[0, 0, 0], code[1, 0, 1], code[3, 1, 1] = 2, -1, 0.5
    energy = np.array([((code[c].sum() * atoms[c]) ** 2).sum() for c in range(4)])
    np.testing.assert_allclose(inspector.shares(code, atoms), energy / energy.sum())
    assert inspector.shares(np.zeros_like(code), atoms).tolist() == [0, 0, 0, 0]


def test_the_difference_is_gray_where_nothing_is_lost_and_has_full_contrast():
    before = np.full((2, 2, 3), 100, np.uint8)
    after = before.copy()
    after[0, 0], after[1, 1] = 90, 120
    lost, factor = inspector.difference(before, after)
    assert factor == 127.5 / 20
    assert (
        lost[0, 1].tolist() == [128] * 3
        and lost[0, 0].tolist() == [191] * 3
        and lost[1, 1].tolist() == [0] * 3
    )
    assert inspector.difference(before, before)[1] == 1


def test_switching_off_an_atom_zeroes_only_its_map():
    code = np.ones((3, 2, 2), np.float32)
    edited = inspector.without(code, [1])
    assert edited.sum((1, 2)).tolist() == [4, 0, 4] and code.all()


def test_the_page_shows_json_that_the_endpoint_reads(client):
    curl = ask(client, "/calls")[1]
    body = json.loads(re.search(r"-d '(.*)'", curl)[1])
    assert body == {"model": ML, "count": 5, "seed": 7, "k": [2, 2], "format": "npy"}


def over_http(server, **request) -> np.ndarray:
    return np.load(io.BytesIO(server.sample(format="npy", **request)))


def test_two_settings_of_a_seed_are_drawn_side_by_side(server, client):
    tiles, densities = ask(client, "/draw", more=(True, L0, 8))
    drawn = pictures(tiles)
    np.testing.assert_array_equal(drawn[:5], over_http(server, model=ML, count=5, seed=7, k=2))
    np.testing.assert_array_equal(drawn[5:], over_http(server, model=L0, count=5, seed=7, k=8))
    assert "dcgan-8.ml, k = 2" in tiles and "dcgan-8.l0, k = 8" in tiles
    assert "k allows 2 of 8" in densities and "k allows 8 of 2,048" in densities
    cats = ask(client, "/draw", CONDITIONAL, label=CAT, more=(True, BASELINE, 1))[0]
    np.testing.assert_array_equal(pictures(cats)[5:], over_http(server, model=BASELINE, count=5, seed=7))


def test_k_of_the_second_setting_is_checked(client):
    with pytest.raises(Exception, match="maximum|from 1 to 8"):
        ask(client, "/draw", more=(True, ML, 9))


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ((ML, None, 7, 5, 3, False, 3, 2), None),
        ((ML, None, 2**53 - 1, 64, 3, True, 5, 0), (ML, 1)),
        ((L0, None, 0, 1, 300, False, 1, 0), (BASELINE, 1)),
        ((CONDITIONAL, CAT, 1, 16, 8, False, 8, 15), (CONDITIONAL, 2)),
        ((BASELINE, None, 1, 16, 1, False, 1, 3), (L0, 17)),
    ],
    ids=str,
)
def test_a_link_opens_the_settings_that_it_was_made_of(models, settings, other):
    page_handlers = sample.Handlers(open_models(models)[0])
    shown = page_handlers._choice(*settings)
    sides = [shown] if other is None else [shown, page_handlers._other(shown, *other)]
    opened = page_handlers.open(choice.link_to(sides))
    assert len(opened) == sample.OPENED
    value = [part.get("value") if isinstance(part, dict) else part for part in opened]
    name, _, label, k_1, apart, k_2, *_, seed, count, index, compare, second, k_other, _ = value
    again = page_handlers._choice(name, label, seed, count, k_1, apart, k_2, index)
    assert again == shown and compare == (other is not None)
    if other:
        assert page_handlers._other(again, second, k_other) == sides[1]


@pytest.mark.parametrize(
    "anchor",
    ["", "#sample", "#restore=1", None, 7, "#sample&seed=3", "#sample&model=<b>", "#sample&model=dcgan-8.ml&k=x",
     "#sample&model=dcgan-8.ml&k=9", "#sample&model=dcgan-8.ml&count=65", "#sample&model=dcgan-8.ml&seed=-1",
     "#sample&model=sagan-8.ml&with=no", "#sample&model=dcgan-8.ml&image=99"],
    ids=str,
)  # fmt: skip
def test_an_address_without_valid_settings_changes_nothing(models, anchor, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(gr, "Warning", warnings.append)
    opened = sample.Handlers(open_models(models)[0]).open(anchor)
    assert [part == gr.skip() for part in opened] == [True] * sample.OPENED
    assert bool(warnings) == ("model=" in str(anchor))


def test_an_address_is_read_as_a_browser_would():
    """The reference is URLSearchParams: + is a space, % sequences are UTF-8, a comma stays."""
    assert (
        link.fragment("sample", {"model": "a b&c", "k": "8,16", "class": None})
        == "#sample&model=a+b%26c&k=8,16"
    )
    assert link.read("#sample&model=a+b%26c&k=8,16") == {"sample": "", "model": "a b&c", "k": "8,16"}
    assert link.read("#restore=0123") == {"restore": "0123"}


def served(models, name: str, **config) -> object:
    return replace(models[name], name=config.pop("called", name), config=models[name].config | config)


def test_the_best_models_are_first_and_grouped_by_network(models):
    opened, _ = open_models(models)
    measured = {"metric": "fd-efficientnet-lite0", "data": "cifar10", "count": 10_000}
    distances = {ML: 30.0, L0: 50.0, CONDITIONAL: 40.0}
    ranked = {
        name: served(
            opened, name, evaluation=measured | {"distance": distances[name]} if name in distances else {}
        )
        for name in opened
    }
    assert [[model.name for model in alike] for alike in catalog.networks(ranked)] == [
        [ML, L0, BASELINE],
        [CONDITIONAL],
    ]
    html = catalog.listing(ranked, L0)
    assert re.findall(r'data-model="([^"]*)" aria-pressed="([^"]*)"', html) == [
        (ML, "false"), (L0, "true"), (BASELINE, "false"), (CONDITIONAL, "false")
    ]  # fmt: skip
    assert "distance 50 (real test images: 22.4)" in html


def test_the_distance_of_real_images_is_that_of_the_record():
    (record,) = (
        record
        for line in (Path(__file__).parent.parent / "benchmarks/records/k_sweep.jsonl")
        .read_text()
        .splitlines()
        if (record := json.loads(line))["model"] == "real images"
    )
    assert {(record["metric"], "cifar10", record["count"]): round(record["distance"], 1)} == catalog.REAL


def test_a_description_names_architecture_regularizer_images_and_length(models):
    opened, _ = open_models(models)
    trained = served(opened, ML, training={"data": "cifar10", "steps": 2000, "start_from": "dcgan.ml"})
    assert catalog.description(trained) == (
        "DCGAN, 2 of 8 entries kept per needle of Γ1 and Γ2, CIFAR-10, 2,000 training steps from dcgan.ml"
    )
    private = served(opened, L0, training={"data": "/home/someone/pictures", "steps": 5}, architecture="mine")
    assert catalog.description(private) == (
        "mine, 512 of 2,048 entries kept per code of Γ1, pictures, 5 training steps"
    )
    assert "codes without a constraint" in catalog.description(opened[BASELINE])


def test_every_bundled_architecture_has_a_description():
    for name in bundled.list_models():
        assert open_model(bundled.MODELS / name).config["architecture"] in catalog.ARCHITECTURES


def test_a_strip_shows_the_first_images_of_seed_0(models, server):
    opened, _ = open_models(models)
    encoded = catalog.strip(opened[ML].sampler).partition("base64,")[2]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")).astype(int)
    expected = np.concatenate(over_http(server, model=ML, count=catalog.STRIP), axis=1)
    assert shown.shape == expected.shape and np.abs(shown - expected).mean() < 12  # lossy


def test_previews_of_links_show_this_page_and_nothing_of_gradio(server):
    page = server.ask("GET", "/ui/")[2].decode().partition("<script>window.gradio_config")[0]
    tags = dict(
        re.findall(r'<meta (?:property|name)="((?:og|twitter):[^"]*|description)"\s+content="([^"]*)"', page)
    )
    assert tags["og:title"] == "sparsegen" and tags["og:description"] == tags["description"]
    assert tags["og:url"] == f"{server.url}/ui/" and "Gradio" not in str(tags) and "github" not in str(tags)
    status, kind, content = server.ask("GET", tags["og:image"].removeprefix(server.url))
    assert (status, kind) == (200, "image/png") and Image.open(io.BytesIO(content)).width > 1000


def test_the_name_of_a_class_is_text_wherever_it_is_shown() -> None:
    """A model on the Hub may have any names."""
    name, found = '"><script>alert(1)</script>', []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attributes)))

    pixels, code = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 2), np.float32)
    Parser().feed(markup.tiles(pixels[None], 0, [name]) + markup.inside(pixels, [code], [], [], name, name))
    tags = {tag for tag, _ in found}
    assert not tags & {"script", "style", "iframe"} and {"img", "button", "a"} <= tags
    alternatives = [about["alt"] for tag, about in found if tag == "img"]
    assert alternatives[:2] == [f"Image 0 {name}", f"The image {name}"]
    assert all(about["src"].startswith("data:image/png;base64,") for tag, about in found if tag == "img")
