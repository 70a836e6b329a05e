"""A data set from a folder of photos that carry their own tags: `prepare/photos.py NAME --from-photos DIR`.

A new run reads only what is new or changed. photo_tags.py reads the tags. Letters: N training photos, R tags.
"""
import json
import os
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain

from dataset import TAG_LISTS, links_out, name_fault
from prepare.photo_tags import descriptions_of, read_tags
from prepare.split_files import (
    DROPPED_TAGS,
    REPORT,
    SPLIT_FILES,
    check_faults,
    install,
    link_images,
    ones_of,
    only_preparation,
    stale_tags_note,
    temporary_folder,
    write_lines,
    write_splits,
)
from retrieval.photos import photos_and_descriptions
from storage.files import read_json, write_json, write_text
from storage.images import image_fault
from tags.spelling import fold
from util import UserError, cores, first_few, note, progress

LEAST_PHOTOS = 50  # with a tag that is kept; nothing is learned from fewer
LEAST_TAGS = 2  # a single tag does not distinguish photos
MOST_TAGS = 4000  # the paper's sets have 1,000 and 1,386; each is a column of a matrix that is dense in its file
NEARLY_ALL = 0.8  # a tag that a larger share of the tagged photos has is dropped: it says little about any
SHOWN_TAGS = 5  # at most this many of the dropped tags of each kind are printed
MEMORY = "photo_tags.json"  # in data/NAME: what was read from each photo, so that it is not read again
VERSION = 1  # of the format of that file
MADE_BY = "prepare/photos.py --from-photos"


@dataclass(frozen=True)
class Photo:
    """What was read from a photo.

    stamps: {file: [size, time of the last change in ns]} of the photo and of the files that describe it;
    tags: as people typed them; fault: why the photo cannot be used, or None; unread: why some tags could not be read.
    """
    stamps: dict
    tags: list
    fault: str | None
    unread: list


def import_photos(root, dataset, folder, min_tag_count, skip_bad, folder_tags):
    """Make or update the data set of a folder. Returns whether there are enough tags to learn from. Raises UserError.

    `folder_tags`: whether the names of the folders that a photo is in count as its tags.
    """
    splits, link = root / "data" / dataset, root / "datasets" / dataset
    with only_preparation(splits, splits):
        check_origin(splits, folder)
        before = read_memory(splits)
        photos = read_photos(folder, splits, before)
        usable, left_out = usable_photos(folder, photos, skip_bad)
        tags_of = {name: spelled_tags(name, photos[name].tags, folder_tags) for name in usable}
        kept, dropped = choose_tags(tags_of.values(), min_tag_count)
        training = [name for name in usable if not kept.keys().isdisjoint(tags_of[name])]
        ready = len(training) >= LEAST_PHOTOS and len(kept) >= LEAST_TAGS
        no_words = None if ready else (
            f"{len(training):,} photos have one of the {len(kept):,} tags that were kept, and learning from tags takes "
            f"at least {LEAST_PHOTOS} photos and {LEAST_TAGS} tags.")
        link_images(link, folder, root)
        report = {"made_by": MADE_BY, "folder": str(folder), "photos": len(usable), "left_out": len(left_out),
                  "photos_with_a_tag": len(training), "tags": len(kept), "enough_tags": ready, "no_words": no_words,
                  "changes": changes(photos, before),
                  "dropped_tags": {why: len(found) for why, found in dropped.items()},
                  "min_tag_count": min_tag_count, "folder_tags": folder_tags}
        with temporary_folder(splits.with_name(f".{splits.name}.tmp")) as new:
            if ready:
                tags = ones_of((tags_of[name] for name in training), kept)
                tag_lines = [f"{tag} {count}" for tag, count in kept.items()]
                write_splits(new, {"train": (training, tags)}, tag_lines, left_out=left_out)
            else:
                write_splits(new, {"train": (usable, None)}, left_out=left_out)
            write_notes(new, report, dropped)
            stale = stale_tags_note(splits, new / TAG_LISTS[0]) if ready else ""
            done = install(new, splits, force=True)
    print_report(report, dropped, [photo.unread for photo in photos.values() if photo.unread], splits)
    print(f"{done}, linked {link}{stale}")
    return ready


def check_origin(splits, folder):
    """Raise UserError if `data/NAME` has split files from another program or of another folder."""
    report = splits / REPORT
    content = read_json(report) if report.is_file() else {}
    others = [name for name in SPLIT_FILES if (splits / name).is_file()]
    if (others or content) and (content.get("made_by"), content.get("folder")) != (MADE_BY, str(folder)):
        raise UserError(f"{splits} already holds another data set than the photos of {folder}; remove this folder, or "
                        "choose another name")


# ---------------------------------------------------------------- reading the photos

def read_photos(folder, splits, before):
    """{name: Photo} of a folder. They are also saved in `splits`.

    `before`: {name: Photo} of the last run. Photos that have not changed since are not read again.
    """
    names, descriptions = photos_and_descriptions(folder)
    described = descriptions_of(names, descriptions)
    outside = links_out(folder, names)
    unlistable = {name: fault for name in names if (fault := name_fault(name))}

    def read(row, name):
        if name in unlistable or row in outside:
            return Photo({}, [], outside.get(row) or f"has a name with {unlistable[name]}", [])
        files = [name, *described.get(name, [])]
        stamps = {file: found for file in files if (found := stamp(folder / file))}
        if name in before and before[name].stamps == stamps:
            return before[name]
        fault = image_fault(folder / name)
        if fault:
            return Photo(stamps, [], fault, [])
        tags, unread = read_tags(folder / name, [folder / file for file in stamps if file != name])
        return Photo(stamps, tags, None, unread)

    photos, pool = {}, ThreadPoolExecutor(cores())
    try:
        found = progress(pool.map(read, range(len(names)), names), total=len(names), desc="reading tags", unit="photo",
                         leave=False)
        photos.update(zip(names, found, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
        write_memory(splits, photos if len(photos) == len(names) else {**before, **photos})
    return photos


def stamp(path):
    """Size and time of the last change, in ns, of a regular file; None for anything else."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else None


def usable_photos(folder, photos, skip_bad):
    """The names of the photos that can be used, and {name: fault} of the others. Raises UserError unless `skip_bad`."""
    faults = {name: photo.fault for name, photo in photos.items() if photo.fault}
    check_faults(folder, faults, len(photos), repr, skip_bad)
    return [name for name in photos if name not in faults], faults


# ---------------------------------------------------------------- memory of the last run

def read_memory(splits):
    """{name: Photo} of the last run; empty if there was none or if its file cannot be used."""
    try:
        content = read_json(splits / MEMORY)
        photos = content["photos"] if content["version"] == VERSION else {}
        return {name: Photo(**photo) for name, photo in photos.items()}
    except (OSError, UserError, KeyError, TypeError, AttributeError):
        return {}


def write_memory(splits, photos):
    kept = {name: asdict(photo) for name, photo in photos.items() if photo.stamps}
    write_text(splits / MEMORY, json.dumps({"version": VERSION, "photos": kept}) + "\n")


def changes(photos, before):
    """How many photos are new, changed and deleted since the last run; None if there was none."""
    if not before:
        return None
    there = {name for name, photo in photos.items() if photo.stamps}
    return {"new": len(there - before.keys()), "deleted": len(before.keys() - there),
            "changed": sum(photos[name].stamps != before[name].stamps for name in there & before.keys())}


# ---------------------------------------------------------------- which tags are kept

def spelled_tags(name, tags, folder_tags):
    """The set of a photo's tags in their normal spelling; with `folder_tags` the names of its folders too."""
    folders = name.split("/")[:-1] if folder_tags else []
    return {spelled for tag in (*tags, *folders) if (spelled := fold(tag))}


def choose_tags(sets, least):
    """{tag: number of photos} of the tags that are kept, most frequent first; and {why: the same} of the others.

    Args:
        sets: the tags of each photo.
        least (int): how many photos must have a tag for it to be kept.
    """
    counts = Counter(tag for tags in sets for tag in tags)
    most = NEARLY_ALL * sum(bool(tags) for tags in sets)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    common = dict(item for item in ranked if item[1] > most)
    rare = dict(item for item in ranked if item[1] < least and item[0] not in common)
    others = [item for item in ranked if item[0] not in common and item[0] not in rare]
    reasons = {f"more than {100 * NEARLY_ALL:g} % of the tagged photos have": common,
               f"fewer than {least} photos have": rare,
               f"come after the {MOST_TAGS:,} most frequent": dict(others[MOST_TAGS:])}
    return dict(others[:MOST_TAGS]), {why: found for why, found in reasons.items() if found}


# ---------------------------------------------------------------- files and report

def write_notes(new, report, dropped):
    """Write the report and the list of the dropped tags."""
    write_json(new / REPORT, report)
    if dropped:
        write_lines(new / DROPPED_TAGS, (f"{tag}\t{count}\t{why}" for why, found in dropped.items()
                                         for tag, count in found.items()))


def print_report(report, dropped, unread, splits):
    """Print what was found, and why tags were dropped. `unread`: of each photo with such tags, what is wrong."""
    known = report["changes"]
    since = "" if known is None else (f"; since the last run {known['new']:,} new, {known['changed']:,} changed, "
                                      f"{known['deleted']:,} deleted")
    print(f"photos: {report['photos']:,}{since}")
    if unread:
        note(f"some tags of {len(unread):,} photos could not be read: " + first_few([*chain.from_iterable(unread)]))
    print(f"tags: {report['tags']:,} kept" + (f"; dropped, and listed in {splits / DROPPED_TAGS}:" if dropped else ""))
    for why, found in dropped.items():
        print(f"{len(found):10,} that {why}: {', '.join([*found][:SHOWN_TAGS])}{', …' * (len(found) > SHOWN_TAGS)}")
    tagged = report["photos_with_a_tag"]
    if report["enough_tags"]:
        print(f"training photos: {tagged:,}, those with a tag that was kept")
    else:
        print(f"too few tags: {report['no_words']} These photos can be searched by photo, but not by words.")
