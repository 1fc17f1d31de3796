"""Render a page: one HTML file that contains everything it needs and loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from and_dist.report.charts import COLOURS, MOST_LETTERS, Chart, date_of
from and_dist.report.neighbourhood_charts import (
    consistency_by_entropy,
    entropy_histograms,
    feature_map,
    pairs_by_round,
)
from and_dist.report.run_history import History
from and_dist.report.summary_cards import summary_cards, with_sign
from and_dist.report.summary_tables import Grid, summary_tables
from and_dist.report.time_line import time_line
from and_dist.report.training_charts import accuracy_by_round, training_curves
from and_dist.utils.formatting import elide, pieces_of

if TYPE_CHECKING:  # a page without pictures is written without torch
    from and_dist.report.checkpoint_views import Attended, Findings
    from and_dist.report.misclassified import Mistake

ASSETS = Path(__file__).parent / "assets"
"""The folder of the page's template, style and script."""
MOST_COLOURED = len(COLOURS)
"""The number of classes that have their own colour on the map; the others share a grey."""
NO_CLASS = "all images"
OTHERS = "other classes"


def render(
    histories: Sequence[History], findings: Findings | None, version: str, follow: float | None
) -> str:
    """Return the page of the first run, compared with the others.

    `version` identifies this state of the page. `follow` is the number of seconds after which the
    page looks for a newer version, or None for a page that never does.
    """
    history = histories[0]
    charts = _charts(histories, findings)
    script, plotly = (ASSETS / "page.js").read_text(), get_plotlyjs()
    data = _as_script_text(_data(charts, findings))
    return _template().render(
        history=history,
        findings=findings and _view_of(findings),
        mistakes=_mistakes(findings),
        charts=charts,
        css=(ASSETS / "page.css").read_text(),
        script=script,
        plotly=plotly,
        data=Markup(data),
        policy=_policy((script, plotly), follow is not None),
        version=version,
        follow=follow,
        written=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        subtitle=_subtitle(history),
        sections=_sections(charts, findings),
        cards=summary_cards(history),
        notes=findings.notes if findings else ("No checkpoint was looked at yet: no pictures.",),
        summary_tables=summary_tables(histories),
        why_no_neighbourhoods=_why_no_neighbourhoods(history),
        incidents=_incidents(history),
        environment=_environment(history),
        config_text=yaml.safe_dump(history.config.model_dump(mode="json"), sort_keys=False),
    )


def _template() -> Template:
    """Return the page's template, which escapes every text that it shows."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    environment.filters["short"] = lambda name: elide(name, MOST_LETTERS)
    return environment.get_template("page.html")


def breakable(text: str) -> Markup:
    """Return a text as HTML in which each of its pieces may stand in a line of its own."""
    return Markup("<wbr>").join(pieces_of(text))


def _policy(scripts: Iterable[str], may_ask_its_server: bool) -> str:
    """Return a content security policy that allows our scripts alone, and nothing but the page.

    A script that got into the page by a file's or class's name has no listed hash and does not run.
    """
    sums = (hashlib.sha256(f"{script}".encode()).digest() for script in scripts)
    ours = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in sums)
    policy = (
        f"default-src 'none'; script-src {ours}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return policy + ("; connect-src 'self'" if may_ask_its_server else "")


def _as_script_text(data: Any) -> str:
    """Return JSON for a script element; `</script>` and `<!--` in a text are escaped."""
    text = json.dumps(data, cls=PlotlyJSONEncoder, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _charts(histories: Sequence[History], findings: Findings | None) -> dict[str, list[Chart]]:
    """Return the charts of each section that there is data for."""
    history = histories[0]
    cuts = {table.round_index: table.cut for table in findings.rounds} if findings else {}
    found: dict[str, list[Chart | None]] = {
        "summary": [accuracy_by_round(histories)],
        "training": [*training_curves(histories)],
        "neighbourhoods": [
            pairs_by_round(history),
            consistency_by_entropy(history),
            entropy_histograms(history, cuts),
        ],
        "map": [_map(findings)],
        "time_line": [time_line(history)],
    }
    return {where: [c for c in charts if c is not None] for where, charts in found.items()}


def _map(findings: Findings | None) -> Chart | None:
    """Draw the map of the features, coloured by class, or return None without one."""
    if findings is None or findings.map is None:
        return None
    rows, names = findings.map.rows, findings.names
    classes = [names.get(f"r{row}", ("", None))[1] or NO_CLASS for row in rows]
    by_size = sorted(set(classes), key=lambda name: (-classes.count(name), name))
    coloured = dict(zip(sorted(by_size[:MOST_COLOURED]), COLOURS, strict=False))
    groups = [name if name in coloured else OTHERS for name in classes]
    return feature_map(findings.map.projections, groups, [f"r{row}" for row in rows], coloured)


def _data(charts: dict[str, list[Chart]], findings: Findings | None) -> dict[str, Any]:
    """Return the data that page.js reads."""
    drawn = {chart.key: chart.as_json() for of_section in charts.values() for chart in of_section}
    if findings is None:
        return {
            "charts": drawn,
            "pictures": {},
            "crisp": [],
            "names": {},
            "pieces": {},
            "rounds": [],
        }
    rounds = [
        {
            "round": table.round_index,
            "examples": [
                {"band": e.band, "row": e.row, "entropy": e.entropy, "neighbours": e.neighbours}
                for e in table.examples
            ],
            "hubs": table.hubs,
        }
        for table in findings.rounds
    ]
    return {
        "charts": drawn,
        "pictures": findings.thumbnails.uris,
        "crisp": sorted(findings.thumbnails.crisp),
        "names": findings.names,
        "pieces": _pieces(findings),
        "rounds": rounds,
    }


def _pieces(findings: Findings) -> dict[str, list[str]]:
    """Return the names and classes that page.js shows in several pieces or shortened."""
    rows: set[int] = set()
    for table in findings.rounds:
        rows |= {row for row, _ in table.hubs}
        rows |= {row for e in table.examples for row in (e.row, *e.neighbours)}
    found = {}
    for row in rows & {int(key[1:]) for key in findings.names if key.startswith("r")}:
        name, label = findings.names[f"r{row}"]
        shown = name if label is None else label
        pieces = pieces_of(elide(shown, MOST_LETTERS))
        if pieces != [shown]:
            found[shown] = pieces
    return found


def _subtitle(history: History) -> str:
    """Return method, encoder, data, seed and ranks as one line."""
    config = history.config
    where = ""
    if history.starts:
        about = history.starts[-1].about
        where = f", {about['world_size']} rank(s) on {about['device']}"
    return (
        f"method {config.method}, {config.encoder.name}, data {config.data.train}, "
        f"seed {config.seed}{where}"
    )


def _sections(charts: dict[str, list[Chart]], findings: Findings | None) -> dict[str, str]:
    """Return the titles of the page's sections by anchor, which menu and headings show."""
    optional = {
        "anchors": bool(findings and findings.rounds),
        "attention": bool(findings and findings.attended),
        "map": bool(charts["map"]),
        "mistakes": bool(findings and findings.mistakes),
    }
    titles = {
        "summary": "Summary",
        "training": "Training",
        "neighbourhoods": "Neighbourhoods",
        "anchors": "Anchors",
        "attention": "Attention",
        "map": "Map",
        "mistakes": "Mistakes",
        "time-line": "Time line",
        "config": "Configuration",
    }
    return {key: title for key, title in titles.items() if optional.get(key, True)}


def _why_no_neighbourhoods(history: History) -> str:
    """Return the sentence that stands in place of the charts of neighbourhoods."""
    if history.config.method != "and":
        return f"method={history.config.method} discovers no neighbourhoods."
    return "Round 1 will be the first to discover neighbourhoods."


def _incidents(history: History) -> Grid:
    """Return the starts, ends and incidents as a table."""
    rows = tuple((date_of(i.when), i.kind, i.text) for i in history.incidents)
    return Grid("Starts, ends and incidents", ("UTC", "what", "how"), rows, 3)


def _environment(history: History) -> Grid:
    """Return the environment of the last start, with the versions of packages, as a table."""
    words: dict[str, str] = {}
    if history.starts:
        about = history.starts[-1].about
        flat = {**{k: v for k, v in about.items() if v and k != "packages"}, **about["packages"]}
        words = {
            key: " ".join(map(str, value)) if isinstance(value, list) else str(value)
            for key, value in flat.items()
        }
    return Grid("Environment of the last start", ("key", "value"), tuple(words.items()), 2)


def _says(findings: Findings, key: str) -> str:
    """Return class and name of an image, as far as they are known."""
    name, label = findings.names.get(key, (key, None))
    return name if label is None else f"{label}, {name}"


def _view_of(findings: Findings) -> dict[str, Any]:
    """Return the findings as the template reads them."""
    return {
        "checkpoint": findings.checkpoint,
        "attended": [_attended(findings, one) for one in findings.attended],
    }


def _attended(findings: Findings, one: Attended) -> dict[str, Any]:
    """Return one image with its attention as the template reads it."""
    key, other = f"r{one.row}", f"r{one.neighbour}"
    (name, label), (_, other_label) = (findings.names.get(k, (k, None)) for k in (key, other))
    marks = {True: ", same class", False: f", {other_label}"}
    return {
        "key": key,
        "alt": _says(findings, key),
        "says": name if label is None else label,
        "neighbour_key": other,
        "neighbour_alt": f"neighbour: {_says(findings, other)}",
        "neighbour_says": "" if label is None else marks[label == other_label],
        "maps": [
            {
                "after": after,
                "uri": uri,
                "cosine": f"{cosine:.2f}",
                "alt": f"attention on {_says(findings, key)} after {after}",
            }
            for after, uri, cosine in one.maps
        ],
    }


def _mistakes(findings: Findings | None) -> dict[str, Any] | None:
    """Return the mistakes as the template reads them, or None if none were searched for."""
    if findings is None or findings.mistakes is None:
        return None
    found = findings.mistakes
    nearest = "Nearest" if found.farthest else "All of them, nearest first"
    kinds = (
        (
            nearest,
            "Closest to the training images they were taken for: often alike to the eye, "
            "sometimes labelled wrong.",
            found.nearest,
        ),
        ("Farthest", "Far from everything in the bank.", found.farthest),
    )
    wrong = found.num_wrong
    says = f"wrong about {wrong:,} ({with_sign(wrong / max(1, found.num_images))})"
    return {
        "says": f"Of {found.num_images:,} test images, evenly chosen, the bank's kNN votes are "
        f"{says if wrong else 'wrong about none'}.",
        "kinds": [
            {"title": title, "note": note, "mistakes": [_mistake(findings, m) for m in mistakes]}
            for title, note, mistakes in kinds
            if mistakes
        ],
    }


def _mistake(findings: Findings, mistake: Mistake) -> dict[str, Any]:
    """Return one mistake as the template reads it."""
    names, classes, key = findings.names, findings.class_names, f"t{mistake.row}"
    nearest = [f"r{row}" for row in mistake.nearest]
    return {
        "key": key,
        "alt": f"test image: {_says(findings, key)}",
        "label": classes[mistake.label],
        "predicted": classes[mistake.predicted],
        "similarity": f"{mistake.similarity:.2f}",
        "nearest": [
            {"key": near, "alt": f"near it: {_says(findings, near)}", "label": names[near][1]}
            for near in nearest
        ],
    }
