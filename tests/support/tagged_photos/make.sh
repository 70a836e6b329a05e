#!/usr/bin/env bash
# How the photos of this folder were made, once: drawn by OpenCV, tagged by exiftool 12.57, both in Debian.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
for name in iptc.jpg latin.jpg all.jpg xmp.png all.tif all.webp beside.jpg stem.jpg; do
    python3 -c "import cv2, numpy, sys; cv2.imwrite(sys.argv[1], numpy.full((16, 24, 3), (200, 160, 90), 'u1'))" "$name"
done
tag() { exiftool -q -overwrite_original "$@"; }
tag -codedcharacterset=utf8 -IPTC:Keywords="Café" -IPTC:Keywords="New York" iptc.jpg
tag -IPTC:Keywords="Café" latin.jpg  # in Latin-1, and it does not say so
tag -codedcharacterset=utf8 -IPTC:Keywords="東京" -IPTC:Keywords="sea" all.jpg all.tif
tag -XMP-dc:Subject="beach day" -XMP-dc:Subject="sea" -XMP-lr:HierarchicalSubject="Places|USA|New York" \
    -EXIF:XPKeywords="Sunset;Été" all.jpg all.tif all.webp
tag -XMP-dc:Subject="beach day" -EXIF:XPKeywords="Sunset" xmp.png
exiftool -q -XMP-dc:Subject="sea" -XMP-dc:Subject="beach day" -o beside.jpg.xmp
exiftool -q -XMP-lr:HierarchicalSubject="Animals|Cats|Tom" -o stem.xmp
