import pytest

from study.files import new_directory, replace_file


def test_replaced_file_keeps_its_content_if_writing_fails(tmp_path):
    file = tmp_path / "report.html"
    file.write_text("before")
    with pytest.raises(OSError, match="full"), replace_file(file) as draft:
        draft.write_text("half")
        raise OSError("full")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "before")]


def test_replaced_file_has_the_new_content(tmp_path):
    with replace_file(tmp_path / "report.html") as draft:
        draft.write_text("after")
        assert not (tmp_path / "report.html").exists()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "after")]


def test_new_directory_appears_whole(tmp_path):
    with new_directory(tmp_path / "studies" / "one") as draft:
        (draft / "journal.log").write_text("{}")
        assert not (tmp_path / "studies" / "one").exists()
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["one"]
    assert (tmp_path / "studies" / "one" / "journal.log").read_text() == "{}"


def test_new_directory_leaves_nothing_if_writing_fails(tmp_path):
    with pytest.raises(OSError, match="full"), new_directory(tmp_path / "one") as draft:
        (draft / "journal.log").write_text("{}")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
