"""The library: catalogue photos to latents, indexes and immutable releases."""
