"""A searchable index: the codes of many images, one byte a codebook each, and all that a query needs.

The score of an image is q · Σ_m codebooks[m, code_m] (AQD, section 8 of the method). FAISS computes it
(faiss_engine.py); without FAISS, NumPy does. Of GPQ, each codebook stands for a segment of the query. No TensorFlow in
this file.

Letters: N images, Q queries, D = 300, M codebooks of K = 256 codewords, T merged tags, L labels; of GPQ, K is 2 to 256,
and D is the length of a codeword, so that a query has M·D numbers.
"""
import contextlib
import difflib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from quantization import quantizer
from retrieval import faiss_index, manifest, metrics
from retrieval.lines import Lines, write_lines
from storage.arrays import read_npy
from storage.files import exclusive_lock, naming, replacing
from tags.spelling import tags_in
from tags.word_vectors import look_up
from util import UserError, leads_out

FLAT_IMAGES = 1_000_000  # more images than that are sorted into inverted lists, unless told otherwise
MOST_INVERTED_LISTS = 8192
BLOCK = 2**18  # images that are scored at once
DEFAULT_PROBES = 32  # inverted lists that a query looks into


# ---------------------------------------------------------------- what an index holds

@dataclass
class Content:
    """What an index is made of.

    codes: uint8 (N, M); codebooks: float32 (M, K, D); images: N paths relative to the folder of images, any sequence;
    tag_names: T lists of words; tag_embeddings: W, float32 (T, D), of GPQ (0, M·D); labels: 0/1, uint8 (N, L), or None;
    label_names: L names; facts: what else the manifest tells, plain containers; fingerprints: of the images' files as
    of photo_files.py, int64 (N, 7), or None; embeddings: of length 1, float16 (N, D), which put images of equal
    scores in order, or None; vocabulary: the table of more words, see tags/word_vectors.py, uint64 (2, V), or None.
    """
    codes: np.ndarray
    codebooks: np.ndarray
    images: list
    tag_names: list
    tag_embeddings: np.ndarray
    labels: np.ndarray | None
    label_names: list
    facts: dict
    fingerprints: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    vocabulary: np.ndarray | None = None

    @property
    def query_length(self):
        """How many numbers a query has, as many as a tag's embedding: D, of GPQ M·D."""
        return self.tag_embeddings.shape[1]


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
        if leads_out(name) or "\0" in name:
            raise UserError(f"{self.folder}: image {row + 1}: expected a path inside {folder}, found {name!r}")
        return Path(folder) / name

    def search(self, queries, topk, probes=DEFAULT_PROBES):
        """The best images of each query, best first.

        Of equal scores, the image comes first whose embedding has the higher cosine with the query, where embeddings
        are kept, and else the one of the lower row. If over MOST_TIED·topk images tie for the last place, any of them
        may have it.

        Args:
            queries: float32 (Q, D), of GPQ (Q, M·D).
            topk (int): results a query; cut to N.
            probes (int): inverted lists to look into, where there are any; all of them: the exact result.
        Returns:
            scores, float32 (Q, topk), and rows, int64 (Q, topk). Where the inverted lists that were looked into hold
            fewer images, rows end in -1.
        Raises UserError for queries of another length.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.content.query_length:
            raise UserError(f"{self.folder}: expected queries of {self.content.query_length} numbers, found an array "
                            f"of shape {queries.shape}")
        topk = min(topk, len(self))
        if self.content.embeddings is None:
            return self._scan(queries, topk, probes)
        scores, rows = self._scan(queries, min(topk + 1, len(self)), probes)
        cut = topk < len(self) and (scores[:, topk] == scores[:, topk - 1]) & (rows[:, topk] >= 0)
        if np.any(cut):  # the last place cuts a tie
            scores, rows = self._scan(queries, min(faiss_index.MOST_TIED * topk, len(self)), probes)
        return second_look(queries, scores, rows, topk, self.content.embeddings)

    def _scan(self, queries, topk, probes):
        """As `search`, of equal scores the lower row first."""
        if self.engine is None:
            return search_numpy(queries, self.content.codes, self.content.codebooks, topk)
        return faiss_index.search(self.engine, queries, topk, probes)

    def directions(self, rows):
        """Reconstructions of coded images, cut to length 1, float32 (n, D); not of GPQ."""
        codes = self.content.codes[np.asarray(rows, np.int64)]
        return normalise(quantizer.reconstruct(codes, self.content.codebooks))

    def cosines(self, query, rows):
        """The cosines of a query, float32 (D,), and the coded images in `rows`, float32 (n,)."""
        return self.directions(rows) @ normalise(query)

    def no_words(self):
        """Why words cannot be searched for, a sentence; None where they can."""
        if self.content.tag_names:
            return None
        return self.content.facts.get("no_words") or "These photos had too few tags to learn words from."

    def words(self, text):
        """The query of one or more words: the normalised mean of their normalised vectors, float32 (D,).

        A word's vector is its tag's; that of a word that is no tag stands in the file of word vectors, if the index
        knows one. Words that stand together and are one tag, such as `new york`, are that tag. Raises UserError for a
        word without a vector, with the known words that are spelt most like it.
        """
        rows = {word: row for row, names in enumerate(self.content.tag_names) for word in names}
        if why := self.no_words():
            raise UserError(f"{self.folder} cannot be searched for words: {why}")
        words = tags_in(text, rows)
        if not words:
            raise UserError("expected one or more words to search for, found none")
        vectors = [self.content.tag_embeddings[rows[word]] if word in rows else self._other_word(word, rows)
                   for word in words]
        return normalise(normalise(np.array(vectors)).mean(0))

    def _other_word(self, word, tags):
        """The vector of a word that is none of the `tags`, float32 (D,). Raises UserError where there is none."""
        content, elsewhere = self.content, ""
        if content.vocabulary is not None:
            try:
                vector = look_up(content.vocabulary, content.facts["vectors"], word)
                if vector is not None:
                    return vector
                elsewhere = f" and not in {content.facts['vectors']['path']}"
            except UserError as error:
                elsewhere = f" ({error})"
        near = difflib.get_close_matches(word, tags, n=5, cutoff=0.6)
        raise UserError(f"the word {word!r} is none of the {len(tags)} tags that have a vector in {self.folder}"
                        f"{elsewhere}; spelt most like it: {', '.join(near) or 'none'}")

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


def second_look(queries, scores, rows, topk, embeddings):
    """The `topk` best of each query's scores and rows (Q, n), best first, n >= topk; those of equal scores by the
    cosines of their embeddings, float16 (N, D), with the query, and then by rows."""
    best = np.empty((len(queries), topk), np.int64)
    for i, query in enumerate(normalise(queries)):
        same = np.append(scores[i, 1:] == scores[i, :-1], False)
        tied = np.flatnonzero((same | np.roll(same, 1)) & (rows[i] >= 0))
        cosines = np.zeros(len(rows[i]), np.float32)
        cosines[tied] = embeddings[rows[i, tied]].astype(np.float32) @ query
        best[i] = np.lexsort((rows[i], -cosines, -scores[i]))[:topk]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)


# ---------------------------------------------------------------- writing

def default_inverted_lists(images):
    """How many inverted lists an index of so many images has unless told otherwise; 0: none, a query scans all."""
    if images <= FLAT_IMAGES:
        return 0
    return min(MOST_INVERTED_LISTS, 2 ** round(np.log2(4 * np.sqrt(images))))


@contextlib.contextmanager
def writing(folder):
    """Keep every other process from writing an index into `folder` for the block; give `save` without its `folder`.

    Who reads an index to write a larger one does both in the block. Raises UserError while another process is in such
    a block, and for a folder that is neither empty nor an index.
    """
    folder = Path(folder)
    if not has_index(folder):
        _check_empty(folder)
    place = folder.resolve()  # the lock is beside it, so that a folder is made only for an index
    with exclusive_lock(place.with_name(f".{place.name}.lock"),
                        f"{folder}: another process is writing this index; wait until it has ended"):
        yield partial(_save, folder)


def has_index(folder):
    """Whether there is an index in `folder`."""
    return (Path(folder) / manifest.MANIFEST).is_file()


def _check_empty(folder):
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder for the index, found a file")
    others = sorted(path.name for path in folder.glob("*") if not manifest.is_own_name(path.name))
    if others:
        raise UserError(f"{folder}: expected an index or an empty folder, found other files, such as {others[0]!r}")


def save(folder, content, inverted_lists=0):
    """Write an index into `folder` and return it; an index that was there stays whole until the new one is.

    The files of each writing carry a number of their own, and the manifest names the ones that count; it is replaced
    last, and only then the files that the old one names are deleted.

    Args:
        inverted_lists (int): 0, or how many to sort the codes into.
    Raises UserError for content that does not fit together, and as `writing` does.
    """
    with writing(folder) as save_here:
        return save_here(content, inverted_lists)


def _save(folder, content, inverted_lists=0):
    manifest.check_content(content, {role: f"{folder}: {role}" for role in manifest.SUFFIXES})
    if inverted_lists and content.query_length != content.codebooks.shape[2]:
        raise UserError(f"{folder}: expected no inverted lists, as each of GPQ's codebooks stands for a segment of the "
                        f"query, found {inverted_lists}")
    old = manifest.read(folder) if has_index(folder) else {"generation": 0, "files": {}}
    facts = {**content.facts, "format": manifest.FORMAT, "generation": old["generation"] + 1,
             "count": len(content.codes), "codebooks": len(content.codebooks), "lists": inverted_lists,
             "tag_names": content.tag_names, "label_names": content.label_names}
    manifest.check_keys(folder / manifest.MANIFEST, facts)
    engine = faiss_index.make(content.codes, content.codebooks, inverted_lists, facts["seed"])
    absent = {role for role in manifest.OPTIONAL if (engine if role == "engine" else getattr(content, role)) is None}
    paths = {role: folder / manifest.file_name(role, facts["generation"]) for role in manifest.SUFFIXES.keys() - absent}
    try:
        _write_files(paths, content, engine)
    except BaseException:
        for path in paths.values():
            path.unlink(missing_ok=True)
        raise
    manifest.write(folder, facts, paths)
    for file in old["files"].values():
        (folder / file["name"]).unlink(missing_ok=True)
    return Index(folder, content, engine)


def _write_files(paths, content, engine):
    for role in sorted(paths.keys() - {"images", "engine"}):
        with replacing(paths[role]) as temporary, naming(paths[role]), open(temporary, "wb") as file:
            np.save(file, getattr(content, role), allow_pickle=False)
    write_lines(paths["images"], content.images)
    if engine is not None:
        with replacing(paths["engine"]) as temporary:
            faiss_index.write(engine, temporary, paths["engine"])


# ---------------------------------------------------------------- reading

def load(folder, private=False):
    """The index in `folder`, all of it checked. Raises UserError for what is missing, altered or does not fit.

    `private`: of copies of its files, so that it stays as it is, whatever happens to the files.
    """
    folder = Path(folder)
    while True:
        facts = manifest.read(folder)
        try:
            with manifest.open_files(folder, facts, private) as paths:
                return _read(folder, facts, paths)
        except (UserError, OSError):
            if manifest.read(folder)["generation"] == facts["generation"]:
                raise  # else the index was written again meanwhile, and the files of the old one are deleted


def _read(folder, facts, paths):
    content = Content(
        codes=read_npy(paths["codes"], mapped=True), codebooks=read_npy(paths["codebooks"]),
        images=Lines(paths["images"]), tag_names=facts["tag_names"], tag_embeddings=read_npy(paths["tag_embeddings"]),
        labels=read_npy(paths["labels"]) if "labels" in paths else None, label_names=facts["label_names"],
        fingerprints=read_npy(paths["fingerprints"], mapped=True) if "fingerprints" in paths else None,
        embeddings=read_npy(paths["embeddings"], mapped=True) if "embeddings" in paths else None,
        vocabulary=read_npy(paths["vocabulary"], mapped=True) if "vocabulary" in paths else None,
        facts={key: value for key, value in facts.items() if key not in ("files", "tag_names", "label_names")})
    names = {role: paths.get(role, folder / role) for role in manifest.SUFFIXES}
    manifest.check_loaded(content, folder / manifest.MANIFEST, names)
    return Index(folder, content, _load_engine(content, paths.get("engine")))


def _load_engine(content, path):
    if faiss_index.faiss is None:
        return None
    if path is None:
        return faiss_index.make(content.codes, content.codebooks, 0, content.facts["seed"])
    return faiss_index.read(path, content.codes, content.codebooks, content.facts["lists"])
