"""`make check` finds every call that writes, replaces or removes files on its own."""

from __future__ import annotations

import pytest

from tests.checks.file_calls import find_calls, main


@pytest.mark.parametrize(
    "line",
    [
        "shutil.rmtree(folder)",
        "os.unlink(path)",
        "os.remove(path)",
        "path.unlink()",
        "path.rename(other)",
        "os.replace(a, b)",
        "path.replace(other)",
        "path.write_text('a')",
        "path.open('w')",
        "open(path, 'ab')",
        "open(path, mode='x')",
        "open(path, mode)",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "np.save(path, table)",
        "image.save(path)",
        "torch.save(state, path)",
        "save_file(tensors, path)",
        "profile.export_chrome_trace(str(path))",
        "SummaryWriter(folder)",
        "path.touch()",
        "tempfile.mkdtemp()",
        "table.tofile(path)",
        "shutil.copytree(a, b)",
        "os.link(a, b)",
        "with open_new(path) as file:\n    np.save(other, table)",
    ],
)
def test_a_call_is_found(line: str) -> None:
    assert len(list(find_calls("and_dist/somewhere.py", line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "path.read_text()",
        "path.open()",
        "path.open('rb')",
        "open(path)",
        "text.replace('a', 'b')",
        "replace(config, seed=1)",
        "os.open(path, os.O_RDONLY)",
        "trainer.save()",
        "items.remove(item)",
        "with open_new(path) as file:\n    np.save(file, table)",
        "with publish_files(places) as folder:\n    file = folder / 'a'\n    save_file(x, file)",
    ],
)
def test_what_only_looks_like_one_is_not(line: str) -> None:
    assert list(find_calls("and_dist/somewhere.py", line)) == []


def test_there_is_none_outside_the_modules_that_keep_the_rule() -> None:
    assert main() == 0
