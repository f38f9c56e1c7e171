"""What is installed: the packages that go into a wheel, and the plugins that twistd finds."""

import configparser
from pathlib import Path

from setuptools import find_namespace_packages

from tests.service.scene import python

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = {
    "broker": "broker.service.mediator",
    "broker-resolver": "broker.service.resolver",
    "broker-terminal": "broker.service.terminal",
}
PRINT_PLUGINS = """\
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

for plugin in getPlugins(IServiceMaker):
    if plugin.module.startswith("broker."):
        assert callable(plugin.makeService)
        plugin.options()
        print(plugin.tapname, plugin.module)
"""


class PluginTests:
    """Twisted's commands offer the three roles."""

    def test_found(self, tmp_path: Path) -> None:
        """Each role is found by its name; its module has what twistd will ask for. ``twist`` lists
        the roles, also when it is called outside the checkout.
        """
        lines = python("-c", PRINT_PLUGINS, cwd=ROOT).stdout.splitlines()
        assert dict(line.split() for line in lines) == PLUGINS
        words = python("-m", "twisted", "--help", cwd=tmp_path).stdout.split()
        assert set(PLUGINS) <= set(words)


def test_packages() -> None:
    """The search that ``setup.cfg`` prescribes finds every directory of ``broker`` that holds a
    module or data, and that of the plugins, though it has no ``__init__.py``, which would hide
    Twisted, or our plugins. Neither the tests nor any other directory is found.
    """
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert config["options"]["packages"] == "find_namespace:"
    find = {name: value.split() for name, value in config["options.packages.find"].items()}
    packages = set(find_namespace_packages(str(ROOT), **find))
    files = [*ROOT.glob("broker/**/*.py"), *ROOT.glob("broker/**/*.sql")]
    needed = {".".join(file.relative_to(ROOT).parent.parts) for file in files}
    assert needed | {"twisted.plugins"} <= packages
    assert sorted(ROOT.glob("twisted/**/__init__.py*")) == []
    assert {name.split(".")[0] for name in packages} == {"broker", "twisted"}
    assert not [name for name in packages if {"__pycache__", "tests"} & set(name.split("."))]
    assert (ROOT / "broker" / "py.typed").exists()
    assert {"py.typed", "*.sql"} <= set(config["options.package_data"]["*"].split())
