"""The report of a run: its figures are those of the run's files, and a model's text never becomes markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import fake_run
from ladder.base.errors import UserError
from ladder.report import chart, figure, marks, page, words
from ladder.report.run import load, parameters
from ladder.tasks.chain import answers
from ladder.tasks.chain.words import NOTATION_A, NOTATION_B, WORDS


class Reader(HTMLParser):
    """The page as a browser parses it: tags, attributes, text, and the values of the table's cells."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.values: list[float] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]
        self.values += [float(v or "nan") for k, v in attrs if k == "data-value"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(run: Path) -> tuple[str, Reader]:
    text = page.write(run).read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.open, f"never closed: {reader.open}"
    return text, reader


def edit(path: Path, change: dict[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fake_run.write(tmp_path / "r1")


# ------------------------------------------------------------ content


def test_the_numbers_are_those_of_the_summary(run: Path) -> None:
    _, reader = read(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    expected = [
        stage[name][key]
        for stage in summary["stages"].values()
        for name in ("easy", "hard")
        if name in stage
        for key in ("accuracy", "length", "mixed")
    ]
    assert reader.values == expected
    assert "96.3% 95.0–97.5" in " ".join(reader.text.split())  # r1_zero, easy: .9629 in .9503 to .9755
    assert "greedy 97.0%" in reader.text and "evaluation problems (split: test)" in reader.text
    assert "950" in reader.text and "11.6%" in reader.text  # the harvest: 950 of 8192


def test_the_headline_is_computed(run: Path) -> None:
    _, reader = read(run)
    says = " ".join(reader.text.split())
    headline = (
        "From pretrain to rl, the model went from 23.1% to 99.4% right on easy problems and from 19.0% to 99.0% on "
        "hard ones, and its answers from 5.8 to 21.3 tokens (easy), in 2 min 56 s in total."
    )
    assert headline in says
    assert "r1_zero are 3.8 times as long as those of pretrain" in says
    assert "Its reward does not depend on length." in says
    assert says.count("The same problem before and after") == 1  # of the shown problems only r1_zero solved a new one
    summary = json.loads((run / "rl" / "summary.json").read_text(encoding="utf-8"))
    edit(run / "rl" / "summary.json", {"easy": summary["easy"] | {"accuracy": 0.5}})
    says = " ".join(read(run)[1].text.split())
    assert "from 23.1% to 50.0% right on easy" in says
    assert "Largest loss on easy problems: rl, from 98.1% right (after sft) to 50.0%." in says


def test_other_recipes(tmp_path: Path) -> None:
    text, reader = read(fake_run.write_small(tmp_path / "sums"))
    says = " ".join(reader.text.split())
    headline = (
        "From tune to improve, the model went from 41.0% to 38.0% right on test problems, in 1 h 19 min in total."
    )
    assert headline in says
    assert "no stage exceeded tune" in says
    assert "mixed" not in says and "Arabic" not in says and "greedy" not in says and "side by side" not in says
    assert "Its reward: exact and format." in says
    assert "partly" in text and "reward 0.7 · 96 tokens" in says
    assert text.count("is-unknown") == 3  # two answers, and a rule of the style sheet
    assert "not judged" in says and "(empty)" in says and "user: What is 12 + 30?" in says
    assert "bootstrap over problems, 4 answers to each problem" in says


def test_a_reward_for_length_gets_no_note_about_length(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["stages"]["r1_zero"]["reward"] = ["chain", "length"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    says = read(run)[1].text
    assert "3.8 times as long" in says and "Its reward does not depend" not in says
    assert "Its reward: chain and length." in says


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    first = page.write(run).read_bytes()
    assert page.write(run).read_bytes() == first
    assert not list(run.glob(".*partial"))


# ------------------------------------------------------------ preferences: scores, branches, reward models


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    return fake_run.write_preferences(tmp_path / "preferences")


def test_scores_are_not_shown_as_shares(preferences: Path) -> None:
    text, reader = read(preferences)
    says = " ".join(reader.text.split())
    assert "1.49 1.45–1.53" in says and "greedy 1.79" in says and "dpo, from a score of 0.72 (base) to 1.57" in says
    assert "brevity 0.96 · form 0.31 · right 0.36" in says and "right 0.36 → 0.78" in says
    assert not re.search(r"% right (\(|on)", says) and "Right, test" not in text and "<th>right</th>" not in text
    assert "The share of right answers" not in says and "bootstrap over problems" in says and "Wilson" not in says
    # the bar of dpo ends at its share of the largest value, which is its greedy score
    assert f'width="{100 * 1.5664 / 1.8276:.1f}"' in text


def test_an_older_run_without_the_graded_flag(preferences: Path) -> None:
    for stage in ("ppo", "dpo", "kto", "base"):
        summary = json.loads((preferences / stage / "summary.json").read_text(encoding="utf-8"))
        edit(preferences / stage / "summary.json", {"test": {"accuracy": 0.5, "length": summary["test"]["length"]}})
    says = " ".join(read(preferences)[1].text.split())
    assert "score on test problems from 0.50 to 0.50" in says and "50.0%" not in says.split("Stage by stage")[0]


def test_branches_are_compared_with_their_starting_model(preferences: Path, run: Path, tmp_path: Path) -> None:
    says = " ".join(read(preferences)[1].text.split())
    assert "ppo, dpo and kto each start from base: score on test problems from 0.72 to 1.49, 1.57 and 1.53;" in says
    assert "answers from 6.0 to 22.0, 22.0 and 22.0 tokens, in 6 min 50 s in total." in says
    assert "0.72 → 1.49–1.57" in says and "answers by base" in says
    data = load(preferences)
    assert [s.name for s in data.ends] == ["ppo", "dpo", "kto"]
    assert data.before(data.stage("kto") or data.stages[0]) is data.stage("base")
    # r1_zero and sft start from one stage, but sft trains on answers of r1_zero: these are not branches
    assert load(run).branches == []
    assert figure.write(preferences, tmp_path / "x.svg").read_text(encoding="utf-8").count(">score") == 1


def test_held_out_pairs_are_not_an_evaluation_set(preferences: Path) -> None:
    data = load(preferences)
    assert data.sets == ["test"] and "reward_model" not in [m.name for m in data.models]
    text, reader = read(preferences)
    says = " ".join(reader.text.split())
    assert "60.5% of 332 held-out pairs ranked as the annotators did (55.2% to 65.6%)" in says
    assert "0.0526 expected calibration error" in says and "0.662 correlation of its score" in says
    assert "71.4% of 332 held-out pairs where the policy's log-ratio prefers the same answer" in says
    assert "23 pairs: confidence 77.0%, 74.0% right" in says
    assert "83 pairs, margin 0.46 to 1.63: 75.9% right" in says
    assert "was not evaluated" not in says and not re.search(r"<th[^>]*>held_out", text)
    (preferences / "reward_model" / "held_out.json").write_text('{"bins": [[1], "x", [null, 0, 1]]}', encoding="utf-8")
    assert "Reliability" not in read(preferences)[1].text


def test_preference_stages_are_described(preferences: Path) -> None:
    says = " ".join(read(preferences)[1].text.split())
    for text in (
        "The annotators follow chain_gold and reverse 12.5% of their verdicts. 3,563 pairs were kept, 4,629 ties were",
        "Data: the pairs of annotate. Loss: BradleyTerry. Its scores are the reward of ppo.",
        "Its reward: the scores of reward_model, less 0.05 for each nat of KL",
        "Watched, not trained on: gold.",
        "Trains on preferences with the loss DPO.",
        "Trains on preferences with the loss KTO.",
        "Proxy reward; watched: gold",
        "ppo gold, step 20: 1.5",
        "Critic: explained variance",
        "KL of an answer",
        "dpo rejected, step 20: -11",
        "kto disliked, step 20: -0.8",
        "base · score 0.50",
    ):
        assert text in says, text
    assert "Training on rewards" in says


def test_the_described_model_is_the_policy(preferences: Path) -> None:
    for stage, name in (("reward_model", "LlamaForSequenceClassification"), ("ppo", "LlamaForCausalLM")):
        (preferences / stage / "model").mkdir()
        config = json.dumps({"architectures": [name]})
        (preferences / stage / "model" / "config.json").write_text(config, encoding="utf-8")
    assert load(preferences).built == "LlamaForCausalLM"


# ------------------------------------------------------------ incomplete runs


def test_missing_and_unfinished_stages_are_named(run: Path) -> None:
    for path in (run / "rl").iterdir():
        path.unlink()
    (run / "summary.json").unlink()
    (run / "sft" / "summary.json").unlink()
    (run / "sft" / "samples.json").write_text("[{", encoding="utf-8")
    says = read(run)[1].text
    assert "rl has not run yet" in says and "sft is unfinished: its last recorded step is 90" in says
    assert "96.3%" in says and "99.4%" not in says


def test_fields_may_be_missing_or_null(run: Path) -> None:
    edit(run / "r1_zero" / "summary.json", {"easy": {"accuracy": None}, "hard": {"length": 4}, "seconds": None})
    edit(run / "pretrain" / "summary.json", {"easy": {"accuracy": 0.25}, "hard": {}})
    (run / "sft" / "summary.json").write_text("[1]", encoding="utf-8")
    (run / "rl" / "metrics.jsonl").write_text('{"step": 1, "reward/mean": null}\n{"step": 2}\n{"st', encoding="utf-8")
    flat = [{"step": s, "kl_base": 0.0, "entropy": float("nan")} for s in (1, 2)]
    (run / "r1_zero" / "metrics.jsonl").write_text("\n".join(map(json.dumps, flat)), encoding="utf-8")
    (run / "r1_zero" / "samples.json").write_text('[{}, 3, {"prompt": null, "text": null}]', encoding="utf-8")
    evals = [{"step": None, "set": "easy", "accuracy": 0.5}, [], {"step": 1, "set": "easy"}]
    (run / "r1_zero" / "evals.jsonl").write_text("\n".join(map(json.dumps, evals)), encoding="utf-8")
    text, reader = read(run)
    assert "25.0%" in reader.text and "KL from the base" in reader.text
    assert "nan" not in text and "Entropy" not in reader.text


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    for write in (page.write, lambda p: figure.write(p, tmp_path / "x.png")):
        with pytest.raises(UserError, match=r"no recipe\.yaml"):
            write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    recipe = "name: x\neval: {sets: {easy: {task: chain}}}\nstages: {a: {kind: rl}}\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    says = read(tmp_path)[1].text
    assert "No stage of this run has been evaluated yet." in says and "a has not run yet" in says


def test_a_recipe_without_evaluation_has_no_missing_evaluations(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nstages: {a: {kind: best_of}, b: {kind: rl}}\n", encoding="utf-8")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text('{"seconds": 1.0}', encoding="utf-8")
    says = read(tmp_path)[1].text
    assert "This recipe has no evaluation sets" in says and "was not evaluated" not in says


# ------------------------------------------------------------ untrusted text

EVIL = (
    '<script>alert(1)</script><img src="https://x.y/z.png" onerror=a()>"\'>&lt;b&gt;{{ 7 * 7 }}</style>'
    "\x00\x1b[2J\u202e\ud800"
)


def test_a_models_text_never_becomes_markup(run: Path) -> None:
    _, before = read(run)
    samples = json.loads((run / "sft" / "samples.json").read_text(encoding="utf-8"))
    samples[0] |= {"text": EVIL, "prompt": EVIL, "answer": EVIL}
    # the first stage's prompt is the one that is shown
    first = json.loads((run / "pretrain" / "samples.json").read_text(encoding="utf-8"))
    first[0] |= {"prompt": EVIL, "answer": EVIL}
    (run / "sft" / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    (run / "pretrain" / "samples.json").write_text(json.dumps(first), encoding="utf-8")
    text, reader = read(run)
    assert sorted(set(reader.tags)) == sorted(set(before.tags))
    assert reader.text.count("<script>alert(1)</script>") >= 3 and "{{ 7 * 7 }}" in reader.text
    assert not {"\x00", "\x1b", "\u202e"} & set(text)


def test_names_never_become_markup(run: Path) -> None:
    evil = '<script>"x"</script>'
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe |= {"name": evil, "about": evil}
    recipe["eval"]["sets"][evil] = {"task": evil}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    for stage in fake_run.MEASURED:
        edit(run / stage / "summary.json", {evil: {"accuracy": 0.5, "length": 3.0}})
        more = [{"step": s, "set": evil, "temperature": 1.0, "accuracy": 0.1 * s} for s in range(4)]
        (run / stage / "evals.jsonl").write_text("".join(json.dumps(m) + "\n" for m in more), encoding="utf-8")
    edit(run / "harvest" / "summary.json", {"funnel": {evil: 3, "kept": 1, "\ud800": 1}})
    _, reader = read(run)
    assert "script" not in reader.tags and reader.text.count(evil) > 8


def test_the_page_has_no_requests_and_no_scripts(run: Path) -> None:
    text, reader = read(run)
    assert not {"script", "link", "iframe", "object", "img", "base", "form"} & set(reader.tags)
    names = {k for k, _ in reader.attributes}
    assert not {"src", "href", "srcset", "action", "style", "xlink:href"} & names
    assert not [n for n in names if n.startswith("on")]
    assert not re.search(r"https?:|url\(|@import|//[a-z]", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in reader.attributes


# ------------------------------------------------------------ colours, formats, charts


def test_word_classes_agree_with_the_task_world() -> None:
    for word in WORDS:
        expected = "a" if word in NOTATION_A else "b" if word in NOTATION_B else ""
        assert marks.chain([word]) == [expected]
    for text in ("a 9 -2 7 b 七 加一 八 # 8", "a 9 -2 7 # 7", "a 九 减二 七 # 7", "# 3"):
        classes = {word_class for word_class, _ in marks.pieces(text, marks.chain)}
        assert ({"a", "b"} <= classes) == answers.is_mixed(text), text


@pytest.mark.parametrize("text", ["a 9 -2 7 b 七 加一 八 # 8", "  7\n+1 七 ", "", " ", "x", "七 加一 9 八"])
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(piece for _, piece in marks.pieces(text, marks.chain)) == text
    assert "".join(piece for _, piece in marks.pieces(text, None)) == text


def test_pieces_of_one_notation_stay_together() -> None:
    expected = [("", "a "), ("a", "9 -2 7"), ("", " b "), ("b", "七 加一 八"), ("", " # 8")]
    assert marks.pieces("a 9 -2 7 b 七 加一 八 # 8", marks.chain) == expected
    assert marks.pieces("9 八", marks.chain) == [("a", "9"), ("", " "), ("b", "八")]


def test_number_formats() -> None:
    shares = [words.share(x) for x in (0, 1, 0.9999, 0.0001, 0.9629, None)]
    assert shares == ["0%", "100%", ">99.9%", "<0.1%", "96.3%", "–"]
    assert [words.duration(x) for x in (3.21, 41.2, 59.7, 176, 3600, 5400)] == [
        "3.2 s", "41 s", "1 min", "2 min 56 s", "1 h", "1 h 30 min",
    ]  # fmt: skip
    assert [words.number(x) for x in (0.0, 1e-13, 0.0004, 0.12345, 12345.6, 4e-5)] == [
        "0", "0", "4.0e-04", "0.123", "12,346", "4.0e-05",
    ]  # fmt: skip


def test_a_chart_puts_points_where_their_values_are() -> None:
    panel = chart.Panel("p", 4, [chart.Line([(2, 0.0), (4, 1.0)])])
    svg = str(chart.curves([panel], "x"))
    # the scale is 0 to 1: the bottom at 26 + 136, the top at 26; step 2 of 4 in the middle of 40..350, step 4 at 350
    assert 'd="M195.0 162.0L350.0 26.0"' in svg
    assert "p, step 2: 0" in svg


def test_panels_share_one_scale_of_steps_and_values() -> None:
    lines = [chart.Line([(1, 0.0), (10, 10.0)])], [chart.Line([(1, 0.0), (20, 5.0)])]
    svg = str(chart.curves([chart.Panel("p", 10, lines[0]), chart.Panel("q", 20, lines[1])], "x"))
    paths = [re.findall(r"([\d.]+) ([\d.]+)", d) for d in re.findall(r' d="M([^"]*)"', svg)]
    starts = [float(p[0][0]) for p in paths]
    ends = [float(p[-1][0]) for p in paths]
    assert (ends[0] - starts[0]) / 9 == pytest.approx((ends[1] - starts[1]) / 19, abs=0.01)
    assert float(paths[0][-1][1]) == 26.0 and float(paths[1][-1][1]) == 26 + 136 / 2


def test_long_curves_are_averaged() -> None:
    points = [(float(i), float(i % 2)) for i in range(1, 2401)]
    averaged = chart.thin(points)
    assert len(averaged) == chart.MOST_POINTS and {y for _, y in averaged} == {0.5} and averaged[-1][0] == 2400
    assert chart.thin(points[:100]) == points[:100]


def test_flat_and_negative_curves_have_a_scale() -> None:
    for values in ([0.0, 0.0], [-3.0, -3.0], [2.0], [1e-12, 0.0], [-1.0, 1.0], [1e300, 2e300]):
        for ground in (0.0, None):
            low, high, ticks = chart.scale(values, ground)
            assert low <= min(values) <= max(values) <= high and low < high and 2 <= len(ticks) <= 7


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.safetensors"
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, path, metadata={"format": "pt"})
    assert parameters(path) == 22


def test_the_report_describes_the_trained_model(run: Path) -> None:
    (run / "pretrain" / "model").mkdir()
    (run / "pretrain" / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    # a damaged file: the number of parameters is omitted
    (run / "pretrain" / "model" / "model.safetensors").write_bytes(b"\xff" * 40)
    assert load(run).built == "LlamaForCausalLM"
    assert "preset:chain · LlamaForCausalLM" in read(run)[1].text


# ------------------------------------------------------------ the figure


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_figure(run: Path, tmp_path: Path, suffix: str) -> None:
    path = figure.write(run, tmp_path / f"figure{suffix}")
    first = path.read_bytes()
    assert len(first) > 5000 and figure.write(run, path).read_bytes() == first
    if suffix == ".svg":
        text = path.read_text(encoding="utf-8")
        assert all(f">{s}<" in text for s in ("r1_zero", "easy", "hard", "tokens per answer"))


def test_other_figure_formats_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        figure.write(run, tmp_path / "x.docx")


def test_importing_the_report_imports_no_heavy_package() -> None:
    heavy = ("torch", "matplotlib", "transformers")
    code = f"import sys, ladder.report.page, ladder.report.figure; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
