"""Atomic writing, and hints for misspelt names."""

import pytest

from hypernet_d2.utils.files import atomic_write, check_exists, did_you_mean, similar_files


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "w") as file:
        file.write("half")
        file.flush()
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with atomic_write(path, "w") as file:
        file.write("new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    path = tmp_path / "none/file"
    with pytest.raises(OSError, match="cannot be written.*none/file"), atomic_write(path):
        pass


def test_the_nearest_name_is_given_if_there_is_one():
    assert did_you_mean("racoon_train", ["raccoon_train", "x"]) == "; did you mean 'raccoon_train'?"
    assert did_you_mean("racoon_train", ["x"]) == ""


def test_the_misspelt_part_of_a_path_is_found(tmp_path, monkeypatch):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances.json").write_text("")
    monkeypatch.chdir(tmp_path)
    expected = "; did you mean 'annotations/instances.json'?"
    assert similar_files("annotations/instance.json") == expected
    assert similar_files("annotation/instances.json") == "; did you mean 'annotations'?"
    assert similar_files(tmp_path / "annotatons") == f"; did you mean '{tmp_path}/annotations'?"
    assert similar_files("else/instances.json") == ""
    check_exists("annotations/instances.json")
    with pytest.raises(FileNotFoundError, match="instance.json: no such file; did you mean"):
        check_exists("annotations/instance.json")
