from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from and_dist.config.comparison import differing_keys, keep_choices
from and_dist.config.load import load_config, load_run_config
from and_dist.config.optim_schema import LinearConfig
from and_dist.config.schema import Config
from and_dist.config.validation import build
from and_dist.runs.folder import write_config

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)
sections = st.sampled_from([*Config.model_fields, "bnak", "optim.lr"])


def is_config_or_sentence(load: Callable[[], Config]) -> bool:
    try:
        return isinstance(load(), Config)
    except ValueError as error:
        return len(str(error)) > 0


@given(st.dictionaries(sections, values))
@example({"data": {".": None}})
def test_any_mapping_is_a_config_or_a_sentence(content: dict[str, object]) -> None:
    assert is_config_or_sentence(lambda: build(Config, content))


@given(st.text() | values.map(lambda value: yaml.safe_dump(value, allow_unicode=True)))
def test_any_file_is_a_config_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("config") / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert is_config_or_sentence(lambda: load_config([path]))


@given(st.text())
def test_any_override_is_a_config_or_a_sentence(text: str) -> None:
    assert is_config_or_sentence(lambda: load_config([], [text]))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("bank.dims=3", "unknown key 'bank.dims'; bank takes: dtype, products"),
        (
            "discovery.memory_mb=some",
            "discovery.memory_mb = 'some' will not do: input should be a valid integer, or input "
            "should be 'auto'",
        ),
        ("bnak.dtype=float32", "unknown key 'bnak'; the top level takes: name, preset"),
        ("optim.lr=fast", "optim.lr = 'fast' will not do: input should be a valid number"),
        (
            "encoder.options={a: [[1]]}",
            r"encoder.options.a.0 = [1] will not do: input should be a valid",
        ),
        ("encoder.options=3", "encoder.options = 3 will not do"),
        ("optim.lr=-1", "optim.lr = -1 will not do: input should be greater than 0"),
        ("optim.batch_size=1.5", "optim.batch_size = 1.5 will not do"),
        ("curriculum.rounds=0", "curriculum.rounds = 0 discovers nothing: that is method=instance"),
        ("curriculum.rounds=-1", "curriculum.rounds = -1 will not do: input should be greater"),
        ("bank.dtype=int8", "'float32', 'float16' or 'bfloat16'"),
        ("bank=3", "bank is a section, not a value; it takes: dtype"),
        ("data.flip='yes'", "data.flip = 'yes' will not do: input should be a valid boolean"),
        ("data.crop_area=[1]", "data.crop_area"),
        ("data.crop_area=[0.9,0.2]", "data.crop_area = [0.9, 0.2]: the smallest comes first"),
        ("objective.temperature=.nan", "objective.temperature"),
        ("preset=papr", "preset = 'papr' will not do: input should be 'code' or 'paper'"),
        ("name=../up", "name = '../up' will not do"),
        ("optim.lr", "override 'optim.lr' is not of the form key=value, such as optim.lr=0.06"),
        ("optim..lr=1", "not of the form key=value"),
        ("data.mean=!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_wrong_config_says_what_would_be_right(override: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config([], [override])
    assert sentence in str(caught.value)


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)bank\.dims.*optim\.rate"):
        load_config([], ["bank.dims=1", "optim.rate=2"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optim: {lr: 1, lr: 2}", "key 'lr' stands twice"),
        ("- 1\n- 2", "is not a mapping"),
        ("optim: [", "is not plain YAML"),
        ("1: 2", "key 1 is not text"),
        ("a: !!python/name:os.system", "is not plain YAML"),
        ("\tx: 1", "is not plain YAML"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config([path])
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read config .*none\.yaml: No such file"):
        load_config([tmp_path / "none.yaml"])
    with pytest.raises(ValueError, match=r"cannot read config .*: no regular file"):
        load_config([tmp_path])


def test_layers_from_defaults_to_overrides(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("optim: {lr: 0.5, momentum: 0.5, batch_size: 7}\nname: first")
    second.write_text("optim: {lr: 1e-1}\nname: second")
    config = load_config([first, second], ["optim.batch_size=9"])
    assert config.name == "second"
    assert (config.optim.lr, config.optim.momentum, config.optim.batch_size) == (0.1, 0.5, 9)
    assert config.optim.weight_decay == 5e-4


def test_presets_set_the_documented_fields_and_files_win() -> None:
    code, paper = load_config([], ["preset=code"]), load_config([], ["preset=paper"])
    assert (code.bank.renormalise, paper.bank.renormalise) == (True, False)
    assert (code.optim.milestones, paper.optim.milestones) == ((120, 160), (80, 120, 160))
    assert (code.evaluation.knn_temperature, paper.evaluation.knn_temperature) == (0.1, 0.07)
    assert load_config([], ["preset=paper", "bank.renormalise=true"]).bank.renormalise


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config([], ["preset=paper", "data.limit=30"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config([path]) == config


def test_only_what_trains_differently_counts_as_another_run() -> None:
    written = Config().model_dump(mode="json")
    assert differing_keys(load_config([], ["run.log_every=3", "evaluation.knn=5"]), written) == []
    other = load_config([], ["optim.lr=0.5", "seed=3"])
    assert differing_keys(other, written) == ["optim.lr: 0.03 -> 0.5", "seed: 0 -> 3"]


def test_a_run_begun_before_data_hue_model_has_changed_hue_in_yiq() -> None:
    written = Config().model_dump(mode="json")
    del written["data"]["hue_model"]
    assert differing_keys(Config(), written) == []
    other = load_config([], ["data.hue_model=hsv"])
    assert differing_keys(other, written) == ["data.hue_model: yiq -> hsv"]


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads_and_opens_with_its_command(path: Path) -> None:
    load_config([path])
    assert path.read_text().startswith(("# and-dist ", "# and-launch ", "# make ", "# torchrun "))


@pytest.mark.whole_run
def test_a_config_is_checked_without_torch() -> None:
    heavy = "{'torch', 'numpy', 'faiss'} & set(sys.modules)"
    code = f"import sys, and_dist.config.load; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_field_says_what_it_is() -> None:
    sections = [field.annotation for field in Config.model_fields.values()]
    for section in [*sections, LinearConfig]:
        fields = getattr(section, "model_fields", {})
        assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:00", 5400),
        ("1:30:00", 5400),
        ("0:20", 20),
        ("01:00:00", 3600),
        ("2-12", 216_000),
        ("2-12:30:00", 217_800),
        ("23:50:00", 85_800),
        ("2d", 172_800),
        ("36h", 129_600),
        ("1h30m", 5400),
        ("45s", 45),
        ("1d2h3m4s", 93_784),
    ],
)
def test_durations_are_read_as_slurm_writes_them(tmp_path: Path, text: str, seconds: int) -> None:
    assert load_config([], [f"run.time_limit={text}"]).run.time_limit_seconds == seconds
    (tmp_path / "limit.yaml").write_text(f"run:\n  time_limit: {text}\n")
    assert load_config([tmp_path / "limit.yaml"]).run.time_limit_seconds == seconds


@pytest.mark.parametrize("text", ["soon", "-5", "1:2:3:4", "0", "1w", "''", "0d", "1m1h", "1.5h"])
def test_what_is_no_duration_gets_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"run\.time_limit"):
        load_config([], [f"run.time_limit={text}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("17", 17), ("1_000", 1000), ("0x1f", 31), ("9223372036854775807", 2**63 - 1)],
)
def test_whole_numbers_stay_numbers(text: str, value: int) -> None:
    assert load_config([], [f"seed={text}"]).seed == value


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_file_lies_over_its_bases_from_left_to_right(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", a="optim: {lr: 0.1, batch_size: 10}\nname: a", b="optim: {lr: 0.2}")
    write(tmp_path, middle="base: [below/a.yaml, below/b.yaml]\nseed: 5")
    write(tmp_path, top="base: middle.yaml\noptim: {momentum: 0.5}")
    config = load_config([tmp_path / "top.yaml"], ["seed=6"])
    found = (config.optim.lr, config.optim.batch_size, config.optim.momentum, config.seed)
    assert found == (0.2, 10, 0.5, 6)
    assert config.name == "a"


def test_a_preset_lies_under_all_bases(tmp_path: Path) -> None:
    write(tmp_path, base="preset: paper\nbank: {renormalise: true}", top="base: base.yaml")
    config = load_config([tmp_path / "top.yaml"])
    assert (config.bank.renormalise, config.optim.milestones) == (True, (80, 120, 160))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: top.yaml", "is its own base"),
        ("base: other.yaml", "is its own base"),
        ("base: nowhere.yaml", "cannot read config .*nowhere.yaml"),
        ("base: 3", "base = 3 is not the name of a file, or a list"),
        ("base: [a.yaml, 3]", "is not the name of a file, or a list"),
    ],
)
def test_a_base_that_cannot_be_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    write(tmp_path, top=text, other="base: top.yaml")
    with pytest.raises(ValueError, match=sentence):
        load_config([tmp_path / "top.yaml"])


def test_base_is_no_key_to_override() -> None:
    with pytest.raises(ValueError, match="unknown key 'base'"):
        load_config([], ["base=configs/debug.yaml"])


def test_a_layer_that_names_training_images_alone_takes_the_test_images_away(
    tmp_path: Path,
) -> None:
    assert load_config(["demo"]).data.test == "shapes/test"
    assert load_config(["demo"], ["data.train=photos"]).data.test is None
    both = ["data.train=photos", "data.test=others"]
    assert load_config(["demo"], both).data.test == "others"
    (tmp_path / "mine.yaml").write_text("data: {train: photos}")
    assert load_config(["demo", tmp_path / "mine.yaml"]).data.test is None
    kept = load_config(["demo", tmp_path / "mine.yaml"], ["data.test=others"])
    assert (kept.data.train, kept.data.test) == ("photos", "others")
    assert load_config(["paper/cifar10-alexnet"]).data.test == "data/cifar10/test"


def test_a_run_that_was_begun_with_the_test_images_of_a_lower_layer_keeps_them(
    tmp_path: Path,
) -> None:
    command = [f"run.root={tmp_path}", "data.train=photos"]
    before = load_config(["demo"], [*command, "data.test=shapes/test"])
    write_config(before, before.folder)
    assert load_config(["demo"], command) == before
    assert load_config(["demo"], [*command, "name=another"]).data.test is None
    assert load_config(["demo"], [*command, "data.train=other"]).data.test is None


def test_a_runs_own_config_keeps_its_test_images(tmp_path: Path) -> None:
    run = load_config(["demo"], [f"run.root={tmp_path}"])
    write_config(run, run.folder)
    moved = load_run_config(run.folder, ["data.train=elsewhere"])
    assert (moved.data.train, moved.data.test) == ("elsewhere", "shapes/test")


def test_a_run_keeps_what_it_has_written_where_a_default_has_changed() -> None:
    written = Config().model_dump(mode="json")
    written["evaluation"]["every"] = 0
    assert load_config(["demo"]).evaluation.every == 10
    assert keep_choices(load_config(["demo"]), written, False).evaluation.every == 0
    for layer in (["evaluation.every=10"], ["evaluation.every=3"]):
        config = load_config(["demo"], layer)
        assert keep_choices(config, written, False).evaluation.every == config.evaluation.every
