"""What a release, a model or a prior is worth: measured, set side by side and shown."""
