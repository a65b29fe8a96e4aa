from cluster import pictures as module
from cluster.pictures import write_pictures
from storage.config.source import WebDatasetConfig
from storage.sources import open_source


def test_without_fashion_mnist_digits_of_its_size_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DATA", tmp_path / "nowhere")
    folder = tmp_path / "pictures"
    assert "digits" in write_pictures(folder, num_pictures=30)
    source = open_source(WebDatasetConfig(kind="webdataset", path=f"{folder}/pictures-*.tar"))
    assert len(source.units()) == 12
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    write_pictures(folder, num_pictures=30)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    write_pictures(folder, num_pictures=5)
    assert len(list(folder.glob("*.tar"))) == 5
