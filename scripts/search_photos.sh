#!/usr/bin/env bash
# From a folder of photos to a page on which they are searched, on a fresh machine:
#     search_photos.sh FOLDER [GPU] [WORD_VECTORS] [options of search.py serve]
# (default: GPU 0 or else the CPU; `train` in place of a file trains word vectors on the photos' own tags).
# Run it again after an interruption, or after photos were added, changed or deleted: what is done is not done again.
# Nothing is written into FOLDER. docs/guide.md has the time that each part takes.
set -euo pipefail
if [ ! -d "${1-}" ]; then
    echo "error: search_photos.sh FOLDER [GPU] [WORD_VECTORS] [options of search.py serve]: expected a folder of photos, found ${1:-nothing}" >&2
    exit 2
fi
folder=$(cd "$1" && pwd -P) gpu=${2:-0} vectors=${3:-train}
[ ! -f "$vectors" ] || vectors=$(realpath "$vectors")
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

part() {  # part TITLE COMMAND…: run a command, and say how long it took
    local began=$SECONDS
    printf '\n%s\n' "--- $1"
    "${@:2}"
    echo "--- $1: $((SECONDS - began)) s"
}
index_of() { echo "indexes/$(basename "$1" .npy)"; }  # of a checkpoint

part "environment" install photos,serve
[ -e efficientnet_lite0.json ] || part "image encoder" "$PYTHON" prepare/efficientnet.py --force
# the name of the folder, and a number that distinguishes two folders of one name
name=$(basename "$folder" | tr -c '[:alnum:]._\n-' _ | sed 's/^[.-]/_/')-$(cksum <<< "$folder" | cut -d' ' -f1)
training=("$name" 0.003 800 0 2 SOFTMAX photos "$gpu" --encoder efficientnet_lite0.onnx --pairs 1)
checkpoint=$("$PYTHON" train.py "${training[@]}" --print-path)
again="To learn the tags of newer photos too, remove $checkpoint and run this again."
if [ ! -e "$checkpoint" ] || [ ! -e "${checkpoint%.npy}.json" ]; then  # nothing has been learned from these tags yet
    part "photos and their tags" "$PYTHON" prepare/photos.py "$name" --from-photos "$folder" --skip-bad
    if [ -e "data/$name/train_tag.txt" ]; then
        part "word vectors" "$PYTHON" tag_processing.py "$name" "$vectors" "$gpu"
        rm -rf "$(index_of "$checkpoint")"  # of a checkpoint that was removed
        part "training" "$PYTHON" train.py "${training[@]}"
    else
        # 2^k or more photos, up to 4,096: another checkpoint, and another index, when there are twice as many photos
        photos=$(wc -l < "data/$name/train_img.txt") least=1
        while [ $least -lt 4096 ] && [ $((2 * least)) -le "$photos" ]; do least=$((2 * least)); done
        untagged=("$name" 0 0 0 2 PCA "of_$least" "$gpu" --encoder efficientnet_lite0.onnx) again=
        checkpoint=$("$PYTHON" train.py "${untagged[@]}" --print-path)
        [ -e "${checkpoint%.npy}.json" ] || part "training" "$PYTHON" train.py "${untagged[@]}"
    fi
fi
part "index" "$PYTHON" search.py build "$checkpoint" "$folder" --gpu "$gpu" --skip-bad --prune
printf '\n%s\n' "The page's address follows; Ctrl-C ends the server. $again"
exec "$PYTHON" search.py serve "$(index_of "$checkpoint")" --gpu "$gpu" "${@:4}"
