"""What codes stand for and the distance in which they are found, side by side, as distances.py asks.

Letters: N images, D = 300, M codebooks.
"""
import metrics
import quantizer
from codebooks import fit_codebooks
from features import unit_length
from neighbourhoods import SHARE, averages, neighbourhoods
from storage.retrieval_file import read_content
from util import UserError, stream

POWERS = (0, 0.125, 0.1875, 0.25, 0.375, 0.5)  # of the second moment Σ
SHARES = (None, 0.9, SHARE, 0.7, 0.6, 0.5, 0.4)  # of a photo in its average; None: no average
CODEBOOKS = (2, 4)
RARE = 0.025  # of the database has a rare label at most
FIRST = 10  # results, which people look at


def compare(options):
    """Print MAP by all labels and by rare ones, and the precision of the first results, for every share and every power
    of Σ. Raises UserError."""
    content = read_content(options.retrieval)
    database = unit_length(content.db_features)
    rare = content.db_label.mean(0) <= RARE  # (L,)
    if not rare.any():
        raise UserError(f"{options.retrieval}: expected a label that at most {RARE:.1%} of the photos have, found none")

    def measure(score):
        found = [metrics.evaluate(score, content.qry_label[:, kept], content.db_label[:, kept], len(database))
                 for kept in (slice(None), rare)]
        return f"{found[0].map:12.4f}{found[1].map:8.4f}{found[0].precision[:FIRST][-1]:8.4f}"

    print(f"{'photo itself':14}{'power of Σ':>12}" + "".join(
        f"{name:>12}{'rare':>8}{f'P@{FIRST}':>8}" for name in ("floats", *(f"{8 * m} bits" for m in CODEBOOKS))))
    for share in SHARES:
        neighbours = None if share is None else neighbourhoods(database, stream(options.seed, "anchors"), share)
        vectors, queries = averages(database, neighbours), averages(unit_length(content.qry_features), neighbours)
        floats = measure(lambda q, queries=queries, vectors=vectors: queries[q] @ vectors.T)
        for power in POWERS if share == SHARE else (quantizer.QUERY_POWER,):
            row = floats
            for m in CODEBOOKS:
                codes, codebooks = codes_of(vectors, m, power, options.seed)
                row += measure(lambda q, queries=queries, codes=codes, codebooks=codebooks: quantizer.quantized_scores(
                    queries[q], codes, codebooks))
            print(f"{'alone' if share is None else f'{share:.0%}':14}{power:>12}{row}", flush=True)


def codes_of(vectors, codebooks, power, seed):
    """Codes, uint8 (N, M), of vectors and the codebooks that are fitted to them in the distance of Σ^power."""
    factor = quantizer.query_factor(vectors, power)
    fitted = fit_codebooks(vectors, codebooks, stream(seed, "final fit"), factor)
    return quantizer.local_search(vectors, fitted, stream(seed, "encode database"), factor=factor), fitted
