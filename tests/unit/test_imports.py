"""What must import where little is installed."""

import subprocess
import sys

CORE = (
    "metarec_shared.meta_gradient, metarec_shared.candidates, metarec_shared.memory, metarec_shared.quantization, "
    "metarec_shared.evaluation, metarec_shared.checkpoint, client.meta_update, client.learner, client.recommend"
)


def test_the_engines_core_imports_and_works_without_flower() -> None:
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flwr", "ray", "grpc"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import {CORE}
from metarec_shared.settings import Settings
from simulations.benchmarks.cohort import make_cohort
from metarec_shared.meta_gradient import cohort_meta_gradient
cohort = make_cohort(Settings(), 3, items=60, text_width=8)
for clip in (0.0, 1.0):
    found = cohort_meta_gradient(cohort.model, [(cohort.tasks, cohort.weights)], cohort.id_mask, clip_norm=clip)
    assert len(found.losses) == 3
print("works")
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "works"


def test_importing_what_uses_opacus_leaves_the_root_logger_alone() -> None:
    script = (
        "import logging, server.app, client.app, metarec_shared.privacy.gaussian\n"
        "from metarec_shared.privacy.accounting import Mechanism, epsilon_of\n"
        "epsilon_of([Mechanism(name='a', noise_multiplier=1.0, sampling_rate=0.1)], 1e-5)\n"
        "assert not logging.getLogger().handlers, logging.getLogger().handlers\n"
        "assert logging.getLogger().level == logging.WARNING\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_what_runs_all_the_time_does_not_import_torch() -> None:
    """Supervisor, SuperNode and SuperLink live for weeks; a torch in each would be half a gigabyte of memory."""
    script = (
        "import sys\n"
        "import client.site.supervisor, client.site.start, client.site.supernode\n"
        "import server.coordinator.superlink, server.coordinator.status, server.coordinator.sites\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules), 'heavy'\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
