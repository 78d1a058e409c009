"""Catalogues: what is shipped can be read, mistakes are named, a vocabulary tells what a model was taught."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import get_args

import pytest

from app.catalog.loader import FamilyName, NoiseScheduler, known_sets, load_catalog
from app.catalog.vocabulary import Vocabulary, read_vocabulary, unknown_words
from app.engine import noise_schedulers
from app.errors import InvalidConfiguration, UnknownModel

MODEL = """
default = "small"

[models.small]
label = "Small"
best_for = "Tests."
description = "A model for tests."
source = "someone/small"
family = "stable_diffusion"
licence = "MIT"

[models.small.defaults]
steps = 20
guidance_scale = 4
width = 64
height = 64
noise_scheduler = "ddim"

[models.small.limits]
sizes = [[64, 64], [96, 64]]
size_multiple = 8
min_size = 64
max_size = 128
max_pixels = 8192
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_shipped_set_can_be_read() -> None:
    catalog = load_catalog(known_sets())
    assert "builtin" in known_sets()
    assert load_catalog(["builtin"]).default.id == "builtin/compressibility"
    for entry in catalog.entries:
        assert entry.examples, entry.id
        assert catalog.resolve(entry.id) is entry


def test_the_builtin_model_is_called_what_it_is() -> None:
    entry = load_catalog(["builtin"]).resolve("base")
    assert entry.demonstration
    assert len(entry.examples) == 6
    assert entry.licence == "MIT"


def test_the_loader_knows_the_noise_schedulers_of_the_engine() -> None:
    """The catalogue may not import the engine; a failure means that the two lists have parted."""
    assert get_args(NoiseScheduler) == tuple(noise_schedulers.NAMES)


def test_the_loader_knows_the_families_that_there_are() -> None:
    for name in get_args(FamilyName):
        __import__(f"app.families.{name}")


def test_a_bare_name_means_the_first_listed_set_that_has_it(tmp_path: Path) -> None:
    one = write(tmp_path, MODEL, "one.toml")
    two = write(tmp_path, MODEL.replace('"Small"', '"Other"'), "two.toml")
    catalog = load_catalog([one, two])
    assert catalog.default.id == "one/small"
    assert catalog.resolve("small").id == "one/small"
    assert catalog.resolve("two/small").label == "Other"
    assert catalog.public_names() == ["small", "two/small"]
    with pytest.raises(UnknownModel, match="small, two/small"):
        catalog.resolve("large")


def test_a_folder_is_meant_from_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    path = write(tmp_path, MODEL.replace("someone/small", "./weights"))
    assert load_catalog([path]).default.folder == tmp_path / "weights"


def test_the_models_of_the_guide_are_listed_as_it_says() -> None:
    """Names, sources, default, guidance and steps are promises to people who come from the guide."""
    catalog = load_catalog(["ddpo", "turbo"])
    goals = ["aesthetic", "alignment", "compressibility", "incompressibility"]
    assert catalog.public_names() == [*goals, "sd-turbo"]
    assert catalog.default.id == "ddpo/compressibility"
    for goal in goals:
        entry = catalog.resolve(goal)
        assert entry.source == f"kvablack/ddpo-{goal}"
        assert entry.from_hub
        assert entry.allow_pickle
        defaults = entry.defaults
        assert (defaults.steps, defaults.guidance_scale, defaults.eta) == (20, 5.0, 1.0)
        assert (defaults.width, defaults.height, defaults.noise_scheduler) == (512, 512, "ddim")
    turbo = catalog.resolve("sd-turbo")
    assert (turbo.id, turbo.variant, turbo.limits.max_steps) == ("turbo/sd-turbo", "fp16", 50)
    assert (turbo.defaults.steps, turbo.defaults.guidance_scale) == (4, 0.0)
    assert turbo.defaults.noise_scheduler == "lcm"


def test_a_single_file_is_meant_from_the_catalogue_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    for config, folder in (("sd1", "configs/sd1"), ("sd2", "configs/sd2"), ("./layout", "layout")):
        given = f'"./one.safetensors"\nconfig = "{config}"'
        entry = load_catalog([write(tmp_path, MODEL.replace('"someone/small"', given))]).default
        assert entry.file == tmp_path / "one.safetensors"
        assert not entry.from_hub
        assert entry.config_folder is not None
        assert entry.config_folder.as_posix().endswith(folder)
        assert entry.config_folder.is_dir()


def test_the_example_of_the_documentation_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "catalogues.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE)
    example = next(block for block in blocks if "[models." in block)
    entry = load_catalog([write(tmp_path, textwrap.dedent(example))]).default
    assert (entry.id, entry.config) == ("mine/portrait", "sd1")


def test_options_of_a_model_are_read(tmp_path: Path) -> None:
    options = ("attention_slicing", "vae_slicing", "vae_tiling", "cpu_offload", "allow_pickle")
    lines = "".join(f"{name} = true\n" for name in options)
    plain = load_catalog([write(tmp_path, MODEL)]).default
    entry = load_catalog([write(tmp_path, MODEL.replace("licence =", f"{lines}licence ="))]).default
    for name in options:
        assert getattr(entry, name) is True
        assert getattr(plain, name) is False


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("licence =", "license =", r"model small: license: is not a known key"),
        ('label = "Small"\n', "", r"model small: label: is missing"),
        ('label = "Small"', "label = 7", r"model small: label: .*, not 7"),
        ('label = "Small"', 'label = "  "', r"model small: label: "),
        ("steps = 20", "steps = 20.5", r"model small: defaults\.steps: .*not 20\.5"),
        ("steps = 20", "steps = true", r"model small: defaults\.steps: "),
        ("steps = 20", "steps = 151", r"model small: defaults\.steps: "),
        ("guidance_scale = 4", "guidance_scale = nan", r"model small: defaults\.guidance_scale: "),
        ("guidance_scale = 4", "guidance_scale = 31", r"model small: defaults\.guidance_scale: .*30"),
        ('"ddim"', '"karras"', r"model small: defaults\.noise_scheduler: .*'karras'"),
        ('"stable_diffusion"', '"gan"', r"model small: family: .*'gan'"),
        ("[[64, 64], [96, 64]]", "[[96, 64], [64, 64]]", r"model small: limits\.sizes: the first"),
        ("[[64, 64], [96, 64]]", "[[64, 64], [100, 64]]", r"model small: limits\.sizes: 100 "),
        ("[[64, 64], [96, 64]]", "[[64, 64], [128, 128]]", r"model small: limits\.sizes: 128 by 128"),
        ("[[64, 64], [96, 64]]", "[[64]]", r"model small: limits\.sizes"),
        ("min_size = 64", "min_size = 136", r"model small: limits\.min_size: "),
        ('default = "small"', 'default = "large"', r"default: there is no model 'large'"),
        ('default = "small"', 'default = "small"\nextra = 1', r"extra: is not a known key"),
        ("models.small", 'models."../x"', r"model \.\./x: a name has"),
        ("default =", "default", r"is not TOML: .*line 2"),
        ("licence =", 'allow_pickle = "yes"\nlicence =', r"model small: allow_pickle: .*'yes'"),
        ("licence =", 'variant = "bf16"\nlicence =', r"model small: variant: .*'bf16'"),
        ("licence =", "vae_tiling = 1\nlicence =", r"model small: vae_tiling: .*not 1"),
        ("licence =", "cpu_ofload = true\nlicence =", r"model small: cpu_ofload: is not a known key"),
        ("licence =", 'config = "sd1"\nlicence =', r"model small: config: is for single \.safetensors files"),
        ("licence =", 'revision = "../x"\nlicence =', r"model small: revision: is no name .*'\.\./x'"),
        ("someone/small", "./one.safetensors", r"model small: config: is missing: .*'sd1' or 'sd2'"),
        ("someone/small", "one.safetensors", r"model small: source: a file's path begins with"),
        ("someone/small", "/models/one.SAFETENSORS", r"model small: source: of single files only"),
        ("someone/small", "./one.ckpt", r"model small: source: of single files only"),
        ("someone/small", "a/b/c", r"model small: source: is neither a hub id"),
        ("someone/small", "./a\\u0000b", r"model small: source: "),
        (
            '"someone/small"',
            '"./one.safetensors"\nconfig = "sd3"',
            r"model small: config: is neither 'sd1' or 'sd2' nor a path",
        ),
    ],
)
def test_a_mistake_is_named_with_file_model_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MODEL
    path = write(tmp_path, MODEL.replace(old, new))
    with pytest.raises(InvalidConfiguration) as caught:
        load_catalog([path])
    assert re.search(message, caught.value.message), caught.value.message
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message


def test_sets_that_are_not_there_or_listed_twice_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL)
    with pytest.raises(InvalidConfiguration, match="known sets are builtin"):
        load_catalog(["build-in"])
    with pytest.raises(InvalidConfiguration, match="unknown set"):
        load_catalog(["../catalog/builtin"])
    with pytest.raises(InvalidConfiguration, match="cannot be read"):
        load_catalog([str(tmp_path / "gone.toml")])
    with pytest.raises(InvalidConfiguration, match="listed twice"):
        load_catalog([path, path])
    with pytest.raises(InvalidConfiguration, match="at least one"):
        load_catalog([])
    with pytest.raises(InvalidConfiguration, match="needs a name"):
        load_catalog([write(tmp_path, MODEL, "My Set.toml")])
    (tmp_path / "latin.toml").write_bytes(b'default = "\xe9"')
    with pytest.raises(InvalidConfiguration, match="is not TOML"):
        load_catalog([str(tmp_path / "latin.toml")])


TAUGHT = Vocabulary(
    "cat", "ice cream", "t-rex", "cherry", "knife", "grapes", "fire truck", "red", "in the middle"
)


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("A cat in the middle", ()),
        ("two Cats, a FIRE-truck; (the cat's grape)!", ()),
        ("cherries, knives and T-REX", ()),
        ("a hat on a cat’s couch, a hat", ("hat", "couch")),
        ("don't we'll 3 1024 ... --- '", ()),
        ("4k, trending", ("4k", "trending")),
        ("ＣＡＴ", ()),
        ("नमस्ते 猫が好き 🦊", ("नमस्ते", "猫が好き")),
        ("Zoë's café", ("Zoë's", "café")),
        ("", ()),
    ],
)
def test_words_that_were_not_taught(prompt: str, unknown: tuple[str, ...]) -> None:
    assert TAUGHT.unknown_words(prompt) == unknown


def test_the_list_of_unknown_words_is_short() -> None:
    words = TAUGHT.unknown_words(" ".join(f"{letter * 60}" for letter in "bcdfghjklmnp"))
    assert len(words) == 8
    assert words[0] == "b" * 40


def test_a_model_without_a_vocabulary_knows_everything(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path).unknown_words("anything goes") == ()
    entry = load_catalog([write(tmp_path, MODEL)]).default
    assert unknown_words(entry, "anything goes") == ()


@pytest.mark.parametrize("content", ["{", "[]", "7", '{"nouns": 7}', "\ud800"])
def test_a_broken_vocabulary_stops_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "vocabulary.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert read_vocabulary(tmp_path).unknown_words("anything goes") == ()


def test_a_vocabulary_is_read_with_its_synonyms(tmp_path: Path) -> None:
    content = {"nouns": {"dog": ["puppy"]}, "color_synonyms": {"gray": ["grey"]}, "places": ["at the top"]}
    (tmp_path / "vocabulary.json").write_text(json.dumps(content))
    assert read_vocabulary(tmp_path).unknown_words("a grey puppy at the top of a house") == ("house",)
