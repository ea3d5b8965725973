"""The config: sources merged in order, wrong names refused with their place, errors in plain words."""

from __future__ import annotations

import importlib
import math
import pkgutil
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jobs.__main__ import main
from jobs.command import Arguments
from jobs.config import Config, config_values, load_config
from jobs.pipeline_run import config_text
from jobs.place import LightConfig, load_light
from jobs.sources import PRESETS, preset_names, read_sources
from pipeline.errors import ConfigError
from pipeline.models import MODELS
from pipeline.models.priors import PRIORS
from pipeline.models.priors.transformer import TransformerConfig
from pipeline.planning.freezing import How
from pipeline.planning.prior_section import AnyPriorSection, network_of
from pipeline.settings import Merged, Source, check_and_build, merge
from pipeline.training import PriorTrainConfig

SMALLEST = """\
store: s3://shop/visual
catalogue: {source: s3://shop/catalogue.parquet, item_id: item_id, image: image, category: category}
model: {kind: vae}
"""


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sphere(Strict):
    kind: Literal["sphere"]
    size: int = 1
    radius: float = Field(default=1.0, gt=0)


class Cube(Strict):
    kind: Literal["cube"]
    size: int = 1
    edge: float = 1.0


class Older(Strict):
    older_than: str

    @field_validator("older_than")
    @classmethod
    def _days(cls, text: str) -> str:
        if not text.endswith("d"):
            raise ValueError(f"{text!r} is no number of days, write 30d")
        return text


class Paint(Strict):
    colour: Literal["red", "green"] = "red"
    coats: int = 2
    again: Literal["never"] | Older = "never"
    brushes: tuple[str, ...] = ()


class Toy(Strict):
    shape: Annotated[Sphere | Cube, Field(discriminator="kind")]
    paint: Paint = Paint()
    lid: Annotated[Sphere | Cube, Field(discriminator="kind")] = Cube(kind="cube", edge=3)
    name: str = "toy"


def build(*values: dict[str, Any], weak_first: bool = False) -> Toy:
    sources = [Source(f"source {n}", dict(value), weak=weak_first and n == 0) for n, value in enumerate(values)]
    return check_and_build(merge(sources), Toy)


def refusal(*values: dict[str, Any], weak_first: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        build(*values, weak_first=weak_first)
    assert caught.value.exit_code == 2
    return str(caught.value)


def given(tmp_path: Path, text: str = SMALLEST, *overrides: str, **environment: str) -> Config:
    path = tmp_path / "night.yaml"
    path.write_text(text)
    return load_config(Arguments(config=str(path), overrides=overrides), environment)


def refused(tmp_path: Path, text: str = SMALLEST, *overrides: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        given(tmp_path, text, *overrides, **environment)
    return str(caught.value)


def test_the_smallest_file_of_the_design_is_enough(tmp_path: Path) -> None:
    config = given(tmp_path)
    assert config.store.url == "s3://shop/visual"
    assert config.catalogue.category == "category"
    assert config.model.kind == "vae"
    assert config.publish.channel == "stable"
    assert Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_every_section_of_the_design_is_there_and_light_knows_them_all() -> None:
    sections = {
        "store", "catalogue", "images", "model", "train", "prior", "encode", "index", "gates", "publish", "cluster",
        "choose", "monitor", "tables", "semantic_ids", "measures",
    }  # fmt: skip
    assert set(Config.model_fields) == sections
    assert set(LightConfig.model_fields) == sections


def test_later_sources_win(tmp_path: Path) -> None:
    text = SMALLEST + "train: {epochs: 1, batch_size: 8}\nindex: {k: 5}\n"
    config = given(tmp_path, text, "train.epochs=3", CODEBOOKS__TRAIN__EPOCHS="2", CODEBOOKS__TRAIN__BATCH_SIZE="16")
    assert (config.train.epochs, config.train.batch_size, config.index.k) == (3, 16, 5)
    assert given(tmp_path, text, "train.epochs=3", "train.epochs=4").train.epochs == 4


def test_a_file_may_be_based_on_a_preset(tmp_path: Path) -> None:
    preset = yaml.safe_load((PRESETS / "demo.yaml").read_text())
    config = given(tmp_path, "preset: demo\nstore: /s\ncatalogue: {source: /c.csv}\ntrain: {epochs: 77}\n")
    assert config.train.epochs == 77
    assert config.train.batch_size == preset["train"]["batch_size"]
    assert config.catalogue.category == preset["catalogue"]["category"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name: str) -> None:
    config = load_config(Arguments(config=name, overrides=("store=/s", "catalogue.source=/c.parquet")), {})
    assert config.catalogue.source == "/c.parquet"


def test_a_store_may_be_a_text_or_a_section(tmp_path: Path) -> None:
    config = given(tmp_path, SMALLEST, "store.endpoint=http://127.0.0.1:9000", CODEBOOKS__STORE__REGION="eu-west-1")
    assert config.store.url == "s3://shop/visual"
    assert config.store.options().endpoint == "http://127.0.0.1:9000"
    assert config.store.options().region == "eu-west-1"
    assert given(tmp_path, SMALLEST, "store.profile=shop", "store=s3://other/x").store.url == "s3://other/x"


def test_relative_paths_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = given(tmp_path, "store: out\ncatalogue: {source: data/table.csv}\nmodel: {kind: vae}\n")
    assert config.store.url == str(tmp_path / "out")
    assert config.catalogue.source == str(tmp_path / "data/table.csv")
    home = given(tmp_path, SMALLEST, "store=~/visual").store.url
    assert home == str(Path.home() / "visual")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1.5", 1.5), ("true", True), ("null", None), ("[a, b]", ["a", "b"]), ("{a: 1}", {"a": 1}),
     ("text", "text"), ("'1'", "1"), ("a=b", "a=b"), ("s3://b/k", "s3://b/k"), ("", None)],
)  # fmt: skip
def test_values_are_yaml(text: str, value: Any) -> None:
    [source] = read_sources(Arguments(overrides=(f"some.key={text}",)), {})
    assert source.values == {"some": {"key": value}}
    [source] = read_sources(Arguments(), {"CODEBOOKS__SOME__KEY": text, "OTHER": "x", "CODEBOOKS_ONE": "y"})
    assert source.values == {"some": {"key": value}}


def test_scientific_numbers_are_numbers(tmp_path: Path) -> None:
    assert given(tmp_path, SMALLEST, "train.learning_rate=1e-3").train.learning_rate == 0.001


def test_unknown_names_are_refused_in_every_source_with_the_near_spelling(tmp_path: Path) -> None:
    text = SMALLEST + "train:\n  epochs: 1\n  batchsize: 8\n"
    found = refused(tmp_path, text, "index.metrik=l2", CODEBOOKS__TRAIN__EPOCH="2")
    assert (
        f"train.batchsize: unknown name, from {tmp_path / 'night.yaml'} line 6; did you mean 'train.batch_size'?"
        in found
    )
    assert (
        "train.epoch: unknown name, from environment variable CODEBOOKS__TRAIN__EPOCH; did you mean 'train.epochs'?"
        in found
    )
    assert "index.metrik: unknown name, from argument 'index.metrik=l2'; did you mean 'index.metric'?" in found


def test_a_name_in_the_wrong_section_is_shown_the_right_one(tmp_path: Path) -> None:
    assert "did you mean 'train.epochs'?" in refused(tmp_path, SMALLEST, "model.epochs=3")
    assert "did you mean 'catalogue'?" in refused(tmp_path, "catalog: {source: x}\n" + SMALLEST)
    assert "allowed: catalogue, choose, cluster" in refused(tmp_path, SMALLEST, "zzz=3")


def test_an_unknown_name_inside_a_section_that_is_no_section(tmp_path: Path) -> None:
    assert "store.urls: unknown name" in refused(tmp_path, SMALLEST, "store.urls=x")
    assert "train.epochs: must be a valid integer, given" not in refused(tmp_path, SMALLEST, "train.epochs.x=1")


def test_wrong_values_say_key_problem_value_and_place(tmp_path: Path) -> None:
    text = SMALLEST + "train:\n  epochs: 0\n"
    found = refused(tmp_path, text, "images.fit=padd", "gates.min_recall=high")
    night = tmp_path / "night.yaml"
    assert f"train.epochs: must be greater than or equal to 1, given 0 ({night} line 5)" in found
    assert "images.fit: allowed: 'pad', 'crop' or 'stretch' (did you mean 'pad'?), given 'padd'" in found
    assert "gates.min_recall: must be a valid number" in found
    assert "given 'high' (argument 'gates.min_recall=high')" in found
    assert "pydantic" not in found


def test_missing_sections_and_kinds(tmp_path: Path) -> None:
    found = refused(tmp_path, "model: {latent_dim: 3}\n")
    assert "store: is missing" in found
    assert "catalogue: is missing" in found
    assert f"model.kind: is missing; allowed: {', '.join(map(repr, sorted(MODELS)))}" in found
    assert f"model.kind: is unknown; allowed: {', '.join(map(repr, sorted(MODELS)))}, given 'vea'" in refused(
        tmp_path, SMALLEST, "model.kind=vea"
    )


def test_unions_and_validators_in_plain_words() -> None:
    assert build({"shape": {"kind": "cube"}, "paint": {"again": {"older_than": "3d"}}}).paint.again == Older(
        older_than="3d"
    )
    found = refusal({"shape": {"kind": "cube"}}, {"paint": {"again": {"older_than": "3x"}}})
    assert "paint.again.older_than: '3x' is no number of days, write 30d, given '3x' (source 1)" in found
    found = refusal({"shape": {"kind": "cube"}, "paint": {"again": "always"}})
    assert "paint.again: allowed: 'never' or must be" in found
    assert "given 'always' (source 0)" in found
    assert "paint: must be a section of settings, given 3" in refusal({"shape": {"kind": "cube"}, "paint": 3})
    found = refusal({"shape": {"kind": "sphere", "radius": -1}})
    assert "shape.radius: must be greater than 0, given -1 (source 0)" in found
    assert "paint.brushes.1: must be a valid string, given 3" in refusal(
        {"shape": {"kind": "cube"}, "paint": {"brushes": ["a", 3]}}
    )


def test_a_section_that_two_kinds_have_may_hold_more_in_one(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(SMALLEST.replace("kind: vae", "kind: moco, read_out: {source: projector}"))
    assert load_config(Arguments(config=str(config)), {}).model.read_out.source == "projector"
    config.write_text(SMALLEST.replace("kind: vae", "kind: mae, read_out: {source: projector}"))
    with pytest.raises(ConfigError, match=r"model\.read_out\.source: is not there for this kind.*line 3"):
        load_config(Arguments(config=str(config)), {})
    config.write_text(SMALLEST.replace("kind: vae", "kind: mae, read_out: {pol: map}"))
    with pytest.raises(ConfigError, match=r"unknown name.*did you mean 'model.read_out.pool'"):
        load_config(Arguments(config=str(config)), {})


def test_a_section_with_a_default_kind_need_not_name_it() -> None:
    cube = {"shape": {"kind": "cube"}}
    assert build(cube).lid == Cube(kind="cube", edge=3)
    assert build(cube, {"lid": {"size": 5}}).lid == Cube(kind="cube", size=5)
    assert build(cube, {"lid": {"kind": "sphere", "radius": 2}}).lid == Sphere(kind="sphere", radius=2)
    found = refusal(cube, {"lid": {"radius": 2}})
    assert "lid.radius: only sphere has it, and lid.kind is 'cube' (the default); take it out of source 1" in found
    assert "shape.kind: is missing" in refusal({"shape": {"size": 5}})


def test_the_section_prior_is_a_network_and_its_training(tmp_path: Path) -> None:
    config = given(tmp_path).prior
    assert (config.kind, config.train) == ("transformer", PriorTrainConfig())
    assert given(tmp_path, SMALLEST, "prior.layers=2").prior.layers == 2
    config = given(tmp_path, SMALLEST, "prior.kind=transformer", "prior.heads=2", "prior.train.epochs=3").prior
    assert network_of(config) == TransformerConfig(heads=2)
    assert "train" not in network_of(config).model_dump()
    assert config.train.epochs == 3
    assert given(tmp_path, SMALLEST, "train.epochs=3").prior.train == PriorTrainConfig()
    found = refused(tmp_path, SMALLEST, "prior.train.epoch=3", "prior.depth=3")
    assert "prior.train.epoch: unknown name" in found
    assert "did you mean 'prior.train.epochs'?" in found
    assert "prior.depth: unknown name" in found
    found = refused(tmp_path, SMALLEST, "prior.kernel=5")
    assert "prior.kernel: only pixelcnn has it, and prior.kind is 'transformer' (the default)" in found
    assert "prior.kernel: kernel is 4; a window has its cell in the middle" in refused(
        tmp_path, SMALLEST, "prior.kind=pixelcnn", "prior.kernel=4"
    )
    assert "prior.kind: is unknown; allowed: 'pixelcnn', 'transformer', given 'lstm'" in refused(
        tmp_path, SMALLEST, "prior.kind=lstm"
    )


@pytest.mark.parametrize("setting", ["augment=light", "balance=true", f"init_from={'a' * 64}", "window_parts=2"])
def test_a_prior_s_training_refuses_what_is_about_pixels(tmp_path: Path, setting: str) -> None:
    found = refused(tmp_path, SMALLEST, f"prior.train.{setting}")
    assert f"prior.train: {setting.partition('=')[0]} is" in found
    assert "training a prior on codes has no use for it" in found


def test_every_kind_of_prior_has_a_section_of_its_own() -> None:
    members = {member.model_fields["kind"].default for member in get_args(get_args(AnyPriorSection)[0])}
    assert members == set(PRIORS)


def test_a_changed_prior_is_another_run_of_prior_and_the_same_refresh(tmp_path: Path) -> None:
    plain, other = given(tmp_path), given(tmp_path, SMALLEST, "prior.layers=2")
    assert config_text(plain, How()) == config_text(other, How())
    assert "prior" not in yaml.safe_load(config_text(plain, How()))
    assert config_text(plain, How()) != config_text(given(tmp_path, SMALLEST, "train.epochs=3"), How())
    told = given(tmp_path, SMALLEST, "monitor.webhook.url=https://hooks.example/x", "monitor.links=https://r.example")
    assert config_text(plain, How()) == config_text(told, How())


def test_lists_replace_and_sections_join() -> None:
    toy = build(
        {"shape": {"kind": "cube", "edge": 2}, "paint": {"brushes": ["a", "b"]}},
        {"shape": {"size": 3}, "paint": {"brushes": ["c"]}},
    )
    assert (toy.shape, toy.paint.brushes) == (Cube(kind="cube", edge=2, size=3), ("c",))


def test_a_plain_value_replaces_a_section_and_the_other_way_round() -> None:
    cube = {"kind": "cube"}
    older = {"again": {"older_than": "3d"}}
    assert build({"shape": cube, "paint": older}, {"paint": {"again": "never"}}).paint.again == "never"
    assert build({"shape": cube, "paint": {"again": "never"}}, {"paint": older}).paint.again == Older(older_than="3d")


def test_keys_of_another_kind_are_refused_unless_a_preset_set_them() -> None:
    first = {"shape": {"kind": "sphere", "radius": 3, "size": 7}}
    assert build(first, {"shape": {"kind": "cube"}}, weak_first=True).shape == Cube(kind="cube", size=7)
    found = refusal(first, {"shape": {"kind": "cube"}})
    assert "shape.radius: only sphere has it, and shape.kind is 'cube' (source 1); take it out of source 0" in found
    found = refusal(first, {"shape": {"kind": "cube", "radius": 2}}, weak_first=True)
    assert "take it out of source 1" in found


def test_the_caller_s_dicts_are_not_changed() -> None:
    first, second = {"shape": {"kind": "cube"}}, {"shape": {"size": 2}}
    merged: Merged = merge([Source("a", first), Source("b", second)])
    assert merged.values == {"shape": {"kind": "cube", "size": 2}}
    assert (first, second) == ({"shape": {"kind": "cube"}}, {"shape": {"size": 2}})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("store: [unclosed\nmodel: x", "is not YAML: line 2"),
        ("- a\n- b\n", "line 1 holds a list, expected settings"),
        ("just text", "holds a str"),
        ("a: 1\na: 2\n", "line 2: 'a' is there already in line 1"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "line 3: 'epochs' is there already in line 2"),
        ("preset: demmo\n", "line 1: there is no preset 'demmo'; did you mean 'demo'?"),
        ("\tstore: x", "is not YAML: line 1"),
    ],
)
def test_unreadable_files_name_the_line(tmp_path: Path, text: str, problem: str) -> None:
    found = refused(tmp_path, text)
    assert problem in found
    assert "night.yaml" in found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file .*codebooks init"):
        load_config(Arguments(config=str(tmp_path / "none.yaml")), {})
    with pytest.raises(ConfigError, match="neither a file nor a preset; did you mean 'demo'"):
        load_config(Arguments(config="dem"), {})
    (tmp_path / "latin.yaml").write_bytes(b"store: \xff\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Arguments(config=str(tmp_path / "latin.yaml")), {})


def test_an_empty_file_is_a_config_without_settings(tmp_path: Path) -> None:
    assert "store: is missing" in refused(tmp_path, "# nothing yet\n")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.epochs", "not of the form key.path=value"),
        ("=3", "no key path"),
        ("train..epochs=3", "no key path"),
        ("train.epochs={", "is not YAML"),
    ],
)
def test_bad_overrides(override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_sources(Arguments(overrides=(override,)), {})


def configs_of(package: str = "pipeline") -> list[type[BaseModel]]:
    """Return every config of ours that has numbers with fractions: all models but those that only say what was done."""
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, f"{package}."):
        importlib.import_module(module.name)
    todo, found = [BaseModel], set[type[BaseModel]]()
    while todo:
        members = [member for member in todo.pop().__subclasses__() if member not in found]
        found.update(members)
        todo += members
    ours = [config for config in found if config.__module__.startswith(f"{package}.")]
    return sorted((config for config in ours if config.__name__ not in SAID), key=lambda config: config.__qualname__)


SAID = {"PlanSummary", "Renewal", "Manifest"}  # measurements


def holding(annotation: Any, value: Any) -> Any:
    """Return a value of an annotation that is this number, or holds it; None where it has no room for one."""
    if annotation is float:
        return value
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (tuple, list):
        return [
            held for member in members if member is not ... and (held := holding(member, value)) is not None
        ] or None
    if origin is dict:
        held = holding(members[1], value)
        return None if held is None else {"a": held}
    return next((held for member in members if (held := holding(member, value)) is not None), None)


@pytest.mark.parametrize("text", [math.inf, -math.inf, math.nan, "inf", "nan", "-Infinity"])
def test_no_config_takes_a_number_that_is_none(text: Any) -> None:
    tried = 0
    for config in configs_of():
        for name, field in config.model_fields.items():
            value = holding(field.annotation, text)
            if value is None:
                continue
            tried += 1
            with pytest.raises(ValidationError) as caught:
                config.model_validate({name: value})
            wrong = [error for error in caught.value.errors() if error["loc"][0] == name]
            assert wrong, f"{config.__qualname__}.{name} takes {text}"
    assert tried > 60


def test_a_number_that_is_none_is_told_with_its_place(tmp_path: Path) -> None:
    found = refused(tmp_path, SMALLEST + "index:\n  memory_gib: .inf\n", "train.learning_rate=.nan", "model.beta='nan'")
    assert f"index.memory_gib: must be a finite number, given inf ({tmp_path / 'night.yaml'} line 5)" in found
    assert "train.learning_rate: must be a finite number, given nan (argument 'train.learning_rate=.nan')" in found
    assert "model.beta: must be a finite number, given 'nan'" in found


@pytest.mark.parametrize(
    "setting",
    [
        "store=''", "store.url=''", "store.endpoint=''", "store.region=''", "store.profile=''", "catalogue.item_id=''",
        "catalogue.image=''", "catalogue.category=''", "catalogue.version=''", "catalogue.encoding=''",
        "catalogue.attributes=['']", "catalogue.allowed_prefixes=['']", "publish.channel=''", "cluster.address=''",
        "train.split_by=''", "train.best_by=''", "train.init_from=''", "model.kind=''", "images.fit=''",
    ],
)  # fmt: skip
def test_an_empty_text_is_no_value(tmp_path: Path, setting: str) -> None:
    name = setting.partition("=")[0].replace("store", "store.url" if setting.startswith("store=") else "store")
    assert f"{name}: it is empty, from argument" in refused(tmp_path, SMALLEST, setting)


@pytest.mark.parametrize(
    "words",
    [
        "refresh --channel=", "refresh --run=", "refresh --config=", "plan --channel=", "releases --channel=",
        "similar a --release=", "similar --channel= a", "similar ''", "prior --category=", "init ''", "init x --store=",
        "init x --item-id=", "init x --output=", "evaluate --beside= --beside=a", "rollback ''", "search ''",
    ],
)  # fmt: skip
def test_an_empty_option_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(words)) == 2
    said = capsys.readouterr().err
    assert "empty text; give it a value, or leave it out" in said or "is no run name" in said


def test_light_commands_read_only_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODEBOOKS__STORE", raising=False)
    path = tmp_path / "night.yaml"
    path.write_text(SMALLEST + "publish: {channel: canary}\n")
    config = load_light(Arguments(config=str(path)))
    assert (config.store.url, config.publish.channel) == ("s3://shop/visual", "canary")
    monkeypatch.setenv("CODEBOOKS__STORE", "s3://other/place")
    assert load_light(Arguments()).store.url == "s3://other/place"
    with pytest.raises(ConfigError, match=r"did you mean 'publish\.channel'"):
        load_light(Arguments(overrides=("publish.chanel=x",)))
    with pytest.raises(ConfigError, match=r"publish\.channel: .*given 'A b'"):
        load_light(Arguments(overrides=("publish.channel=A b",)))


def test_arguments_with_defaults_yield_to_the_user() -> None:
    arguments = Arguments(overrides=("store=/mine",))
    assert arguments.with_overrides("store=/default", "a=1").overrides == ("store=/default", "a=1", "store=/mine")
    assert arguments.with_preset("demo").config == "demo"
    assert Arguments(config="mine.yaml").with_preset("demo").config == "mine.yaml"


def test_limits_are_stated_by_the_names_of_measures(tmp_path: Path) -> None:
    text = SMALLEST + "gates: {max_drop: {photo_recall: {limit: 0.02, by_category: true}}, max: {drift_auc: null}}\n"
    gates = given(tmp_path, text, "gates.promote.min.recall=0.9", "gates.min={photo_recall: 0.7}").gates
    assert gates.model_dump(mode="json", exclude_defaults=True) == {
        "max_drop": {"photo_recall": {"limit": 0.02, "by_category": True}}, "max": {"drift_auc": None},
        "min": {"photo_recall": 0.7}, "promote": {"min": {"recall": 0.9}},
    }  # fmt: skip
    assert "did you mean 'photo_recall'?" in refused(tmp_path, SMALLEST, "gates.min.photo_recal=0.7")
    assert "gates.max_drop.photo_recall" in refused(tmp_path, SMALLEST, "gates.max_drop.photo_recall=much")
    assert "gates.max_fall: unknown name" in refused(tmp_path, SMALLEST, "gates.max_fall.photo_recall=0.1")
    assert "another one" in refused(tmp_path, SMALLEST, "publish.canary=stable")
    assert "canary" not in config_values(given(tmp_path))["publish"]
