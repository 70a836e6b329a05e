"""Distances in which codes are found, judged by the tags of photos that were held out, as distances.py asks.

Letters: N images, D = 300, M codebooks, T tags.
"""
import metrics
import quantizer
from codebooks import fit_codebooks
from dataset import find_dataset, load_training
from storage.retrieval_file import read_content
from util import UserError, stream

POWERS = (0, 0.125, 0.25, 0.375, 0.5)  # of the second moment Σ
CODEBOOKS = (2, 4)
FEWEST = 5  # images with a tag that counts


def compare(options):
    """Print MAP for every power of Σ and number of bits. Raises UserError."""
    embeddings = read_content(options.retrieval).db_features
    training = load_training(find_dataset(options.dataset, options.root), check_images=False)
    if len(training.rows) != len(embeddings) or options.queries >= len(embeddings):
        raise UserError(f"{options.retrieval}: expected the embeddings of the {len(training.rows):,} training photos, "
                        f"more than {options.queries:,}, found {len(embeddings):,}")
    tags = training.tags.toarray()
    order = stream(options.seed, "held-out photos").permutation(len(embeddings))
    held_out, rest = order[:options.queries], order[options.queries:]
    counted = tags[rest].sum(0) >= FEWEST

    def measure(score):
        return metrics.evaluate(score, tags[held_out][:, counted], tags[rest][:, counted], len(rest)).map
    print(f"floats            {measure(lambda q: embeddings[held_out[q]] @ embeddings[rest].T):.4f}")
    for m in CODEBOOKS:
        for power in POWERS:
            codes, codebooks = codes_of(embeddings[rest], m, power, options.seed)
            found = measure(lambda q, codes=codes, codebooks=codebooks: quantizer.quantized_scores(
                embeddings[held_out[q]], codes, codebooks))
            print(f"{8 * m:2} bits, Σ^{power:<6} {found:.4f}", flush=True)


def codes_of(vectors, codebooks, power, seed):
    """Codes, uint8 (N, M), of vectors and the codebooks that are fitted to them in the distance of Σ^power."""
    factor = quantizer.query_factor(vectors, power)
    fitted = fit_codebooks(vectors, codebooks, stream(seed, "final fit"), factor)
    return quantizer.local_search(vectors, fitted, stream(seed, "encode database"), factor=factor), fitted
