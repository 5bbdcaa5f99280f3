"""The site: the way of one notebook, links that work from a folder, and (slow) the whole build."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from posellm.app import docs
from posellm.core.errors import PoseError
from posellm.core.paths import root


def test_one_real_notebook_is_staged(tmp_path):
    """nbdev prepares a small notebook in a project of its own; what comes out has title, signature, code and no directives."""
    (tmp_path / "nbs").mkdir()
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "tiny"\nversion = "0.0.1"\n[tool.nbdev]\nnbs_path = "nbs"\nlib_path = "tiny"\n')
    code = lambda s: dict(cell_type="code", id=str(abs(hash(s)))[:8], metadata={}, source=s, outputs=[], execution_count=None)
    cells = [code("#| default_exp one"), dict(cell_type="markdown", id="a", metadata={}, source="# One\n\n> A page."),
             code('#| export\ndef twice(\n    x:int, # a number\n)->int:\n    "Two times `x`."\n    return 2 * x'), code("#| hide\nassert True"), code("assert twice(2) == 4")]
    nb = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path / "nbs" / "00_one.ipynb").write_text(json.dumps(nb))
    done = subprocess.run([sys.executable, "-c", "import nbdev, nbdev.serve as s; nbdev.nbdev_export(); s.proc_nbs(n_workers=0)"], cwd=tmp_path,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path), "IN_TEST": ""})
    assert done.returncode == 0, done.stderr
    prepared = json.loads((tmp_path / "_proc" / "00_one.ipynb").read_text())
    staged = docs.stage_notebook(prepared, "one.html", (tmp_path / "tiny" / "one.py").read_text())
    text = ["".join(c["source"]) for c in staged["cells"]]
    assert text[0] == "# One\n\n> A page."
    assert any('<a id="twice"></a>' in t and "a number" in t for t in text)
    assert any(t.startswith("def twice(") for t in text) and "assert twice(2) == 4" in text
    assert not any("#|" in t or "assert True" in t for t in text)


@pytest.mark.parametrize("page, up", [("index.html", ""), ("viz/draw.html", "../")])
def test_links_work_from_a_folder(page, up):
    out = docs._markdown("see [`Poses`](/pose/poses.html#poses)", page)
    assert f'href="{up}pose/poses.html#poses"' in out and "](/" not in out


def test_missing_front_page_is_said(tmp_path):
    (tmp_path / "_proc").mkdir()
    with pytest.raises(PoseError, match="front page"): docs.stage_all(tmp_path / "_proc", tmp_path / "stage", tmp_path)


def test_nbdev_docs_without_quarto(monkeypatch, capsys):
    """Nothing is downloaded, and it says so before it builds."""
    built = []
    monkeypatch.setattr(docs.shutil, "which", lambda name: None)
    monkeypatch.setattr(docs, "build_docs", lambda: built.append(1))
    docs.nbdev_docs()
    assert built and "nothing is downloaded" in capsys.readouterr().err


def test_nbdev_docs_with_quarto(monkeypatch):
    """With Quarto it is nbdev's own command, with the caller's options."""
    calls = []
    monkeypatch.setattr(docs.shutil, "which", lambda name: "/usr/bin/quarto")
    monkeypatch.setattr(docs.sys, "argv", ["nbdev_docs", "--n-workers", "1"])
    monkeypatch.setattr(docs.subprocess, "run", lambda a, **k: calls.append(a) or subprocess.CompletedProcess(a, 0))
    with pytest.raises(SystemExit) as e: docs.nbdev_docs()
    assert e.value.code == 0 and "nbdev.quarto" in calls[0][2] and calls[0][3:] == ["--n-workers", "1"]


def test_expect_fail_is_a_context_manager():
    """`expect_fail(lambda: …)` by itself runs nothing and tests nothing; it needs `with`."""
    bare = re.compile(r"^(?!.*\bwith\b).*\bexpect_fail\(", re.M)
    found = [f"{p.relative_to(root())}: {m[0].strip()[:70]}" for p in sorted((root() / "nbs").rglob("*.ipynb"))
             for c in json.loads(p.read_text(encoding="utf8"))["cells"] if c["cell_type"] == "code" for m in bare.finditer("".join(c["source"]))]
    assert not found, "use `with expect_fail(...): ...` or test_fail(lambda: ...)\n" + "\n".join(found)


def test_every_paper_has_its_entry():
    """A note for every citation and a citation for every note; a note of several works names them."""
    folder = root() / "papers"
    keys = set(re.findall(r"^@\w+\{([\w-]+),", (folder / "references.bib").read_text(encoding="utf8"), re.M))
    notes = {p.stem for p in folder.glob("*.md")} - {"README", "claims"} # claims.md is about the sources of this project, not about one paper
    for note in notes: assert note in keys or all(k in keys for k in note.split("_")), note
    for key in keys: assert any(key == n or key in n.split("_") for n in notes), key


@pytest.mark.slow
def test_whole_site(tmp_path):
    """Warnings are errors; every page is there and no page links to one that is not."""
    index = docs.build_docs(out=tmp_path / "site")
    site = Path(index).parent
    for name in ("index", "architecture", "papers/udp", "viz/draw"): assert (site / f"{name}.html").exists(), name
    dead = []
    for page in site.rglob("*.html"):
        dead += [f"{page.relative_to(site)} asks {a}" for a in re.findall(r'(?:src=|<link [^>]*href=)"(https?://[^"]+)', page.read_text(encoding="utf8"))]
        for target in re.findall(r'href="([^":#?]+\.html)', page.read_text(encoding="utf8")):
            if not (page.parent / target).resolve().exists(): dead.append(f"{page.relative_to(site)} -> {target}")
    assert not dead, "\n".join(sorted(set(dead))[:20])
