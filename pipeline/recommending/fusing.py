"""Customer -> items: the ranked lists of a customer's items, fused by reciprocal ranks as `similar_to_many` does it."""

from __future__ import annotations

import numpy as np

from ..index.fusion import RRF_K, reciprocal_ranks
from ..index.latents import Rows
from ..index.opened import OpenedRelease
from .answered import Answered, best, joined, near_best
from .baskets import Baskets, ranges_of
from .config import RecommendConfig
from .lists import NeighbourLists

_ENTRIES = (
    1 << 15
)  # of lists that are fused at a time: what stays in a processor's caches, three times as fast as 2 million


def offers(release: OpenedRelease, lists: NeighbourLists, baskets: Baskets, config: RecommendConfig) -> Answered:
    """Return for every customer the `top` items with the largest sum of share / (5 + rank); ties to the lower item.

    The ranks are those in each basket item's own list of `depth` items, out of which all that the customer has had is
    left before it is counted. again: nothing is left out, and an item is the first of its own list. Customers of whom
    the lists, so shortened, are not long enough are asked for one by one.
    """
    found: list[Answered] = []
    for first, last in ranges_of(baskets.starts, _ENTRIES // (lists.near.shape[1] + 1)):
        answers, short = _fused(lists, baskets, first, last, config)
        kept = ~np.isin(answers.who, short)
        apart = [_asked_apart(release, baskets, customer, config) for customer in short.tolist()]
        parts = [Answered(answers.who[kept], answers.what[kept], answers.scores[kept]), *apart]
        whole = joined(parts)
        order = np.argsort(whole.who, kind="stable")
        found.append(Answered(whole.who[order], whole.what[order], whole.scores[order]))
    return joined(found)


def _fused(
    lists: NeighbourLists, baskets: Baskets, first: int, last: int, config: RecommendConfig
) -> tuple[Answered, Rows]:
    """Return the answers to customers [first, last), and those of them whose lists were too short to be sure."""
    pairs = np.s_[baskets.starts[first] : baskets.starts[last]]
    items, shares = baskets.items[pairs], baskets.shares[pairs]
    owners = np.repeat(np.arange(first, last), np.diff(baskets.starts[first : last + 1]))
    near = lists.of(items)
    if config.again:
        near = np.concatenate([items[:, None], near], axis=1)
    keys = owners[:, None] * baskets.num_items + near
    wanted = near >= 0
    if not config.again:
        wanted &= ~baskets.holds(keys)
    ranks = np.cumsum(wanted, axis=1)
    short = np.empty(0, np.int64) if lists.whole else np.unique(owners[ranks[:, -1] < config.depth])
    used = wanted & (ranks <= config.depth)
    votes = np.broadcast_to(shares[:, None], near.shape)[used] / (RRF_K + ranks[used])
    named, places = np.unique(keys[used], return_inverse=True)
    sums = np.bincount(places, weights=votes, minlength=len(named)).astype(np.float64)
    who, what = np.divmod(named, max(1, baskets.num_items))
    kept = near_best(who, sums, config.top)
    return best(who[kept], what[kept], sums[kept], config.top), short


def _asked_apart(release: OpenedRelease, baskets: Baskets, customer: int, config: RecommendConfig) -> Answered:
    asking = np.s_[baskets.starts[customer] : baskets.starts[customer + 1]]
    items = baskets.items[asking]
    owners = np.repeat(np.arange(len(items)), release.items.groups.sizes[items])
    had = baskets.had_by(customer).tolist()
    answers = release.answers(release.vectors(items.tolist()), owners, config.depth, None, exclude=had)
    hits = reciprocal_ranks(answers, baskets.shares[asking], config.top)
    return Answered(np.full(len(hits.groups), customer), hits.groups, hits.scores)
