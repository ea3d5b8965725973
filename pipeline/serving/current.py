"""The release that a service answers from, and the poller that moves it to the channel's head."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import CodebooksError, ConfigError, NotFound
from ..images.probe import probe_picture
from ..reader import Release, open_release
from ..release import channel_names, read_manifest
from ..storage import open_store
from .config import ServeConfig
from .counting import Counts

log = logging.getLogger("uvicorn.error")  # the server's own log, so that there is one


@dataclass(frozen=True, slots=True)
class Served:
    """An open, checked and warm release. photos: whether its encoder could be opened."""

    release: Release
    photos: bool


class Current:
    """One reference to an open release, replaced whole.

    A request takes the reference once and is answered by that release, whatever is swapped meanwhile; the old one
    lives until the last of its requests has let go of it. `served` is None until the first one could be opened.
    """

    def __init__(self, config: ServeConfig, counts: Counts, *, beside: bool = False) -> None:
        """beside: follow what `config.beside` names, a channel or else a release; counted is then what fails, alone."""
        self._config, self._counts, self._beside = config, counts, beside
        self.served: Served | None = None
        self.problem = "the first release has not been opened yet"
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="poll")

    async def keep(self) -> None:
        """Look at the channel again and again, until this task is cancelled."""
        while True:
            await asyncio.sleep(self._config.poll_s)
            await self.look()

    async def look(self) -> None:
        """Look at the channel once, on a thread of its own; a look that fails is counted and logged, never raised."""
        loop = asyncio.get_running_loop()
        self.count_recall()
        self._counts.add("polls", 0 if self._beside else 1)
        try:
            opened = await loop.run_in_executor(self._looking, self._newer)
        except Exception as error:  # the service goes on with what it has, whatever a new release is like
            self._counts.add("poll_failures")
            self.problem = str(error) or type(error).__name__
            log.log(
                logging.ERROR if self.served else logging.WARNING,
                "no newer release was taken%s: %s",
                " to stand beside" if self._beside else "",
                self.problem,
                exc_info=None if isinstance(error, CodebooksError) else error,
            )
            return
        self.problem = ""
        if not self._beside:
            self._counts.set("last_poll_timestamp_seconds", time.time())
        if opened is None:
            return
        before, self.served = self.served, opened
        named = (opened.release.release_id, opened.release.model_id)
        if self._beside:
            log.info("release %s of model %s stands beside", *named)
            return
        self._counts.add("swaps", 0 if before is None else 1)
        self._counts.name_release(*named)
        self._counts.set("release_created_timestamp_seconds", opened.release.manifest.created.timestamp())
        log.info("serving release %s of model %s", *named)

    def count_recall(self) -> None:
        """Bring the counts of what `check_one_in` has seen up to date; on the event loop's thread, as all counting."""
        seen = None if self.served is None else self.served.release.recall_seen
        if seen is not None:
            for name in ("checked", "neighbours", "found", "skipped"):
                self._counts.set(f"recall_{name}", getattr(seen, name))

    def close(self) -> None:
        """Let go of the poller's thread."""
        self._looking.shutdown(wait=False, cancel_futures=True)

    def _newer(self) -> Served | None:
        """Return a newer release, open, checked and warm; None: there is none."""
        if self.served is None:
            channel, release_id = self._asked()
            release = open_release(
                self._config.store_url,
                channel=channel,
                release_id=release_id,
                expect_model=None if self._beside else self._config.expect_model,  # two models may well be compared
                options=self._config.storage,
                trusted_keys=self._config.trusted_keys,
                trusted_channel=bool(self._config.trusted_channel),
                check_one_in=None if self._beside else self._config.check_one_in,
            )
        else:
            release = copy.copy(self.served.release)  # the one that answers stays as it is
            if not release.refresh():
                return None
        return Served(release, _warmed(release, photos=not self._beside))

    def _asked(self) -> tuple[str, str | None]:
        """Return the channel to follow, and the release to open whatever the channel does."""
        name = self._config.beside
        if not self._beside or name is None:
            return self._config.channel, self._config.release_id
        store = open_store(self._config.store_url, self._config.storage)
        known = channel_names(store)
        if name in known:
            return name, None
        try:
            read_manifest(store, name)
        except NotFound as error:
            raise NotFound(
                f"--beside is {name!r}, which is neither a channel that has a release (there are: "
                f"{', '.join(known) or 'none'}) nor a release on {self._config.store_url}; `codebooks releases` "
                "lists them"
            ) from error
        return self._config.channel, name


def _warmed(release: Release, *, photos: bool = True) -> bool:
    """Ask a release once each way, so that no request is the first; return whether it can be asked by photo.

    photos: False for one that nobody will ask by photo, whose encoder is then not opened.
    """
    if len(release):
        release.warm()
    if not photos:
        return False
    try:
        release.encode_photo(probe_picture())
    except (ImportError, CodebooksError) as error:
        needed = "pip install onnxruntime pillow" if isinstance(error, ImportError | ConfigError) else str(error)
        log.warning("release %s cannot be asked by photo: %s", release.release_id, needed)
        return False
    return True
