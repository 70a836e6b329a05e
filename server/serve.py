"""Serves an index: opens it, opens it again whenever it was rewritten, and answers over HTTP until it is stopped."""
import sys
from functools import cached_property

from retrieval import faiss_index, manifest, shards
from retrieval.labels import KnownLabels
from retrieval.searcher import Photos, QueryEmbedder, load_index
from server.service import Service
from storage.files import fingerprint
from util import UserError

try:
    from server import app, connections
except ModuleNotFoundError as error:
    raise UserError(f"serving needs the package {error.name}: pip install -e '.[serve]'") from None

SWITCH_SECONDS = 0.001  # after which a thread lets others run Python: with many clients words take half as long


def serve(opener, host, port, names, token, access_log):
    """Answer until SIGTERM or Ctrl-C. Raises UserError.

    Args:
        opener: Opener.
        host, port: where to listen; port 0 is any free one.
        names, token: as in `app.WebApp`; without a token only this machine may be served.
        access_log (bool): whether to print a line for each request.
    """
    if token is None and not connections.is_local(host):
        raise UserError(f"--host {host} lets other machines in, so choose a --token that their users have to send")
    if faiss_index.faiss is None:
        raise UserError("serving needs FAISS: pip install -e '.[search]'")
    sys.setswitchinterval(SWITCH_SECONDS)
    listener = connections.listen(host, port)
    made = app.WebApp(opener.open_service, names, token)
    facts = made.service.health()
    shard_count = f" in {facts['shards']} shards" if facts["shards"] > 1 else ""
    address = page_address((names or [host])[0], listener.getsockname()[1], token)
    print(f"serving {facts['photos']:,} photos{shard_count} at {address}", flush=True)
    connections.WebServer(made, listener, access_log).run()


def page_address(host, port, token):
    """What people open in their browser."""
    page = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return f"{page}/?token={token}" if token else page


class Opener:
    """Opens an index, and opens it again whenever it was rewritten.

    Args:
        folder (Path): of the index.
        checkpoint (Path): where the checkpoint is now, or None if it was not moved.
        gpu: number of the GPU that embeds photos, None for the CPU.
        probes (int): inverted lists to search, unless a query has its own number.
        shard_count (int): how many shards of the index are searched at once.
        connect: a function of the number of shards that joins Ray and returns `ray_cluster.Actors`; None for shards in
            this process.
    """

    def __init__(self, folder, checkpoint, gpu, probes, shard_count, connect):
        self._folder = folder
        self._checkpoint, self._gpu = checkpoint, gpu
        self._probes = probes
        self._shard_count, self._connect = shard_count, connect
        self._embedder = self._embedded_with = None

    def open_service(self):
        """The Service of the index as it is now. Raises UserError."""
        source = None
        while source != (now := fingerprint(self._folder / manifest.MANIFEST)):  # again if rewritten meanwhile
            source, loaded = now, load_index(self._folder, private=True)
        facts, label_names = loaded.content.facts, loaded.content.label_names
        sharded = shards.Sharded(loaded, self._open_shards(shards.cut(loaded, self._shard_count, source)))
        known_labels = KnownLabels(facts, len(label_names)) if label_names else None
        return Service(Photos(sharded, self._embedder_of(facts), known_labels), self._probes, source)

    @cached_property
    def _open_shards(self):
        """What opens shards, `shards.Threads` or Actors. Ray is started here, after the index has been read."""
        return shards.Threads if self._connect is None else self._connect(self._shard_count)

    def _embedder_of(self, facts):
        """The embedder of queries to the index's photos; it stays loaded until another one is needed."""
        embedded_with = facts["checkpoint_sha256"], facts["crops"]
        if embedded_with != self._embedded_with:
            self._embedder = QueryEmbedder(self._folder, facts, self._checkpoint, self._gpu)
            self._embedded_with = embedded_with
        return self._embedder
