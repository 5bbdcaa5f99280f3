"""How hard is synth-v1? AP of one fixed small network after a fixed number of samples.

The figure belongs to version 1 of the benchmark, which is frozen: a later version may not be easier (at most +0.05 AP).
Prints lines for people and one JSON object last (see bench/run.py).
"""
import argparse
import json
import time

from posellm.core.log import setup_log
from posellm.data.coco import load_data
from posellm.data.synth import synth_v1
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import bootstrap
from posellm.stages.data import synth_folder
from posellm.stages.stage1 import start_model
from posellm.train.fit import fit
from posellm.train.predict import predict_poses
from posellm.train.recipe import Phase, recipe

PEOPLE, VAL, STEPS, BATCH, INPUT, SEED = 7500, 1000, 640, 32, (128, 96), 0


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    setup_log(); v1 = synth_v1(); folder = synth_folder(PEOPLE, VAL, 200)
    train, val = load_data(folder, 'train'), load_data(folder, 'val')
    model = start_model('posellm-s', None, train.skeleton, INPUT, SEED)
    t = time.perf_counter()
    fit(model, train, None, recipe('small', phases=(Phase('phase2', 4e-3, steps=STEPS),), batch=BATCH, seed=SEED, loggers=(), precision='fp32', layer_decay=1.))
    seconds = time.perf_counter() - t
    ci = bootstrap(evaluate(val, predict_poses(model, val[val.num_keypoints > 0], precision='fp32'), boxes='ground-truth boxes'))
    print(ci); print(f'{STEPS*BATCH} samples of {PEOPLE} people, {seconds:.0f} s')
    print(json.dumps({'AP after 20,480 samples': dict(ours=round(ci.value, 4), peer=None, unit='AP', peer_name=None, lo=round(ci.lo, 4), hi=round(ci.hi, 4), benchmark=v1.name, version=v1.version, checksum=v1.checksum, frozen=v1.frozen)}))


if __name__ == '__main__': main()
