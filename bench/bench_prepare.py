"""Seconds and peak memory of preparing MIRFLICKR-25K and NUS-WIDE, and of checking them, at their full sizes.

    python bench/bench_prepare.py [--images 269648]

The inputs are drawn in a temporary folder and removed. Numbers of files and sizes of texts are the real ones, but
the images are one tiny JPEG: 25,000 copies in an archive for MIRFLICKR, hard links for NUS-WIDE. So reading photos from
the disk (3 GB and 25 GB) is not measured. As all are alike, prepare/check.py has to compare every one by content (in
photos only those of equal size) and ends with exit code 1. To be met: under 2 minutes and 3 GB each.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np

from prepare.flickr25k import LABELS

PROJECT = Path(__file__).resolve().parent.parent
FLICKR_IMAGES, FLICKR_TAGS, OTHER_TAGS = 25_000, 1386, 50_000
NUSWIDE_TAGS, CONCEPTS, FREQUENT = 1000, 81, 21
LABELLED = 0.726  # share of NUS-WIDE's images with one of the 21 concepts
TAGS_PER_IMAGE = 8
LINKS = 50_000  # to one file; ext4 allows 65,000
JPEG = cv2.imencode(".jpg", np.full((16, 16, 3), 128, np.uint8))[1].tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=269_648,
                        help="images of NUS-WIDE, at least 30000 (default 269648)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images, annotations = make_flickr(root, rng)
        measure("prepare/flickr25k.py", "--images", images, "--annotations", annotations, "--root", root)
        measure("prepare/check.py", "flickr", "--root", root)
        measure("prepare/nuswide.py", make_nuswide(root / "NUS-WIDE", options.images, rng), "--root", root)
        measure("prepare/check.py", "nuswide", "--root", root)


def measure(program, *arguments):
    """Run a program, print its seconds and its peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, PROJECT / program, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone; Linux counts in KiB
    dataset = arguments[0] if program == "prepare/check.py" else ""
    print(f"{program} {dataset}: {time.perf_counter() - start:.1f} s, "
          f"peak {usage.ru_maxrss / 2**20:.2f} GiB, exit code {os.waitstatus_to_exitcode(status)}", flush=True)


def make_flickr(root, rng):
    """Both archives of MIRFLICKR-25K. A third of the tags are common ones."""
    images, annotations = root / "mirflickr25k.zip", root / "mirflickr25k_annotations_v080.zip"
    with zipfile.ZipFile(images, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mirflickr/doc/common_tags.txt", "".join(f"tag{i} 20\r\n" for i in range(FLICKR_TAGS)))
        for image in range(1, FLICKR_IMAGES + 1):
            common = rng.integers(0, FLICKR_TAGS, rng.integers(0, TAGS_PER_IMAGE))
            others = rng.integers(0, OTHER_TAGS, TAGS_PER_IMAGE)
            archive.writestr(f"mirflickr/im{image}.jpg", JPEG)
            archive.writestr(f"mirflickr/meta/tags/tags{image}.txt",
                             "".join(f"tag{i}\r\n" for i in common) + "".join(f"rare{i}\r\n" for i in others))
    with zipfile.ZipFile(annotations, "w", zipfile.ZIP_DEFLATED) as archive:
        for label in LABELS:
            chosen = 1 + np.flatnonzero(rng.random(FLICKR_IMAGES) < 0.15)
            archive.writestr(f"{label}.txt", "".join(f"{image}\r\n" for image in chosen))
    return images, annotations


def make_nuswide(release, images, rng):
    """NUS-WIDE's texts in their real sizes, and hard links for the photos."""
    for name in ("ImageList", "NUS_WID_Tags", "Groundtruth/AllLabels", "ConceptsList", "Flickr"):
        (release / name).mkdir(parents=True)
    names = [f"folder{i % 700}/{i:06}_{i * 7919}.jpg" for i in range(images)]
    (release / "ImageList/Imagelist.txt").write_text("".join(name.replace("/", "\\") + "\r\n" for name in names))
    (release / "NUS_WID_Tags/TagList1k.txt").write_text("".join(f"tag{i}\r\n" for i in range(NUSWIDE_TAGS)))
    (release / "ConceptsList/Concepts81.txt").write_text("".join(f"concept{i}\r\n" for i in range(CONCEPTS)))
    with open(release / "NUS_WID_Tags/AllTags1k.txt", "wb") as file:
        for start in range(0, images, 10_000):
            rows = min(10_000, images - start)
            text = np.full((rows, 2 * NUSWIDE_TAGS + 1), ord("\t"), np.uint8)
            text[:, :-1:2] = ord("0")
            text[np.arange(rows)[:, None], 2 * rng.integers(0, NUSWIDE_TAGS, (rows, TAGS_PER_IMAGE))] = ord("1")
            text[:, -1] = ord("\n")
            file.write(text)
    each = 1 - (1 - LABELLED) ** (1 / FREQUENT)
    for concept in range(CONCEPTS):
        ones = rng.random(images) < (each if concept < FREQUENT else each / 5)
        text = np.full((images, 2), ord("\n"), np.uint8)
        text[:, 0] = ord("0") + ones
        (release / f"Groundtruth/AllLabels/Labels_concept{concept}.txt").write_bytes(text.tobytes())
    for i in range(700):
        (release / f"Flickr/folder{i}").mkdir()
    for i, name in enumerate(names):
        path = release / "Flickr" / name
        if i % LINKS == 0:
            photo = path
            photo.write_bytes(JPEG)
        else:
            os.link(photo, path)
    return release


if __name__ == "__main__":
    main()
