"""The release that a service answers from, and the poller that moves it to the channel's head."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import CodebooksError, ConfigError
from ..images.probe import probe_picture
from ..reader import Release, open_release
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

    def __init__(self, config: ServeConfig, counts: Counts) -> None:
        self._config, self._counts = config, counts
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
        self._counts.add("polls")
        try:
            opened = await loop.run_in_executor(self._looking, self._newer)
        except Exception as error:  # the service goes on with what it has, whatever a new release is like
            self._counts.add("poll_failures")
            self.problem = str(error) or type(error).__name__
            log.log(
                logging.ERROR if self.served else logging.WARNING,
                "no newer release was taken: %s",
                self.problem,
                exc_info=None if isinstance(error, CodebooksError) else error,
            )
            return
        self.problem = ""
        self._counts.set("last_poll_timestamp_seconds", time.time())
        if opened is None:
            return
        before, self.served = self.served, opened
        self._counts.add("swaps", 0 if before is None else 1)
        self._counts.name_release(opened.release.release_id, opened.release.model_id)
        log.info("serving release %s of model %s", opened.release.release_id, opened.release.model_id)

    def close(self) -> None:
        """Let go of the poller's thread."""
        self._looking.shutdown(wait=False, cancel_futures=True)

    def _newer(self) -> Served | None:
        """Return a newer release, open, checked and warm; None: there is none."""
        if self.served is None:
            release = open_release(
                self._config.store_url,
                channel=self._config.channel,
                release_id=self._config.release_id,
                expect_model=self._config.expect_model,
                options=self._config.storage,
            )
        else:
            release = copy.copy(self.served.release)  # the one that answers stays as it is
            if not release.refresh():
                return None
        return Served(release, _warmed(release))


def _warmed(release: Release) -> bool:
    """Ask a release once each way, so that no request is the first; return whether it can be asked by photo."""
    if len(release):
        release.warm()
    try:
        release.encode_photo(probe_picture())
    except (ImportError, CodebooksError) as error:
        needed = "pip install onnxruntime pillow" if isinstance(error, ImportError | ConfigError) else str(error)
        log.warning("release %s cannot be asked by photo: %s", release.release_id, needed)
        return False
    return True
