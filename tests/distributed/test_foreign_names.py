"""A user's own `pipeline/`, `jobs/` and `cluster/` in the current folder are neither the driver's nor the workers'."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from pipeline.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]

# What pip installs as `codebooks`: a script in a folder of its own.
SCRIPT = "import sys\nfrom jobs.__main__ import main\nsys.exit(main())\n"


@pytest.mark.usefixtures("ray_session")
def test_doctor_tries_a_night_on_a_running_cluster_from_a_folder_with_such_names(tmp_path: Path) -> None:
    """Plain workers, encoding actors and training workers all start; nothing is left on the store."""
    shop = tmp_path / "shop"
    for name in ("pipeline", "jobs", "cluster"):
        (shop / name).mkdir(parents=True)
        (shop / name / "__init__.py").write_text(f"raise RuntimeError('the shop has a {name} of its own')\n")
    script = tmp_path / "bin" / "codebooks"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    (tmp_path / "catalogue.csv").write_text("item_id,image\na,a.jpg\n")
    config = tmp_path / "night.yaml"
    config.write_text(
        f"store: {tmp_path / 'store'}\n"
        f"catalogue: {{source: {tmp_path / 'catalogue.csv'}}}\n"
        "images: {size: 16}\nmodel: {kind: vae, latent_dim: 4, channels: [4, 8]}\n"
        "train: {batch_size: 16}\nencode: {actors: 1}\n"
        f"cluster: {{address: '{ray.get_runtime_context().gcs_address}'}}\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "doctor", "--try", "--json", "--config", str(config)],
        cwd=shop,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["try: a worker"]["level"] == "ok", found
    assert f"our packages at {ROOT}" in found["try: a worker"]["text"]
    assert "one step of 16 photos: 16 photos have latents" in found["try: a step and a photo"]["text"]
    assert list(open_store(str(tmp_path / "store")).list()) == []
