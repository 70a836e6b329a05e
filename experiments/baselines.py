"""A retrieval file's codes beside FAISS's: `python experiments/baselines.py RETRIEVAL_H5 [options]`."""
import argparse
from pathlib import Path

from util import number, run_program

DESCRIPTION = """\
Compare the codes in a retrieval file (validation.py writes it) with other codes of the same length over the same
embeddings, and print one table.

rows
  AQD       this model's codes; the query is not quantized
  LSH       signs along random orthogonal directions, embeddings centred; Hamming distance
  ITQ       signs after PCA and a learned rotation, embeddings centred; Hamming distance
  PQ, OPQ   product quantization, plain and with a learned rotation; the query is not quantized
  RQ, LSQ   residual and local search quantization (additive codes); the query is not quantized
  exact     the embeddings themselves; random: a random order
columns
  bytes        of an image's code
  MAP@K        over the relevant results among the top K, as validation.py reports it
  min(R,K)     the usual MAP, divided by min(R, K)
  queries/s    FAISS searching for 100 results; median of 5 searches of up to 1,000 queries
  training s   seconds; AQD's codebooks were trained with the network

FAISS's quantizers learn from the database embeddings, at most 20,000 of them. PQ and OPQ of 7 and 8 bytes
see 300 dimensions padded with zeros to 301 and 304."""


def parse_arguments():
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("retrieval", metavar="RETRIEVAL_H5", type=Path, help="an <experiment>_retrieval.h5")
    parser.add_argument("--topk", type=number(int, 1), default=5000, metavar="K",
                        help="results a query that count in MAP@K; cut to the size of the database (default 5000)")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="drives every random choice; two runs with one seed, and as many threads, give the same "
                             "MAPs (default 0)")
    parser.add_argument("--threads", type=number(int, 1, 1024), default=1, metavar="N",
                        help="threads that train and search (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too (default: do not)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    from experiments import faiss_codes
    faiss_codes.compare(options)


if __name__ == "__main__":
    run_program(main)
