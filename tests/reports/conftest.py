import pytest
import report_records

from demur.reports import write_reports


@pytest.fixture
def run_folder(tmp_path):
    """The records of a calibration, without reports."""
    return report_records.write_run(tmp_path)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Folders with reports, by kind of run."""
    folders = {}
    for kind in ("calibration", "evaluation"):
        folder = report_records.write_run(tmp_path_factory.mktemp(kind), kind=kind)
        write_reports(folder)
        folders[kind] = folder
    return folders
