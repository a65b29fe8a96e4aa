"""Labels in the files of others: export to Parquet, WebDataset and TinyViT's logits folder, and import of the last."""

from storage.interchange.commands import export_label_set, import_tinyvit_folder
from storage.interchange.export import ExportReport, export_labels
from storage.interchange.tinyvit_import import ImportReport, import_tinyvit

__all__ = ["ExportReport", "ImportReport", "export_label_set", "export_labels", "import_tinyvit", "import_tinyvit_folder"]
