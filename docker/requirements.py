"""Print what pyproject.toml requires, one a line: `requirements.py cpu run`; an image installs it before our code."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
unknown = [name for name in sys.argv[1:] if name not in extras]
if unknown:
    sys.exit(f"pyproject.toml has no extra {', '.join(unknown)}; there are {', '.join(extras)}")
for line in [*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name])]:
    sys.stdout.write(f"{line}\n")
