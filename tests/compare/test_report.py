"""The pages: nothing of a stranger's is markup, nothing is loaded, and a browser shows them as they are meant."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.compare.helpers import asked
from tests.helpers import NAMES, finished_run, finished_teacher, make_detector, task_data, tiny_data
from tests.train.model_files import files_in
from tskd_yolo.cli import main
from tskd_yolo.compare import report
from tskd_yolo.compare.plan import checked
from tskd_yolo.compare.runner import compare

EVIL = ('<script>alert("1")</script>', "</title><img src=x onerror=alert(2)>", "ünïcode & 'quotes'", "{{ 7 * 7 }}",
        "https://example.com/a.js", "=cmd|' /C calc'!A0")  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found on this machine")


def test_an_rtdetr_is_left_to_its_own_validator(tmp_path):
    model = files_in(tmp_path)("{f}/rtdetr.pt")
    assert report.validate(model=model, data="nowhere.yaml") is False and not list(tmp_path.glob("runs"))


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """A comparison of made-up runs, with class names that are an attack."""
    root = tmp_path_factory.mktemp("report")
    data = tiny_data(root, train=4, val=6)
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({**content, "names": list(EVIL)}))
    make_detector(root / "teacher.pt", names=EVIL)
    arms = {"plain": 0, "tskd": 0.05, "ultralytics": -0.04, "plain_same_time": 0.001}
    values = asked(root, root / "out", arms=list(arms), seeds=3)
    plan = checked(values)
    plan.out.mkdir()
    finished_teacher(plan, 0.5, EVIL)
    for arm, gain in arms.items():
        for seed in range(3):
            noise = 0.0 if arm == "plain" else (0.001, -0.002, 0.001)[seed]
            finished_run(plan, arm, seed, 0.2 + seed / 50 + gain + noise, EVIL)
    assert compare(**values) == 0
    return plan.out


class Tags(HTMLParser):
    """Every tag with its attributes, and every text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_class_names_are_text_and_no_markup(out):
    text = (out / "compare.html").read_text(encoding="utf-8")
    tags = Tags(text).tags
    assert not any(tag == "script" or any(a.startswith("on") for a in attributes) for tag, attributes in tags)
    assert sum(tag == "title" for tag, _ in tags) == 1
    read = "".join(Tags(text).texts)
    assert all(name in read for name in EVIL)


def test_nothing_is_loaded(out):
    text = (out / "compare.html").read_text(encoding="utf-8")
    for tag, attributes in Tags(text).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}, tag
        for name in ("src", "href", "xlink:href", "data", "srcset", "action", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value)
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text


def test_a_spreadsheet_takes_no_class_name_for_a_formula(out):
    lines = (out / "compare.csv").read_text(encoding="utf-8").splitlines()
    assert not any(cell.strip('"').startswith(("=", "+", "@")) for line in lines for cell in line.split(","))


@pytest.mark.parametrize("name", ["compare.csv", "compare.html"])
def test_a_full_disk_leaves_the_file_that_was_there(name, out, tmp_path, monkeypatch):
    summary = json.loads((out / "compare.json").read_text())
    (tmp_path / name).write_text("before")
    put = os.replace

    def full(part, file):
        if Path(file).name == name:
            raise OSError(28, "No space left on device")
        put(part, file)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        report.write_comparison(tmp_path, summary, curves={}, pictures=None)
    assert (tmp_path / name).read_text() == "before" and not list(tmp_path.glob(".*"))


def test_it_can_be_read_by_keyboard_and_by_ear(out):
    tags = Tags((out / "compare.html").read_text(encoding="utf-8")).tags
    links = [attributes for tag, attributes in tags if tag == "a"]
    assert links[0]["href"] == "#main" and any(a.get("id") == "main" for tag, a in tags if tag == "main")
    for tag, attributes in tags:
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0" and attributes["role"] == "region" and attributes["aria-label"]
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes.get("aria-hidden") or attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in {"row", "col"}
    assert [tag for tag, _ in tags if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]
    assert ("html", {"lang": "en"}) in tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    style = (Path(report.__file__).with_name("templates") / "style.css").read_text()
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", style.split(":root {")[1 + scheme].split("}")[0]))
    for name in ("text", "soft", "link", "helps", "hurts", "open", "warn"):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    assert contrast(colours["text"], colours["band"]) >= 4.5
    for index in range(8):
        assert contrast(colours[f"s{index}"], colours["page"]) >= 3, index


def test_the_verdict_stands_first_and_every_number_has_its_seeds(out):
    text = (out / "compare.html").read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text.split("<main")[1]))
    told = "over plain (95 % interval +4.6 to +5.4, 3 seeds; corrected for 3 arms +4.2 to +5.8, p = 0.0012)."
    first = words.index(f"tskd: helps: +5.0 points of mAP50-95 {told}")
    assert "Corrected p" in words and words.count("Exploratory: ") == 2
    assert first < words.index("Missed defects at fixed false alarms") < words.index("Effect per class")
    assert "ultralytics: hurts: −4.0 points" in words and "plain_same_time: no evidence" in words
    for part in ("Curves", "The terms over time", "Size and speed", "4.2 ms", "11.9 ms", "Images where they disagree",
                 "What DED weighs", "stride 8", "started from the same weights", "9,430,114"):  # fmt: skip
        assert part in words, part


def test_labels_in_an_image_do_not_hide_each_other():
    taken: list = []
    heights = [report.free_height(taken, 10, 50, 20, 8) for _ in range(3)] + [report.free_height(taken, 70, 50, 20, 8)]
    assert heights == [20, 28, 36, 20]


def test_a_page_without_terms_teacher_or_pictures_is_whole(out):
    summary = json.loads((out / "compare.json").read_text())
    curves = summary.pop("curves")
    summary.update(teacher=None, latency=None, failed=["tskd-2"], complete=False, resumed=["plain-0"])
    for arm in summary["arms"].values():
        arm["recovered"] = None
    page = report.comparison_page(summary, curves={"plain": curves["plain"]}, pictures=None)
    assert "these runs failed: tskd-2" in page and "Latency was not measured" in page and "plain-0" in page


# val ------------------------------------------------------------------------------------------------------------------


def test_val_writes_a_page_beside_ultralytics_results(tmp_path, capsys):
    data, model = tiny_data(tmp_path, train=2, val=6), make_detector(tmp_path / "best.pt", "yolo11n.yaml")
    given = [f"model={model}", f"data={data}", "imgsz=64", "batch=4", "workers=0", "device=cpu", "plots=False"]
    assert main(["val", *given, f"project={tmp_path}", "name=val", "exist_ok"]) == 0
    figures = json.loads((tmp_path / "val" / "report.json").read_text())
    assert figures["images"] == 6 and len(figures["misses"]) == 3 and figures["parameters"] > 2e6
    assert set(figures["coco"]) >= {"AP", "AP50", "AP75", "AP small", "AR 100"}
    page = (tmp_path / "val" / "report.html").read_text(encoding="utf-8")
    assert "best.pt on tiny.yaml" in page and "Images with most missed defects" in page and str(tmp_path) not in page
    assert not any(tag == "script" for tag, _ in Tags(page).tags)


def test_val_names_what_is_no_argument(capsys):
    assert main(["val", "model=best.pt", "daat=x.yaml"]) == 1
    assert "daat: is not an argument" in capsys.readouterr().err


def test_val_tells_mistakes_at_once_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("junk.pt").write_bytes(b"no checkpoint")
    Path("list.yaml").write_text("[1, 2]")
    model = make_detector(Path("best.pt"), "yolo11n.yaml")
    before = sorted(tmp_path.iterdir())
    for words, told in {
        ("model=junk.pt", "conf=2", "imgsz=abc"): ("model: junk.pt ", "conf: ", "imgsz: "),
        (f"model={model}", "data=list.yaml", "device=7"): ("data: ", "device: 7 cannot be used here"),
        ("model=nowhere.pt",): ("model: nowhere.pt was not found",),
    }.items():
        assert main(["val", *words]) == 1
        said = capsys.readouterr().err
        assert all(sentence in said for sentence in told) and "Traceback" not in said, said
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("task", "suffix"), [("segment", "seg"), ("pose", "pose"), ("obb", "obb")])
def test_val_tells_labels_of_another_task(task, suffix, tmp_path, capsys):
    model = make_detector(tmp_path / "best.pt", f"yolo11n-{suffix}.yaml")
    asked = dict(model=model, imgsz=64, workers=0, device="cpu")
    assert report.wrong({**asked, "data": task_data(tmp_path / "right", task)}) == []
    (tmp_path / "boxes").mkdir()
    words = [f"{key}={value}" for key, value in asked.items()]
    assert main(["val", f"data={tiny_data(tmp_path / 'boxes', train=1, val=2)}", *words]) == 1
    assert "data: the val images could not be read (" in capsys.readouterr().err


def test_val_reads_any_split_and_boxes_without_area(tmp_path):
    data = task_data(tmp_path, "segment")
    data.write_text(data.read_text() + "test: images/val\n")
    label = next((tmp_path / "set" / "labels" / "val").glob("*.txt"))
    label.write_text(label.read_text() + "0 0.5 0.5 0.5 0.5 0.5 0.5\n")
    model = make_detector(tmp_path / "best.pt", "yolo11n-seg.yaml")
    assert report.wrong(dict(model=model, data=data, split="test", imgsz=64, workers=0, device="cpu")) == []


def test_val_says_that_it_goes_by_the_numbers_of_classes(tmp_path, caplog):
    data, model = (
        tiny_data(tmp_path, train=2, val=2),
        make_detector(tmp_path / "a.pt", "yolo11n.yaml", names=NAMES[::-1]),
    )
    given = dict(data=data, imgsz=64, workers=0, device="cpu", plots=False, project=tmp_path, name="val")
    assert report.validate(model=model, **given)
    assert "val goes by their numbers" in caplog.text


# In a browser ---------------------------------------------------------------------------------------------------------


def chromium(folder, *arguments):
    """Runs headless Chromium with a profile of its own and returns what it wrote on standard output."""
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-dev-shm-usage"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", *arguments]
    result = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, "HOME": str(folder)})
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("width", [360, 768, 1200])
def test_a_browser_shows_the_page_without_scrolling_it_sideways(width, out, tmp_path):
    """A copy without the policy that forbids scripts measures itself."""
    text = (out / "compare.html").read_text(encoding="utf-8")
    probe = f"<script>{Path(__file__).with_name('probe.js').read_text()}</script></body>"
    page = tmp_path / "page.html"
    inner = html.escape(re.sub(r"<meta http-equiv[^>]+>", "", text).replace("</body>", probe))
    # A window is never as narrow as a telephone; a frame is.
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{inner}"></iframe>'
    page.write_text(f"<!doctype html><meta charset='utf-8'><title></title>{frame}", encoding="utf-8")
    dom = chromium(tmp_path, "--window-size=1300,1000", "--dump-dom", page.as_uri()).decode("utf-8")
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.S)[1]))
    assert found["inner"] == width and found["wide"] <= width, found
    assert found["seen"] == found["drawn"] > 10 and found["small"] == 0, found
    assert found["focused"] == found["reached"] > 8, found


@pytest.mark.slow
@in_chromium
def test_a_browser_prints_the_page_and_runs_no_script_in_it(out, tmp_path):
    page = tmp_path / "page.html"
    text = (out / "compare.html").read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", "<script>document.title = 'ran'</script></body>"), encoding="utf-8")
    dom = chromium(tmp_path, "--dump-dom", page.as_uri()).decode("utf-8")
    assert "<title>ran</title>" not in dom, "the page's policy lets scripts run"
    chromium(
        tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", (out / "compare.html").as_uri()
    )
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "page.pdf").stat().st_size > 20_000
