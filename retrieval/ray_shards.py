"""The shards of an index in processes of Ray, on this machine or on a cluster."""
from retrieval.cluster import ray, start
from retrieval.shards import Shard
from util import UserError, one_line

CPUS = 0.1  # of Ray's that a shard asks for, so that every shard finds room on a small machine
START_SECONDS = 120  # in which Ray has to start every shard


def connect(address, shards):
    """Join or start Ray with room for so many shards. Returns what opens them, given a list of Part."""
    start(address, shards + 1)
    return Actors


class Actors:
    """Shards in processes of Ray, which is connected. One that ends is started again, and asked again."""

    def __init__(self, parts):
        actor = ray.remote(num_cpus=CPUS, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")(Shard)
        self._actors = [actor.remote(part, threads=1) for part in parts]
        try:
            ray.get([actor.__ray_ready__.remote() for actor in self._actors], timeout=START_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise UserError(f"Ray did not start {len(parts)} shards within {START_SECONDS} seconds: is there room for "
                            "them in the cluster?") from None
        except ray.exceptions.RayActorError as error:
            why = str(error).strip().splitlines()[-1]
            raise UserError(f"a shard did not start: {one_line(why)}") from None

    def ask(self, *question):
        """What `Shard.search` gives for the question, of each shard."""
        return ray.get([actor.search.remote(*question) for actor in self._actors])
