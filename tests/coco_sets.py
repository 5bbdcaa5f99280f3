"""Small COCO data sets for the tests of data.*"""
import json

import cv2
import numpy as np

from posellm.pose.skeleton import get_skeleton

NAMES = list(get_skeleton("coco17").keypoints)


# somebody who faces us, height 1: geometry must have nothing to say about these people
BODY = np.array([(50, 20), (54, 16), (46, 16), (59, 18), (41, 18), (66, 40), (34, 40), (72, 62), (28, 62), (75, 82), (25, 82), (60, 85), (40, 85), (61, 118), (39, 118), (62, 150), (38, 150)]) / 150. - [.16, .1]


def person(i, image_id, gen, w=60, h=40):
    size = gen.uniform(.6, .85) * h
    xy = (BODY * size + gen.uniform(1, (w - .4 * size, h - .95 * size)) + gen.normal(0, .004 * size, (17, 2))).clip(1, (w - 2, h - 2)).round(2)
    v = gen.integers(0, 3, 17)
    v[:3] = 2
    xy[v == 0] = 0
    lo, hi = xy[v > 0].min(0) - 1, xy[v > 0].max(0) + 1
    return dict(id=i, image_id=image_id, category_id=1, keypoints=np.c_[xy, v].ravel().tolist(), num_keypoints=int((v > 0).sum()),
                bbox=[*lo.tolist(), *(hi - lo).tolist()], area=float(np.prod(hi - lo) * .6), iscrowd=0)


def coco(n=4, first=1, people=2, seed=0):
    gen = np.random.default_rng([seed, first])
    images = [dict(id=first + i, file_name=f"{first+i:012}.png", width=60, height=40) for i in range(n)]
    anns = [person((first + i) * 10 + k, first + i, gen) for i in range(n) for k in range(people)]
    return dict(info={"year": 2026}, licenses=[], images=images, annotations=anns, categories=[dict(id=1, name="person", supercategory="person", keypoints=NAMES, skeleton=[[16, 14]])])


def write(file, folder=None, d=None, seed=0):
    """Write the json and, where a folder is given, an image for each record."""
    d = coco() if d is None else d
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(d))
    for n, im in enumerate(d["images"] if folder else ()):
        p = folder / im["file_name"]
        p.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(p), np.random.default_rng([seed, im["id"]]).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    return d
