"""The report in a real browser, LaTeX through a real LaTeX, figures in grey."""

import json
import re
import shutil
import subprocess

import pandas as pd
import pytest
from PIL import Image

from rlsparse.results.figures.costs import pareto
from rlsparse.results.figures.forest import Row, forest_figure
from rlsparse.results.figures.style import save
from rlsparse.results.report import FIGURES as CAPTIONS
from rlsparse.results.report import TITLES
from rlsparse.results.statistics import mean_test
from rlsparse.results.study import FIGURES, FORMATS, TABLES
from tests.conftest import ROOT
from tests.test_results import call, curve, moved_ranks, put

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
HARNESS = """<!DOCTYPE html><html><body><script>
const errors = [];
const frame = document.createElement("iframe");
frame.width = WIDTH; frame.height = 900;
frame.srcdoc = PAGE;
frame.onload = async () => {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(one => one.open = true);
  const images = [...page.images];
  await Promise.all(images.map(one => one.decode().catch(error => errors.push(one.alt + ": " + error))));
  const found = {errors, images: images.filter(one => one.naturalWidth > 0).length, of: images.length,
    overflow: root.scrollWidth - root.clientWidth,
    scale: Math.min(...images.map(one => one.getBoundingClientRect().width / one.naturalWidth)),
    scrolled: [...page.querySelectorAll(".wide:has(table)")].filter(one => one.scrollWidth > one.clientWidth).length,
    tables: page.querySelectorAll("table").length,
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(one => one.name.slice(0, 40)),
    dead: [...page.querySelectorAll("a")].filter(one => !page.getElementById(one.hash.slice(1))).length};
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
};
document.body.append(frame);
</script></body></html>"""


def evaluated_at(step, accuracy):
    return {"step": step, "questions": 9, "accuracy_greedy": accuracy, "accuracy_sampled": accuracy / 2}


@pytest.fixture
def experiment(tmp_path):
    """A small experiment with everything: tuning, curves, ranks that move, a diverged run, a claim, markup in a name."""
    folder, points, trials = tmp_path / "runs" / "study", {}, {}

    def add(name, seed, *words, final=0.5, rate=0.1, **more):
        set_at = {"task": "toy", "lr": rate}
        put(
            folder,
            name,
            "grpo",
            seed,
            final,
            overrides=words,
            method=name[:-3],
            setting=set_at,
            versions={"torch": "2.15"},
            benchmarks={"svamp": {"base": evaluated_at(0, 0.2), "final": evaluated_at(5, final)}},
            **more,
        )
        curve(folder, name, [0.2, 0.25, 0.35, 0.42, 0.46, 0.48, final], updated=100, seconds=2)
        points[name] = ["algorithm=grpo", f"seed={seed}", *words]

    for seed in range(2):
        for i, adapter in enumerate(("lora", "l1ra")):
            for j, kl in enumerate(("off", "<b>&{on_}")):
                words = [f"adapter={adapter}", f"kl={kl}", "train.lr=0.1"]
                add(f"{adapter}{j}-s{seed}", seed, *words, final=0.5 + i / 10 + j / 20 + seed / 50)
    for rate in (0.1, 0.2):
        add(f"trial{rate}-s8", 8, "adapter=lora", "kl=off", f"train.lr={rate}", rate=rate)
        trials[f"trial{rate}-s8"] = ["train.lr"]
    add("lora0-s9", 9, "adapter=lora", "kl=off", "train.lr=0.1", status="diverged")
    evaluated = (folder / "l1ra0-s0" / "metrics.jsonl").read_text()
    moved_ranks(folder, "l1ra0-s0", {0: (4, 4, 4, 4), 5: (3, 5, 4, 4)})
    with (folder / "l1ra0-s0" / "metrics.jsonl").open("a") as file:
        file.write(evaluated)
    (folder / "plan.json").write_text(json.dumps({"latest": [], "points": points, "trials": trials}))
    claims = (
        "baseline: null\nclaims:\n- {claim: It learns, published: more, source: S, of: '*', measure: final_sampled, "
    )
    (tmp_path / "studies" / "study").mkdir(parents=True)
    (tmp_path / "studies" / "study" / "claims.yaml").write_text(claims + "minus: base_sampled, expect: {above: 0.0}}\n")
    return tmp_path


def report(folder):
    done = call("--studies", "studies", "--figures", "--report", "out/report.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "out" / "report.html").read_text()


def test_report_made_twice_is_the_same_single_file(experiment):
    page = report(experiment)
    assert page == report(experiment)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # nothing to fetch
    assert "<script" not in page
    assert "kl=&lt;b&gt;&amp;{on_}" in page
    for text in (
        "Published claims",
        "inconclusive",
        "Learning curves",
        "seed=9 adapter=lora kl=off train.lr=0.1: diverged",
        "Versions",
        "Setting: toy",
    ):
        assert text in page
    written = {file.name for file in (experiment / "runs" / "study").iterdir()}
    assert {f"{name}.{form}" for name in TABLES for form in FORMATS} <= written


def test_report_has_a_heading_for_each_table_and_a_caption_for_each_figure():
    assert set(TITLES) == set(TABLES)
    assert set(CAPTIONS) == set(FIGURES)
    assert not [one for one in CAPTIONS.values() if "bootstrap" in one]  # intervals are t intervals


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1300])
def test_report_in_chromium_shows_all_images_and_fetches_nothing(experiment, width):
    page = json.dumps(report(experiment)).replace("</", "<\\/")
    (experiment / "harness.html").write_text(HARNESS.replace("WIDTH", str(width)).replace("PAGE", page))
    profile = f"--user-data-dir={experiment / 'profile'}"
    shown = subprocess.run(
        [
            CHROMIUM,
            *QUIET,
            profile,
            "--virtual-time-budget=10000",
            "--dump-dom",
            (experiment / "harness.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert match, shown.stdout[-500:] + shown.stderr[-500:]
    found = json.loads(match[1].replace("&amp;", "&"))
    assert (found["errors"], found["dead"], found["overflow"]) == ([], 0, 0)
    assert found["images"] == found["of"] == 6  # differences, curves, costs, probabilities, effects and ranks
    assert found["scale"] > 0.99  # no text is smaller than its 8 pt
    assert found["scrolled"] == 0  # no column of a table is hidden
    assert found["tables"] >= 6
    assert all(name.startswith("data:") for name in found["fetched"])
    assert "CONSOLE" not in shown.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here: apt-get install texlive-latex-recommended")
def test_latex_tables_compile_without_overfull_boxes(experiment):
    report(experiment)
    tables = [*(experiment / "runs" / "study").glob("*.tex"), *sorted(ROOT.glob("experiments/*/*.tex"))]
    assert {table.stem for table in tables} == set(TABLES)
    for i, table in enumerate(tables):
        shutil.copy(table, experiment / f"{i}.tex")
    body = "\n\\clearpage\n".join(rf"\input{{{i}}}" for i in range(len(tables)))
    (experiment / "paper.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"], cwd=experiment, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-1500:]
    assert b"Overfull" not in done.stdout  # nothing runs off a line or a page of a plain article
    assert (experiment / "paper.pdf").stat().st_size > 10_000


def test_forest_figure_made_twice_is_grey_and_has_the_same_bytes(tmp_path):
    rows = [
        Row("a", mean_test(pd.Series([1.0, 2, 3, 2, 1, 2]), 0), 0.01),
        Row("b", mean_test(pd.Series([-1.0, 2]), 0), float("nan")),
    ]
    for name in ("one", "two"):
        save(forest_figure(rows, "points"), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    pixels = Image.open(tmp_path / "one.png").convert("RGB").getcolors(2**20)
    assert all(red == green == blue for _, (red, green, blue) in pixels)


def test_pareto_front_equals_hand_computed_points():
    # (2, 0.4) costs more than (1, 0.5) and gains less; (3, 0.5) gains no more; of the two at cost 4 the better stays
    points = [(4, 0.8), (1, 0.5), (2, 0.4), (3, 0.5), (4, 0.9), (6, 0.7)]
    assert pareto(points) == [(1, 0.5), (4, 0.9)]
