"""Fetches, checks and unpacks CIFAR-10's archive: its batches go to the folder cifar10/, where gpq reads them."""
import argparse
import shutil
import tarfile
import zlib
from pathlib import Path

from gpq.data import FILES, META, load_split
from prepare.download import check_md5, md5_digits, source
from storage.files import replacing
from util import ROOT, UserError, progress, run_program

ARCHIVE = "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "C58F30108F718F92721AF3B95E74349A"
FOLDER = "cifar-10-batches-py"  # in the archive


def main():
    options = parse_options()
    folder = options.root / "cifar10"
    if all((folder / name).is_file() for name in (META, *FILES)):
        print(f"{folder} already holds all batches")
    else:
        def check(path):
            check_md5(path, options.md5)

        url = options.url if options.download else None
        archive = source(options.archive, [options.root / ARCHIVE], url, "--archive", check)
        check(archive)
        unpack(archive, folder)
    split = load_split(folder)
    print(f"{folder}: {len(split.query):,} queries, {len(split.labelled):,} labelled images, {len(split.database):,} "
          f"database images of {len(split.class_names)} classes: {', '.join(split.class_names)}")


def parse_options():
    parser = argparse.ArgumentParser(
        description=f"Unpack the batches of {ARCHIVE} into cifar10/, for python -m gpq.train. After an "
                    "interruption, run it again to continue.")
    parser.add_argument("--archive", type=Path, metavar="FILE", help=f"{ARCHIVE} (default: the one in --root)")
    parser.add_argument("--download", action="store_true",
                        help=f"download {ARCHIVE} (170 MB) to --root if it is not there")
    parser.add_argument("--url", default=URL, help=f"where to download from (default {URL})")
    parser.add_argument("--md5", type=md5_digits, default=MD5, metavar="HEX",
                        help=f"refuse an archive with another MD5 (default {MD5})")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds cifar10/ (default: the folder of train.py)")
    return parser.parse_args()


def unpack(archive, folder):
    """Write each batch of the archive to `folder`, whole or not at all. Raises UserError."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in progress((META, *FILES), desc="unpacking"):
                member = tar.extractfile(f"{FOLDER}/{name}")
                with replacing(folder / name) as temporary, open(temporary, "wb") as file:
                    shutil.copyfileobj(member, file)
    except KeyError as error:
        raise UserError(f"{archive}: expected {FOLDER}/{name} in this archive, found none") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive}: this archive cannot be read ({error})") from error


if __name__ == "__main__":
    run_program(main)
