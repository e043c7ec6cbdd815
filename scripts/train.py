# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a report classifier with differential privacy.

    python scripts/train.py --config configs/openi_eps8.py
    python scripts/train.py --config configs/openi_eps8.py --config.privacy.epsilon=3
    python scripts/train.py --config configs/openi_eps8.py --resume

Every setting of jaxdp/config.py can be given as --config.section.field=value. Results go to
<config.run.dir>/<config.run.name>: release/ may be shared under its privacy statement, private/
must not leave.

All devices share the work. Several processes, on one host or more, train together where srun
starts them, or JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
JAX_PROCESS_ID are set.
"""

import sys

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from jaxdp.cli import USER_ERRORS, fail
from jaxdp.config import Config
from jaxdp.runtime import prepare
from jaxdp.training.interrupt import Interrupt
from jaxdp.training.loop import Interrupted, train
from jaxdp.training.monitor import Monitor, SilentMonitor
from jaxdp.training.processes import is_first, join

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().")
_RESUME = flags.DEFINE_bool("resume", False, "Continue a run that was stopped.")
flags.mark_flag_as_required("config")


def main(argv) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}; settings are given as --config.section.field=value")
    prepare()
    try:
        config = Config.from_dict(_CONFIG.value.to_dict())
        join()
        monitor = Monitor(Console()) if is_first() else SilentMonitor()
        with Interrupt() as interrupt:
            train(config, resume=_RESUME.value, interrupt=interrupt, monitor=monitor)
    except Interrupted as stop:
        spent = "" if stop.epsilon is None else f"; the steps taken cost epsilon {stop.epsilon:.4g}"
        if is_first():
            print(
                f"stopped and saved after step {stop.position.step}{spent}; go on with the same "
                "command and --resume",
                file=sys.stderr,
            )
        sys.exit(128 + interrupt.received)
    except USER_ERRORS as error:
        fail(error)


if __name__ == "__main__":
    app.run(main)
