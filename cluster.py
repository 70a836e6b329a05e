"""Ray: joining a cluster of machines, or starting one on this machine alone.

Ray is imported inside the functions, so that `--help` answers at once and programs do without it.
"""
import logging
import os
import subprocess
import sys

from util import UserError

JOIN_SECONDS = 12  # in which a cluster has to answer; Ray itself tries for minutes, and then ends the program
JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


def start(address, cpus):
    """Join the Ray cluster at `address`, `auto` for the one of this machine; or start one for `local`, of `cpus` CPUs.

    Raises UserError where Ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("this needs Ray: pip install -r requirements-scale.txt") from None
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: other work would starve it
        options |= {"num_cpus": cpus, "include_dashboard": False}
    else:
        _try_to_join(address)
    ray.init(address=address, **options)


def _try_to_join(address):
    """Join in a process of its own, which can be given up."""
    try:
        done = subprocess.run([sys.executable, "-c", JOIN, address], capture_output=True, text=True,
                              timeout=JOIN_SECONDS)
        why = done.stderr.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        done, why = None, f"nothing answered within {JOIN_SECONDS} seconds"
    if done is None or done.returncode:
        raise UserError(f"{address}: no Ray cluster could be joined: {why}")
