"""Pretrained networks: which are known, the test picture that checks one, and their files turned into others."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from jobs.command import Arguments, Outcome
from jobs.options import option, takes
from pipeline.errors import ConfigError
from pipeline.images.probe import probe_picture
from pipeline.models.converting import asked_network, converted, file_of_package
from pipeline.models.examining import probe_vector
from pipeline.models.foreign.recipes import RECIPES
from pipeline.models.pretrained import Pretrained, PretrainedConfig
from pipeline.settings.sources import merge, override_source
from pipeline.storage import Files
from pipeline.storage.new_files import open_new

_ACTIONS = "recipes: list the known networks; convert: turn a file into .onnx or .safetensors; picture: write the test "
_ACTIONS += "picture; vector: write what a network says of it (.npy)"


add_arguments = takes(
    option("action", choices=("recipes", "convert", "picture", "vector"), help=_ACTIONS),
    option("output", nargs="?", metavar="FILE", help="what to write; no file is overwritten"),
    option("--recipe", metavar="NAME", help="a known network; of others see model.* below"),
    option("--weights", metavar="PATH|URI", help="the file of weights"),
    option("--package", metavar="NAME", help="an installed package that holds the file of weights"),
)


def run(arguments: Arguments) -> Outcome:
    """Do one of the actions; `key=value` are fields of the model section, as `preprocessing.size=224`."""
    options = arguments.options
    if options.action == "recipes":
        return _listed()
    if not options.output:
        raise ConfigError(f"name the file to write: codebooks pretrained {options.action} FILE")
    if options.action == "picture":
        return _written(options.output, probe_picture(), "the picture; encode it with the network's own library")
    config = _config(arguments).described(Files())
    data = Files().read(config.weights)
    if options.action == "convert":
        made = converted(config, data, options.output)
        section = yaml.safe_dump({"model": dict(made.section)}, sort_keys=False).rstrip()
        return _written(options.output, made.data, f"a config reads it by:\n{section}", model=dict(made.section))
    model = Pretrained(config, 224)
    model.use_file(data, config.weights)
    path = options.output if options.output.endswith(".npy") else f"{options.output}.npy"
    with open_new(path) as file:
        np.save(file, probe_vector(model))
    return Outcome(reason="written", details={"file": path}, text=f"wrote {path}")


def _config(arguments: Arguments) -> PretrainedConfig:
    options = arguments.options
    values: dict[str, Any] = merge([override_source(text) for text in arguments.overrides]).values
    values = values.get("model", values) | {"kind": "pretrained"}
    weights = file_of_package(options.package) if options.package else options.weights
    values |= {name: value for name, value in (("recipe", options.recipe), ("weights", weights)) if value}
    return asked_network(values)


def _listed() -> Outcome:
    lines = [f"{name:<20}{row.source:<13}{row.licence:<16}{row.file}" for name, row in RECIPES.items()]
    return Outcome(reason="listed", details={"recipes": list(RECIPES)}, text="\n".join(lines))


def _written(output: str, data: bytes, what: str, **details: Any) -> Outcome:
    with open_new(output) as file:
        file.write(data)
    return Outcome(reason="written", details={"file": output, **details}, text=f"wrote {output}: {what}")
