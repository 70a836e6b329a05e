#!/usr/bin/env bash
# Makes the merged tags of both released data sets from the Google News vectors, as many as the release has: flickr with
# T = 1,178 of 1,386 raw tags and nuswide with 928 of 1,000: tag_processing.sh GPU.
# A data set that is missing does not keep the other from being done. The GPU is not used; it is asked for so that all
# scripts are called alike.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

failed=()
for wanted in flickr:1178 nuswide:928; do
    "$PYTHON" tag_processing.py "${wanted%:*}" datasets/GoogleNews-vectors-negative300.bin.gz "${1:-0}" \
        --merged-to "${wanted#*:}" || failed+=("${wanted%:*}")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "error: no merged tags of ${failed[*]}; see above" >&2
    exit 2
fi
