"""Photos that tests draw, as files that are decoded as they were drawn."""
import cv2


def write_photos(folder, images):
    """Paths of photos, PNG files in `folder`, of images uint8 (h, w, 3)."""
    paths = [folder / f"{row}.png" for row in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        assert cv2.imwrite(str(path), image)
    return paths
