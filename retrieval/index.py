"""A searchable index: the codes of many images, one byte a codebook each, and all that a query needs.

The score of an image is q · Σ_m codebooks[m, code_m] (AQD, section 8 of the method). FAISS computes just that as a
product quantizer over the query repeated M times; without FAISS, NumPy does. Of GPQ, each codebook stands for a segment
of the query, which is a product quantizer as it is. No TensorFlow in this file.

Letters: N images, Q queries, D = 300, M codebooks of K = 256 codewords, T merged tags, L labels; of GPQ, K is 2 to 256,
and D is the length of a codeword, so that a query has M·D numbers.
"""
import difflib
import hashlib
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import metrics
import quantizer
from storage.arrays import read_npy
from storage.safe_files import fingerprint, replacing, write_json
from util import UserError, progress

try:
    import faiss
except ImportError:  # optional: requirements-search.txt
    faiss = None

FORMAT = 1
MANIFEST = "manifest.json"
NEEDED_FILES = {"codes", "codebooks", "tag_embeddings", "images"}
NEEDED_FACTS = {"generation", "lists", "tag_names", "label_names", "images", "seed"}
FLAT_IMAGES = 1_000_000  # more images than that are sorted into lists, unless told otherwise
MOST_LISTS = 8192
LIST_SAMPLE = 64  # images a list that its centre is learned from
LIST_SWEEPS = 10  # of k-means
BLOCK = 2**18  # images that are scored at once
LIST_BLOCK = 2**22  # images that are sorted into lists at once
LETTERS_AT_ONCE = 2**24  # in which ends of lines are looked for
QUERIES_AT_ONCE = 32  # that one thread takes to FAISS; a fixed number, since the size of a batch and its threads round
MOST_TIED = 16  # times the results that are wanted: so many images are put in order if they tie for the last place
DEFAULT_PROBES = 32  # lists that a query looks into


# ---------------------------------------------------------------- what an index holds

@dataclass
class Content:
    """What an index is made of.

    codes: uint8 (N, M); codebooks: float32 (M, K, D); images: N paths relative to `folder`, any sequence;
    tag_names: T lists of words; tag_embeddings: W, float32 (T, D); labels: uint8 (N, L) or None; label_names: L or
    none; facts: what else the manifest tells, plain containers.
    """
    codes: np.ndarray
    codebooks: np.ndarray
    images: list
    tag_names: list
    tag_embeddings: np.ndarray
    labels: np.ndarray | None
    label_names: list
    facts: dict


class Lines:
    """The lines of a text file as a sequence that lives on the disk: 8 bytes of memory a line."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        letters = np.frombuffer(self._data, np.uint8)
        self._ends = np.concatenate([start + np.flatnonzero(letters[start:start + LETTERS_AT_ONCE] == ord("\n"))
                                     for start in range(0, len(letters), LETTERS_AT_ONCE)])

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, row):
        row = range(len(self))[row]
        start = self._ends[row - 1] + 1 if row else 0
        return os.fsdecode(self._data[start:self._ends[row]])


class Index:
    """An index that is loaded and ready: `search` asks it.

    Attributes:
        folder (Path): where it lies.
        content: Content.
        engine: FAISS's index, or None for NumPy.
    """

    def __init__(self, folder, content, engine):
        self.folder = Path(folder)
        self.content = content
        self.engine = engine

    def __len__(self):
        return len(self.content.codes)

    def image_path(self, row):
        """The file of image `row`. Raises UserError if its name leads out of the folder of images."""
        folder, name = self.content.facts["images"], self.content.images[row]
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{self.folder}: image {row + 1}: expected a path inside {folder}, found {name!r}")
        return Path(folder) / name

    def search(self, queries, topk, probes=DEFAULT_PROBES):
        """The best images of each query, best first; of equal scores the lower row comes first.

        Args:
            queries: float32 (Q, D), of GPQ (Q, M·D).
            topk (int): results a query; cut to N.
            probes (int): lists to look into, where images were sorted into lists; all of them: the exact result.
        Returns:
            scores, float32 (Q, topk), and rows, int64 (Q, topk). Where the lists that were looked into hold fewer
            images, rows end in -1.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        topk = min(topk, len(self))
        if self.engine is None:
            return search_numpy(queries, self.content.codes, self.content.codebooks, topk)
        return search_faiss(self.engine, queries, topk, probes)

    def words(self, text):
        """The query of one or more words: the normalised mean of their tags' normalised vectors, float32 (D,).

        Raises UserError for a word without a vector, with the known words that are spelt most like it.
        """
        rows = {word: row for row, names in enumerate(self.content.tag_names) for word in names}
        words = text.split()
        if not words:
            raise UserError("expected one or more words to search for, found none")
        known = [word if word in rows else word.lower() for word in words]
        for word in known:
            if word not in rows:
                near = difflib.get_close_matches(word, rows, n=5, cutoff=0.6)
                raise UserError(f"the word {word!r} is none of the {len(rows)} tags that have a vector in "
                                f"{self.folder}; spelt most like it: {', '.join(near) or 'none'}")
        return normalise(normalise(self.content.tag_embeddings[[rows[word] for word in known]]).mean(0))

    def tags(self, embedding):
        """All T merged tags of an image by the cosine of its embedding (D,): rows, best first, and cosines."""
        cosines = normalise(self.content.tag_embeddings) @ normalise(embedding)
        order = np.argsort(-cosines, kind="stable")
        return order, cosines[order]


def normalise(vectors):
    """Vectors of length 1 along the last axis; a zero vector stays one."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


# ---------------------------------------------------------------- searching

def search_numpy(queries, codes, codebooks, topk):
    """Scores, float32 (Q, topk), and rows, int64 (Q, topk), by a scan in blocks."""
    product = queries.shape[1] > codebooks.shape[2]  # of GPQ, a query has a segment for each codebook
    score = quantizer.product_scores if product else quantizer.quantized_scores
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(codes), BLOCK):
        found = score(queries, codes[start:start + BLOCK], codebooks)
        best = metrics.rank(found, min(topk, found.shape[1]))
        scores = np.hstack([scores, np.take_along_axis(found, best, 1)])
        rows = np.hstack([rows, best + start])
        best = metrics.rank(scores, min(topk, scores.shape[1]))  # earlier blocks stand first, so ties stay in order
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return scores, rows


def search_faiss(engine, queries, topk, probes):
    """The same by FAISS: scores to the last bit whatever the number of threads and whatever other rows are there.

    If over MOST_TIED·topk images tie for the last place, any of them may have it.
    """
    options = {}
    if isinstance(engine, faiss.IndexIVF):
        options["params"] = faiss.SearchParametersIVF(nprobe=min(probes, engine.nlist))
    queries = np.tile(queries, (1, engine.d // queries.shape[1]))  # repeated M times; of GPQ once
    if len(queries) == 1:
        return _ask_faiss(engine, queries, topk, options)
    with ThreadPoolExecutor(faiss.omp_get_max_threads(), initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        found = pool.map(lambda start: _ask_faiss(engine, queries[start:start + QUERIES_AT_ONCE], topk, options),
                         range(0, len(queries), QUERIES_AT_ONCE))
        scores, rows = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(rows)


def _ask_faiss(engine, queries, topk, options):
    """FAISS keeps any of the images that tie for the last place, so where it cuts a tie it is asked again, for more.

    All queries are, since the size of a batch rounds.
    """
    scores, rows = engine.search(queries, min(topk + 1, engine.ntotal), **options)
    if topk < engine.ntotal and ((scores[:, -1] == scores[:, topk - 1]) & (rows[:, -1] >= 0)).any():
        scores, rows = engine.search(queries, min(MOST_TIED * topk, engine.ntotal), **options)
    return best_first(scores, rows, topk)


def best_first(scores, rows, topk):
    """The `topk` best of each query's (Q, n) scores and rows, n >= topk; of equal scores the lower row comes first."""
    order = np.lexsort((rows, -scores), axis=1)[:, :topk]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


# ---------------------------------------------------------------- FAISS's side

def flat_engine(codes, codebooks):
    """FAISS's index that scans all codes. It holds the codes as they are: nothing is encoded by another rule."""
    check_codes(codes, codebooks)
    m, words, d = codebooks.shape
    bits = words.bit_length() - 1
    engine = faiss.IndexPQ(m * d, m, bits, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), engine.pq.centroids)
    engine.is_trained = True
    packed = codes if bits == 8 else faiss.pack_bitstrings(codes.astype(np.int32), bits)
    engine.add_sa_codes(np.ascontiguousarray(packed))
    return engine


def listed_engine(codes, codebooks, lists, seed):
    """FAISS's index with the codes sorted into `lists` lists, of which a query looks into some.

    Lists are those of k-means on reconstructions. A list's centre c is repeated M times over M, since a query repeated
    M times then gives q · c, the mean score of the list's images.
    """
    check_codes(codes, codebooks)
    m, _, d = codebooks.shape
    rng = np.random.default_rng(seed)
    sample = codes[np.sort(rng.permutation(len(codes))[:LIST_SAMPLE * lists])]
    kmeans = faiss.Kmeans(d, lists, niter=1, seed=seed, max_points_per_centroid=LIST_SAMPLE, min_points_per_centroid=1)
    reconstructed = quantizer.reconstruct(sample, codebooks)
    for _ in progress(range(LIST_SWEEPS), desc="learning the lists' centres"):
        kmeans.train(reconstructed, init_centroids=kmeans.centroids)
    centres = kmeans.centroids  # (lists, D)
    coarse = faiss.IndexFlatIP(m * d)
    coarse.add(np.tile(centres, (1, m)) / m)
    engine = empty_lists(coarse, codebooks)
    with progress(total=len(codes), desc="sorting codes into lists", unit="image") as bar:
        for start in range(0, len(codes), LIST_BLOCK):
            block = np.ascontiguousarray(codes[start:start + LIST_BLOCK])
            add_to_lists(engine, block, nearest_centres(block, codebooks, centres), start)
            bar.update(len(block))
    return engine


def nearest_centres(codes, codebooks, centres):
    """The centre c that is nearest to each image's reconstruction q, so that q·c − ‖c‖²/2 is largest, int64 (N,).

    q·c is the sum of M inner products of a codeword and a centre: M additions in place of D multiplications. In the
    order of their codes, equal images are summed once, and those that differ in the last byte share the rest.

    Args:
        codes: uint8 (N, M), N > 0; codebooks: float32 (M, K, D); centres: float32 (lists, D).
    """
    tables = codebooks @ centres.T  # (M, K, lists)
    tables[-1] -= np.square(centres).sum(1) / 2
    m = codes.shape[1]
    keys = np.zeros((len(codes), 8), np.uint8)
    keys[:, :m] = codes
    keys, image = np.unique(keys.view(">u8")[:, 0], return_inverse=True)
    unique = keys[:, None].view(np.uint8)[:, :m]  # (U, M), sorted
    parts = np.array_split(unique, os.cpu_count())
    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(lambda part: _nearest_of_sorted(part, tables), parts)))[image]


def _nearest_of_sorted(codes, tables):
    nearest = np.empty(len(codes), np.int64)
    first, sums = None, np.empty(tables.shape[2], np.float32)
    for row, (*code, last) in enumerate(codes.tolist()):
        if code != first:
            first, shared = code, tables[range(len(code)), code].sum(0)
        nearest[row] = np.add(shared, tables[-1, last], out=sums).argmax()
    return nearest


def empty_lists(coarse, codebooks):
    """FAISS's index without codes, with a list for each centre in FAISS's index `coarse`, which it shares."""
    m, _, d = codebooks.shape
    engine = faiss.IndexIVFPQ(coarse, m * d, coarse.ntotal, m, 8, faiss.METRIC_INNER_PRODUCT)
    engine.by_residual = False
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), engine.pq.centroids)
    engine.is_trained = True
    return engine


def add_to_lists(engine, codes, assigned, first_row):
    """Put codes, uint8 (n, M), into the lists that they are `assigned` to, int64 (n,), under rows from `first_row`."""
    order = np.argsort(assigned, kind="stable")
    codes, rows = codes[order], order + first_row
    numbers, starts = np.unique(assigned[order], return_index=True)
    for number, start, end in zip(numbers, starts, [*starts[1:], len(codes)], strict=True):
        ids, part = np.ascontiguousarray(rows[start:end]), np.ascontiguousarray(codes[start:end])
        engine.invlists.add_entries(int(number), len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(part))
    engine.ntotal += len(codes)


def check_codes(codes, codebooks):
    """Raise UserError for what FAISS would take in silence: shapes that do not fit, NaN codewords."""
    words = codebooks.shape[1] if codebooks.ndim == 3 else 0
    if not 2 <= words <= quantizer.CODEWORDS or words & (words - 1):
        raise UserError(f"expected codebooks of shape (M, K, D), K a power of 2 up to {quantizer.CODEWORDS}, found "
                        f"{codebooks.shape}")
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != len(codebooks):
        raise UserError(f"expected uint8 codes of shape (N, {len(codebooks)}), found {codes.dtype} {codes.shape}")
    if codes.size and codes.max() >= words:
        raise UserError(f"expected codes below {words}, found {codes.max()}")
    if not np.isfinite(codebooks).all():
        raise UserError("the codebooks hold NaN or infinite values")


def default_lists(images):
    """How many lists an index of so many images has unless told otherwise; 0: none, every query scans all."""
    if images <= FLAT_IMAGES:
        return 0
    return min(MOST_LISTS, 2 ** round(np.log2(4 * np.sqrt(images))))


def make_engine(content, lists):
    """FAISS's index of some content, or None without FAISS."""
    if faiss is None:
        if lists:
            raise UserError("lists need FAISS: pip install -r requirements-search.txt")
        return None
    if lists > len(content.codes):
        raise UserError(f"expected at most as many lists as images, found {lists} lists and {len(content.codes)} "
                        "images")
    if lists:
        return listed_engine(content.codes, content.codebooks, lists, content.facts["seed"])
    return flat_engine(content.codes, content.codebooks)


# ---------------------------------------------------------------- files

def save(folder, content, lists=0):
    """Write an index into `folder` and return it; an index that was there stays whole until the new one is.

    The files of each writing carry a number of their own, and the manifest names the ones that count; it is
    replaced last, and only then are older files deleted. `lists`: 0, or how many to sort the codes into.
    """
    folder = Path(folder)
    check_codes(content.codes, content.codebooks)
    engine = make_engine(content, lists)
    folder.mkdir(parents=True, exist_ok=True)
    before = read_manifest(folder)["generation"] if (folder / MANIFEST).is_file() else 0
    names = {role: f"{role}-{before + 1}.{suffix}" for role, suffix in _suffixes(content, engine).items()}
    for role in names.keys() & {"codes", "codebooks", "tag_embeddings", "labels"}:
        with replacing(folder / names[role]) as temporary, open(temporary, "wb") as file:
            np.save(file, getattr(content, role), allow_pickle=False)
    write_lines(folder / names["images"], content.images)
    if engine is not None:
        with replacing(folder / names["engine"]) as temporary:
            faiss.write_index(engine, str(temporary))
    manifest = {**content.facts, "format": FORMAT, "generation": before + 1, "count": len(content.codes),
                "codebooks": len(content.codebooks), "lists": lists,
                "tag_names": content.tag_names, "label_names": content.label_names,
                "files": {role: {"name": name, "sha256": fingerprint(folder / name)} for role, name in names.items()}}
    write_json(folder / MANIFEST, {**manifest, "sha256": _digest(manifest)})
    for path in folder.iterdir():
        if path.name not in (MANIFEST, *names.values()) and path.name.split("-")[0] in names:
            path.unlink()
    return Index(folder, content, engine)


def _suffixes(content, engine):
    """{role: file name suffix} of the files that an index has."""
    suffixes = {"codes": "npy", "codebooks": "npy", "tag_embeddings": "npy", "images": "txt"}
    if content.labels is not None:
        suffixes["labels"] = "npy"
    if engine is not None:
        suffixes["engine"] = "faiss"
    return suffixes


def write_lines(path, lines):
    """Replace `path` by lines of text. Raises UserError for one that has a line break in it."""
    for line in lines:
        if "\n" in line:
            raise UserError(f"{line!r}: an index cannot hold a file name with a line break")
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in lines)


def _digest(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder):
    """The manifest of the index in `folder`, undamaged. Raises UserError."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: expected an index, found no {MANIFEST}; `python search.py build` makes one")
    try:
        manifest = json.loads(path.read_bytes())
        stored = manifest.pop("sha256")
        names = [file["name"] for file in manifest["files"].values()]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected the manifest of an index, found something else ({error})") from error
    if stored != _digest(manifest):
        raise UserError(f"{path} was altered since it was written: its checksum differs")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: expected format {FORMAT}, found {manifest.get('format')}")
    for name in names:
        if not isinstance(name, str) or name != Path(name).name:
            raise UserError(f"{path}: expected the name of a file in the index's folder, found {name!r}")
    if missing := NEEDED_FILES - manifest["files"].keys() or NEEDED_FACTS - manifest.keys():
        raise UserError(f"{path}: expected the manifest of an index, found none of {', '.join(sorted(missing))}")
    return manifest


def load(folder):
    """The index in `folder`, every file of it checked. Raises UserError for a file that is missing or altered."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    paths = {}
    for role, file in manifest.pop("files").items():
        paths[role] = folder / file["name"]
        if not paths[role].is_file():
            raise UserError(f"{paths[role]}: no such file, but {MANIFEST} names it")
        if fingerprint(paths[role]) != file.get("sha256"):
            raise UserError(f"{paths[role]} was altered since it was written: its checksum differs")
    content = Content(
        codes=read_npy(paths["codes"], mapped=True), codebooks=read_npy(paths["codebooks"]),
        images=Lines(paths["images"]),
        tag_names=manifest.pop("tag_names"), tag_embeddings=read_npy(paths["tag_embeddings"]),
        labels=read_npy(paths["labels"]) if "labels" in paths else None, label_names=manifest.pop("label_names"),
        facts=manifest)
    return Index(folder, content, _load_engine(content, paths.get("engine")))


def _load_engine(content, path):
    if faiss is None:
        return None
    if path is None:
        return make_engine(content, content.facts["lists"])
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
