"""Samples per second and process of the training data path, 640x480 JPEG to 256x192 crop and encoded target, everything on the CPU, one thread.

Processor time of the one thread is what is compared, so that other jobs on the machine disturb little; wall time stands beside it. Contestants take turns.

The peer is a plain pipeline in the manner of MMPose's `td-hm` configs (decode, flip, half body, box jitter, warp, one Gaussian at a time, each sample by itself), written here, since MMPose cannot be
installed beside numpy 2. MMPose 1.3.2 ran at 0.43 x `cv2.imread` alone on another machine; the line "stand-in / imread" tells how near the stand-in is to that.
Both sides end where MMPose's data set ends: uint8 crop, encoded target, weights. Normalisation, which both do on the whole batch afterwards, is a line of its own.
A first epoch is everything from the files on: reading, decoding, cutting the pieces and keeping them (in memory, or in the cache on disk with its checksums and fsync), and one view of each person.

The pictures made here hold one person each. With `--data` the people of a COCO data set are a second case: pictures as they are, two or three people in each, which the peer decodes once for each person.

    python bench/loader.py [--rounds 7] [--quick] [--data PATH/coco_subset]
"""
import os
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[name] = "1"
import argparse
import copy
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import reference_codec as ref  # noqa: E402
from posellm.data.coco import load_data  # noqa: E402
from posellm.data.images import read_reduced  # noqa: E402
from posellm.data.pieces import PieceStore  # noqa: E402
from posellm.models.spec import ModelSpec  # noqa: E402
from posellm.pose.poses import Poses  # noqa: E402
from posellm.train.augment import Augment  # noqa: E402
from posellm.train.device import keep_pages  # noqa: E402
from posellm.train.feed import Feed  # noqa: E402
from posellm.train.recipe import recipe  # noqa: E402

HW, HM, K = (256, 192), (64, 48), 17
FLIP = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
GEOMETRY = Augment(brightness=0, contrast=0, saturation=0, hue=0, blur_p=0, cutout_p=0)  # what the peer's configuration does


def photographs(folder, n, times=1):
    """Pictures of 640x480, or so many times larger, with structure at every scale, one person's labels in each."""
    gen, images, people = np.random.default_rng(0), [], []
    for i in range(n):
        pic = sum(cv2.resize(gen.normal(0, 1, (480 // s, 640 // s, 3)), (640, 480), interpolation=cv2.INTER_CUBIC) * s**.7 for s in (2, 5, 16, 40, 120))
        pic = np.clip(128 + 9 * pic, 0, 255).astype(np.uint8)
        if times > 1: pic = np.clip(cv2.resize(pic, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC) + gen.normal(0, 4, (int(480 * times), int(640 * times), 1)), 0, 255).astype(np.uint8)
        path = folder / f"{i}.jpg"; cv2.imwrite(str(path), pic, [cv2.IMWRITE_JPEG_QUALITY, 90])
        x, y, w, h = gen.uniform(50, 250), gen.uniform(10, 80), gen.uniform(100, 250), gen.uniform(250, 380)
        x, y, w, h = (v * times for v in (x, y, w, h))
        xy = np.stack([gen.uniform(x, x + w, K), gen.uniform(y, y + h, K)], 1)
        images.append(dict(id=i, file_name=path.name, path=str(path), width=pic.shape[1], height=pic.shape[0]))
        people.append(dict(id=i + 1, image_id=i, category_id=1, keypoints=np.c_[xy, np.full(K, 2)].ravel().tolist(), num_keypoints=K, bbox=[x, y, w, h], area=w * h / 2, iscrowd=0))
    return Poses.from_coco(dict(images=images, annotations=people, categories=[dict(id=1, name="person")]), skeleton="coco17")


def plain_sample(info, gen, image=None):
    """One training sample, step by step on dictionaries of this one person."""
    d = copy.deepcopy(info)
    img = cv2.imread(d["path"]) if image is None else image
    xy, on, (x, y, w, h) = d["keypoints"].copy(), d["labelled"].copy(), d["bbox"]
    if gen.random() < .5:
        img = np.ascontiguousarray(img[:, ::-1]); xy[:, 0] = img.shape[1] - 1 - xy[:, 0]; xy, on = xy[FLIP], on[FLIP]; x = img.shape[1] - 1 - x - w
    center, size = np.array([x + w / 2, y + h / 2]), np.array([w, h]) * 1.25
    if gen.random() < .3:
        part = slice(0, 11) if gen.random() < .7 else slice(11, K)
        if on[part].sum() > 2: sel = xy[part][on[part]]; center, size = sel.mean(0), (sel.max(0) - sel.min(0)) * 1.5
    if gen.random() < .3: center = center + np.clip(gen.normal(0, .16, 2), -.32, .32) * size
    size = size * np.clip(gen.normal(1, .3), .5, 1.5)
    rot = np.clip(gen.normal(0, 40), -80, 80) if gen.random() < .6 else 0.
    W = max(size[0], size[1] * HW[1] / HW[0]); c, s = np.cos(np.deg2rad(rot)), np.sin(np.deg2rad(rot)); f = (HW[1] - 1) / W
    M = np.array([[c * f, -s * f, 0], [s * f, c * f, 0]]); M[:, 2] = (np.array([HW[1], HW[0]]) - 1) / 2 - M[:, :2] @ center
    crop = cv2.warpAffine(img, M, (HW[1], HW[0]), flags=cv2.INTER_LINEAR)
    at = (xy @ M[:, :2].T + M[:, 2]) / ((np.array([HW[1], HW[0]]) - 1) / (np.array([HM[1], HM[0]]) - 1))
    target, weight = ref.encode_gaussian(at.astype(np.float32), on.astype(np.float32), HM, 2, False, np.float32)
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))), torch.from_numpy(target), torch.from_numpy(weight), dict(d, center=center, scale=size)


def peer_infos(people):
    """What the peer's data set keeps of each person with labelled keypoints."""
    files = {im["id"]: im for im in people.images}
    return [dict(path=files[i]["path"], keypoints=np.where(people.labelled[r][:, None], people.xy[r], 0), labelled=people.labelled[r], bbox=people.bbox[r], id=r, image_id=i, meta=dict(flip=FLIP, sigmas=[.05] * K, file=files[i])) for r, i in enumerate(people.image_id.tolist())]


def real_people(data, quick):
    """The people with labelled keypoints of a data set's train part."""
    people = load_data(data, "train"); people = people[people.posed]
    return people[:40] if quick else people


def in_turns(contestants, rounds):
    taken = {name: [] for name in contestants}
    for r in range(rounds + 1):
        for name, call in contestants.items():
            cpu, wall = time.thread_time(), time.perf_counter(); n = call()
            if r: taken[name].append((1e3 * (time.thread_time() - cpu) / n, 1e3 * (time.perf_counter() - wall) / n))
    return taken


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--rounds", type=int, default=7); args.add_argument("--quick", action="store_true", help="few rounds, few people"); args.add_argument("--data", help="a COCO data set: the first epoch of its people too")
    args = args.parse_args(); n, rounds = (32, 2) if args.quick else (128, args.rounds)
    torch.set_num_threads(1); cv2.setNumThreads(1); keep_pages()  # as training does
    with tempfile.TemporaryDirectory() as d:
        people = photographs(Path(d), n); gen = np.random.default_rng(1)
        print(f"{n} JPEGs of {sum(Path(i['path']).stat().st_size for i in people.images) / n / 1024:.0f} kB")
        infos = peer_infos(people)
        decoded = [cv2.imread(i["path"]) for i in infos]
        spec = ModelSpec("loader", "coco17", HW, HM)
        def feed(store, aug=GEOMETRY, batch=32): return Feed(store, spec, recipe("small", augment=aug, batch=batch), "cpu")
        def epoch(f):
            n, B = len(f.store), f.cfg.batch
            for p in range(0, n, B): f.targets(f.host(p)["view"])
            return n
        def fresh(who, cache, batch=32):
            if cache: shutil.rmtree(cache, ignore_errors=True)
            return epoch(feed(PieceStore.make(who, HW, cache=cache, workers=0), batch=batch))  # no decoding threads: they would not be in the time of this one
        cached = PieceStore.make(people, HW, cache=Path(d) / "cache"); same, full = feed(cached), feed(cached, Augment()); hosts = [same.host(p) for p in range(0, n, 32)]
        (Path(d) / "large").mkdir(); large = photographs(Path(d) / "large", 4, 6.25)  # 4000x3000
        infos12 = peer_infos(large); real = real_people(args.data, args.quick) if args.data else None; infos_real = peer_infos(real) if real else []
        taken = in_turns({"ours, first epoch from JPEG": lambda: fresh(people, False), "stand-in from JPEG": lambda: len([plain_sample(i, gen) for i in infos]),
                          "ours, first epoch, cache on disk": lambda: fresh(people, Path(d) / "again"), "cv2.imread alone": lambda: len([cv2.imread(i["path"]) for i in infos]), "our decoding alone": lambda: len([read_reduced(i["path"])[0] for i in infos]),
                          "ours, from the cache": lambda: epoch(same), "stand-in, image already decoded": lambda: len([plain_sample(i, gen, im) for i, im in zip(infos, decoded)]),
                          "ours, from the cache, all augmentations": lambda: epoch(full), "normalisation": lambda: [same.pixels(h) for h in hosts] and n,
                          "ours, first epoch from 12 megapixels": lambda: fresh(large, False, 4), "stand-in from 12 megapixels": lambda: len([plain_sample(i, gen) for i in infos12]),
                          **({"ours, first epoch of photographs": lambda: fresh(real, False), "ours, first epoch of photographs, cache on disk": lambda: fresh(real, Path(d) / "again"), "stand-in from photographs": lambda: len([plain_sample(i, gen) for i in infos_real])} if real else {})}, rounds)
        cached = same = full = None
    mid = {k: statistics.median(c for c, _ in t) for k, t in taken.items()}
    for k, t in taken.items(): print(f"  {k:42s} {mid[k]:6.3f} ms [{min(c for c, _ in t):.3f}-{max(c for c, _ in t):.3f}] (wall {statistics.median(w for _, w in t):.3f})   {1e3 / mid[k]:6.0f} samples/s")
    pairs = dict(jpeg=("ours, first epoch from JPEG", "stand-in from JPEG"), jpeg_disk=("ours, first epoch, cache on disk", "stand-in from JPEG"), cache=("ours, from the cache", "stand-in, image already decoded"), large=("ours, first epoch from 12 megapixels", "stand-in from 12 megapixels"),
                 **(dict(photographs=("ours, first epoch of photographs", "stand-in from photographs"), photographs_disk=("ours, first epoch of photographs, cache on disk", "stand-in from photographs")) if real else {}))
    print(f"  stand-in / imread: {mid['cv2.imread alone'] / mid['stand-in from JPEG']:.2f} (MMPose: 0.43)")
    near = mid["cv2.imread alone"] / mid["stand-in from JPEG"]
    note = f"processor time of one thread, machine shared with other work; stand-in / cv2.imread {near:.2f}; normalisation ({mid['normalisation']:.3f} ms) in neither; reading and decoding alone are {mid['our decoding alone']:.3f} ms of our first epoch"
    if real: note += f"; photographs: {len(real)} people in {len(set(real.image_id.tolist()))} images of {Path(args.data).name}"
    print(json.dumps({k: dict(ours=round(mid[a], 3), peer=round(mid[b], 3), unit="ms/sample", peer_name=b, times_faster=round(mid[b] / mid[a], 2), note=note) for k, (a, b) in pairs.items()}))


if __name__ == "__main__": main()
