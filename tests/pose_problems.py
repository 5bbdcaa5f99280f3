"""Evaluation problems made up for tests and measurements: small nasty ones, one of the size of COCO val2017; and pycocotools as the judge."""
import contextlib
import io

import numpy as np

K = 17
SIGMAS = np.array([.26, .25, .25, .35, .35, .79, .79, .72, .72, .62, .62, 1.07, 1.07, .87, .87, .89, .89]) / 10


def person(xy, vis): return np.concatenate([xy, np.broadcast_to(vis, len(xy))[:, None]], 1).ravel().tolist()


def nasty_problem(seed):
    """A few images with everything that goes wrong: ties in score and in OKS, people twice, crowds, people without keypoints, counts that do not fit the labels,
    images without predictions, more than 20 predictions, areas of 0 and exactly at the limits, two categories, predictions of a category nobody has."""
    r = np.random.default_rng(seed)
    ids, whole, n_cat, scale = r.permutation(50)[:r.integers(1, 8)] + 1, r.uniform() < .5, int(r.choice([1, 1, 1, 2])), r.choice([20, 60, 200])
    anns, results = [], []
    for im in ids:
        base = []
        for _ in range(r.integers(0, r.choice([3, 9, 30]))):
            size = scale * r.choice([.5, 1, 2])
            xy = r.uniform(0, size, (K, 2)) + r.uniform(0, 300, 2)
            if base and r.uniform() < .3: xy = base[r.integers(len(base))] + (r.integers(-3, 4, 2) if r.uniform() < .5 else 0)
            if whole: xy = np.round(xy / 5) * 5
            base.append(xy)
            vis, kind = np.where(r.uniform(size=K) < r.choice([.1, .6, 1.]), 2, 0), r.uniform()
            if kind < .2: vis[:] = 0
            n = 3 if kind < .03 else 0 if kind > .93 else int((vis > 0).sum())
            anns.append(dict(id=len(anns) + 1, image_id=int(im), category_id=int(r.integers(n_cat)) + 1, iscrowd=int(r.uniform() < .15), area=float(r.choice([size * size * .5, 32**2, 96**2, 0., size * size])),
                             bbox=[*map(float, xy.min(0)), *map(float, np.ptp(xy, axis=0))], num_keypoints=n, keypoints=person(xy, vis)))
        for _ in range(r.integers(0, r.choice([2, 8, 35]))):
            near = base and r.uniform() < .85
            xy = base[r.integers(len(base))] + r.normal(size=(K, 2)) * scale * r.choice([0, .01, .05, .1]) if near else r.uniform(0, 400, (K, 2))
            if near and whole: xy = np.round(xy)
            score = float(r.choice([.1, .2, .3, .3, .5]) if r.uniform() < .6 else r.uniform())
            results.append(dict(image_id=int(im), category_id=int(r.integers(n_cat + (r.uniform() < .1))) + 1, score=score, keypoints=person(xy, 1)))
    r.shuffle(results)
    return dict(images=[dict(id=int(i), file_name=f'{i}.jpg') for i in ids], annotations=anns, categories=[dict(id=c + 1, name=f'kind {c}') for c in range(n_cat)]), results


def val_problem(n_images=5000, per_image=10, seed=0):
    """The size of COCO val2017: of 5,000 images 2,693 with people; 11,004 people, 6,352 with keypoints, 227 crowds; `per_image` predictions in every image."""
    r, share = np.random.default_rng(seed), n_images / 5000
    n, crowds, with_kp = int(11004 * share), int(227 * share), int(6352 * share)
    peopled = r.permutation(n_images)[:int(2693 * share)]
    w = r.gamma(1., 1., len(peopled))
    image = np.concatenate([peopled, r.choice(peopled, n - len(peopled), p=w / w.sum())])
    h = np.exp(r.normal(4.5, .8, n)); wh = np.stack([h / 2, h], 1); corner = r.uniform(0, 1, (n, 2)) * [640, 480]
    xy, area = np.round(r.uniform(size=(n, K, 2)) * wh[:, None] + corner[:, None]), wh.prod(1) * .6
    kind = np.repeat([0, 1, 2], [crowds, with_kp, n - crowds - with_kp])[r.permutation(n)]
    vis = np.where(r.uniform(size=(n, K)) < .63, 2, 0) * (kind == 1)[:, None]; vis[kind == 1, 0] = 2
    anns = [dict(id=i + 1, image_id=int(image[i]) + 1, category_id=1, iscrowd=int(kind[i] == 0), area=float(area[i]), bbox=[*map(float, corner[i]), *map(float, wh[i])],
                 num_keypoints=int((vis[i] > 0).sum()), keypoints=person(xy[i] * (vis[i] > 0)[:, None], vis[i])) for i in range(n)]
    of_image = [[] for _ in range(n_images)]
    for i in range(n): of_image[image[i]].append(i)
    results = []
    for im, people in enumerate(of_image):
        for j in range(per_image):
            if j < len(people):
                i, f = people[j], np.exp(r.normal(-.2, .7)); p, s = xy[i] + r.normal(size=(K, 2)) * SIGMAS[:, None] * np.sqrt(area[i]) * f * 1.5, np.exp(-f / 2) * r.uniform(.7, 1)
            elif people and r.uniform() < .4:
                i = people[r.integers(len(people))]; p, s = xy[i] + r.normal(size=(K, 2)) * .12 * h[i], r.uniform(0, .5)
            else: p, s = r.uniform(size=(K, 2)) * np.exp(r.normal(4.5, .8)) * [.5, 1] + r.uniform(size=2) * [640, 480], r.uniform(0, .3)
            results.append(dict(image_id=im + 1, category_id=1, score=float(s), keypoints=person(p, 1)))
    return dict(images=[dict(id=i + 1, file_name=f'{i + 1}.jpg', width=640, height=480) for i in range(n_images)], annotations=anns, categories=[dict(id=1, name='person')]), results


def fresh(results):
    """Copies, since loadRes writes into what it gets; without boxes, whose areas it would take instead of the keypoints'."""
    return [{k: v for k, v in r.items() if k != 'bbox'} for r in results]


def judge(truth, results, sigmas=SIGMAS, coco=None, evaluator=None, copy=True):
    """COCOeval of pycocotools (or another with the same interface), evaluated, accumulated and summarised."""
    if coco is None:
        from pycocotools.coco import COCO as coco
        from pycocotools.cocoeval import COCOeval as evaluator
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco(); gt.dataset = truth; gt.createIndex()
        e = evaluator(gt, gt.loadRes(fresh(results) if copy else results), 'keypoints')
        e.params.kpt_oks_sigmas = np.asarray(sigmas)
        e.evaluate(); e.accumulate(); e.summarize()
    return e
