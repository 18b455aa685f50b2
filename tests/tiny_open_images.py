"""A folder of Open Images as it is published: tables, and archives of masks."""

import zipfile

import numpy as np
from PIL import Image

MASKS = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
BOXES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,"
    "IsInside"
)
IMAGES = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,"
    "OriginalMD5,Thumbnail300KURL,Rotation"
)
TABLES = {
    "train": ("oidv6-train-annotations-bbox.csv", "train-images-boxable-with-rotation.csv"),
    "test": ("test-annotations-bbox.csv", "test-images-with-rotation.csv"),
}
WHOLE = (0.2, 0.6, 0.25, 0.75)  # the box of a disc


def draw(kind):
    """A mask of the size that Open Images would give a photograph of 64x48."""
    mask = np.zeros((75, 100), np.uint8)
    y, x = np.mgrid[:75, :100]
    disc = (y - 37) ** 2 + (x - 40) ** 2 < 20**2
    if kind == "disc":
        mask[disc] = 255
    elif kind == "speck":
        mask[30:33, 40:43] = 255
    elif kind == "frame":
        mask[2:, 2:] = 255
    elif kind == "two":
        mask[30:45, 20:35] = mask[30:45, 50:65] = 255
    elif kind == "band":
        mask[30:45] = mask[:, 60:70] = 255
    return mask


def save_open_images(root, split, objects):
    """Write tables and mask archives of a split, and no photographs.

    Each object is image, label, number and box, predicted quality, flags of the box, rotation, kind of mask.
    """
    root.mkdir(exist_ok=True)
    masks, boxes, images = [MASKS], [BOXES], {}
    for image, label, number, box, iou, flags, rotation, kind in objects:
        name = f"{image}_{label}_{number}.png"
        shown = ",".join(map(str, box))
        masks.append(f"{name},{image},/m/{label[1:]},{number},{shown},{iou},0.5 0.5 1;0.2 0.2 0")
        # The same box, rounded differently.
        rounded = ",".join(f"{side + 1e-6:.8f}" for side in box)
        boxes.append(f"{image},xclick,/m/{label[1:]},1,{rounded},0,0,{','.join(flags)}")
        licence = "https://creativecommons.org/licenses/by/2.0/"
        images[image] = f'{image},{split},u,landing,{licence},p,"Doe, Jane",A title,1,md5,t,{rotation}'
        with (
            zipfile.ZipFile(root / f"{split}-masks-{image[0]}.zip", "a") as archive,
            archive.open(name, "w") as file,
        ):
            Image.fromarray(draw(kind)).convert("1").save(file, "PNG")
    for name, lines in (
        (f"{split}-annotations-object-segmentation.csv", masks),
        (TABLES[split][0], boxes),
        (TABLES[split][1], [IMAGES, *images.values()]),
        ("class-descriptions-boxable.csv", ["/m/01yrx,Cat", '/m/0dzct,"Human face"']),
    ):
        (root / name).write_text("\n".join(lines) + "\n")
    return root
