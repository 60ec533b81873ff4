"""Figures: text that is large, whole and free of overlaps; lines and markers against values computed by hand."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from scipy import optimize, stats

from rlsparse.results.answers import Answers
from rlsparse.results.comparisons import compare_all
from rlsparse.results.effects import effects
from rlsparse.results.figures.costs import cost_figure
from rlsparse.results.figures.curves import TOGETHER, curves_figure
from rlsparse.results.figures.forest import THICK, THIN, Row, difference_figure, effect_figure, forest_figure
from rlsparse.results.figures.matrix import matrix_figure, probabilities
from rlsparse.results.figures.placing import beside, spread
from rlsparse.results.figures.profiles import profile_figure
from rlsparse.results.figures.ranks import rank_figure
from rlsparse.results.figures.speed import speed_figure
from rlsparse.results.figures.style import (
    COLOURS,
    COLUMN,
    DOUBLE,
    LINES,
    MAX_METHODS,
    MAX_ROWS,
    SMALL,
    STYLE,
    TEXT,
    save,
    text_width,
    wrapped,
)
from rlsparse.results.measures import BY_COLUMN
from rlsparse.results.sample import Samples
from rlsparse.results.statistics import Estimate, MeanTest, mean_test
from rlsparse.results.study import FIGURES, Study, write_figures

ACCURACY, LOSS = BY_COLUMN["final_sampled"], BY_COLUMN["final_loss"]
LONG = "grpo token_sampler=high_entropy target_modules=[q_proj,k_proj,v_proj,o_proj] off_policy.level=sequence"
FINALS = {"grpo": [0.8, 0.9], "a": [0.7, 0.8], "b": [0.6, 0.7], "c": [0.9, 0.95]}
TOKENS = {"grpo": 1000, "a": 100, "b": 200, "c": 4000}


def table_of_runs(finals, **more):
    """Return a tidy table with a run for each value: method -> final accuracies by seed."""
    rows = [
        {"id": f"{method}-{seed}", "method": method, "seed": seed, "status": "finished", "final_sampled": final}
        for method, values in finals.items()
        for seed, final in enumerate(values)
    ]
    runs = pd.DataFrame(rows).assign(collapsed=False)
    for column, by_method in more.items():
        runs[column] = runs["method"].map(by_method)
    return runs


def table_of_curves(by_method, last=40):
    """Return learning curves with evaluations at steps 0, 20 and 40: method -> final accuracies by seed."""
    rows = [
        {"method": method, "seed": seed, "step": step, "accuracy_sampled": 0.2 + (final - 0.2) * step / last}
        for method, values in by_method.items()
        for seed, final in enumerate(values)
        for step in (0, last // 2, last)
    ]
    return pd.DataFrame(rows)


def many(count, seeds=3):
    """Return final accuracies of methods with long names, which lie close to each other."""
    return {f"{LONG} lora_rank={i}": [0.5 + i / 200 + seed / 50 for seed in range(seeds)] for i in range(count)}


def texts_of(figure):
    """Return each text of a figure with its box, in inches from the lower left corner."""
    figure.set_dpi(300)  # so fine that letters have the widths of their outlines
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    found = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    boxes = [(one, one.get_window_extent(renderer)) for one in found]
    return [(one, np.array([box.x0, box.y0, box.x1, box.y1]) / 300) for one, box in boxes if box.width > 0]


def shown_ticks(figure):
    """Return the tick labels outside the limits of their axes, which matplotlib does not draw."""
    hidden = set()
    for panel in figure.axes:
        for axis, (low, high) in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
            low, high = min(low, high), max(low, high)
            room = 1e-9 * (high - low)
            for tick in axis.get_major_ticks():
                if not low - room <= tick.get_loc() <= high + room or not tick.label1.get_visible():
                    hidden.add(tick.label1)
    return hidden


def check_text(figure):
    """Check the width of a figure, and that all its text is large, inside the figure and free of overlaps; return it."""
    width, height = figure.get_size_inches()
    assert width in (COLUMN, DOUBLE)
    found = texts_of(figure)
    hidden = shown_ticks(figure)
    found = [(one, box) for one, box in found if one not in hidden]
    assert {one.get_fontsize() for one, _ in found} <= {SMALL, TEXT}
    for one, (left, bottom, right, top) in found:
        assert min(left, bottom, width - right, height - top) > -0.02, one.get_text()
    touching = []
    for (one, a), (other, b) in itertools.combinations(found, 2):
        common = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        if (common > 0.012).all():  # inches: a tenth of the height of a line
            touching.append((one.get_text(), other.get_text()))
    assert touching == []
    return [one.get_text() for one, _ in found]


def joined(texts):
    """Return texts without spaces, in which lines that were broken are whole again."""
    return re.sub(r"\s", "", "".join(texts))


def written(figure, folder):
    save(figure, folder / "figure", ("svg",))
    return (folder / "figure.svg").read_text()


class TestStyle:
    def test_text_width_equals_the_width_that_is_drawn(self):
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(STYLE):
            figure = Figure(figsize=(9, 1), dpi=100)
            figure.text(0, 0.5, LONG)
        ((_, box),) = texts_of(figure)
        assert text_width(LONG) == pytest.approx(box[2] - box[0], rel=0.02)

    @pytest.mark.parametrize("room", [0.3, 0.8, 1.45, 3.2])
    def test_wrapped_lines_fit_and_keep_all_text(self, room):
        lines = wrapped(LONG, room)
        assert all(text_width(line) <= room for line in lines)
        assert joined(lines) == LONG.replace(" ", "")
        assert len(lines) >= text_width(LONG) / room

    def test_wrapped_words_break_after_their_separators(self):
        room = text_width("modules=[q_proj,k_")  # the last separator that fits is the _ after k
        assert wrapped("a modules=[q_proj,k_proj]", room) == ["a", "modules=[q_proj,k_", "proj]"]

    def test_colours_differ_in_grey_or_have_other_lines(self):
        # luminance of sRGB (ITU-R BT.709); two colours of the same grey must have other line styles
        grey = [np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in COLOURS[:TOGETHER]]
        assert max(grey) < 0.75  # no line is too light on white
        assert len(set(map(str, LINES))) == len(LINES) >= TOGETHER

    def test_saving_writes_only_the_given_formats_without_a_date(self, tmp_path):
        svg = written(matrix_figure(probabilities(table_of_runs(many(3)), None, ACCURACY), None, ACCURACY), tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["figure.svg"]
        assert "<dc:date>" not in svg
        assert "<image" not in svg  # vectors only


class TestPlacing:
    @pytest.mark.parametrize("seed", range(5))
    def test_spread_minimises_squared_distances(self, seed):
        random = np.random.default_rng(seed)
        wanted, heights = random.uniform(0, 10, 6), random.uniform(0.5, 2.0, 6)
        room = heights.sum() + random.uniform(0, 5)
        order = np.argsort(wanted)
        gaps = (heights[order][:-1] + heights[order][1:]) / 2
        # the same problem for a general solver
        limits = [
            {"type": "ineq", "fun": lambda c: np.diff(c[order]) - gaps},
            {"type": "ineq", "fun": lambda c: c - heights / 2},
            {"type": "ineq", "fun": lambda c: room - heights / 2 - c},
        ]
        start = np.empty(6)
        start[order] = np.cumsum(heights[order]) - heights[order] / 2
        best = optimize.minimize(lambda c: np.square(c - wanted).sum(), start, constraints=limits, method="SLSQP")
        assert spread(wanted, heights, room) == pytest.approx(best.x, abs=1e-4)

    def test_spread_of_labels_with_room_keeps_their_places(self):
        assert spread(np.array([5.0, 1.0, 3.0]), np.ones(3), 10.0).tolist() == [5.0, 1.0, 3.0]

    def test_spread_of_equal_places_is_symmetric(self):
        # three labels of height 2 that want to be at 5: 3, 5 and 7
        assert spread(np.full(3, 5.0), np.full(3, 2.0), 10.0).tolist() == [3.0, 5.0, 7.0]

    def test_labels_beside_points_hide_no_point_and_no_label(self):
        random = np.random.default_rng(0)
        points, sizes = random.uniform(10, 190, (12, 2)), np.full((12, 2), 8.0)
        centres = beside(points, sizes, (200.0, 200.0), gap=4.0)
        boxes = [(*(c - 4), *(c + 4)) for c in centres] + [(*(p - 2), *(p + 2)) for p in points]
        for a, b in itertools.combinations(boxes, 2):
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            assert width <= 1e-9 or height <= 1e-9
        assert (np.linalg.norm(centres - points, axis=1) < 20).all()  # each next to its own point

    def test_label_in_a_corner_stays_inside(self):
        ((x, y),) = beside(np.array([[99.0, 99.0]]), np.array([[10.0, 10.0]]), (100.0, 100.0), gap=4.0)
        assert x <= 95
        assert y <= 95


def one_test(mean, inner, outer=None):
    """Return a test with intervals of the given half widths; without an outer one, the questions are not known."""
    low, high = mean - (outer or inner), mean + (outer or inner)
    found = Estimate(mean, low, high, mean - inner, mean + inner, mean, 6, questions=100 if outer else 0)
    return MeanTest(found, 0.01, 0.99, 0.03, "above")


class TestForest:
    def lines(self, figure, width):
        return [
            one.get_xdata()
            for one in figure.axes[0].lines
            if one.get_linewidth() == width and len(one.get_xdata()) == 2
        ]

    def test_thick_and_thin_lines_are_the_two_intervals(self):
        rows = [Row("a", one_test(3.0, 1.0, outer=2.0), 0.01), Row("b", one_test(-1.0, 0.5), 0.5)]
        figure = forest_figure(rows, "difference, points")
        assert [tuple(ends) for ends in self.lines(figure, THICK)] == [(2.0, 4.0), (-1.5, -0.5)]
        assert [tuple(ends) for ends in self.lines(figure, THIN)] == [(1.0, 5.0)]  # b's questions are not known

    def test_markers_are_filled_by_the_corrected_p(self):
        # the raw two-sided p of each is 0.02
        rows = [
            Row("a", one_test(3.0, 1.0), 0.05),
            Row("b", one_test(3.0, 1.0), 0.06),
            Row("c", one_test(1, 1), np.nan),
        ]
        dots = [one for one in forest_figure(rows, "x").axes[0].lines if one.get_marker() == "o"]
        assert [to_hex(dot.get_markerfacecolor()) for dot in dots] == ["#000000", "#ffffff", "#ffffff"]

    def test_margin_is_a_band_and_is_explained(self):
        figure = forest_figure([Row("a", one_test(3.0, 1.0), 0.5)], "x", margin=2.0)
        (band,) = figure.axes[0].patches
        assert band.get_x() == -2.0
        assert band.get_width() == 4.0
        assert "margin of equivalence, ±2" in check_text(figure)
        assert not forest_figure([Row("a", one_test(3.0, 1.0), 0.5)], "x").axes[0].patches

    def test_differences_are_sorted_as_in_the_table_and_named_in_short(self):
        finals = {"grpo": [0.5, 0.6, 0.7], "grpo lora_rank=16": [0.6, 0.8, 0.9], "grpo lora_rank=4": [0.4, 0.5, 0.5]}
        compared = compare_all(Samples(table_of_runs(finals), Answers.none()), "grpo", ACCURACY)
        figure = difference_figure(compared, "grpo", ACCURACY, None)
        labels = {one.get_text(): box[1] for one, box in texts_of(figure)}
        assert labels["lora_rank=4"] > labels["lora_rank=16"]  # above it: natural order
        means = [one.get_xdata()[0] for one in figure.axes[0].lines if one.get_marker() == "o"]
        # rank 4: −10, −10, −20; rank 16: 10, 20, 20
        assert means == pytest.approx([-40 / 3, 50 / 3])
        assert "difference in final accuracy, points" in joined_titles(figure)

    def test_effects_have_their_number_of_pairs(self):
        finals = {f"grpo a={a} b={b}": [0.5 + a + b / 9, 0.4 + a / 2, 0.3] for a in (0, 0.1) for b in (0, 1)}
        found = effects(Samples(table_of_runs(finals), Answers.none()), "grpo a=0 b=0")
        assert len(found) == 2
        text = joined(check_text(effect_figure(found, ACCURACY)))
        assert "a:0.1insteadof0(2)" in text
        assert "b:1insteadof0(2)" in text

    def test_long_names_are_wrapped_and_whole(self):
        rows = [Row(f"{LONG} {i}", one_test(i, 1.0, 2.0), 0.01) for i in range(5)]
        text = joined(check_text(forest_figure(rows, "effect on final accuracy, points", 2.0, f"baseline: {LONG}")))
        assert text.count(LONG.replace(" ", "")) == 6

    def test_too_many_rows_are_cut_and_counted(self):
        rows = [Row(f"m{i}", one_test(i, 1.0), 0.01) for i in range(MAX_ROWS + 1)]
        text = check_text(forest_figure(rows, "x"))
        assert f"the first {MAX_ROWS} of {MAX_ROWS + 1} methods; the table has all" in text
        assert f"m{MAX_ROWS - 1}" in text
        assert f"m{MAX_ROWS}" not in text

    def test_single_seed_is_a_marker_without_lines(self):
        figure = forest_figure([Row("a", mean_test(pd.Series([1.0]), 0), np.nan)], "x")
        assert self.lines(figure, THICK) == []
        assert len([one for one in figure.axes[0].lines if one.get_marker() == "o"]) == 1


def joined_titles(figure):
    return [panel.get_xlabel().replace("\n", " ") for panel in figure.axes]


def test_performance_profiles_have_a_panel_for_each_method():
    # of four runs of b, two end above 0.45 and all above 0.1
    scores = {"a": {"t": np.array([0.4, 0.5]), "u": np.array([0.2, 0.3])}}
    scores["b"] = {"t": np.array([0.5, 0.6]), "u": np.array([0.3, 0.4])}
    figure = profile_figure(scores, "a")
    assert len(figure.axes) == 1
    drawn = next(line for line in figure.axes[0].lines if line.get_linestyle() == "-")
    shares = dict(zip(np.round(drawn.get_xdata()), drawn.get_ydata(), strict=True))
    assert (shares[10], shares[45], shares[70]) == (100, 50, 0)
    assert "b" in check_text(figure)


class TestCurves:
    def test_few_methods_share_a_panel_with_names_at_the_ends(self):
        finals = {"grpo": [0.8, 0.9], "sgrpo": [0.81, 0.91], "tspmo": [0.5, 0.6]}
        figure = curves_figure(table_of_curves(finals), "grpo")
        assert len(figure.axes) == 1
        assert {"grpo", "sgrpo", "tspmo"} <= set(check_text(figure))
        heights = {one.get_text(): box[1] for one, box in texts_of(figure)}
        assert heights["sgrpo"] > heights["grpo"] > heights["tspmo"]  # in the order of the ends

    def test_names_of_equal_curves_do_not_overlap(self):
        figure = curves_figure(table_of_curves({f"{LONG} r={i}": [0.8, 0.9] for i in range(TOGETHER)}), f"{LONG} r=0")
        text = check_text(figure)
        assert text.count("baseline") == 1  # its name is above the panel
        assert {f"r={i}" for i in range(1, TOGETHER)} <= set(text)

    def test_lines_differ_in_style_marker_and_colour(self):
        figure = curves_figure(table_of_curves({f"m{i}": [0.8, 0.9] for i in range(TOGETHER)}), None)
        means = [one for one in figure.axes[0].lines if len(one.get_xdata()) == 3 and one.get_marker() == "None"]
        ends = [one for one in figure.axes[0].lines if one.get_marker() != "None"]
        assert len({to_hex(one.get_color()) for one in means}) == TOGETHER
        assert len({(one.get_linestyle(), str(one._dash_pattern)) for one in means}) == TOGETHER
        assert len({one.get_marker() for one in ends}) == TOGETHER

    def test_mean_and_band_equal_the_t_interval(self):
        finals = np.array([0.5, 0.6, 0.8])
        figure = curves_figure(table_of_curves({"grpo": finals}), "grpo")
        line = next(one for one in figure.axes[0].lines if len(one.get_xdata()) == 3)
        low, high = stats.t.interval(0.95, 2, finals.mean(), stats.sem(finals))
        assert line.get_ydata()[-1] == pytest.approx(100 * finals.mean())
        band = figure.axes[0].collections[0].get_paths()[0].vertices
        at_end = band[band[:, 0] == 40][:, 1]
        assert at_end.min() == pytest.approx(100 * low)
        assert at_end.max() == pytest.approx(min(100, 100 * high))

    def test_line_that_ends_early_is_not_joined_to_its_name(self):
        short = table_of_curves({"sgrpo": [0.5, 0.6]}, last=20)
        figure = curves_figure(pd.concat([table_of_curves({"grpo": [0.8, 0.9]}), short]), "grpo")
        ends = {one.get_color(): one.get_linestyle() for one in figure.axes[0].lines if one.get_marker() != "None"}
        assert ends == {"black": "-", COLOURS[0]: "None"}

    def test_many_methods_have_a_panel_each_with_the_baseline(self):
        finals = many(MAX_METHODS + 2)
        figure = curves_figure(table_of_curves(finals), next(iter(finals)))
        assert len(figure.axes) == MAX_METHODS
        assert all(len(panel.lines) == 2 for panel in figure.axes)
        assert len({panel.get_ylim() for panel in figure.axes}) == 1
        assert f"the first {MAX_METHODS} of {MAX_METHODS + 1} methods; the table has all" in check_text(figure)

    def test_baseline_without_a_curve_is_left_out(self):
        assert {"a", "b"} <= set(check_text(curves_figure(table_of_curves({"a": [0.5], "b": [0.6]}), "grpo")))


def cost_runs(finals, tokens, seconds=None):
    """Return runs with costs by method; the time of training is the whole time of steps."""
    runs = table_of_runs(finals, tokens_generated=tokens, time_train=seconds or tokens)
    return runs.assign(frac_updated=0.5, peak_memory_bytes=2.0**30 * (1 + runs["seed"]))


class TestCosts:
    def dots(self, panel, wanted=lambda line: True):
        """Return the x values of the markers in a panel."""
        lines = [one for one in panel.lines if one.get_linestyle() == "None" and wanted(one)]
        return sorted(x for one in lines for x in one.get_xdata())

    def test_front_is_a_staircase_through_the_methods_on_it(self):
        figure = cost_figure(cost_runs(FINALS, TOKENS), "grpo")
        tokens = figure.axes[0]
        (front,) = [one for one in tokens.lines if one.get_drawstyle() == "steps-post"]
        # half of the tokens are updated; b costs more than a and ends lower
        assert front.get_xdata().tolist() == [50, 500, 2000]
        assert front.get_ydata() == pytest.approx([75, 85, 92.5])
        assert self.dots(tokens, lambda one: to_hex(one.get_markerfacecolor()) != "#ffffff") == [50, 500, 2000]
        assert self.dots(tokens, lambda one: one.get_marker() == "s") == [500]  # the baseline

    def test_intervals_equal_the_t_interval(self):
        figure = cost_figure(cost_runs(FINALS, TOKENS), "grpo")
        ends = {x: (low, high) for (x, low), (_, high) in figure.axes[0].collections[0].get_segments()}
        # grpo: 80 and 90 %
        assert ends[500] == pytest.approx(stats.t.interval(0.95, 1, 85, 5))

    def test_memory_of_equal_cost_has_a_front_of_one_method(self):
        figure = cost_figure(cost_runs(FINALS, TOKENS), "grpo")
        (front,) = [one for one in figure.axes[2].lines if one.get_drawstyle() == "steps-post"]
        assert (front.get_xdata().tolist(), front.get_ydata().tolist()) == ([1.5], [pytest.approx(92.5)])

    def test_method_with_a_collapsed_or_diverged_run_is_a_cross_off_the_front(self):
        runs = cost_runs(FINALS, TOKENS)
        runs.loc[runs["id"] == "c-0", "collapsed"] = True
        diverged = runs[runs["id"] == "a-0"].assign(id="a-2", seed=2, status="diverged", collapsed=True)
        figure = cost_figure(pd.concat([runs, diverged], ignore_index=True), "grpo")
        assert self.dots(figure.axes[0], lambda one: one.get_marker() == "x") == [50, 2000]
        (front,) = [one for one in figure.axes[0].lines if one.get_drawstyle() == "steps-post"]
        assert front.get_xdata().tolist() == [100, 500]  # b, then grpo
        assert "a run collapsed" in check_text(figure)

    def test_numbers_and_names_are_readable(self):
        finals = many(MAX_METHODS)
        tokens = {method: 1000 * (1 + i) for i, method in enumerate(finals)}
        text = check_text(cost_figure(cost_runs(finals, tokens), next(iter(finals))))
        assert text.count("12") >= 2  # next to its point and in the key
        assert {f"lora_rank={i}" for i in range(1, MAX_METHODS)} <= set(text)  # what the baseline lacks

    def test_of_many_methods_only_the_front_and_the_baseline_have_numbers(self):
        # each method costs more and ends lower than the first but the last two, so that the front is m00
        finals = {f"m{i:02}": [0.9 - i / 50, 0.9 - i / 50] for i in range(MAX_METHODS + 3)}
        runs = cost_runs(finals, {method: 100 * (1 + i) for i, method in enumerate(finals)})
        figure = cost_figure(runs.drop(columns="peak_memory_bytes"), "m05")
        text = check_text(figure)
        assert {"m05", "m00"} <= set(text)
        assert "m01" not in text
        assert f"2 of {MAX_METHODS + 3} methods" in " ".join(text)
        assert len(self.dots(figure.axes[0])) == MAX_METHODS + 3  # all are drawn

    def test_tick_labels_of_tokens_are_short(self):
        figure = cost_figure(cost_runs(FINALS, TOKENS), "grpo")
        assert {"100", "1k"} <= set(check_text(figure))


class TestMatrix:
    def test_probabilities_equal_hand_counted_pairs(self):
        # a: 1, 2, 3; b: 2, 2: a > b in one seed of a, twice: 2 pairs; a = b in one seed, twice: 2 pairs of half
        shares = probabilities(table_of_runs({"a": [0.1, 0.2, 0.3], "b": [0.2, 0.2]}), "b", ACCURACY)
        assert list(shares.index) == ["b", "a"]
        assert shares.loc["a", "b"] == pytest.approx((2 + 2 / 2) / 6)
        assert shares.loc["b", "a"] == pytest.approx(1 - 3 / 6)
        assert shares.loc["a", "a"] == 0.5

    def test_probabilities_equal_the_mann_whitney_statistic(self):
        random = np.random.default_rng(3)
        finals = {name: list(random.integers(0, 10, 6) / 10) for name in "abc"}
        shares = probabilities(table_of_runs(finals), None, ACCURACY)
        for one, other in itertools.permutations("abc", 2):
            statistic = stats.mannwhitneyu(finals[one], finals[other]).statistic
            assert shares.loc[one, other] == pytest.approx(statistic / 36)

    def test_lower_losses_are_better(self):
        runs = table_of_runs({"a": [0, 0], "b": [0, 0]}, final_loss={"a": 1.5, "b": 2.5})
        shares = probabilities(runs, None, LOSS)
        assert (shares.loc["a", "b"], shares.loc["b", "a"]) == (1.0, 0.0)
        assert "probability in % that the row ends below the column" in check_text(matrix_figure(shares, None, LOSS))

    def test_cells_are_percent_and_dark_cells_have_white_numbers(self):
        shares = probabilities(table_of_runs({"a": [0.9, 0.9], "b": [0.1, 0.1]}), "a", ACCURACY)
        figure = matrix_figure(shares, "a", ACCURACY)
        cells = {one.get_text(): to_hex(one.get_color()) for one in figure.axes[0].texts if one.get_fontsize() == SMALL}
        assert cells == {"100": "#ffffff", "0": "#000000"}

    def test_matrix_is_grey_and_names_its_first_methods(self, tmp_path):
        shares = probabilities(table_of_runs(many(MAX_METHODS + 1)), None, ACCURACY)
        figure = matrix_figure(shares, None, ACCURACY)
        text = check_text(figure)
        assert f"the first {MAX_METHODS} of {MAX_METHODS + 1} methods; the table has all" in text
        assert (
            joined(text).count(LONG.replace(" ", "").replace("off_policy.", "")) == MAX_METHODS
        )  # keys without groups
        colours = set(re.findall(r"#([0-9a-f]{6})", written(figure, tmp_path)))
        assert len(colours) > 2
        assert all(one[:2] == one[2:4] == one[4:] for one in colours)


def test_speed_figure_has_readable_text():
    names = [f"{LONG} layer_skip=r{skip}" for skip in (10, 20)] + ["grpo layer_skip=off"]
    runs = table_of_runs({name: [0.8, 0.9] for name in names})
    runs = runs.assign(tokens_per_second=1000.0 + 10 * runs.index, layers_skipped=[2, 2, 5, 5, np.nan, np.nan])
    text = check_text(speed_figure(runs))
    assert {"2", "5"} <= set(text)
    assert LONG.replace(" ", "") in joined(text)


def test_rank_figure_has_readable_text_and_names_its_lines():
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    methods = [LONG, f"{LONG} lora_rank=16"]
    final = [(m, 0, module, layer, 4 + layer % 3) for m in methods for module in modules for layer in range(30)]
    history = [
        (m, 0, step, module, 4.0 + i * (step > 0) * (m != LONG))
        for m in methods
        for i, module in enumerate(modules)
        for step in (0, 5)
    ]
    figure = rank_figure(
        pd.DataFrame(final, columns=["method", "seed", "module", "layer", "rank"]),
        pd.DataFrame(history, columns=["method", "seed", "step", "module", "rank"]),
    )
    text = check_text(figure)
    assert text.count("gate_proj") == 4  # a row and a line for each of two methods
    panel = figure.axes[2]
    names = [box for _, box in texts_of(figure) if box[0] > 6]  # inches: right of the lines
    for line in [one for one in panel.lines if len(one.get_xdata()) == 2 and not one.get_clip_on()]:
        _, y = panel.get_yaxis_transform().transform((1, line.get_ydata()[1])) / 300
        assert any(box[1] < y < box[3] for box in names)  # each joining line ends at a name


def test_study_writes_its_figures_and_removes_those_of_an_earlier_call(tmp_path):
    finals = {"grpo": [0.5, 0.6, 0.7], "grpo a=1": [0.6, 0.7, 0.7], "grpo b=1": [0.4, 0.6, 0.6]}
    runs = cost_runs(finals, dict.fromkeys(finals, 100))
    study = Study("s", runs, pd.DataFrame(), table_of_curves(finals), [], pd.DataFrame(), None, None)
    (tmp_path / "speed.svg").write_text("of an earlier call")
    names = write_figures(tmp_path, study, ("svg",))
    assert names == ["differences", "curves", "costs", "probabilities", "effects"]
    assert set(names) < set(FIGURES)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{name}.svg" for name in names)


def test_runs_without_a_final_accuracy_have_no_figure(tmp_path):
    for runs in (table_of_runs({"grpo": [np.nan], "sgrpo": [np.nan]}), table_of_runs({"grpo": [0.5]})[:0]):
        study = Study("s", runs, pd.DataFrame(), pd.DataFrame(), [], pd.DataFrame(), None, None)
        assert write_figures(tmp_path, study) == []
