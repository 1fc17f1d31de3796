from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from and_dist.config.load import load_config, load_run_config
from and_dist.config.schema import Config
from and_dist.config.suggestions import all_keys
from and_dist.config.yaml_files import MOST_FILES, parse_override, read_yaml


def lines_of_aliases(count: int, width: int, leaf: str) -> str:
    lines = [f"a0: &a0 {leaf}"]
    for at in range(1, count):
        lines.append(f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * width)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (lines_of_aliases(9, 9, "x"), "it says too much, with what it repeats by aliases"),
        (lines_of_aliases(6, 9, f"'{'x' * 30_000}'"), "it says too much"),
        (lines_of_aliases(60, 2, "x"), "it says too much"),
        ("a: &a [*a]", "an alias stands within what it repeats"),
        ("a: &a {b: {c: *a}}", "an alias stands within what it repeats"),
        ("[" * 100_000, "it goes deeper than 50 lists and sections"),
        ("- " * 100_000, "it goes deeper than 50 lists and sections"),
        ("".join(f"k{at}: 1\n" for at in range(30_000)), "it says too much"),
        (f"seed: {'9' * 5000}", "a number of 5,000 letters"),
        (f"seed: 0x{'f' * 50_000}", "a number of 50,002 letters"),
        ("seed: !!int ''", "'' is no int"),
        ("seed: !!float ''", "'' is no float"),
        ("seed: !!bool maybe", "'maybe' is no bool"),
        ("seed: !!timestamp soon", "could not determine a constructor"),
        ("seed: !!binary aaaa", "could not determine a constructor"),
        ("seed: !!set {a}", "could not determine a constructor"),
        ('name: "\\ud800"', "is no text"),
        ("runs: [{1: 2}]", "key 1 is not text"),
        ("? [a]\n: b", "key ['a'] is not text"),
    ],
)
def test_a_text_that_says_too_much_or_is_not_plain_is_refused_at_once(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ValueError, match="not plain YAML") as caught:
        read_yaml(tmp_path / "odd.yaml")
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - began < 5


def test_aliases_that_say_little_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {mean: &same [0.5, 0.5, 0.5], std: *same}")
    assert load_config([tmp_path / "a.yaml"]).data.std == (0.5, 0.5, 0.5)
    deep = {"a": [[[[[["x"]]]]]]}
    assert parse_override("a=[[[[[[x]]]]]]") == deep


def test_types_that_are_said_fit_what_is_written() -> None:
    assert parse_override("a=!!float 5") == {"a": 5.0}
    assert parse_override("a=!!str 5") == {"a": "5"}
    assert parse_override("a=2001-02-03") == {"a": "2001-02-03"}


def test_only_regular_files_of_a_megabyte_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("#" * 1_000_001)
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "good.yaml").write_text("seed: 5")
    (tmp_path / "link.yaml").symlink_to("good.yaml")
    assert load_config([tmp_path / "link.yaml"]).seed == 5
    names = {
        "pipe.yaml": "no regular file",
        "/dev/zero": "no regular file",
        "loop.yaml": "symbolic links",
        "large.yaml": "it has more than 1 MB",
        "a\0b.yaml": "null byte",
        f"{'x' * 300}.yaml": "File name too long",
    }
    for name, sentence in names.items():
        with pytest.raises(ValueError, match=f"cannot read config .*{sentence}"):
            load_config([tmp_path / name])
        (tmp_path / "top.yaml").write_text(f"base: {name!r}" if "\0" not in name else 'base: "\\0"')
        with pytest.raises(ValueError, match=f"cannot read config .*{sentence}"):
            load_config([tmp_path / "top.yaml"])
    (tmp_path / "config.yaml").write_text("#" * 1_000_001)
    with pytest.raises(ValueError, match="it has more than 1 MB"):
        load_run_config(tmp_path)


@pytest.mark.parametrize("count", [1, 2])
def test_a_file_stands_on_so_many_files(tmp_path: Path, count: int) -> None:
    for at in range(60):
        names = ", ".join([f"f{at + 1}.yaml"] * count)
        (tmp_path / f"f{at}.yaml").write_text(f"base: [{names}]\nseed: {at}")
    (tmp_path / "f60.yaml").write_text("name: last")
    with pytest.raises(ValueError, match=r"f0\.yaml stands by its base on more than 50 files"):
        load_config([tmp_path / "f0.yaml"])
    last = 61 - MOST_FILES
    if count == 1:
        assert load_config([tmp_path / f"f{last}.yaml"]).seed == last


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e309"])
@pytest.mark.parametrize("key", [key for key, meaning in all_keys(Config) if meaning])
def test_what_is_no_finite_number_is_never_taken_for_none(key: str, text: str) -> None:
    with pytest.raises(ValueError, match=key.rpartition(".")[2]):
        load_config([], [f"{key}={text}"])


@pytest.mark.parametrize("digits", [30, 90])
@pytest.mark.parametrize("key", [key for key, meaning in all_keys(Config) if meaning])
def test_every_number_has_a_bound(key: str, digits: int) -> None:
    with pytest.raises(ValueError, match=key.rpartition(".")[2]):
        load_config([], [f"{key}={'9' * digits}5"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("curriculum.rounds=1000000000", "should be less than or equal to 5000"),
        ("run.threads=1000000000", "should be less than or equal to 512"),
        ("run.stall_seconds=1e15", "should be less than or equal to 1000000000"),
        (f"run.time_limit={'9' * 30}", "will not do"),
        ("run.time_limit=99999999999", "will not do"),
        ("run.time_limit=99999d", "is too long; the longest is 11574 days"),
        ("run.time_limit='9999999999:00'", "is too long"),
        (f"run.time_limit={'9' * 60}d", "is too long"),
        ('run.root="a\\0b"', "run.root = 'a\\x00b' will not do: a path has no zero characters"),
        (f"run.root={'x' * 300}", "a name in a path has at most 255 bytes"),
        (f"name={'x' * 300}", "name = 'xxx"),
        (f"method={'x' * 100_000}", "method = 'xxx"),
        (f"{'x' * 100_000}=1", "unknown key 'xxx"),
        (f"{'a.' * 30_000}b=1", "is not of the form key=value"),
    ],
)
def test_values_beyond_use_get_a_short_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config([], [override])
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_many_wrong_keys_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("".join(f"k{at}: 1\n" for at in range(2000)))
    with pytest.raises(ValueError, match=r"1,990 more keys are wrong$"):
        load_config([tmp_path / "a.yaml"])
