"""The notebooks: each runs from its first cell, shows what it claims, and is committed with its outputs."""

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
    "results": {"paired": "the same p over seeds, counted pattern by pattern: True"},
}


@pytest.fixture
def drawing(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import drawing

    yield drawing
    sys.modules.pop("drawing", None)


@pytest.fixture(scope="module", params=NAMES)
def run_again(request, tmp_path_factory):
    """Return the name of a notebook, and the notebook with the outputs of a fresh kernel, run in a copy of the folders."""
    work = tmp_path_factory.mktemp("notebooks")
    copy = shutil.copytree(FOLDER, work / "notebooks")
    shutil.copytree(ROOT / "experiments", work / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("IPYTHONDIR", str(work / "ipython"))  # without the start-up files of the user
        from execute import executed

        yield request.param, executed(copy / f"{request.param}.ipynb")
    sys.modules.pop("execute", None)


def committed(name):
    """Return the notebook as it is in the repository."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_text(cell):
    """Return the outputs of a cell as plain text; of a picture, its description."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(texts)


def words(text):
    """Return the words of a text, and its numbers as floats."""
    found = []
    for word in text.split():
        try:
            found.append(float(word.strip("(),:")))
        except ValueError:
            found.append(word)
    return found


def test_every_claim_belongs_to_a_notebook():
    assert NAMES
    assert set(CLAIMS) <= set(NAMES)


@pytest.mark.slow
def test_notebook_run_again_shows_its_claims_and_the_committed_outputs(run_again):
    name, fresh = run_again
    shown = {cell.id: output_text(cell) for cell in code_cells(fresh)}
    for cell, claim in CLAIMS.get(name, {}).items():
        assert claim in shown[cell]
    for cell in code_cells(committed(name)):
        again, before = words(shown[cell.id]), words(output_text(cell))
        # another processor may round differently
        near = [pytest.approx(word, rel=0.01, abs=0.002) if isinstance(word, float) else word for word in before]
        assert again == near, f"{cell.id}: make notebooks"


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_from_one_complete_run_without_errors(name):
    cells = code_cells(committed(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert sum(map(len, pictures)) < MOST_PICTURES


def test_tree_of_the_worked_example_has_the_values_by_hand(drawing):
    """Completions a b c, a b d, a e with rewards 1, 0, 0: the example of T-SPMO."""
    tree = drawing.segments([[0, 1, 2], [0, 1, 3], [0, 4]], [1.0, 0.0, 0.0], "abcde".__getitem__)
    assert [("".join(one.tokens), one.parent, one.depth, one.completions) for one in tree] == [
        ("a", None, 0, 3),
        ("b", 0, 1, 2),
        ("c", 1, 2, 1),
        ("d", 1, 2, 1),
        ("e", 0, 1, 1),
    ]
    assert [one.value for one in tree] == pytest.approx([1 / 3, 1 / 2, 1, 0, 0])
    assert [one.advantage for one in tree] == pytest.approx([0, 1 / 6, 1 / 2, -1 / 2, -1 / 3])


def test_tokens_without_a_branch_are_one_segment_until_a_completion_ends(drawing):
    tree = drawing.segments([[0, 1, 2, 3], [0, 1]], [1.0, 0.0], "abcd".__getitem__)
    assert [("".join(one.tokens), one.parent, one.value) for one in tree] == [("ab", None, 0.5), ("cd", 0, 1.0)]
