"""What `doctor` asks of a catalogue: is its first file there, and does it have the columns that the config names?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError
from ..findings import Finding
from ..storage import StorageOptions
from .allowed import catalogue_files
from .columns import choose_columns
from .config import CatalogueConfig
from .first_rows import read_sample


def probe_catalogue(section: Mapping[str, Any], options: StorageOptions | None) -> Iterator[Finding]:
    """Yield what is found of the first file that a config's section `catalogue` names.

    options: how the store is reached, as the catalogue is unless it says otherwise. Raises ConfigError for a wrong
    section, and what reading raises.
    """
    try:
        config = CatalogueConfig.model_validate(section)
    except ValidationError as error:
        problems = "; ".join(f"catalogue.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"not looked at, its section is wrong: {problems}") from error
    files = catalogue_files(config, options)
    sample = read_sample(config, files)
    what = f"{sample.format}, {sample.num_files:,} files" if sample.num_files > 1 else sample.format
    if sample.rows is None:
        yield Finding("ok", "catalogue", f"{sample.first}: {what}")
        return
    choose_columns(sample.rows.schema, config, sample.first)
    yield Finding("ok", "catalogue", f"{sample.first}: {what}, columns {', '.join(sample.rows.column_names)}")
