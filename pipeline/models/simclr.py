"""SimCLR (Chen et al. 2020, arXiv 2002.05709): each view has to find its other view among all views of the batch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..losses import nt_xent, sup_con
from .base import Batch, Losses, Step
from .conditions import FIRST_CATEGORY
from .two_views import TwoViews, TwoViewsConfig, check_views


class SimCLRConfig(TwoViewsConfig):
    """See TwoViewsConfig for the fields. The more photos a batch has, over all workers, the more there is to learn."""

    kind: Literal["simclr"] = "simclr"


class SimCLR(TwoViews):
    """Backbone and projector under NT-Xent over the photos of all ranks; supervised, by their categories."""

    takes_categories: ClassVar[bool] = True

    def __init__(self, config: SimCLRConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.config = config

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return NT-Xent of two views of each photo, uint8 [2 B, 3, H, W]; in evaluation mode among the rank's own.

        Supervised, `sup_con` of them and the batch's categories; a photo of none, or of an unknown one, stands alone. A
        mean over views, but of how many photos a view is told from depends the loss too. Raises InputError.
        """
        check_views(batch.images)
        rows = self._projected(batch.images, self.network, self.projector)
        if self.training:
            self.spread.note(rows)
        first, second = rows.chunk(2)
        if self.supervised and batch.condition is not None:
            groups = batch.condition - FIRST_CATEGORY
            return Losses(sup_con(first, second, groups, self.config.temperature, over_ranks=self.training))
        return Losses(nt_xent(first, second, self.config.temperature, over_ranks=self.training))
