"""Variational autoencoders with a diagonal Gaussian: the ELBO, with what keeps it from collapsing or from drowning.

The loss is -ELBO at beta 1: reconstruction summed over the picture plus KL summed over dimensions, both means over
photos (Kingma and Welling 2013, arXiv 1312.6114). As a linear model shows, a dimension is used where the variance it
would explain is more than beta times the decoder's variance (Lucas et al. 2019, arXiv 1911.02469).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ..losses import RunningMean, kl_to_standard_normal, kl_with_free_bits, reparameterise
from ..losses.precision import widened
from .base import Batch, Latents, Losses, Model, Step
from .bottleneck import Bottleneck, BottleneckConfig, still


class GaussianConfig(BottleneckConfig):
    """beta: weight of the KL in nats (Higgins et al. 2017). image_weight: weight of the reconstruction.

    kl_warmup: share of all steps over which the KL's weight rises from 0 to beta. free_bits: nats a dimension that cost
    nothing, by the mean over the batch of all workers (Kingma et al. 2016, arXiv 1606.04934). log_var_limit:
    log-variances are clamped to [-limit, limit]. rebalance: both terms are weighted with 1 - their share in the sum of
    their running means, on top of image_weight and beta; seed 001's `do_running_mean`, of no use there.
    """

    beta: float = Field(1.0, ge=0)
    image_weight: float = Field(1.0, ge=0)
    kl_warmup: float = Field(0.0, ge=0, le=1)
    free_bits: float = Field(0.0, ge=0)
    log_var_limit: float = Field(8.0, gt=0)
    rebalance: bool = False

    def beta_at(self, step: Step) -> float:
        """Return the KL's weight at a step: a straight line from 0, which reaches beta after the warm-up."""
        rising = self.kl_warmup * step.total
        return self.beta if step.number >= rising else self.beta * step.number / rising


class GaussianModel(Bottleneck):
    """q(z|x) = N(mean, exp(log_var)), p(z) = N(0, I), p(x|z) by the target."""

    has_log_var = True

    def __init__(
        self, config: GaussianConfig, image_size: int, held: Sequence[Model] = (), *, condition_dim: int = 0
    ) -> None:
        super().__init__(config, image_size, held, heads=2, condition_dim=condition_dim)
        self.gaussian = config
        self.balance = RunningMean(("reconstruction", "kl")) if config.rebalance else None
        with torch.no_grad():  # q(z|x) starts with variance 1, so that the first KL is small and no exp is large
            self.to_latents.weight[config.latent_dim :].zero_()

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return reconstruction + beta * KL; the target's parts and `kl` in nats, means over photos.

        In evaluation mode the KL has its full weight, so that the totals of two epochs can be compared.
        """
        inputs = self.front.inputs(batch)
        embedding = self.embedding(self.dropped(batch.condition), inputs.shape[0])
        mean, log_var = gaussian_of(self._heads(self._features(inputs), embedding), self.gaussian.log_var_limit)
        error, parts = self._loss(self._outputs(reparameterise(mean, log_var), embedding), batch, inputs)
        kl = kl_to_standard_normal(mean, log_var)
        paid = kl
        if self.gaussian.free_bits > 0:
            paid = kl_with_free_bits(mean, log_var, self.gaussian.free_bits, over_ranks=self.training)
        image_weight, kl_weight = self._weights(error, kl, step)
        total = image_weight * error + kl_weight * paid
        return Losses(total, {**parts, "kl": kl.detach()})

    def _encoded(self, inputs: Tensor, condition: Tensor | None) -> Latents:
        with still(self.encoder):
            features = self._features(inputs)
        embedding = self.embedding(condition, inputs.shape[0])
        return Latents(*gaussian_of(self._heads(features, embedding), self.gaussian.log_var_limit))

    def after_step(self) -> None:
        """Move the running means of the rebalancing; every rank must call it."""
        if self.balance is not None:
            self.balance.update()

    def dropped(self, condition: Tensor | None) -> Tensor | None:
        """Return the conditions that a training step tells, int64 [B]."""
        return condition

    def _weights(self, error: Tensor, kl: Tensor, step: Step) -> tuple[float | Tensor, float | Tensor]:
        """Return what multiplies the reconstruction and the KL at this step."""
        image_weight = self.gaussian.image_weight
        kl_weight = self.gaussian.beta_at(step) if self.training else self.gaussian.beta
        if self.balance is None:
            return image_weight, kl_weight
        if self.training:
            self.balance.note({"reconstruction": error.detach(), "kl": kl.detach()})
        shares = self.balance.weights()
        return image_weight * shares["reconstruction"], kl_weight * shares["kl"]


def gaussian_of(heads: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance, clamped to [-limit, limit], float32 [B, d] each, of heads [B, 2 d]."""
    mean, log_var = widened(heads).chunk(2, dim=1)
    return mean, log_var.clamp(-limit, limit)
