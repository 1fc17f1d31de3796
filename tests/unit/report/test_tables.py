"""Finished runs -> the tables of the paper: means, deviations, places, three ways to write them."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from and_dist.config.load import load_config
from and_dist.config.paper_figures import FIGURES, TITLES
from and_dist.config.validation import flatten
from and_dist.report.render_tables import as_csv, as_latex, as_markdown
from and_dist.report.tables import collect

RESNET = "configs/paper/cifar10-resnet18.yaml"
OWN = "data/cifar10/train, cifar_resnet18"
"""Sheet of what the paper's tables have no place for."""


def make_run(root: Path, name: str, knn: float, *overrides: str, rounds: int | None = None) -> Path:
    """What a run leaves behind: its config and its summary, by default of all rounds."""
    files = [o for o in overrides if o.endswith(".yaml")]
    config = load_config(files, [*(o for o in overrides if o not in files), f"name={name}"])
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    count = config.last_round + 1 if rounds is None else rounds
    ended = [{"round": r, "knn": knn / 100, "knn_bank": knn / 100 - 0.01} for r in range(count)]
    (folder / "summary.json").write_text(json.dumps({"rounds": ended}))
    return folder


def evaluate(folder: Path, checkpoint: str, *, ten_crop: bool = False, **top1: float) -> Path:
    """What `and-dist evaluate --linear` leaves behind; keys of the config and of data by name."""
    config = load_config([folder / "config.yaml"])
    data = {key: getattr(config.data, key) for key in ("test", "limit_test", "test_resize")}
    protocol = {"linear": config.evaluation.linear.model_dump(mode="json")}
    others = {"top5": 1.0, "interval": [0.0, 1.0], "images": 9, "unreadable": 0}
    of = {layer: {"says": layer, "top1": share / 100, **others} for layer, share in top1.items()}
    out = folder / "evaluation" / checkpoint
    out.mkdir(parents=True, exist_ok=True)
    record = {
        **data,
        "checkpoint": checkpoint,
        "protocol": protocol,
        "ten_crop": ten_crop,
        "of": of,
    }
    file = out / ("linear-ten-crop.json" if ten_crop else "linear.json")
    file.write_text(json.dumps(record))
    return file


def cells(text: str) -> dict[tuple[str, str, str], dict[str, str]]:
    rows = csv.DictReader(io.StringIO(text))
    return {(row["table"], row["row"], row["column"]): row for row in rows}


def test_seeds_become_a_mean_and_a_deviation(tmp_path: Path) -> None:
    values = [70.0, 71.5, 74.0]
    runs = [make_run(tmp_path, f"s{s}", v, f"seed={s}") for s, v in enumerate(values)]
    found = cells(as_csv(collect(runs)))["shapes/train, cifar_resnet18", "and", "kNN"]
    assert float(found["mean"]) == pytest.approx(statistics.fmean(values), abs=1e-3)
    assert float(found["deviation"]) == pytest.approx(statistics.stdev(values), abs=1e-3)
    assert found["seeds"] == "3"
    assert "71.8 ± 2.0 (3)" in as_markdown(collect(runs))
    assert r"71.8 $\pm$ 2.0 (3)" in as_latex(collect(runs))


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    found = cells(as_csv(collect([make_run(tmp_path, "one", 70)])))
    assert found["shapes/train, cifar_resnet18", "and", "bank-kNN"]["deviation"] == ""
    assert found["shapes/train, cifar_resnet18", "and", "bank-kNN"]["mean"] == "69.0"


def test_a_run_stands_at_all_its_places_beside_the_published_figure(tmp_path: Path) -> None:
    found = cells(as_csv(collect([make_run(tmp_path, "main", 86.0, RESNET)])))
    places = load_config([RESNET]).paper
    assert len(places) == 6
    for place in places:
        where, row, column = place.split("/")
        title = f"{where.capitalize()}: {TITLES[where]}"
        cell = found[title, row, f"{column} kNN"]
        assert (cell["published"], cell["mean"]) == (str(FIGURES[place]["knn"]), "86.0")
    sheets = {title.partition(":")[0].lower() for title, _, _ in found}
    assert sheets == {*(place.split("/")[0] for place in places), OWN}
    columns = {column for title, _, column in found if title.partition(":")[0].lower() != OWN}
    assert columns == {"CIFAR10 kNN", "ImageNet kNN"}, "the paper's, and no more"
    assert found[OWN, "and", "bank-kNN"]["mean"] == "85.0", "what it has no column for"
    one_off = found[
        "Table 6: One-off discovery and the curriculum, CIFAR10, ResNet18", "One-off", "CIFAR10 kNN"
    ]
    assert (one_off["published"], one_off["mean"], one_off["seeds"]) == ("84.2", "", "0")


def test_linear_classifiers_of_the_last_checkpoint_are_found(tmp_path: Path) -> None:
    run = make_run(tmp_path, "alex", 74.0, "configs/paper/cifar10-alexnet.yaml")
    evaluate(run, "r04-e0200", conv5=77.0, fc=76.0)
    evaluate(run, "r03-e0200", conv5=11.0)
    found = cells(as_csv(collect([run])))
    cell = found["Table 1: Small images, AlexNet", "AND", "CIFAR10 linear conv5"]
    assert (cell["published"], cell["mean"]) == ("77.6", "77.0")
    markdown = as_markdown(collect([run]))
    assert "| Split-Brain | 11.7 / - | 67.1 / -" in markdown
    assert "Published / here." in markdown


def test_rows_are_named_by_what_sets_them_apart(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "main", 70),
        make_run(tmp_path, "other", 71, "seed=1"),
        make_run(tmp_path, "k10", 72, "curriculum.neighbours=10"),
        make_run(tmp_path, "peer", 73, "method=nat"),
    ]
    found = {row for _, row, _ in cells(as_csv(collect(runs)))}
    assert found == {"and", "and, curriculum.neighbours=10", "nat"}


def test_a_sweeps_folder_stands_for_its_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep", "a", 70, "seed=0")
    make_run(tmp_path / "sweep", "b", 72, "seed=1")
    assert "71.0 ± 1.4 (2)" in as_markdown(collect([tmp_path / "sweep"]))


def test_what_is_not_at_its_end_is_named_and_left_out(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "whole", 70), make_run(tmp_path, "half", 10, "seed=1", rounds=2)]
    text = as_markdown(collect(runs))
    assert f"{runs[1]} is left out: it has ended 2 of 5 rounds." in text
    assert "70.0 (1)" in text


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
def test_a_damaged_run_is_left_out_by_the_name_of_its_file(tmp_path: Path, name: str) -> None:
    runs = [make_run(tmp_path, "whole", 70), make_run(tmp_path, "bent", 10, "seed=1")]
    (runs[1] / name).write_text("")
    text = as_markdown(collect(runs))
    assert f"{runs[1]} is left out: {runs[1]}/{name}" in text
    assert "70.0 (1)" in text


def test_a_damaged_evaluation_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path, "alex", 74.0, "configs/paper/cifar10-alexnet.yaml")
    evaluate(run, "r04-e0200", conv5=77.0)
    file = run / "evaluation/r04-e0200/linear.json"
    file.write_text(file.read_text()[:-9])
    assert "linear conv5" not in {column for *_, column in cells(as_csv(collect([run])))}
    assert f"{file} is damaged and left out" in caplog.text


def test_twins_and_strangers_are_refused(tmp_path: Path) -> None:
    one, twin = make_run(tmp_path, "one", 70), make_run(tmp_path, "twin", 71)
    with pytest.raises(ValueError, match="are the same run, seed 0 included"):
        collect([one, twin])
    with pytest.raises(ValueError, match=r"no finished run: .* is no run folder, and none lies in"):
        collect([tmp_path / "one" / "nothing"])
    half = make_run(tmp_path, "half", 10, "seed=1", rounds=2)
    with pytest.raises(ValueError, match=r"no finished run: .*half is left out: it has ended 2 of"):
        collect([half])


def test_what_is_no_run_among_runs_is_named(tmp_path: Path) -> None:
    """As in `and-dist table runs/*`, where an earlier table lies too."""
    run, table = make_run(tmp_path, "one", 70), tmp_path / "table.md"
    table.write_text("of yesterday")
    text = as_markdown(collect([run, table]))
    assert f"{table} is no run folder, and none lies in it" in text
    assert "70.0 (1)" in text


def test_names_cannot_break_a_table(tmp_path: Path) -> None:
    run = make_run(tmp_path, "odd", 70, "data.train='a|b_c & 100% \\'")
    assert r"a|b_c & 100% \, cifar" in as_csv(collect([run]))
    latex = as_latex(collect([run]))
    assert r"a|b\_c \& 100\% \textbackslash{}" in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 1


def test_figures_of_another_test_set_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", 70)
    file = evaluate(run, "r04-e0200", conv5=99.0)
    file.write_text(file.read_text().replace("shapes/test", "easy/test"))
    text = as_markdown(collect([run]))
    assert f"{file} is left out: it was measured at another data.test." in text
    assert "99.0" not in text


def test_other_protocols_of_linear_classifiers_are_other_figures(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, f"s{seed}", 70, f"seed={seed}") for seed in range(3)]
    evaluate(runs[0], "r04-e0200", conv5=80.0)
    evaluate(runs[1], "r04-e0200", conv5=82.0, ten_crop=True)
    short = evaluate(runs[2], "r04-e0200", conv5=60.0)
    short.write_text(short.read_text().replace('"epochs": 90', '"epochs": 2'))
    found = cells(as_csv(collect(runs)))
    by_row = {(row, column): cell["mean"] for (_, row, column), cell in found.items()}
    assert by_row["and", "linear conv5"] == "80.0"
    assert by_row["and", "linear conv5, ten crops"] == "82.0"
    assert by_row["and", "linear conv5, epochs=2"] == "60.0"
    assert by_row["and", "kNN"] == "70.0"
    seeds = {column: cell["seeds"] for (_, _, column), cell in found.items()}
    assert seeds["kNN"] == "3", "which no linear classifier has touched"


def test_both_views_of_a_run_stand_beside_each_other(tmp_path: Path) -> None:
    run = make_run(tmp_path, "alex", 74.0, "configs/paper/cifar10-alexnet.yaml")
    evaluate(run, "r04-e0200", conv5=77.0)
    evaluate(run, "r04-e0200", ten_crop=True, conv5=78.0)
    found = cells(as_csv(collect([run])))
    assert found["Table 1: Small images, AlexNet", "AND", "CIFAR10 linear conv5"]["mean"] == "77.0"
    own = found["data/cifar10/train, cifar_alexnet", "and", "linear conv5, ten crops"]
    assert own["mean"] == "78.0"


def test_two_kinds_of_run_cannot_stand_for_one_figure(tmp_path: Path) -> None:
    claim = "paper=[table 4/ResNet18/CIFAR10]"
    one = make_run(tmp_path, "one", 86, RESNET, claim)
    other = make_run(tmp_path, "other", 50, RESNET, claim, "curriculum.neighbours=5")
    with pytest.raises(ValueError, match=r"both stand for table 4/ResNet18/CIFAR10, and differ in"):
        collect([one, other])


def test_what_does_not_touch_training_makes_no_other_kind(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one", 86, RESNET)
    harmless = ("seed=1", "evaluation.every=5", "data.cache_gb=3", "optim.fused=false")
    other = make_run(tmp_path, "other", 88, RESNET, *harmless, "data.train=/of/another/machine")
    assert "86.3 / 87.0 ± 1.4 (2)" in as_markdown(collect([one, other]))


@pytest.mark.parametrize("variant", ["", "-instance"])
def test_data_sets_of_one_recipe_stay_apart(tmp_path: Path, variant: str) -> None:
    """CUB200 and Dogs differ in their paths alone."""
    runs = [
        make_run(tmp_path, data, knn, f"configs/paper/{data}-resnet18{variant}.yaml", f"seed={at}")
        for at, (data, knn) in enumerate((("cub200", 14.0), ("dogs", 32.0)))
    ]
    found = cells(as_csv(collect(runs))).items()
    ours = {at[2]: cell["mean"] for at, cell in found if cell["published"] and cell["mean"]}
    assert ours == {"CUB200 kNN": "14.0", "Dogs kNN": "32.0"}


def test_another_test_transform_is_another_kind(tmp_path: Path) -> None:
    given = "configs/paper/imagenet-resnet18.yaml"
    one = make_run(tmp_path, "one", 41, given)
    other = make_run(tmp_path, "other", 40, given, "seed=1", "data.test_resize=224")
    with pytest.raises(ValueError, match=r"both stand for .*, and differ in data\.test_resize"):
        collect([one, other])


def test_the_paper_as_printed_has_rows_of_its_own(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one", 86, RESNET)
    other = make_run(tmp_path, "other", 80, RESNET, "configs/paper-literal.yaml", "seed=1")
    found = as_csv(collect([one, other]))
    table = "Table 4: Networks, CIFAR10 unless said otherwise"
    for row, mean in (("ResNet18", "86.0"), ("ResNet18, as printed", "80.0")):
        cell = cells(found)[table, row, "CIFAR10 kNN"]
        assert (cell["published"], cell["mean"]) == ("86.3", mean)
    alone = cells(as_csv(collect([other])))
    assert alone[table, "ResNet18", "CIFAR10 kNN"]["mean"] == ""
    assert alone[table, "ResNet18, as printed", "CIFAR10 kNN"]["mean"] == "80.0"


def test_what_touches_pixels_makes_another_kind(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one", 70)
    other = make_run(tmp_path, "other", 60, "seed=1", "data.cache_gb=1", "data.cache_side=40")
    found = {row for _, row, _ in cells(as_csv(collect([one, other])))}
    assert found == {"and", "and, data.cache_side=40"}


def test_seeds_stand_where_any_of_them_does(tmp_path: Path) -> None:
    first, second = "table 4/ResNet18/CIFAR10", "figure 5/R = 4/CIFAR10"
    one = make_run(tmp_path, "one", 86, RESNET, f"paper=[{first}]")
    other = make_run(tmp_path, "other", 88, RESNET, "seed=1", f"paper=[{second}]")
    for order in ([one, other], [other, one]):
        assert as_markdown(collect(order)).count("86.3 / 87.0 ± 1.4 (2)") == 2


@pytest.mark.parametrize("how", ["override", "file beside", "file above"])
@pytest.mark.parametrize(
    ("over", "keeps"),
    [
        ({"seed": 3, "run": {"root": "x"}, "data": {"train": "elsewhere"}}, True),
        ({"curriculum": {"neighbours": 1, "rounds": 4}}, True),
        ({"curriculum": {"neighbours": 5}}, False),
        ({"data": {"limit": 5}}, False),
        ({"data": {"cache_side": 40}}, False),
        ({"preset": "paper"}, True),
    ],
)
def test_what_trains_something_else_gives_the_figure_up(
    over: dict[str, Any], keeps: bool, how: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    if how == "override":
        config = load_config([RESNET], [f"{key}={value}" for key, value in flatten(over).items()])
    elif how == "file beside":
        file.write_text(yaml.safe_dump(over))
        config = load_config([RESNET, file])
    else:
        file.write_text(yaml.safe_dump({"base": str(Path(RESNET).resolve()), **over}))
        config = load_config([file])
    assert len(config.paper) == (6 if keeps else 0)


def test_a_figure_may_be_claimed_anew() -> None:
    claim = "paper=[figure 4/k = 10/CIFAR10]"
    for given in ([claim, "curriculum.neighbours=10"], ["curriculum.neighbours=10", claim]):
        assert load_config([RESNET], given).paper == ("figure 4/k = 10/CIFAR10",)


def test_runs_with_other_options_of_their_encoders_stand_in_one_table(tmp_path: Path) -> None:
    vit = "encoder.name=timm/vit_tiny_patch16_224"
    runs = [
        make_run(tmp_path, "a", 60.0, vit, "encoder.options={depth: 4, patch_size: 4}"),
        make_run(tmp_path, "b", 61.0, vit, "encoder.options={depth: 5}"),
        make_run(tmp_path, "c", 62.0, "encoder.name=small"),
    ]
    text = as_markdown(collect(runs))
    assert "encoder.options.depth=5" in text
    assert "encoder.options.patch_size=4" in text
