"""The notebooks: each runs from its first cell, shows what it claims, and is committed with the outputs it gives."""

import shutil
import sys

import nbformat
import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
MOST_PICTURES = 400_000  # bytes a notebook, as base64
# notebook -> id of a cell -> what its output must say
CLAIMS = {
    "one_batch": {
        "terms": "loss, the sum of the parts of all tokens: 0.0000",
        "equal": "S-GRPO with all tokens has GRPO's gradient: True",
    },
    "results": {"paired": "the same p, counted pattern by pattern: True"},
}


@pytest.fixture
def drawing(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import drawing

    yield drawing
    sys.modules.pop("drawing", None)


@pytest.fixture(scope="module", params=NAMES)
def run_again(request, tmp_path_factory):
    """A notebook's name, and the notebook as it comes out of a fresh kernel in a copy of the folder and the studies."""
    work = tmp_path_factory.mktemp("notebooks")
    copy = shutil.copytree(FOLDER, work / "notebooks")
    shutil.copytree(ROOT / "experiments", work / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("IPYTHONDIR", str(work / "ipython"))  # a user's own start-up files stay out
        from execute import executed

        yield request.param, executed(copy / f"{request.param}.ipynb")
    sys.modules.pop("execute", None)


def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell):
    """What a cell's outputs say in plain text; a picture says only that it is one."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(texts)


def words(text):
    """The words of a text, numbers as numbers."""
    found = []
    for word in text.split():
        try:
            found.append(float(word.strip("(),:")))
        except ValueError:
            found.append(word)
    return found


def test_there_are_notebooks_and_every_claim_is_of_one():
    assert NAMES
    assert set(CLAIMS) <= set(NAMES)


@pytest.mark.slow
def test_a_notebook_runs_shows_what_it_claims_and_gives_the_committed_outputs(run_again):
    name, fresh = run_again
    shown = {cell.id: said(cell) for cell in code_cells(fresh)}
    for cell, claim in CLAIMS.get(name, {}).items():
        assert claim in shown[cell]
    for cell in code_cells(committed(name)):
        again, before = words(shown[cell.id]), words(said(cell))
        # another processor may round differently
        near = [pytest.approx(word, rel=0.01, abs=0.002) if isinstance(word, float) else word for word in before]
        assert again == near, f"{cell.id}: make notebooks"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_as_a_whole_run_left_it(name):
    cells = code_cells(committed(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert sum(map(len, pictures)) < MOST_PICTURES


def test_the_tree_of_the_worked_example(drawing):
    """a b c, a b d, a e with rewards 1, 0, 0: the example of T-SPMO, by hand."""
    tree = drawing.stretches([[0, 1, 2], [0, 1, 3], [0, 4]], [1.0, 0.0, 0.0], "abcde".__getitem__)
    assert [("".join(one.tokens), one.parent, one.depth, one.completions) for one in tree] == [
        ("a", None, 0, 3),
        ("b", 0, 1, 2),
        ("c", 1, 2, 1),
        ("d", 1, 2, 1),
        ("e", 0, 1, 1),
    ]
    assert [one.value for one in tree] == pytest.approx([1 / 3, 1 / 2, 1, 0, 0])
    assert [one.advantage for one in tree] == pytest.approx([0, 1 / 6, 1 / 2, -1 / 2, -1 / 3])


def test_tokens_without_a_branch_are_one_stretch_up_to_where_a_completion_ends(drawing):
    tree = drawing.stretches([[0, 1, 2, 3], [0, 1]], [1.0, 0.0], "abcd".__getitem__)
    assert [("".join(one.tokens), one.parent, one.value) for one in tree] == [("ab", None, 0.5), ("cd", 0, 1.0)]
