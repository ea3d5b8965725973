"""What a night measures of a release without labels, one file each; `lines.LINES` is the table, one line a measure.

A line is left out by its name in `measures.without`. Shares are 0..1; `up`, `down`: which way is better; `-`: neither.
`[c]`: also a row by category, of up to 20 of the most frequent ones with 10 asked items or more. All but those marked
`n` have an interval of 95 %.

| line | measure | unit, better | what |
|---|---|---|---|
| photo_recall | photo_recall [c] | share, up | re-shot photos whose own item is among the first 10 of tonight's index |
| | photo_recall_at_1 [c] | share, up | and is the first |
| view_agreement | view_agreement [c] | share, up | views whose nearest view is that of the same photo |
| lidar | lidar | dimensions, up | n; effective rank of what tells photos apart beyond their views |
| reconstruction | reconstruction_mse [c] | 0..1 squared, down | mean squared error of a pixel's value |
| | reconstruction_worst, reconstruction_best | 0..1 squared, down | n; that of the worst and of the best category |
| likelihood | code_nats [c] | nats, down | -log p of a code of sampled photos by the bundle's newest prior |
| | code_nats_worst, code_nats_best | nats, down | n; that of the least likely and of the likeliest category |
| spread | effective_rank, unit_spread | dimensions, 1 is even; up | n; as `evaluation.spread`, of sampled items |
| hubness | hub_skew | -, down | n; skew of how often an item is among the 10 nearest of others |
| | hub_robin_hood | share, down | n; of list places that would have to move for all items to have equally many |
| | antihub_share [c] | share, down | items that are among nobody's 10 nearest |
| churn | neighbour_churn [c] | share, down | of the parent's 10 nearest of unchanged items that are others tonight |
| | neighbour_displaced | share, - | of these: a neighbour left, or a new or changed one came between |
| | neighbour_moved | share, 0 | pairs of unchanged items, neighbours then, whose score is another one; must be 0 |
| | neighbour_missed | share, down | of these: scores are as before; one of two approximate searches missed it |
| scores | score_q01, score_q50, score_q99 | score, - | quantiles of the score of an item's nearest other item |
| | score_q01_shift, score_q50_shift, score_q99_shift | score, 0 | n; tonight's less the parent's |
| near_duplicates | near_duplicate_share | share, down | items with another one nearer than 1 % of the way to any item |
| | largest_near_share | share, down | the largest group of such of all sampled items |
| identical | identical_share | share, down | items with a picture (same bytes) that is another item's too |
| | largest_identical_group | items, down | n; items that share one picture: a placeholder |
| | largest_identical_share | share, down | the same of all items |
| rekeyed | rekeyed_share | share, 0 | of pictures in both releases, those whose items are all others now |
| coverage | coverage [c] | share, up | of the catalogue's items, those with a usable photo |
| drift | drift_auc | share, 0.5 | how well added items are told from others of their categories |
| | drift_mmd, drift_mmd_p | -, 0 | n; unbiased squared MMD of the same and its permutation p-value |
| drift_changed | drift_changed_auc | share, 0.5 | the same of changed photos, before against after: a new camera |
| | drift_changed_mmd, drift_changed_mmd_p | -, 0 | n |
| code_use | code_perplexity | codes, up | n; of sampled photos' codes, mean over levels |
| | code_dead_share | share, down | n; of codes that none of these has |
| | drift_code_use, drift_code_use_p | bits 0..1, 0 | n; Jensen-Shannon of added and other photos' codes |
| category | category_knn, category_precision_at_10, category_map_at_r, category_ndcg_at_10, category_probe [c] |
| | | share, up | as `evaluation.category`; by category all but category_probe |

Each night: spread, hubness, scores, near_duplicates, identical, coverage. Where photos' pixels can be had:
photo_recall, view_agreement, lidar; with a decoder too: reconstruction. With a parent of the same bundle and metric
that has the role `asked_neighbours` (every release of this version): all of churn, and the shifts; with one of another
bundle, metric or weights of codes neighbour_churn alone. With a parent: rekeyed. With 50 added items or more:
drift, drift_code_use; with 50 changed photos or more: drift_changed. With codes: code_use,
and likelihood where `codebooks prior` has trained one of this bundle. With `catalogue.category`: category and [c].

What cannot be measured is left out, never a made-up number. All samples are the items with the lowest seeded hashes of
their ids: the same from night to night as far as they live, so that two nights are compared on the same items.
"""

from __future__ import annotations

from .config import MeasuresConfig

__all__ = ["MeasuresConfig"]
