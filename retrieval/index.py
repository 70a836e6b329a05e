"""A searchable index: the codes of many images, one byte for each codebook, and all that a query needs.

The score of an image is q · Σ_m codebooks[m, code_m] (AQD, section 8 of the method). FAISS computes it
(faiss_index.py); without FAISS, NumPy does. In an index of GPQ, each codebook encodes a segment of the query.

Letters: N images, Q queries, D = 300, M codebooks of K = 256 codewords, T merged tags, L labels. For GPQ, K is 2 to
256 and D is the length of a codeword, so a query has M·D numbers.
"""
import contextlib
import difflib
import mmap
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from quantization import quantizer
from retrieval import faiss_index, manifest, metrics
from storage.arrays import read_npy
from storage.files import exclusive_lock, naming, replacing
from tags import word_vectors
from tags.spelling import tags_in
from util import UserError, leads_out, unit_length

FLAT_IMAGES = 1_000_000  # the default is to sort more images than these into inverted lists
MOST_INVERTED_LISTS = 8192
BLOCK = 2**18  # images that are scored at once
BYTES_AT_ONCE = 2**24  # of a text file, in which ends of lines are searched for
DEFAULT_PROBES = 32  # inverted lists that a query searches


# ---------------------------------------------------------------- what an index holds

@dataclass
class Content:
    """What an index is made of.

    codes: uint8 (N, M).
    codebooks: float32 (M, K, D).
    images: N paths relative to the folder of images, any sequence.
    tag_names: T lists of words; tag_embeddings: W, float32 (T, D), of GPQ (0, M·D).
    labels: 0/1, uint8 (N, L), or None; label_names: L names.
    facts: the other keys of the manifest, a dict of plain values.
    fingerprints: of the images' files, see storage/fingerprints.py, int64 (N, 7), or None where no file was opened.
    embeddings: of length 1, float16 (N, D), which order images of equal scores, or None.
    vocabulary: more words, see tags/word_vectors.py, uint64 (2, V), or None.
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
    """An index that is loaded; `search` queries it.

    Attributes:
        folder (Path): where it is.
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

        Of images with equal scores, the one whose embedding has the higher cosine with the query comes first where
        embeddings are kept, otherwise the one in the lower row. If more than MOST_TIED·topk images tie for the last
        place, any of them may have it.

        Args:
            queries: float32 (Q, D), of GPQ (Q, M·D).
            topk (int): results for each query; at most N are returned.
            probes (int): inverted lists to search, if there are any; with all of them the result is exact.
        Returns:
            scores, float32 (Q, topk), and rows, int64 (Q, topk). Where the searched lists hold fewer images, rows end
            in -1.
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
        if np.any(cut):  # images tie for the last place
            scores, rows = self._scan(queries, min(faiss_index.MOST_TIED * topk, len(self)), probes)
        return second_look(queries, scores, rows, topk, self.content.embeddings)

    def _scan(self, queries, topk, probes):
        """The same as `search`, with equal scores in the order of their rows."""
        if self.engine is None:
            return search_numpy(queries, self.content.codes, self.content.codebooks, topk)
        return faiss_index.search(self.engine, queries, topk, probes)

    def directions(self, rows):
        """Reconstructions of encoded images, scaled to length 1, float32 (n, D); not for GPQ."""
        codes = self.content.codes[np.asarray(rows, np.int64)]
        return unit_length(quantizer.reconstruct(codes, self.content.codebooks))

    def cosines(self, query, rows):
        """The cosines of a query, float32 (D,), with the reconstructions of the images `rows`, float32 (n,)."""
        return self.directions(rows) @ unit_length(query)

    def no_words(self):
        """Why words cannot be searched for, a sentence; None where they can."""
        if self.content.tag_names:
            return None
        return self.content.facts.get("no_words") or "These photos had too few tags to learn words from."

    def words(self, text):
        """The query of one or more words: the mean of their vectors of length 1, scaled to length 1, float32 (D,).

        The vector of a word is that of its tag; a word that is no tag is looked up in the file of word vectors, if the
        index has one. Words that together are one tag, such as `new york`, count as that tag. Raises UserError for a
        word without a vector, with the known words whose spelling is nearest.
        """
        rows = {word: row for row, names in enumerate(self.content.tag_names) for word in names}
        if why := self.no_words():
            raise UserError(f"{self.folder} cannot be searched for words: {why}")
        words = tags_in(text, rows)
        if not words:
            raise UserError("expected one or more words to search for, found none")
        vectors = [self.content.tag_embeddings[rows[word]] if word in rows else self._other_word(word, rows)
                   for word in words]
        return unit_length(unit_length(np.array(vectors)).mean(0))

    def _other_word(self, word, tags):
        """The vector of a word that is none of the `tags`, float32 (D,). Raises UserError where there is none."""
        content, elsewhere = self.content, ""
        if content.vocabulary is not None:
            try:
                vector = word_vectors.look_up(content.vocabulary, content.facts["vectors"], word)
                if vector is not None:
                    return vector
                elsewhere = f" and not in {content.facts['vectors']['path']}"
            except UserError as error:
                elsewhere = f" ({error})"
        near = difflib.get_close_matches(word, tags, n=5, cutoff=0.6)
        raise UserError(f"the word {word!r} is none of the {len(tags)} tags that have a vector in {self.folder}"
                        f"{elsewhere}; spelt most like it: {', '.join(near) or 'none'}")

    def tags(self, embedding):
        """All T merged tags of an image by the cosine with its embedding (D,): rows, best first, and cosines."""
        cosines = unit_length(self.content.tag_embeddings) @ unit_length(embedding)
        order = np.argsort(-cosines, kind="stable")
        return order, cosines[order]


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
        best = metrics.rank(scores, min(topk, scores.shape[1]))  # earlier blocks come first, so ties stay in order
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return scores, rows


def second_look(queries, scores, rows, topk, embeddings):
    """The `topk` best of each query's scores and rows (Q, n), best first, n >= topk; those of equal scores by the
    cosines of their embeddings, float16 (N, D), with the query, and then by rows."""
    best = np.empty((len(queries), topk), np.int64)
    for i, query in enumerate(unit_length(queries)):
        same = np.append(scores[i, 1:] == scores[i, :-1], False)
        tied = np.flatnonzero((same | np.roll(same, 1)) & (rows[i] >= 0))
        cosines = np.zeros(len(rows[i]), np.float32)
        cosines[tied] = embeddings[rows[i, tied]].astype(np.float32) @ query
        best[i] = np.lexsort((rows[i], -cosines, -scores[i]))[:topk]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)


# ---------------------------------------------------------------- names of images

class Lines:
    """The lines of a text file as a sequence that stays on the disk and takes 8 bytes of memory a line.

    The names of a billion images need not be in memory.
    """

    def __init__(self, path):
        self._data, self._ends = b"", np.empty(0, np.int64)
        if not os.path.getsize(path):  # an empty file cannot be mapped
            return
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = np.frombuffer(self._data, np.uint8)
        self._ends = np.concatenate([start + np.flatnonzero(content[start:start + BYTES_AT_ONCE] == ord("\n"))
                                     for start in range(0, len(content), BYTES_AT_ONCE)])

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, row):
        row = range(len(self))[row]
        start = self._ends[row - 1] + 1 if row else 0
        return os.fsdecode(self._data[start:self._ends[row]])

    def first_empty(self):
        """The first row whose line is empty, or None."""
        empty = np.flatnonzero(np.diff(self._ends, prepend=-1) == 1)
        return int(empty[0]) if len(empty) else None


def write_lines(path, lines):
    """Replace `path` by lines of text. Raises UserError for one that has a line break in it."""
    for line in lines:
        if "\n" in line:
            raise UserError(f"{line!r}: an index cannot hold a file name with a line break")
    with (replacing(path) as temporary, naming(path),
          open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file):
        file.writelines(f"{line}\n" for line in lines)


# ---------------------------------------------------------------- writing

def default_inverted_lists(images):
    """The default number of inverted lists for this many images; 0: none, a query scans all codes."""
    if images <= FLAT_IMAGES:
        return 0
    return min(MOST_INVERTED_LISTS, 2 ** round(np.log2(4 * np.sqrt(images))))


@contextlib.contextmanager
def writing(folder):
    """Keep other processes from writing an index into `folder` within the block; give `save` without its `folder`.

    A program that reads an index in order to write a larger one does both in the block. Raises UserError while another
    process is in such a block, and for a folder that is neither empty nor an index.
    """
    folder = Path(folder)
    if not has_index(folder):
        _check_empty(folder)
    place = folder.resolve()  # the lock is next to it, so that a folder is made only for an index
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

    The files of each writing have its number in their names, and the manifest names those that count. It is replaced
    last; only then the files that the old one named are deleted.

    Args:
        inverted_lists (int): 0, or the number of lists to sort the codes into.
    Raises UserError for content that does not fit together, and where `writing` does.
    """
    with writing(folder) as save_here:
        return save_here(content, inverted_lists)


def _save(folder, content, inverted_lists=0):
    manifest.check_content(content, {role: f"{folder}: {role}" for role in manifest.SUFFIXES})
    if inverted_lists and content.query_length != content.codebooks.shape[2]:
        raise UserError(f"{folder}: expected no inverted lists, as each of GPQ's codebooks encodes a segment of the "
                        f"query, found {inverted_lists}")
    old = manifest.read(folder) if has_index(folder) else {"generation": 0, "files": {}}
    facts = {**content.facts, "format": manifest.FORMAT, "generation": old["generation"] + 1,
             "count": len(content.codes), "codebooks": len(content.codebooks), "lists": inverted_lists,
             "tag_names": content.tag_names, "label_names": content.label_names}
    roles = [role for role in manifest.SUFFIXES if role == "engine" or getattr(content, role) is not None]
    manifest.check_facts(folder, facts, roles)
    engine = faiss_index.make(content.codes, content.codebooks, inverted_lists, facts["seed"])
    paths = {role: folder / manifest.file_name(role, facts["generation"]) for role in roles
             if role != "engine" or engine is not None}
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
    """The index in `folder`, checked. Raises UserError for what is missing, altered or does not fit.

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
                raise  # otherwise the index was written again meanwhile, and the files of the old one are deleted


def _read(folder, facts, paths):
    def array(role, mapped=True):
        return read_npy(paths[role], mapped=mapped) if role in paths else None

    content = Content(
        codes=array("codes"), codebooks=array("codebooks", mapped=False), images=Lines(paths["images"]),
        tag_names=facts["tag_names"], tag_embeddings=array("tag_embeddings", mapped=False),
        labels=array("labels", mapped=False), label_names=facts["label_names"], fingerprints=array("fingerprints"),
        embeddings=array("embeddings"), vocabulary=array("vocabulary"),
        facts={key: value for key, value in facts.items() if key not in ("files", "tag_names", "label_names")})
    names = {role: paths.get(role, folder / role) for role in manifest.SUFFIXES}
    manifest.check_loaded(content, folder / manifest.MANIFEST, names)
    return Index(folder, content, _load_engine(content, paths.get("engine")))


def _load_engine(content, path):
    if faiss_index.faiss is None:
        return None
    if path is None:
        return faiss_index.make(content.codes, content.codebooks, 0, content.facts["seed"])
    return faiss_index.read(path, len(content.codes), content.codebooks, content.facts["lists"])
