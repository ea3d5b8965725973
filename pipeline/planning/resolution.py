"""What a night's model sees of a photo: the sizes that are decoded, and whether their pixels are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa

from ..encoding import Shard, build_shards
from ..errors import ConfigError
from ..images import ImagesConfig, transform_id
from ..index import FITTED, code_features
from ..models import MODELS, ModelConfig, build_model
from ..models.base import Model, stored_transforms
from ..models.bundle import resolved_config, stored_config
from ..models.codebooks import codebook_sizes
from ..storage import Store
from ..training import FIT_PHOTOS
from .asked import category_told
from .settings import NightSettings


def main_transforms(config: NightSettings, store: Store, model_id: str | None) -> tuple[ImagesConfig, ...]:
    """Return how photos become pixels for the model that a config asks for, by its own sizes and the config's limits.

    model_id: the bundle where there is one already; the models that it was made of may be gone. Raises NotFound,
    ConfigError where a model cannot be made of the bundles it names.
    """
    if not _is_made_of_others(config.model):
        return config.model.transforms(config.images)
    if model_id is not None:
        return tuple(each.under(config.images) for each in stored_transforms(stored_config(store, model_id)[1]))
    return _as_built(config, store, model_id).transforms(config.images)


def latent_bytes(config: NightSettings, store: Store, model_id: str | None) -> int:
    """Return how many bytes one photo's latents take, uncompressed. Arguments and errors as of `main_transforms`."""
    model = _model(config, store, model_id)
    return 4 * (model.latent_dim * (2 if model.has_log_var else 1) + model.num_latent_codes)


def check_metric(config: NightSettings, store: Store, model_id: str | None) -> None:
    """Raise ConfigError where `index` compares what the model does not yield. Arguments and errors as above."""
    needs = config.index.needs
    if config.index.metric in FITTED:
        compared_codes(config, store, model_id)
    if "log_var" in needs and not _model(config, store, model_id).has_log_var:
        asked = f"index.metric {config.index.metric}" + (
            "" if config.index.mask == "none" else f", mask {config.index.mask}"
        )
        raise ConfigError(
            f"{asked} compares variances, and a model of the kind {config.model.kind!r} yields means alone; take "
            "metric l2 or cosine with mask none, or a model with variances, such as vae or cvae"
        )


def check_tables(config: NightSettings, store: Store, model_id: str | None) -> None:
    """Raise ConfigError where `tables` asks for codes that the model does not yield. Arguments and errors as above."""
    asked = config.tables.codebook
    if asked is None:
        return
    sizes = codebook_sizes(_model(config, store, model_id))
    if not sizes:
        raise ConfigError(
            f"tables.codebook lists codes, and a model of the kind {config.model.kind!r} yields none; leave it out, or "
            "take a model with codes, such as vqvae"
        )
    if asked.groups is not None and asked.groups > min(sizes):
        raise ConfigError(
            f"tables.codebook.groups is {asked.groups}, and a codebook of this model has {min(sizes)} codes; give at "
            "most as many, or leave it out"
        )


def compared_codes(config: NightSettings, store: Store, model_id: str | None) -> int:
    """Return how many features of codes a photo has by `index.metric`; 0 where it compares none.

    Raises ConfigError for a model without codes, of too many, or of several codebooks that `codes` would mix, and as
    `main_transforms`.
    """
    metric = config.index.metric
    if metric not in FITTED:
        return 0
    model = _model(config, store, model_id)
    sizes = codebook_sizes(model)
    if not sizes:
        raise ConfigError(
            f"index.metric {metric} compares codes, and a model of the kind {config.model.kind!r} yields none; take "
            "metric cosine or l2, or a model with codes, such as vqvae"
        )
    if metric == "codes" and len(sizes) > 1:
        raise ConfigError(
            f"index.metric codes counts the codes of one codebook, and this model of the kind {config.model.kind!r} "
            f"has {len(sizes)}, whose equal numbers say unlike things; take metric codes_hamming or cosine"
        )
    return code_features(metric, model.num_latent_codes, max(sizes))


def latent_dim(config: NightSettings, store: Store, model_id: str | None) -> int:
    """Return how many numbers a photo's mean has. Arguments and errors as of `main_transforms`."""
    return _model(config, store, model_id).latent_dim


def stores_pixels(config: NightSettings, photos: int) -> bool:
    """Return whether a night stores the pixels of all its photos, beside those that its own training reads.

    By default (`images.keep`) where a model is trained on them, and on all of the catalogue's `photos`.
    """
    if config.images.keep == "auto":
        most = config.train.photos
        trained = MODELS[config.model.kind][1].trains and config.model.trains_on_pixels
        return trained and (most is None or photos <= most)
    return config.images.keep == "always"


def photos_to_learn_from(config: NightSettings, store: Store) -> int | None:
    """Return of how many photos the model that a config asks for needs pixels: None for all, 0 where it learns nothing.

    Raises as `main_transforms`.
    """
    if MODELS[config.model.kind][1].trains:
        return config.train.photos
    return FIT_PHOTOS if _model(config, store, None).fits else 0


def pixels_line(
    config: NightSettings,
    store: Store,
    *,
    fetched: int,
    model_id: str | None,
    photos: int | None = None,
    fetch_bytes: int = 0,
) -> str:
    """Return in words what a night stores of the photos it fetches, and what a later encoding of them then costs.

    model_id: the bundle that answers, None where one is made. photos: of the catalogue, None: those fetched.
    fetch_bytes: of those fetched, 0 where that is not known. Raises as `main_transforms`.
    """
    sides = [images.size for images in main_transforms(config, store, model_id)]
    each = sum(3 * side * side for side in sides)
    learnt = 0 if model_id is not None else photos_to_learn_from(config, store)
    stored = fetched if stores_pixels(config, photos or fetched) or learnt is None else min(fetched, learnt)
    line = (
        f"pixels: {' and '.join(map(str, sides))} a side, {each:,} bytes a photo; of {fetched:,} photos to fetch about "
        f"{stored:,} are stored (images.keep={config.images.keep}), {stored * each / 1e6:,.1f} MB before compression"
    )
    if stored == fetched:
        return f"{line}; another model of this size is encoded from them"
    again = fetched - stored
    size = f", about {fetch_bytes * again / fetched / 1e6:,.1f} MB" if fetch_bytes else ""
    return f"{line}; to encode them by another model {again:,} photos are fetched again{size}"


def shard_builder(
    config: NightSettings, store: Store, transforms: Sequence[ImagesConfig], model_id: str | None, *, stores: bool
) -> Callable[[pa.Table, str], list[Shard]]:
    """Return what makes shards of a plan's rows, (rows, retry_of), for the bundle of a model_id, or for pixels alone.

    transforms: as `main_transforms` returns them. The bundle may see photos in other sizes, as a teacher does; then
    carried photos are fetched for it. stores: whether pixels are stored where they are not yet.
    """
    folder = f"pixels/{transform_id(*transforms)}/"
    category, from_parts = None, True
    if model_id is not None:
        model, images = stored_config(store, model_id)
        category = category_told(config) if model.conditional else None
        held = {transform_id(each) for each in transforms}
        from_parts = held.issuperset(transform_id(each.under(config.images)) for each in stored_transforms(images))
    build = partial(
        build_shards,
        transform_id=transform_id(*transforms),
        model_id=model_id,
        precision=config.encode.precision,
        category=category,
        kept=None if stores else {entry.name for entry in store.list(folder)},
        from_parts=from_parts,
    )
    return lambda rows, retry_of: build(rows, retry_of=retry_of)


def _model(config: NightSettings, store: Store, model_id: str | None) -> Model:
    """Return the model that a config asks for, its weights those of any."""
    size = main_transforms(config, store, model_id)[0].size
    return build_model(_as_built(config, store, model_id), image_size=size)


def _as_built(config: NightSettings, store: Store, model_id: str | None) -> ModelConfig:
    if not _is_made_of_others(config.model) and config.model.file() is None:
        return config.model
    if model_id is not None:
        return stored_config(store, model_id)[0]
    return resolved_config(store, config.model, config.images.model_dump(mode="json"))


def _is_made_of_others(model: ModelConfig) -> bool:
    """Return whether what a model is like follows from bundles: its members, or its teacher."""
    return bool(model.bundles()) or model.taught_by() is not None
