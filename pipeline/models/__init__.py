"""Models: photos to latents and back. The table of kinds, the union of their configurations, bundles on the store.

To add a model: its file, one line and one member in `kinds.py`, presets and a golden file.
"""

from .base import Batch, Latents, Losses, Model, ModelConfig, Step
from .bundle import Bundle, bundle_files, find_bundle, load_bundle, save_bundle, train_key
from .kinds import MODELS, AnyModelConfig, build_model

__all__ = [
    "MODELS",
    "AnyModelConfig",
    "Batch",
    "Bundle",
    "Latents",
    "Losses",
    "Model",
    "ModelConfig",
    "Step",
    "build_model",
    "bundle_files",
    "find_bundle",
    "load_bundle",
    "save_bundle",
    "train_key",
]
