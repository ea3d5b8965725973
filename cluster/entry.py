"""What a submitted job runs on the cluster: `python -m cluster.entry`, in the working folder that it brought."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.shipping import JOB_FILE, JobFile
from jobs.__main__ import main as run_command
from pipeline.process import settle
from pipeline.workers import PASSED


def main() -> int:
    """Run the command that was submitted, with its variables, here and in every worker; return its exit code."""
    settle()
    job = JobFile.model_validate_json(Path(JOB_FILE).read_text(encoding="utf-8"))
    os.environ.update(job.environment)
    os.environ[PASSED] = " ".join(job.environment)
    return run_command(job.words)


if __name__ == "__main__":
    sys.exit(main())
