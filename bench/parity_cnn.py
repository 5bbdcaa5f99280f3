"""Networks, crops, flip test and decoding of posellm beside the official code of HRNet, SimpleBaseline and rtmlib, on random weights.

The official projects stay outside. Clone leoxiaobin/deep-high-resolution-net.pytorch, microsoft/human-pose-estimation.pytorch and
Tau-J/rtmlib into one folder, then, once for each:   python bench/parity_cnn.py hrnet|simplebaseline|rtmlib --official FOLDER
What was measured last is in bench/results/parity.md.
"""
import argparse
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import cv2
import numpy as np
import torch

from posellm.app.estimator import people_from_boxes
from posellm.data.synth import SynthConfig, make_scene
from posellm.models.zoo import create_model
from posellm.pose.codec import Codec
from posellm.pose.geometry import to_image
from posellm.pose.skeleton import get_skeleton
from posellm.train.augment import normalise
from posellm.train.predict import crops_for, predict_poses

FOLDERS = dict(hrnet='deep-high-resolution-net.pytorch', simplebaseline='human-pose-estimation.pytorch', rtmlib='rtmlib')
PAIRS = [[i, i + 1] for i in range(1, 17, 2)]
MEAN, STD = np.array([.485, .456, .406]), np.array([.229, .224, .225])


class Settings(dict):
    "A dict whose entries are attributes too, as the official configurations are."
    __getattr__ = dict.__getitem__

    @classmethod
    def of(cls, x): return cls({k: cls.of(v) for k, v in x.items()}) if isinstance(x, dict) else x


def scene():
    "A generated picture, its people, one box that leaves the picture and one that is tall and thin."
    s = make_scene(3, 1, SynthConfig())
    boxes = np.array([p['bbox'] for p in s.people] + [[-30.5, 10.25, 100.3, 61.7], [5, 5, 40, 200]], float)
    rec = dict(id=1, file_name='x', width=s.image.shape[1], height=s.image.shape[0])
    return s.image, boxes, people_from_boxes(boxes, np.ones(len(boxes)), rec, get_skeleton('coco17'))


def randomise(net):
    "BatchNorm as after training: not the identity."
    g = torch.Generator().manual_seed(1)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * .1)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + .5)
            m.weight.data.copy_(torch.rand(m.weight.shape, generator=g) + .5)
            m.bias.data.copy_(torch.randn(m.bias.shape, generator=g) * .1)


def row(what, value, unit): print(f'| {what} | {value:.2g} {unit} |', flush=True)


def largest(a, b): return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def official_cnn(which, folder):
    "Modules of HRNet or SimpleBaseline, and the configurations to compare."
    sys.path.insert(0, str(folder / 'lib'))
    for n in ('nms', 'nms.nms', 'json_tricks'): sys.modules.setdefault(n, types.ModuleType(n)) # compiled or not needed
    for f in ('oks_nms', 'soft_oks_nms'): setattr(sys.modules['nms.nms'], f, None)
    if which == 'hrnet':
        import models.pose_hrnet as net
        return net, [('hrnet-w32', 'hrnet/w32_256x192_adam_lr1e-3.yaml'), ('hrnet-w48', 'hrnet/w48_384x288_adam_lr1e-3.yaml')]
    import models.pose_resnet as net
    return net, [(f'simplebaseline{d}', f'resnet{d}/256x192_d256x3_adam_lr1e-3.yaml') for d in (50, 101, 152)]


def official_crops(image, boxes, hw):
    "Crops, centres, scales and affine maps as the official data set makes them."
    from dataset.coco import COCODataset
    from utils.transforms import get_affine_transform
    h, w = hw
    me, out = types.SimpleNamespace(aspect_ratio=w / h, pixel_std=200), []
    for box in boxes:
        c, s = COCODataset._xywh2cs(me, *box)
        t = get_affine_transform(c, s, 0, [w, h])
        crop = cv2.warpAffine(np.ascontiguousarray(image), t, (w, h), flags=cv2.INTER_LINEAR)
        out.append((torch.from_numpy(((crop / 255. - MEAN) / STD).transpose(2, 0, 1)).float(), c, s, t))
    return torch.stack([o[0] for o in out]), np.array([o[1] for o in out]), np.array([o[2] for o in out]), [o[3] for o in out]


@torch.no_grad()
def compare_cnn(which, folder):
    import yaml
    module, cases = official_cnn(which, folder)
    from core.inference import get_final_preds
    from utils.transforms import flip_back
    image, boxes, people = scene()
    for name, config in cases:
        cfg = yaml.safe_load((folder / 'experiments/coco' / config).read_text())
        cfg['MODEL'].setdefault('STYLE', 'pytorch')
        net = module.get_pose_net(cfg := Settings.of(cfg), is_train=False)
        randomise(net.eval())
        w, h = cfg.MODEL.IMAGE_SIZE
        with tempfile.TemporaryDirectory() as tmp:
            file = Path(tmp) / f'pose_{h}x{w}.pth'
            torch.save({f'module.{k}' if which == 'simplebaseline' else k: v for k, v in net.state_dict().items()}, file)
            ours = create_model(name, weights=file).eval() # strict
        spec, codec = ours.spec, Codec.from_dict(dict(ours.spec.codec))
        assert set(ours.state_dict()) == set(net.state_dict()) and spec.input_hw == (h, w)
        print(f'| {name}: state dict | {len(net.state_dict())} entries, same names; {sum(p.numel() for p in net.parameters()):,} parameters |')
        x = torch.randn(1, 3, h, w)
        row(f'{name} {h}x{w}: maps', largest(net(x), ours(x)) / float(net(x).abs().max()), 'of their maximum')
        crops, c, s, t = official_crops(image if spec.channels == 'rgb' else image[..., ::-1], boxes, (h, w))
        store = crops_for(people, spec, cache=False, read=lambda r: image)
        mine = normalise(torch.from_numpy(np.array(store.pixels)), spec.mean, spec.std, spec.channels)
        corners = np.array([[0, 0], [w, 0], [0, h], [w, h]], float)
        back = [corners @ m[:, :2].T + m[:, 2] for m in map(cv2.invertAffineTransform, t)]
        row(f'{name}: corners of the crops in the picture', largest(back, to_image(store.to_store, np.repeat(corners[None], len(boxes), 0))), 'px')
        row(f'{name}: crops', largest(crops, mine) * 255 * .224, f'grey levels; {100 * float(((crops - mine).abs() > 1e-4).float().mean()):.3f} % of the values differ')
        other = torch.from_numpy(flip_back(net(crops.flip(3)).numpy(), PAIRS).copy())
        other[:, :, :, 1:] = other.clone()[:, :, :, 0:-1]
        maps = (net(crops) + other) * .5
        row(f'{name}: flip test with shift', largest(maps, codec.merge_flip(ours(crops), ours(crops.flip(-1)), spec.skeleton.flip)) / float(maps.abs().max()), 'of the maximum')
        test = Settings(TEST=Settings(POST_PROCESS=True))
        peaks = codec.encode(torch.rand(len(boxes), 17, 2) * torch.tensor([w - 1., h - 1.]))[0] + torch.rand(maps.shape) * .05
        for what, m in (('random maps', maps - maps.min() + 1e-3), ('peaks with noise', peaks)): # the official decoding puts maps without a positive value at (0,0)
            p, v = get_final_preds(test, m.numpy().copy(), c, s)
            q, u = codec.decode(m)
            row(f'{name}: points from {what}', largest(p, to_image(store.to_store, q.double().numpy())), f'px; scores {largest(v[..., 0], u):.1g}')
        p, v = get_final_preds(test, maps.numpy().copy(), c, s)
        d = np.abs(p - predict_poses(ours, people, read=lambda r: image, workers=0, precision='fp32').xy).max(-1)[v[..., 0] > 0]
        row(f'{name}: whole path, picture and boxes to points', d.max(), f'px; {100 * (d < .01).mean():.1f} % of {len(d)} points within 0.01 px')


def random_rtmpose(file, hw, K):
    "An ONNX file with RTMPose's inputs and outputs and random weights: a convolution of stride 32 and a linear layer for each of x and y."
    from onnx import TensorProto, helper, numpy_helper, save
    rng, (h, w) = np.random.default_rng(0), hw
    n = (h // 32) * (w // 32)
    const = lambda name, *shape: numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(np.prod(shape[1:] if len(shape) == 4 else shape[:1]))).astype(np.float32), name)
    consts = [const('conv', K, 3, 32, 32), const('wx', n, 2 * w), const('wy', n, 2 * h), numpy_helper.from_array(np.array([0, K, n]), 'shape')]
    nodes = [helper.make_node('Conv', ['input', 'conv'], ['maps'], strides=[32, 32]), helper.make_node('Reshape', ['maps', 'shape'], ['tokens']),
             helper.make_node('MatMul', ['tokens', 'wx'], ['simcc_x']), helper.make_node('MatMul', ['tokens', 'wy'], ['simcc_y'])]
    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, 'random', [value('input', 'N', 3, h, w)], [value('simcc_x', 'N', K, 2 * w), value('simcc_y', 'N', K, 2 * h)], consts)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9), str(file))


@torch.no_grad()
def compare_rtmlib(folder):
    sys.path.insert(0, str(folder))
    from posellm.models.simcc import SimccModel, simcc_scores
    from rtmlib.tools.pose_estimation.rtmpose import RTMPose
    image, boxes, people = scene()
    for hw, K in (((384, 288), 133), ((256, 192), 17)):
        with tempfile.TemporaryDirectory() as tmp:
            random_rtmpose(f'{tmp}/random.onnx', hw, K)
            theirs, ours = RTMPose(f'{tmp}/random.onnx', model_input_size=hw[::-1], backend='onnxruntime', device='cpu'), SimccModel(f'{tmp}/random.onnx', device='cpu')
        spec, name = ours.spec, f'rtmlib {hw[0]}x{hw[1]}, {K} keypoints'
        store = crops_for(people, spec, cache=False, read=lambda r: image)
        mine, got = normalise(torch.from_numpy(np.array(store.pixels)), spec.mean, spec.std, spec.channels), []
        for i, (x, y, w, h) in enumerate(boxes):
            crop, c, s = theirs.preprocess(image, np.array([x, y, x + w, y + h]))
            pair = theirs.inference(crop)
            xy, score = theirs.postprocess(pair, c, s)
            crop = torch.from_numpy(crop.transpose(2, 0, 1)).float()
            r = ours(crop[None])
            got.append((crop, xy[0, :17], score[0, :17], np.concatenate(pair, -1)[0, :17], r[0]))
        crops, xy, score, theirs_r, r = (np.stack([np.asarray(g[k]) for g in got]) for k in range(5))
        row(f'{name}: crops', largest(crops, mine) * 57, f'grey levels; {100 * float((np.abs(crops - mine.numpy()) > 1e-4).mean()):.3f} % of the values differ')
        row(f'{name}: responses', largest(theirs_r, r) / np.abs(theirs_r).max(), 'of the maximum')
        q, _ = spec.codec().decode(torch.from_numpy(r))
        row(f'{name}: points', largest(xy, to_image(store.to_store, q.double().numpy())), 'px')
        row(f'{name}: scores, mean of two heights', largest(score, simcc_scores(torch.from_numpy(r), 2 * hw[1], 'mean')), '')
        d = np.abs(predict_poses(ours, people, flip=False, read=lambda rec: image, workers=0).xy - xy).max(-1)
        row(f'{name}: whole path, picture and boxes to points', d.max(), f'px; {100 * (d < .01).mean():.1f} % of {d.size} points within 0.01 px')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('which', choices=FOLDERS)
    parser.add_argument('--official', required=True, type=Path, help='folder that holds the clones')
    args = parser.parse_args()
    torch.manual_seed(0)
    folder = args.official / FOLDERS[args.which]
    if not folder.is_dir(): parser.error(f'{folder} is not there: clone it first')
    print('commit', subprocess.run(['git', '-C', str(folder), 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout.strip())
    compare_rtmlib(folder) if args.which == 'rtmlib' else compare_cnn(args.which, folder)


if __name__ == '__main__': main()
