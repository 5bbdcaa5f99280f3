"""Microseconds per person of encoding and decoding heatmaps, 17 keypoints, batch 64, one thread, buffers reused.

Processor time of the one thread is what is compared, so that other jobs on the machine disturb little; wall time stands beside it.

Peers, in the same run and in turns: the published methods written plainly with numpy and OpenCV, one person at a time (tests/reference_codec.py; stands in for MMPose, which cannot be
installed beside numpy 2), the same in the way of transformers' VitPose (scipy's blur of every map), and transformers itself where it can be imported. Figures that MMPose 1.3.2 and
transformers 5.23 gave on another machine (2 vCPU Xeon) are printed beside them for orientation only.

    python bench/codec.py [--rounds 25] [--quick]
"""
import os
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[name] = "1"
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import reference_codec as ref  # noqa: E402
from posellm.pose.codec import make_codec  # noqa: E402
from posellm.pose.geometry import stride  # noqa: E402

BATCH, K = 64, 17
SIZES = {"64x48": (256, 192), "96x72": (384, 288)}
ELSEWHERE = {("encode", "64x48"): "MMPose UDP 290", ("encode", "96x72"): "MMPose UDP 330",  # microseconds, on the Xeon
             ("decode", "64x48"): "MMPose 551, transformers 1278 (batch 64)", ("decode", "96x72"): "MMPose 951, transformers 3894 (batch 64)"}


def in_turns(contestants, rounds):
    """Each contestant once per round, so that a noisy moment hits all of them; (processor, wall) microseconds per person."""
    taken = {name: [] for name in contestants}
    for r in range(rounds + 2):
        for name, (call, people) in contestants.items():
            cpu, wall = time.thread_time(), time.perf_counter()
            call()
            cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
            if r >= 2: taken[name].append((cpu / people * 1e6, wall / people * 1e6))
    return taken


def scipy_way():
    """Every map blurred by scipy (sigma 0.8, radius 5), then the batched 3x3 step: how transformers decodes VitPose."""
    try: from scipy.ndimage import gaussian_filter
    except ImportError: return None
    def decode(maps):
        blurred = np.array([[gaussian_filter(m, sigma=.8, radius=(5, 5), axes=(0, 1)) for m in person] for person in maps])
        log = np.pad(np.log(np.clip(blurred, 1e-3, 50)), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        out = np.empty((*maps.shape[:2], 2))
        for b, person in enumerate(maps):
            cell, _ = ref.highest(person)
            k, x, y = np.arange(len(person)), cell[:, 0] + 1, cell[:, 1] + 1
            def at(dx, dy): return log[b][k, y + dy, x + dx]
            g = np.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], 1) / 2
            h = np.empty((len(person), 2, 2))
            h[:, 0, 0], h[:, 1, 1] = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
            h[:, 0, 1] = h[:, 1, 0] = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
            out[b] = cell - np.einsum("kij,kj->ki", np.linalg.inv(h + np.finfo(np.float32).eps * np.eye(2)), g)
        return out
    return decode


def transformers_way():
    """transformers' own post-processing of VitPose's heatmaps, or None."""
    try:
        from transformers.models.vitpose.image_processing_vitpose import get_keypoint_predictions, post_dark_unbiased_data_processing
    except Exception as e:  # not installed, or without torchvision, or moved
        print(f"transformers is not measured: {type(e).__name__}: {e}")
        return None
    def decode(maps):
        coords, _ = get_keypoint_predictions(maps)
        return post_dark_unbiased_data_processing(coords, maps.copy(), kernel=11)
    return decode


def contestants(size, quick):
    """{group: {name: (call, people)}} for one heatmap size; the first of a group is ours, the second the peer of the ratio."""
    input_hw = SIZES[size]
    gen = np.random.default_rng(0)
    codec, mm = (make_codec("udp", input_hw, blur_kernel=11, variant=v) for v in ("vitpose", "mmpose"))
    sigma, hw = int(codec.sigma), codec.heatmap_hw
    xy = gen.uniform(.05, .95, (BATCH, K, 2)) * np.array(input_hw[::-1])
    xy_t, weight = torch.tensor(xy, dtype=torch.float32), torch.ones(BATCH, K)
    xy_hm, on = (xy / stride(input_hw, hw, "udp")).astype(np.float32), np.ones((BATCH, K), np.float32)
    buffer = torch.empty(BATCH, K, *hw)
    maps = codec.encode(xy_t)[0] + .05 * torch.randn(BATCH, K, *hw, generator=torch.Generator().manual_seed(0))
    plain = maps.numpy().copy()
    n = 4 if quick else 16  # people for the slow ones
    some = plain[:n]
    worst = max(np.abs(ref.decode_dark(p.astype(np.float64), 11, "mmpose")[0] * stride(input_hw, hw, "udp") - q.numpy()).max() for p, q in zip(plain, mm.decode(maps)[0]))
    print(f"{size}: decoded coordinates differ from the float64 reference by at most {worst:.1e} input px")
    encode = {"ours": (lambda: codec.encode(xy_t, weight, buffer), BATCH),
              "plain numpy (MMPose's method)": (lambda: [ref.encode_gaussian(xy_hm[b], on[b], hw, sigma, False, np.float32) for b in range(n)], n),
              "ours, new memory": (lambda: codec.encode(xy_t, weight), BATCH), "limit: memset": (lambda: buffer.zero_(), BATCH)}
    decode = {"ours": (lambda: mm.decode(maps), BATCH),
              "plain numpy + OpenCV (MMPose's method)": (lambda: [ref.decode_dark(m, 11, "mmpose") for m in some], n),
              "ours, vitpose variant": (lambda: codec.decode(maps), BATCH), "ours, batch 1": (lambda: mm.decode(maps[:1]), 1),
              "plain numpy + scipy (transformers' method)": ((lambda way=scipy_way(): way(some)) if scipy_way() else None, n),
              "transformers": ((lambda way=transformers_way(): way(plain)) if transformers_way() else None, BATCH),
              "torch argmax alone": (lambda: maps.flatten(2).argmax(-1), BATCH), "limit: sum of the maps": (lambda: maps.sum(), BATCH)}
    return {"encode": encode, "decode": {k: v for k, v in decode.items() if v[0] is not None}}


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--rounds", type=int, default=25); args.add_argument("--quick", action="store_true", help="few rounds, few people")
    args = args.parse_args()
    torch.set_num_threads(1); cv2.setNumThreads(1)
    result = {}
    for size in SIZES:
        for what, who in contestants(size, args.quick).items():
            taken = in_turns(who, 3 if args.quick else args.rounds)
            mid = {name: statistics.median(cpu for cpu, _ in t) for name, t in taken.items()}
            print(f"{what} {size}, microseconds per person: processor time, median [min-max], (wall), ratio to ours      elsewhere: {ELSEWHERE[what, size]}")
            for name, t in taken.items():
                cpu, wall = zip(*t)
                print(f"  {name:44s} {mid[name]:8.1f} [{min(cpu):.1f}-{max(cpu):.1f}] ({statistics.median(wall):.1f})   {mid[name] / mid['ours']:6.1f}x")
                if "method" in name or name == "transformers":
                    result[f"{what} {size} against {name}"] = dict(ours=round(mid["ours"], 2), peer=round(mid[name], 2), unit="us/person", peer_name=name, times_faster=round(mid[name] / mid["ours"], 2))
    print(json.dumps(result))


if __name__ == "__main__": main()
