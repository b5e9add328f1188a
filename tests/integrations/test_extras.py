import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("river", "river", "river"),
        ("sklearn", "skorch", "sklearn"),
        ("sklearn", "sklearn.utils", "sklearn"),
        ("lightning", "lightning.pytorch", "lightning"),
        ("accelerate", "accelerate", "accelerate"),
    ],
)
def test_an_adapter_without_its_package_names_the_extra(
    module: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"fptt.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ModuleNotFoundError
    with pytest.raises(ImportError, match=rf"{name} needs {package}: pip install 'fptt\[{extra}\]'"):
        importlib.import_module(name)
