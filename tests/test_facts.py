"""Facts, words, results, gallery: what must hold for any people, and what a browser sees."""
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from posellm.app.gallery import save_results
from posellm.app.result import Result
from posellm.core.errors import PoseError
from posellm.explain.crop import sharpness
from posellm.explain.facts import Meaning, exchanged, find_facts, mirror_poses, usual_meaning
from posellm.explain.schema import CATEGORIES, category, compare, mirrored, mirrored_key
from posellm.explain.writer import Sentence, Text, write
from posellm.metrics.oks import make_people
from posellm.pose.skeleton import get_skeleton
from posellm.refine.postprocess import clip_to_image, finish, fit_finish

COCO17 = get_skeleton('coco17')
KEYS = [c.key for c in CATEGORIES]


def crowd(seed, predictions=True, n=40):
    p = make_people(n, 2, COCO17, seed=seed, noise=1., predictions=predictions)
    return replace(p, conf=np.random.default_rng(seed).random(p.conf.shape)) if predictions else p


# ---- what can be said

def test_every_category_has_a_mirror_image_and_logic_is_consistent():
    for a in KEYS:
        assert mirrored_key(mirrored_key(a)) == a
        for b in (x.key for x in CATEGORIES if x.measure == category(a).measure):
            there, back = compare(a, b), compare(b, a)
            assert dict(same='same', implies='implied', implied='implies', excludes='excludes', unrelated='unrelated')[there] == back
            assert compare(mirrored_key(a), mirrored_key(b)) == there


def test_no_statement_speaks_of_depth():
    for c in CATEGORIES: assert not re.search(r'\b(behind|in front|closer to the camera|nearer|deep|forward|backward)', c.clause), c.clause


# ---- facts

@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans())
def test_a_mirror_exchanges_left_and_right_and_nothing_else(seed, predictions):
    p = crowd(seed, predictions, 12)
    a, b = find_facts(p), find_facts(mirror_poses(p))
    assert exchanged(a, b) == 1.
    for i in range(len(p)):
        mine = {f.id: f for f in map(mirrored, a.of(i))}; other = {f.id: f for f in b.of(i)}
        assert mine.keys() == other.keys()
        for k, f in mine.items(): assert np.isclose(f.value, other[k].value, atol=1e-6) and np.isclose(f.probability, other[k].probability, atol=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(.3, 4), st.floats(-500, 500))
def test_facts_do_not_depend_on_place_and_size(seed, scale, shift):
    p = crowd(seed, False, 8); q = replace(p, xy=p.xy*scale + shift, bbox=p.bbox*scale + [shift, shift, 0, 0], area=p.area*scale**2)
    assert (find_facts(p).stated == find_facts(q).stated).mean() > .9999


def test_stated_facts_never_exclude_each_other():
    f = find_facts(crowd(3, False))
    for i in range(len(f)):
        said = [x.id for x in f.of(i)]
        assert not any(compare(a, b) == 'excludes' for k, a in enumerate(said) for b in said[:k])


def test_what_is_not_labelled_is_not_spoken_of():
    p = crowd(5, False); f = find_facts(p)
    for i in range(len(p)):
        seen = {n for n, v in zip(COCO17.keypoints, p.vis[i]) if v > 0}
        for x in f.of(i):
            if x.kind in ('angle', 'direction', 'closeness', 'symmetry'): assert set(category(x.id).measure.points) - {'mid_hip', 'mid_shoulder'} <= seen


def test_doubtful_people_get_no_facts_about_the_body():
    p = replace(crowd(1), conf=np.full((80, 17), .001))
    assert {f.kind for i in range(len(p)) for f in find_facts(p).of(i)} <= {'confidence'}


def test_withheld_facts_can_be_seen_and_nothing_is_sure_of_itself():
    f = find_facts(crowd(7, False)); stated = {x.id for x in f.of(0)}; kept = {x.id for x in f.of(0, withheld=True)}
    assert not stated & kept and all(0 <= x.probability <= 1 for i in range(len(f)) for x in f.of(i))


def test_covariances_of_an_ensemble_are_used():
    p = replace(crowd(2), conf=np.full((80, 17), .97)); sure, unsure = (replace(p, cov=np.broadcast_to(np.eye(2)*s**2, (80, 17, 2, 2)).copy()) for s in (.1, 60.))
    assert find_facts(sure).stated[:, :120].sum() >= find_facts(unsure).stated[:, :120].sum()


def test_other_skeletons_are_read_by_name():
    for name in ('crowdpose14', 'halpe136', 'wholebody133'):
        p = make_people(3, 2, get_skeleton(name)); f = find_facts(p, noise=0.) if p.skeleton.sigmas is None else find_facts(p); assert len(f.to_json()) == 6
    hand = make_people(2, 1, get_skeleton('hand21')) if get_skeleton('hand21').sigmas is not None else None
    if hand is not None: assert not find_facts(hand).stated[:, :150].any()


def test_a_state_of_visibility_is_said_with_its_chance():
    p = crowd(1, n=60); chance = np.random.default_rng(0).dirichlet((.1, .1, .2), p.conf.shape); f = find_facts(p, visibility=chance); said = 0
    for i in range(len(p)):
        got = {x.id: x for x in f.of(i) if x.kind == 'visibility'}; want = {f'{j}.visibility:{s}': chance[i, k, c] for k, j in enumerate(COCO17.keypoints) for c, s in enumerate(('outside', 'occluded', 'visible')) if chance[i, k, c] >= .9}
        assert got.keys() == want.keys(); said += len(got)
        for k, x in got.items(): assert x.value == x.probability == want[k] and np.isclose(x.margin, want[k] - .9) and x.least == .9 and x.unit == 'probability'
    assert said > 100 and find_facts(p, visibility=chance, least=.6).stated.sum() > f.stated.sum() # the threshold is the one that was asked for
    states = np.where(chance.max(-1) >= .9, chance.argmax(-1), -1); g = find_facts(p, visibility=states); vis = [c.measure.kind == 'visibility' for c in CATEGORIES]
    assert (g.stated == f.stated).all() and (g.probability[:, vis][g.stated[:, vis]] == 1).all() # what is given as known is certain
    assert not find_facts(p).stated[:, vis].any()


def test_results_take_chances_of_visibility_from_what_was_learned():
    t, q = make_people(60, 2, COCO17), make_people(60, 2, COCO17, noise=2., predictions=True); learned = fit_finish(t, q).visibility
    one = q[q.image_id == q.image_id[0]]; r = Result('a.jpg', np.zeros((700, 700, 3), np.uint8), one, visibility=learned); p = learned.each(one)
    assert np.allclose(p.sum(-1), 1) and (p >= 0).all() and np.allclose(p[..., 0], learned.chances(one)[1])
    for row in r.to_json()['people']:
        for x in row['facts']:
            if x['kind'] == 'visibility': assert .9 <= x['probability'] == x['value'] <= 1 and x['least'] == .9
            assert (x['least'] is None) == (x['kind'] in ('confidence', 'crop')) and (x['least'] is None or x['probability'] >= x['least'] - 1e-4)
    assert any(x['kind'] == 'visibility' for row in r.to_json()['people'] for x in row['facts'])


def test_a_crop_explains_only_joints_that_it_concerns():
    from posellm.explain.verify import verify_sentence
    p = replace(crowd(1, n=1)[:1], conf=np.full((1, 17), .001)); feet = np.zeros((1, 17), bool); feet[:, 15:] = True; num = lambda x: np.array([float(x)])
    crop = dict(blur=num(.9), size=num(200), cut=num(.2), covered=num(.5), cut_joints=feet, covered_joints=~feet)
    said = {x.id: x for x in find_facts(p, crop=crop).of(0)}; cut, over = 'crop.cut:cut off', 'crop.covered:covered'
    for part, why in dict(upper_body=(over,), head=(over,), arms=(over,), lower_body=(cut, over), legs=(cut, over), whole_body=(cut, over)).items(): assert said[f'{part}.confidence:low'].because == why, part
    keep = lambda s: verify_sentence(s, said.values()).kept
    assert keep('The confidence in the legs is low because a part of the person is outside the picture.') and not keep('The confidence in the arms is low because a part of the person is outside the picture.')
    all_same = {x.id: x for x in find_facts(p, crop=crop | dict(blur=num(.1), size=num(20), cut=num(0), covered=num(0))).of(0)} # too little of the person is concerned to be said at all
    assert {x.because for x in all_same.values() if x.kind == 'confidence'} == {('crop.blur:blurred', 'crop.size:small')}
    assert not any(x.because for x in find_facts(p, crop=dict(cut=num(.3), covered=num(.5))).of(0)) # of joints nothing is known
    assert 'outside the picture' not in str(write([x for x in said.values() if not x.id.startswith(('lower', 'whole', 'leg'))]))


def test_meaning_of_another_version_is_refused():
    d = usual_meaning().to_dict()
    with pytest.raises(PoseError, match='schema'): Meaning.from_dict({**d, 'schema': 9})
    with pytest.raises(PoseError, match='other facts'): Meaning.from_dict({**d, 'sure': {**d['sure'], 'groups': ['x']}})


# ---- words

@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_every_sentence_rests_on_stated_facts_and_ends_with_a_stop(seed):
    f = find_facts(crowd(seed, seed % 2 == 0, 6))
    for i in range(len(f)):
        facts = f.of(i); t = write(facts, f'Person {i + 1}')
        ids = {x.id for x in facts}
        assert t.sentences
        for s in t.sentences:
            assert set(s.facts) <= ids and s.text.endswith('.') and s.text[0].isupper() and '  ' not in s.text and 'S_' not in s.text and ' O ' not in s.text
            assert not re.search(r'\b(behind|in front)\b', s.text)


# ---- finishing

def test_finishing_keeps_people_and_coordinates():
    t, q = make_people(60, 2, COCO17), make_people(60, 2, COCO17, noise=2., predictions=True); f = fit_finish(t, q); p = finish(q, f)
    assert len(p) <= len(q) and (p.conf >= 0).all() and (p.conf <= 1).all() and (clip_to_image(q).xy >= 0).all()
    twice = replace(q, image_id=q.image_id); both = finish(type(q)(**{**{k: getattr(twice, k) for k in twice.__dataclass_fields__}}), f); assert len(both) == len(p)


def test_sharpness_falls_with_blur():
    import cv2
    im = cv2.resize(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8), (180, 240), interpolation=cv2.INTER_NEAREST)
    s = [sharpness(cv2.GaussianBlur(im, (0, 0), b) if b else im) for b in (0, 1, 2, 4, 8)]
    assert all(a > b for a, b in zip(s, s[1:])) and sharpness(np.zeros((3, 3, 3), np.uint8)) == 0


# ---- the gallery in a browser

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)

PROBE = """<script>{
const out = {}, key = k => dispatchEvent(new KeyboardEvent("keydown", {key: k})), $$ = s => document.querySelectorAll(s).length;
out.cards = $$("article"); out.count = document.getElementById("count").textContent;
const s = document.querySelector('.s[data-j*="elbow"]'); s.dispatchEvent(new PointerEvent("pointerenter")); out.lit = $$("circle.on"); out.joints = s.dataset.j; s.dispatchEvent(new PointerEvent("pointerleave")); out.after = $$("circle.on");
s.focus(); if (!document.hasFocus()) s.dispatchEvent(new FocusEvent("focus")); // a window without the focus sends none
out.focused = $$("circle.on"); s.blur(); if (!document.hasFocus()) s.dispatchEvent(new FocusEvent("blur"));
const conf = document.getElementById("conf"); conf.value = 1; conf.dispatchEvent(new Event("input")); out.high = $$("article:not([hidden])"); key("Escape"); out.reset = $$("article:not([hidden])");
key("r"); out.at = document.activeElement.id; const r = document.getElementById("routed"); r.value = "1"; r.dispatchEvent(new Event("input")); out.routed = $$(".person:not([hidden])"); key("Escape");
key("j"); out.first = document.activeElement.id; key("j"); out.second = document.activeElement.id; key("k"); out.back = document.activeElement.id; key("f"); out.open = $$("details[open]"); key("s"); out.bones = $$("svg:not([hidden])");
out.wide = document.documentElement.scrollWidth <= innerWidth; out.broken = [...document.images].filter(i => i.complete && !i.naturalWidth).length;
const p = document.createElement("pre"); p.id = "probe"; p.textContent = JSON.stringify(out); document.body.append(p);
}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine: apt-get install chromium')
def test_the_gallery_works_in_a_browser(tmp_path):
    p = make_people(3, 2, COCO17, seed=4); g = np.random.default_rng(0)
    def one(i):
        q = p[p.image_id == i]; q.images = [im for im in p.images if im['id'] == i]
        return Result(f'{i}.jpg', g.integers(0, 255, (700, 700, 3), dtype=np.uint8), q, '/long' + '/folder'*40 + '.json', note='trained on `something` else', routed=np.array([i == 1, False]), by=lambda f, who, crop: Text((Sentence('The left elbow is bent.', ('left_elbow.bend:bent',)),)))
    got = save_results(map(one, (1, 2, 3)), tmp_path); page = tmp_path/'probe.html'
    page.write_text(Path(got['gallery']).read_text().replace('</body>', PROBE + '</body>'))
    for size in ('1400,1000', '400,800'):
        dom = subprocess.run([CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', f'--window-size={size}', f'--user-data-dir={tmp_path/"profile"}', '--virtual-time-budget=4000', '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=120).stdout
        out = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)[1])
        assert out['cards'] == 3 and out['count'].startswith('6 people in 3 pictures'), out
        want = len(set(out['joints'].split()))
        assert out['lit'] <= want and out['after'] == 0 and out['focused'] == out['lit'] and out['lit'] > 0, out
        assert out['high'] < 3 and out['reset'] == 3 and out['routed'] == 1 and out['at'] == 'routed', out
        assert (out['first'], out['second'], out['back']) == ('c1', 'c2', 'c1') and out['open'] == 2 and out['bones'] == 0, out
        assert out['wide'] and out['broken'] == 0, out


def test_the_gallery_of_chapter_05_knows_who_was_looked_at_twice(tmp_path):
    import cv2
    from posellm.app.cli_words import results_of
    from posellm.explain.router import mixed
    from posellm.stages.postprocess import Looks, answers_shown, with_looks
    def words_for(pred, f, meaning, slow): p = replace(pred, images=t.images); return with_looks(results_of(p, meaning), p, f, slow, 'demo') # as the chapter does
    t, one, two = make_people(3, 2, COCO17), *(make_people(3, 2, COCO17, noise=x, predictions=True) for x in (3., 1.)); f = fit_finish(t, two); routed = np.array([1, 0, 0, 0, 1, 1], bool)
    for im in t.images: im['path'] = str(tmp_path/im['file_name']); cv2.imwrite(im['path'], np.zeros((700, 700, 3), np.uint8))
    looks = Looks(fit_finish(t, one), usual_meaning(), answers={'stage 1 alone, finished': one, 'routed: 50% looked at twice': mixed(one, two, routed)}); slow = usual_meaning()
    shown = answers_shown(two, f, slow, looks); got = list(words_for(*shown)); again = np.concatenate([r.routed for r in got])
    assert (again == routed).all() and all(r.slow is slow and r.visibility is looks.finish.visibility and '50% of the people' in r.note for r in got)
    assert np.allclose(np.concatenate([r.poses.xy for r in got]), np.where(routed[:, None, None], two.xy, one.xy)) # whoever is called looked at twice is shown as the slow answer has it
    page = Path(save_results(iter(got), tmp_path/'out')['gallery']).read_text(); assert 'id="routed"' in page and page.count('data-routed="1"') == 3 == page.count('data-routed="0"')
    for none in (None, Looks(f, slow)): # one answer only: nobody was asked
        assert all(r.routed is None and r.note is None for r in words_for(*answers_shown(two, f, slow, none))) and answers_shown(two, f, slow, none)[0] is two


def test_the_page_of_facts_says_what_was_measured():
    "bench/results/facts.md and README's row are written by the tool from facts.json, not by hand."
    import importlib.util
    from posellm.core.files import read_json
    from posellm.core.paths import root
    if not (root() / 'tools' / 'fit_meaning.py').is_file(): pytest.skip('needs the clone')
    spec = importlib.util.spec_from_file_location('fit_meaning', root() / 'tools' / 'fit_meaning.py'); tool = importlib.util.module_from_spec(spec); spec.loader.exec_module(tool)
    d = read_json(root() / 'bench' / 'results' / 'facts.json')
    assert (root() / 'bench' / 'results' / 'facts.md').read_text(encoding='utf8') == tool.page(d) and tool.readme_row(d) in (root() / 'README.md').read_text(encoding='utf8').split('\n')
    assert d['predictions'][0]['precision'] >= .97 and d['mirror']['images'] >= .98 and min(r['recall'] for r in d['labels']) >= .6 and min(r['precision'] for r in d['labels']) >= .97


def test_a_box_that_is_the_picture_tells_nothing_about_its_edge():
    """Without a detector the box is the whole picture: whoever is not sure there is not therefore cut off, and not small or large either."""
    from posellm.explain.crop import crop_numbers
    p = crowd(1, n=1)[:1]; im = p.images[0]; im.update(width=400, height=300); trust = np.full((1, 17), .1); at = lambda *box, size=(400, 300): (im.update(width=size[0], height=size[1]), crop_numbers(replace(p, bbox=np.array([box], float), xy=np.full((1, 17, 2), 20.)), trust))[1]
    assert at(0, 0, 400, 300)['cut'] == 0 and at(0, 50, 100, 250)['cut'] == 1 and at(50, 40, 100, 200)['cut'] == 0
    size = lambda *a, **k: float(at(*a, **k)['size'][0]); assert size(10, 10, 30, 50) == 50 and size(10, 10, 90, 280) == 280
    assert np.isnan(size(0, 0, 60, 60, size=(64, 64))) and np.isnan(size(0, 0, 90, 170, size=(4000, 3000)))
