"""Where the data folder is, known without building the settings: the same as when they are built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from livetape.errors import ConfigError
from livetape.settings import load_settings
from livetape.settings.places import SERVER_FILE, data_folder


@pytest.mark.parametrize("file", [None, "", 'data_dir = "from-file"', "port = 1", "[gateway]\nmax_sockets = 1"])
@pytest.mark.parametrize(
    "environ", [{}, {"LIVETAPE_DATA_DIR": "from-env"}, {"livetape_data_dir": "small"}, {"LIVETAPE_DATA_DIR": ""}]
)
@pytest.mark.parametrize("flag", [None, "from-flag", "/absolute", "~/home"])
def test_it_is_the_one_of_the_settings(
    tmp_path: Path, file: str | None, environ: Mapping[str, str], flag: str | None
) -> None:
    if file is not None:
        (tmp_path / "livetape.toml").write_text(file)
    settings = load_settings({"data_dir": flag}, environ, tmp_path).settings
    found = data_folder(flag, environ, tmp_path)
    assert found == settings.data_dir
    assert found / SERVER_FILE == settings.server_file


def test_a_named_file_counts_and_must_be_there(tmp_path: Path) -> None:
    named = tmp_path / "other.toml"
    named.write_text('data_dir = "d"')
    assert data_folder(None, {}, tmp_path, config=Path("other.toml")) == tmp_path / "d"
    assert data_folder(None, {"LIVETAPE_CONFIG": str(named)}, tmp_path) == tmp_path / "d"
    named.write_text("data_dir = ")
    for config in (Path("other.toml"), Path("absent.toml")):
        with pytest.raises(ConfigError) as ours:
            data_folder(None, {}, tmp_path, config=config)
        with pytest.raises(ConfigError) as theirs:
            load_settings({}, {}, tmp_path, config=config)
        assert str(ours.value) == str(theirs.value)


def test_other_faults_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "livetape.toml").write_text('port = "none"\nunknown = 1\n')
    assert data_folder(None, {"LIVETAPE_PORT": "x"}, tmp_path) == tmp_path / ".livetape"
