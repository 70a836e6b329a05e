"""What serve.py does: it opens an index and answers over HTTP until it is told to stop.

TensorFlow is not loaded here: words and vectors need no network, and the first photo loads it.
"""
import sys

from retrieval import faiss_index, manifest, shards
from retrieval.searcher import Photos, QueryEmbedder, load_index
from server.service import Service
from storage.files import fingerprint
from util import UserError

try:
    from server import app, connections
except ModuleNotFoundError as error:
    raise UserError(f"serving needs the package {error.name}: pip install -e '.[serve]'") from None

SWITCH_SECONDS = 0.001  # after which a thread lets others run Python: with many clients words come twice as soon


def serve(options, connect=None):
    """Answer until SIGTERM or Ctrl-C. Raises UserError.

    Args:
        options: of serve.py.
        connect: `ray_cluster.connect` with an address, a function of the number of shards; or None for shards in this
            process.
    """
    if options.token is None and not connections.is_local(options.host):
        raise UserError(f"--host {options.host} lets other machines in, so give a --token that their users have to "
                        "show")
    if faiss_index.faiss is None:
        raise UserError("serving needs FAISS: pip install -e '.[search]'")
    sys.setswitchinterval(SWITCH_SECONDS)
    listener = connections.listen(options.host, options.port)
    manifest.read(options.index)  # a folder that is no index is told before Ray is started
    opener = Opener(options, shards.Threads if connect is None else connect(options.shards))
    made = app.WebApp(opener.open_service, options.names, options.token)
    facts = made.service.health()
    print(f"serving {facts['photos']:,} photos in {facts['shards']} shards at {address(options, listener)}", flush=True)
    connections.WebServer(made, listener, options.access_log).run()


def address(options, listener):
    """What people open in their browser."""
    host = (options.names or [options.host])[0]
    page = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    return f"{page}/?token={options.token}" if options.token else page


class Opener:
    """Opens the index of serve.py's options, and again whenever it was written again.

    The network stays loaded as long as it is the one that the photos were embedded with.

    Args:
        open_shards: of a list of `shards.Part`; gives what a `shards.Sharded` asks.
    """

    def __init__(self, options, open_shards):
        self._options = options
        self._open_shards = open_shards
        self._embedder = self._embedded_with = None

    def open_service(self):
        """The Service of the index as it is now. Raises UserError."""
        folder, source = self._options.index, None
        while source != (now := fingerprint(folder / manifest.MANIFEST)):  # or it was written again while it was read
            source, loaded = now, load_index(folder, private=True)
        photos = Photos(loaded, self._embedder_of(loaded.content.facts))
        photos.index = shards.Sharded(loaded, self._open_shards(shards.cut(loaded, self._options.shards, source)))
        return Service(photos, self._options.nprobe, source)

    def _embedder_of(self, facts):
        embedded_with = facts["checkpoint_sha256"], facts["crops"]
        if embedded_with != self._embedded_with:
            self._embedder = QueryEmbedder(self._options.index, facts, self._options.checkpoint, self._options.gpu)
            self._embedded_with = embedded_with
        return self._embedder
