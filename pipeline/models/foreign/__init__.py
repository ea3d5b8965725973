"""Networks that others trained: their files, their preprocessing, and how they run inside of a model of ours."""
