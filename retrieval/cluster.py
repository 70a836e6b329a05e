"""Ray: joining a cluster of machines, or starting one on this machine alone.

Importing this module raises UserError where Ray is not installed.
"""
import logging
import os
import subprocess
import sys

from retrieval.cluster_address import ANSWER_SECONDS
from util import UserError, one_line

OWN_TOKEN = "~/.ray/auth_token"  # where Ray keeps the token of clusters started by this user
JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"

# Ray reads these when it is imported.
os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal",
                   "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"})
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or os.path.isfile(os.path.expanduser(OWN_TOKEN)):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray shows it to a cluster at HOST:PORT only if told to
try:
    import ray
except ImportError:
    raise UserError("this needs Ray: pip install -r requirements-scale.txt") from None


def start(address, cpus, environment=None):
    """Join the Ray cluster at `address`, `auto` for the one of this machine; or start one for `local`, of `cpus` CPUs.

    `environment`: Ray's runtime_env for the workers. Raises UserError where no cluster answers.
    """
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what is wrong is told by the programs, in a sentence
    options = {"log_to_driver": False, "configure_logging": False, "runtime_env": environment}
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: other work would starve it
        options |= {"num_cpus": cpus, "include_dashboard": False}
    else:
        _try_to_join(address)
    try:
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"Ray ({address}) could not be joined: {one_line(error)}") from error


def _try_to_join(address):
    """Join in a process of its own, which can be given up; Ray itself tries for minutes and then ends the program."""
    try:
        done = subprocess.run([sys.executable, "-c", JOIN, address], capture_output=True, text=True,
                              timeout=ANSWER_SECONDS)
        why = done.stderr.strip().rpartition("\n")[2] if done.returncode else None
    except subprocess.TimeoutExpired:
        why = f"nothing answered within {ANSWER_SECONDS} seconds, or it wants another token than Ray's RAY_AUTH_TOKEN"
    if why is not None:
        raise UserError(f"{address}: no Ray cluster could be joined: {one_line(why)}")
